"""`fork` from outside: of a running branch, of an idle one, and what becomes of a fork in which nothing runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import UserRepo

pytestmark = pytest.mark.shared  # what a fork holds

_STATE = "git log --format=%s; git status --short; cat src/app.py; ls"


def _listed(repo: UserRepo) -> dict[str, dict[str, Any]]:
    data = json.loads(repo.overlayrun("ls", "--json").out)
    return {item["branch"]: item for item in data["workspaces"]}


def test_a_running_branch_is_forked_as_it_is_now(repo: UserRepo) -> None:
    repo.write("src/app.py", "answer = 42\n")  # the user has not committed it
    repo.write(".git/info/exclude", ".env\n")
    repo.write(".env", "of the user's\n")
    before = repo.picture()
    script = "git rm -q tool.sh; git commit -qm own; echo 1 >one; echo agent >.env; echo ready; read _; echo late >late"
    with repo.started("-b", "b", "--", "sh", "-c", script) as run:
        run.expect("ready")
        done = repo.overlayrun("fork", "b", "-b", "twin")
        assert (done.code, done.err) == (0, "")
        assert done.out == (
            "branch twin: a fork of b, at snapshot 1\nstart something in it: overlayrun -b twin -- COMMAND\n"
        )
        item = _listed(repo)["twin"]
        assert (item["state"], item["target"], item["last_run"]) == ("idle", "main", None)
        assert item["change"] == {"files": 2, "insertions": 1, "deletions": 2}
        # Its source is at work: nobody merges the half of it unasked.
        queue = repo.overlayrun("queue").out
        assert "nothing has run in it since it was forked; as it is: overlayrun merge twin" in queue
        repo.overlayrun("gc", "--max-age", "0")
        assert repo.overlayrun("merge", "twin").code == 0
        run.type("go on")
        assert run.end() == 0
    # What the user has not committed does not come home by it, nor what the source did since.
    assert repo.show("main", "src/app.py") == "answer = 41\n"
    assert {"one"} == set(repo.files("main")) - {"README", "link", "src/app.py"}
    seen = repo.inside(f"{_STATE}; cat .env", branch="twin")
    assert (
        seen
        == "own\nsecond\nfirst\n M src/app.py\n?? one\nanswer = 42\nREADME\nlink\none\nsrc\nof the user's\n"
    )
    assert repo.show("b", "late") == "late\n"
    changed = {path for path, now in repo.picture().items() if before.get(path) != now}
    assert {path.removeprefix(f"{repo.root}/") for path in changed} <= {"one", ".git/index", ".git/ORIG_HEAD"}


def test_an_idle_branch_and_a_fork_are_forked_too(repo: UserRepo) -> None:
    repo.inside("echo 1 >one", "-m", "The task")
    data = json.loads(repo.overlayrun("fork", "b", "-b", "c", "--json").out)
    tip, record = repo.git("rev-parse", "b"), repo.records()
    assert data == {
        "schema": 1,
        "branch": "c",
        "id": record["c"]["id"],
        "source": "b",
        "number": 1,
        "tip": tip,
        "left_out": [],
        "notes": [],
        "start": "overlayrun -b c -- COMMAND",
    }
    assert [record["c"][name] for name in ("base", "stack", "prompt")] == [
        record["b"][name] for name in ("base", "stack", "prompt")
    ]
    assert repo.overlayrun("fork", "c", "-b", "d").code == 0
    assert repo.git("rev-parse", "c") == repo.git("rev-parse", "d") == tip
    # The chain goes on from the source's, and each has its own from there.
    assert repo.inside("cat one; echo 2 >two", branch="d") == "1\n"
    assert repo.snapshots("d")[1:] == repo.snapshots("c") == repo.snapshots("b")
    assert repo.overlayrun("restore", "d@{1}").code == 0
    assert repo.inside("ls", branch="d") == "README\nlink\none\nsrc\ntool.sh\n"


def test_a_fork_can_be_removed_unless_work_would_go_with_it(repo: UserRepo) -> None:
    repo.inside("echo 1 >one")
    for name in ("c", "d"):
        assert repo.overlayrun("fork", "b", "-b", name).code == 0
    assert repo.overlayrun("rm", "c").out == "removed c\n"
    assert repo.overlayrun("rm", "b").code == 0  # the fork has it all
    done = repo.overlayrun("rm", "d")
    assert done.code == 3
    assert "branch d holds what is nowhere else (1 reason)" in done.ours
    assert repo.inside("cat one", branch="d") == "1\n"


@pytest.mark.parametrize("is_dirty", [True, False])
def test_a_branch_that_changed_nothing_is_forked_at_its_start(repo: UserRepo, *, is_dirty: bool) -> None:
    if is_dirty:
        repo.write("src/app.py", "answer = 42\n")
    repo.inside("true")
    done = repo.overlayrun("fork", "b", "-b", "c")
    assert done.out.startswith("branch c: a fork of b, at the start\n")
    assert repo.inside("cat src/app.py", branch="c") == f"answer = {41 + is_dirty}\n"
    assert repo.overlayrun("merge", "c").out == "branch c changed nothing\n"


def test_a_branch_that_the_user_looks_at_is_forked_from_its_last_snapshot(repo: UserRepo) -> None:
    """Its own ref was kept in place then; the fork's stands at the snapshot, and moves on from there."""
    repo.inside("echo 1 >one")
    repo.git("worktree", "add", "--quiet", str(repo.home.parent / "look"), "b")
    repo.inside("echo 2 >two")
    assert repo.overlayrun("fork", "b", "-b", "c").code == 0
    assert {"one", "two"} <= set(repo.files("c"))
    repo.inside("echo 3 >three", branch="c")
    assert {"one", "two", "three"} <= set(repo.files("c"))
    assert "two" not in repo.files("b")


