"""Publishing, to real remotes on disk. `gh` is a stand-in that records how it was called."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from overlayrun.batch.publish import (
    Allow,
    Publication,
    Published,
    State,
    branch_of,
    is_from_fork,
    open_pull_requests,
    publications,
    publish,
)
from overlayrun.batch.task import Outcome
from overlayrun.errors import HostError, StoreError, UsageError

from .batch_reports import RUN, ended, task

if TYPE_CHECKING:
    from conftest import UserRepo

pytestmark = pytest.mark.shared  # what is pushed

ENV: Final = {"HOME": "/nowhere"}


class World:
    """A repository with work of three tasks, and a bare remote."""

    def __init__(self, repo: UserRepo, place: Path) -> None:
        self.repo = repo
        self.base = repo.git("rev-parse", "HEAD")
        self.remote = repo.at(place / "remote.git")
        repo.git("clone", "--quiet", "--bare", str(repo.root), str(self.remote.root))
        repo.git("remote", "add", "origin", str(self.remote.root))
        self.work = self.made(one={"one.txt": "1"}, two={"two.txt": "2"}, three={"three.txt": "3"})
        self.before = self.remote.refs()

    def made(self, **tasks: dict[str, str]) -> list[Publication]:
        """Work of tasks, each a commit on the base with these files."""
        stream = ""
        for name, files in tasks.items():
            stream += f"commit refs/work/{name}\ncommitter A U Thor <a@u.invalid> 1700000000 +0000\n"
            stream += f"data {len(name)}\n{name}\nfrom {self.base}\n"
            stream += "".join(
                f"M 100644 inline {path}\ndata {len(text)}\n{text}\n" for path, text in files.items()
            )
        self.repo.raw_git("fast-import", "--quiet", data=stream.encode())
        tips = self.repo.git("rev-parse", *(f"refs/work/{name}" for name in tasks)).split()
        return [
            Publication(task=name, base=self.base, tip=tip, title=f"Task {name}", body=f"Do {name}")
            for name, tip in zip(tasks, tips, strict=True)
        ]

    def publish(self, *work: Publication, **options: Any) -> list[tuple[State, str | None]]:
        given: dict[str, Any] = {"environ": ENV, **options}
        found = publish(str(self.repo.root / ".git"), "origin", "agents/", work or self.work, **given)
        assert [each.branch for each in found] == [f"agents/{each.task}" for each in work or self.work]
        return [(each.state, each.detail) for each in found]

    def pushed(self) -> dict[str, str]:
        """Refs that came; those that were there have not moved."""
        now = self.remote.refs()
        assert {name: now[name] for name in self.before} == self.before
        return {name: oid for name, oid in now.items() if name not in self.before}

    def on_remote(self, **branches: str) -> None:
        for name, oid in branches.items():
            self.repo.git("push", "--quiet", "origin", f"{oid}:refs/heads/agents/{name}")
        self.before = self.remote.refs()

    def hook(self, name: str, script: str) -> None:
        path = self.remote.root / "hooks" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)


@pytest.fixture
def world(repo: UserRepo, tmp_path: Path) -> World:
    return World(repo, tmp_path)


def test_each_task_is_a_branch_below_the_prefix_and_nothing_else_is_pushed(world: World) -> None:
    world.repo.git("tag", "-a", "-m", "a tag", "v1", world.work[0].tip)
    world.repo.git("config", "push.followTags", "true")
    assert world.publish() == [(State.PUBLISHED, None)] * 3
    assert world.pushed() == {f"refs/heads/agents/{each.task}": each.tip for each in world.work}
    assert world.publish() == [(State.THERE, None)] * 3


def test_a_branch_with_another_commit_does_not_move_and_keeps_no_other(world: World) -> None:
    one, _, three = world.work
    world.on_remote(one=one.tip, two=one.tip)
    refused = (State.REFUSED, f"the remote's branch holds another commit: {one.tip[:10]}")
    assert world.publish() == [(State.THERE, None), refused, (State.PUBLISHED, None)]
    assert world.pushed() == {"refs/heads/agents/three": three.tip}


def test_of_two_tasks_of_one_name_the_first_is_published(world: World) -> None:
    one, two, _ = world.work
    refused = (State.REFUSED, "another task is published as that")
    assert world.publish(one, replace(two, task="one")) == [(State.PUBLISHED, None), refused]
    assert world.pushed() == {"refs/heads/agents/one": one.tip}


def test_a_branch_made_meanwhile_is_not_moved(world: World) -> None:
    """Between our look and our push somebody makes the branch, even with a commit that ours is on top of."""
    world.hook("pre-receive", "exit 0")
    one = world.work[0]
    hooks = world.repo.root / ".git/hooks/pre-push"
    hooks.parent.mkdir(exist_ok=True)
    hooks.write_text(
        f"#!/bin/sh\nexec git --git-dir='{world.remote.root}' update-ref refs/heads/agents/one {one.base}\n"
    )
    hooks.chmod(0o755)
    found = world.publish()
    assert [state for state, _ in found] == [State.REFUSED, State.PUBLISHED, State.PUBLISHED]
    assert world.remote.git("rev-parse", "agents/one") == one.base


def test_what_the_remote_refuses_is_refused_alone(world: World) -> None:
    world.hook("update", 'case $1 in */two) echo "not $1" >&2; exit 1;; esac')
    assert world.publish() == [
        (State.PUBLISHED, None),
        (State.REFUSED, "[remote rejected] (hook declined)"),
        (State.PUBLISHED, None),
    ]
    assert sorted(world.pushed()) == ["refs/heads/agents/one", "refs/heads/agents/three"]


def test_a_branch_in_the_way_is_told(world: World) -> None:
    world.remote.git("update-ref", "refs/heads/agents", world.base)
    found = world.publish()
    assert {state for state, _ in found} == {State.REFUSED}
    assert world.remote.git("for-each-ref", "refs/heads/agents/") == ""


def test_a_remote_that_is_not_there_is_an_error_without_its_password(world: World) -> None:
    where = "https://user:secret123@localhost:1/x.git"
    with pytest.raises(StoreError) as caught:
        publish(str(world.repo.root / ".git"), where, "agents", world.work, environ=ENV)
    assert "secret123" not in f"{caught.value.brief} {caught.value.details}"


def test_many_are_pushed_in_parts_and_one_by_one_where_the_remote_can_no_better(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overlayrun.batch.publish._AT_ONCE", 2)
    world.remote.git("config", "receive.advertiseAtomic", "false")
    assert world.publish() == [(State.PUBLISHED, None)] * 3
    assert world.publish() == [(State.THERE, None)] * 3


def test_files_that_ci_runs_are_not_published_unasked(world: World) -> None:
    (evil,) = world.made(evil={".github/workflows/steal.yml": "on: push\n", "fine.txt": "fine\n"})
    (found,) = world.publish(evil)
    words = "it changes what CI runs with the project's secrets: .github/workflows/steal.yml"
    assert found == (State.REFUSED, words)
    assert world.pushed() == {}
    assert world.publish(evil, allow=[Allow.CI_FILES]) == [(State.PUBLISHED, None)]


@pytest.mark.parametrize(
    "prefix", ["", "/", "-x", "a..b", "refs/heads", "a b", "a.lock", "a//b", "../x", "@{-1}", "HEAD"]
)
def test_a_prefix_that_is_none_is_refused(prefix: str) -> None:
    with pytest.raises(UsageError):
        branch_of(prefix, "task")
    with pytest.raises(UsageError):
        publish("/nowhere", "origin", prefix, [published("one").publication], environ=ENV)


def test_prefixes_may_have_parts() -> None:
    assert branch_of("ci/agents/", "fix-1") == "ci/agents/fix-1"


@pytest.mark.parametrize("remote", ["", "--upload-pack=touch ran", "ext::sh -c touch% ran", "a\nb"])
def test_a_remote_that_is_an_option_or_a_program_is_refused(remote: str) -> None:
    with pytest.raises(UsageError):
        publish("/nowhere", remote, "agents", [published("one").publication], environ=ENV)


def pull_request(ours: Any, theirs: Any) -> dict[str, Any]:
    return {"repository": {"id": ours}, "pull_request": {"head": {"repo": theirs and {"id": theirs}}}}


def after_run(ours: int, theirs: int) -> dict[str, Any]:
    return {"repository": {"id": ours}, "workflow_run": {"head_repository": {"id": theirs}}}


@pytest.mark.parametrize(
    ("name", "event", "expected"),
    [
        ("push", {"repository": {"id": 1}}, False),
        ("issue_comment", {"repository": {"id": 1}}, False),
        ("pull_request", pull_request(1, 1), False),
        ("pull_request", pull_request(1, 2), True),
        ("pull_request_target", pull_request(1, 2), True),
        ("pull_request_target", pull_request(1, None), True),  # the fork is deleted
        ("pull_request", pull_request(None, None), True),
        ("pull_request", [], True),
        ("workflow_run", after_run(1, 1), False),
        ("workflow_run", after_run(1, 2), True),
    ],
)
def test_a_fork_is_known_by_github_s_event(
    tmp_path: Path, name: str, event: object, *, expected: bool
) -> None:
    (tmp_path / "event.json").write_text(json.dumps(event))
    environ = {"GITHUB_EVENT_NAME": name, "GITHUB_EVENT_PATH": str(tmp_path / "event.json")}
    assert is_from_fork(environ) == expected


def test_an_event_that_can_not_be_read_may_be_a_fork_s(tmp_path: Path) -> None:
    (tmp_path / "event.json").write_text("[" * 100_000)
    for path in ("event.json", "none"):
        assert is_from_fork({"GITHUB_EVENT_NAME": "pull_request", "GITHUB_EVENT_PATH": str(tmp_path / path)})
    assert is_from_fork({"CI_MERGE_REQUEST_PROJECT_ID": "1", "CI_MERGE_REQUEST_SOURCE_PROJECT_ID": "2"})
    assert not is_from_fork({"CI_MERGE_REQUEST_PROJECT_ID": "1", "CI_MERGE_REQUEST_SOURCE_PROJECT_ID": "1"})
    assert not is_from_fork({})


def test_nothing_is_published_for_a_fork_unasked(world: World, tmp_path: Path) -> None:
    (tmp_path / "event.json").write_text(json.dumps(pull_request(1, 2)))
    environ = {"GITHUB_EVENT_NAME": "pull_request_target", "GITHUB_EVENT_PATH": str(tmp_path / "event.json")}
    with pytest.raises(UsageError, match="fork"):
        world.publish(environ=environ)
    assert world.pushed() == {}
    assert world.publish(environ=environ, allow=[Allow.FORK]) == [(State.PUBLISHED, None)] * 3


def test_what_succeeded_is_published_and_of_judged_tasks_the_winner() -> None:
    key = "ghp_" + "a1B2" * 9
    reports = [
        ended(
            task("good", prompt=f"\nFix it with {key}\nand more"), Outcome.OK, Outcome.TIMEOUT, tip="1" * 40
        ),
        ended(task("same"), Outcome.NO_CHANGE, tip=None),
        ended(task("bad"), Outcome.CHECK_FAILED, tip="2" * 40),
        ended(task("x-1", group="x", judge="score"), Outcome.OK, tip="3" * 40, winner=False),
        ended(task("x-2", group="x", judge="score"), Outcome.OK, tip="4" * 40, winner=True),
        ended(task("conflict"), Outcome.OK, tip="5" * 40, landing="conflict"),
        ended(task("never"), Outcome.SKIPPED),
    ]
    found = publications(reports)
    assert [(each.task, each.tip[0]) for each in found] == [("good", "1"), ("x-2", "4")]
    assert [each.title for each in found] == ["Fix it with [masked]", f"Batch {RUN}: x-2"]
    assert key not in found[0].body


GH: Final = """\
#!/bin/sh
n=$(ls "$LOG" | wc -l)
{ printf '%s\\n' "$@"; echo --; pwd; cat; } > "$LOG/$n"
case $* in
*head=agents/two*) echo 'a pull request for branch "agents/two" into branch "main" already exists:' >&2
  echo 'https://github.com/o/r/pull/7' >&2; exit 1;;
