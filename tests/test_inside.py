"""What a command learns of its workspace, and may ask: status, fork, the note. One run for them all."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pytest
from conftest import UserRepo, copy_repo

from overlayrun.answers import Answers
from overlayrun.errors import UsageError
from overlayrun.fork import Forks, Wanted
from overlayrun.model import BranchName, TreeId
from overlayrun.workspace.record import Record

if TYPE_CHECKING:
    from pathlib import Path

_HEAVY: Final = {"click", "dataclasses", "pygit2", "psutil", "rich", "subprocess", "typing"}
# What was printed comes back as one JSON object; every command has its place in it.
_STORY: Final = """
import json, os, socket, subprocess, sys, time

def say(*words):
    done = subprocess.run(["overlayrun", *words], capture_output=True, text=True, check=False)
    return {"code": done.returncode, "out": done.stdout, "err": done.stderr}

def ask(line):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(os.environ["OVERLAYRUN_SOCKET"])
        client.sendall(line.encode() + b"\\n")
        with client.makefile() as answer:
            return answer.readline()

told = {"help": os.environ["OVERLAYRUN_HELP"], "note": open(os.environ["OVERLAYRUN_HELP"]).read()}
while not os.path.exists(os.environ["OVERLAYRUN_SOCKET"]):
    time.sleep(0.01)
told["before"] = say("status")
open("own", "w").write("own\\n")
subprocess.run(["git", "add", "own"], check=True)
subprocess.run(["git", "commit", "--quiet", "--message=Of its own"], check=True)
for number in range(60):
    open(f"new{number:02}", "w").write("1\\n")
open("odd\\x1b[31m", "w").write("odd\\n")
os.unlink("README")
open("src/app.py", "a").write("more = 1\\n")
told["fork"] = say("fork", "-b", "twin")
told["fork json"] = say("fork", "--json")
told["status"] = say("status")
told["status json"] = say("status", "--json")
told["imports"] = {}
for command in ("status", "fork"):
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    words = ["overlayrun", command, "--json"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=True)
    told["imports"][command] = done.stderr
names = ["twin", "main", "unborn", "taken", "meant", "../x", "-x", "a..b", "", "x" * 300, "refs/heads/x", "b/c"]
names += ["v1", "origin", "origin/new", "dev", "deadbeef"]
told["refused"] = {name: say("fork", f"--branch={name}") for name in names}
told["help text"] = say("fork", "--help")
told["surplus"] = say("status", "surplus")
told["other"] = say("fork", "other")
told["raw"] = [ask(json.dumps({"op": "fork", "branch": odd})) for odd in ([], {"a": 1}, True, "b\\nc")]
told["many"] = [say("fork", "--json")["code"] for _ in range(3)]
with open("left", "w") as file:
    file.write("late\\n")