def test_in_a_repository_without_a_commit(empty_repo: UserRepo) -> None:
    empty_repo.inside("echo 1 >one")
    assert empty_repo.overlayrun("fork", "b", "-b", "main").code == 3
    assert empty_repo.overlayrun("fork", "b", "-b", "c").code == 0
    assert empty_repo.inside("cat one; echo 2 >two", branch="c") == "1\n"
    assert set(empty_repo.files("c")) == {"one", "two"}


def test_a_fork_that_can_not_be_started_stays(repo: UserRepo) -> None:
    repo.inside("echo 1 >one")
    repo.overlayrun("fork", "b", "-b", "c")
    place = repo.workspace("c") / "git"
    place.rename(place.with_name("away"))
    assert repo.sh("true", branch="c").code == 125
    place.with_name("away").rename(place)
    assert repo.inside("cat one", branch="c") == "1\n"


def test_a_fork_that_was_killed_on_its_way_is_made_ready_by_the_next_command(repo: UserRepo) -> None:
    """A record without its upper is all that a fork from inside is; here as if outside it got no further."""
    repo.inside("echo 1 >one")
    repo.overlayrun("fork", "b", "-b", "c")
    record = repo.records()["c"]
    path, upper = record.pop("path"), repo.workspace("c") / "upper"
    (upper / "one").unlink()
    path.write_text(json.dumps({**record, "inode": 0}))
    assert repo.overlayrun("snapshot", "c").out.endswith("snapshot 1 holds it\n")
    assert repo.inside("cat one", branch="c") == "1\n"


def test_names_that_are_taken(repo: UserRepo) -> None:
    repo.git("branch", "user/own")
    repo.inside("echo 1 >one")
    for name, said in {
        "b": "branch b is taken",
        "main": "branch main is taken",
        "user/own": "branch user/own is taken",
        "user": "branch 'user' can't be made: branch 'user/own' exists, and git allows only one of them",
        "-x": "not a usable branch name: '-x': it must start with a letter or a digit",
    }.items():
        done = repo.overlayrun("fork", "b", f"--branch={name}")
        assert (done.code, done.ours[0]) == (3, said)
    assert set(repo.records()) == {"b"}
    # A run meets the same, its tree frozen already.
    done = repo.overlayrun("-b", "user/own", "--dirty", "ignore", "--", "true")
    assert done.ours[0] == "branch user/own exists already, and no workspace belongs to it"