*head=agents/bad*) echo 'GraphQL: something with https://u:secret@h in it' >&2; exit 1;;
esac
echo; echo "https://github.com/o/r/pull/1$n"
"""


@pytest.fixture
def gh(tmp_path: Path) -> dict[str, str]:
    """Environment in which `gh` is a stand-in that writes each call to a file."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "log").mkdir()
    (tmp_path / "bin/gh").write_text(GH)
    (tmp_path / "bin/gh").chmod(0o755)
    return {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "LOG": str(tmp_path / "log")}


def published(task: str, state: State = State.PUBLISHED, **values: str) -> Published:
    work = Publication(**{"task": task, "base": "a" * 40, "tip": "b" * 40, "title": "-t `x` @all", **values})
    return Published(publication=work, branch=f"agents/{task}", state=state)


def test_pull_requests_are_opened_up_to_the_cap(
    gh: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", gh["PATH"])
    body = "@everyone ```\n</details> ghp_" + "a1B2" * 9 + "\ud800"
    work = [
        published("no", State.REFUSED),
        published("one", body=body),
        published("two"),
        published("bad"),
        published("three", State.THERE),
        published("four"),
    ]
    found = open_pull_requests(str(tmp_path), work, "main", 2, environ=gh)
    assert [each.pull_request for each in found] == [
        None,
        "https://github.com/o/r/pull/10",
        "https://github.com/o/r/pull/7",
        None,
        "https://github.com/o/r/pull/13",
        None,
    ]
    assert found[3].detail == "no pull request: GraphQL: something with https://u:[masked]@h in it"
    argv, _, rest = (tmp_path / "log/0").read_text().partition("--\n")
    assert argv.split("\n") == [
        *("pr", "create", "--head=agents/one", "--base=main", "--body-file=-", "--title=-t `x` @all", "")
    ]
    where, _, shown = rest.partition("\n")
    assert where == str(tmp_path)
    assert shown == (
        "Made by task `one` of a batch of agents, from aaaaaaaaaa.\n\n"
        "````text\n@everyone ```\n</details> [masked]?\n````\n"
    )
    assert len(list((tmp_path / "log").iterdir())) == 4


def test_without_gh_there_are_no_pull_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="gh"):
        open_pull_requests(str(tmp_path), [published("one")], "main", 1, environ={})