print(json.dumps(told))
"""


@dataclass(frozen=True, slots=True)
class Story:
    """The run: what its command was told, and the repository after it."""

    repo: UserRepo
    told: dict[str, Any]
    before: dict[str, str]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, _repo_to_copy: Path) -> Story:
    place = tmp_path_factory.mktemp("inside")
    repo = copy_repo(_repo_to_copy, place)
    for name in ("taken", "meant"):
        repo.git("branch", name)
    repo.inside("true", "--into", "meant", branch="other")
    repo.git("branch", "-D", "meant")
    repo.git("tag", "v1")
    repo.git("update-ref", "refs/remotes/origin/dev", "HEAD")
    # HEAD of a second working tree names a branch that has no commit yet.
    repo.git("worktree", "add", "--quiet", "--detach", str(place / "tree"))
    repo.git("-C", str(place / "tree"), "checkout", "--quiet", "--orphan", "unborn")
    repo.write("src/app.py", "answer = 42\n")
    before = repo.refs()
    done = repo.overlayrun("-b", "b", "--", "/usr/bin/python3", "-c", _STORY)
    assert done.code == 0, str(done)
    return Story(repo, json.loads(done.out), before)


def test_the_note_says_where_the_command_is(story: Story) -> None:
    note = story.told["note"]
    assert story.told["help"] == "/run/overlayrun/control/AGENTS.md"
    base = story.repo.git("rev-parse", "--short=10", "main")
    assert f"Branch `b`, from commit {base} and the user's uncommitted changes." in note
    assert "It is meant for `main`, its target." in note
    assert str(story.repo.root) in note
    assert len(note.splitlines()) < 40
    assert all(f'{{"op": "{name}"' in note for name in ("snapshot", "status", "fork", "open", "close"))


def test_a_program_is_named_without_its_directory(story: Story) -> None:
    """Where people read; programs get all of it."""
    repo = story.repo
    assert repo.git("log", "-1", "--format=%s", "b").startswith("overlayrun: python3 -c ")
    assert "/usr/bin/python3" not in repo.git("log", "--format=%B", "b")
    row = next(line for line in repo.overlayrun("ls").out.splitlines() if line.startswith("b "))
    assert " python3 -c " in row
    assert "/usr/bin/python3 -c" not in row
    told = json.loads(repo.overlayrun("show", "b", "--json").out)["workspace"]
    assert told["last_run"]["command"][0] == "/usr/bin/python3"


def test_each_command_that_the_note_names_is_there(story: Story) -> None:
    named = {
        line.split("`")[1].split()[1]
        for line in story.told["note"].splitlines()
        if line[:3] == "- `" and "push" not in line
    }
    assert named - {"--"} == {"snapshot", "status", "fork"}


def test_status_before_anything_is_done(story: Story) -> None:
    said = story.told["before"]
    base = story.repo.git("rev-parse", "--short=10", "main")
    assert (said["code"], said["err"]) == (0, "")
    first, second, last = said["out"].splitlines()
    assert first == f"branch b from {base} with the user's uncommitted changes, for main"
    assert second.startswith("running for ")
    assert second.endswith(" s; no snapshot yet")
    assert last == "more: /run/overlayrun/control/AGENTS.md"


def test_status_tells_what_changed_by_the_last_snapshot(story: Story) -> None:
    said = story.told["status"]["out"].splitlines()
    assert "changed by then: 64 files, +63 -1 lines" in said
    assert said[3:5] == ["  D README", "  A new00"]
    assert "  and 14 more" in said
    assert story.told["status"]["err"] == ""


def test_status_as_json(story: Story) -> None:
    data = json.loads(story.told["status json"]["out"])
    record = story.repo.records()["b"]
    named = ("schema", "branch", "id", "target", "base", "dirty", "throwaway", "snapshots", "session")
    assert [data[name] for name in named] == [
        1,
        "b",
        record["id"],
        "main",
        record["base"],
        True,
        False,
        1,
        None,
    ]
    assert data["last_snapshot"]["commit"] == story.repo.snapshots()[-1]
    assert 0 <= data["last_snapshot"]["age"] < 600
    assert 0 <= data["running"] < 600
    assert data["change"] == {"files": 64, "insertions": 63, "deletions": 1}
    assert len(data["paths"]) == 50
    assert data["paths"][0] == {"change": "D", "path": "README"}


def test_a_fork_from_inside_is_a_branch_that_the_user_can_run(story: Story) -> None:
    said = story.told["fork"]
    assert (said["code"], said["err"]) == (0, "")
    assert said["out"] == (
        "branch twin: a fork of b, at snapshot 1\n"
        "start something in it, outside: overlayrun -b twin -- COMMAND\n"
    )
    data = json.loads(story.told["fork json"]["out"])
    assert data["branch"].startswith("overlay/b-")
    assert data["tip"] == story.repo.git("rev-parse", data["branch"]) == story.repo.git("rev-parse", "twin")
    seen = story.repo.inside(
        "ls; git log -1 --format=%s; git status --short | wc -l; cat src/app.py", branch="twin"
    )
    assert "new59" in seen
    assert "README" not in seen
    assert "left" not in seen
    assert "Of its own\n63\nanswer = 42\nmore = 1\n" in seen


def test_names_that_a_fork_can_not_have(story: Story) -> None:
    refused = story.told["refused"]
    assert {name: said["code"] for name, said in refused.items()} == dict.fromkeys(refused, 3)
    for name in ("twin", "main", "unborn", "taken", "meant", "v1", "origin/new", "dev", "deadbeef"):
        assert f"branch {name} " in refused[name]["err"], name
    for odd in story.told["raw"][:3]:
        assert "no text" in json.loads(odd)["error"]
    assert "not a usable branch name" in json.loads(story.told["raw"][3])["error"]


def test_forks_leave_the_users_refs_alone(story: Story) -> None:
    now = story.repo.refs()
    assert {name: now.get(name) for name in story.before} == story.before
    made = {name for name in now.keys() - story.before.keys() if name.startswith("refs/heads/")}
    assert {name for name in made if not name.startswith("refs/heads/overlay/b-")} == {
        "refs/heads/b",
        "refs/heads/twin",
    }
    # Those that gave no name: one, one for what it loads, three more.
    assert len(made) == 2 + 5


def test_what_an_agent_calls_at_every_step_loads_nothing_heavy(story: Story) -> None:
    for command, log in story.told["imports"].items():
        loaded = {line.rpartition("|")[2].strip() for line in log.splitlines()}
        assert "overlayrun.cli.inside_client" in loaded, command
        assert not _HEAVY & loaded, command


def test_the_odd_cases_are_clicks(story: Story) -> None:
    assert story.told["help text"]["out"].startswith("Usage: overlayrun fork")
    assert story.told["surplus"]["code"] == 2
    assert (story.told["other"]["code"], story.told["other"]["out"]) == (3, "")
    assert "from here only branch b can be forked" in story.told["other"]["err"]


def test_a_throwaway_tells_where_it_is_and_is_not_forked(repo: UserRepo) -> None:
    script = "sleep 0.3; overlayrun status; grep -c throwaway $OVERLAYRUN_HELP; overlayrun fork"
    done = repo.sh(script, "--rm", branch=None)
    assert done.code == 3
    assert done.out.startswith("throwaway from ")
    assert done.out.endswith("AGENTS.md\n2\n")
    assert "a throwaway run can't be forked" in done.ours


def test_a_command_has_a_budget_of_snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    """The count alone, as below."""
    taken: list[object] = []
    record = Record("id", BranchName("b"), "/", TreeId(""))
    answers = Answers(None, None, record, taken.append, None)  # type: ignore[arg-type]  # nothing else is asked
    monkeypatch.setattr(Answers, "asked", 1_000_000)
    assert "has asked for 1000000 snapshots" in answers.inside({"op": "snapshot", "message": "x"})[0]["error"]
    assert not taken


def test_a_run_makes_64_forks_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The count alone: making them takes longer than it tells."""
    monkeypatch.setattr(Forks, "made", 64)
    forks = Forks(None, None)  # type: ignore[arg-type]  # nothing is asked of them before the count
    with pytest.raises(UsageError, match="has made 64 forks"):
        forks.check(Wanted(None))
    monkeypatch.setattr(Forks, "made", 60)
    with pytest.raises(UsageError, match="and may make 64"):
        forks.check(Wanted(None, 5))
