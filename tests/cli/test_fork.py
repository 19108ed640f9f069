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
    assert seen == "own\nsecond\nfirst\n M src/app.py\n?? one\nanswer = 42\nREADME\nlink\none\nsrc\nagent\n"
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
        "forks": [{"branch": "c", "id": record["c"]["id"]}],
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


def test_a_fork_without_its_files_gets_them_from_its_snapshot(repo: UserRepo) -> None:
    """A record without its upper is all that a fork is whose source holds too much to copy."""
    repo.inside("echo 1 >one")
    repo.overlayrun("fork", "b", "-b", "c")
    record = repo.records()["c"]
    path, upper = record.pop("path"), repo.workspace("c") / "upper"
    (upper / "one").unlink()
    path.write_text(json.dumps({**record, "inode": 0}))
    assert repo.overlayrun("snapshot", "c").out.endswith("snapshot 1 holds it\n")
    assert repo.inside("cat one", branch="c") == "1\n"


def test_a_fork_that_went_through_a_power_cut_is_rebuilt(repo: UserRepo) -> None:
    """Its copies may not have reached the disk: as if another boot had made them, and no flush had ended."""
    repo.inside("echo 1 >one")
    repo.overlayrun("fork", "b", "-b", "c", "-n", "2")
    for name, is_flushed in (("c-1", False), ("c-2", True)):
        record = repo.records()[name]
        path, place = record.pop("path"), repo.workspace(name)
        (place / "upper/one").write_text("torn")
        (place / "synced").unlink(missing_ok=True)
        if is_flushed:
            (place / "synced").write_text("another 0")
        path.write_text(json.dumps({**record, "filled": "another"}))
    done = repo.overlayrun("ls")
    assert "branch c-1 went through a power cut" in done.err
    assert "c-2 went" not in done.err
    assert repo.inside("cat one", branch="c-1") == "1\n"
    assert (repo.workspace("c-1") / "kept/1/upper/one").read_text() == "torn"
    assert repo.overlayrun("ls").err == ""


def test_several_at_once(repo: UserRepo) -> None:
    repo.inside("echo 1 >one")
    repo.git("branch", "taken-2")
    done = repo.overlayrun("fork", "b", "-n", "3", "--branch=taken")
    assert (done.code, done.ours[0]) == (3, "branch taken-2 is taken")
    assert set(repo.records()) == {"b"}
    assert not list(repo.state.glob("workspaces/.*"))
    done = repo.overlayrun("fork", "b", "-n", "3", "-b", "c")
    assert done.out.splitlines()[1:] == [
        "branch c-2: a fork of b, at snapshot 1",
        "branch c-3: a fork of b, at snapshot 1",
        "start something in each: overlayrun -b NAME -- COMMAND",
    ]
    made = json.loads(repo.overlayrun("fork", "b", "-n", "2", "--json").out)["forks"]
    assert all(each["branch"].startswith("overlay/b-") for each in made)
    assert {repo.git("rev-parse", name) for name in repo.records()} == {repo.git("rev-parse", "b")}
    assert repo.overlayrun("fork", "b", "-n", "65").ours[0] == "65 forks can't be made at once"
    assert repo.overlayrun("fork", "b", "-n", "0").code == 2
    (repo.workspace("c-1") / "upper/one").write_text("2\n")
    assert repo.inside("cat one", branch="c-2") == "1\n"


def test_forks_from_several_terminals_at_once(repo: UserRepo) -> None:
    repo.inside("echo 1 >one")
    with (
        repo.started("fork", "b", "-n", "5") as first,
        repo.started("fork", "b", "-n", "5") as second,
        repo.started("fork", "b", "-b", "same") as third,
        repo.started("fork", "b", "-b", "same") as fourth,
    ):
        codes = [each.end() for each in (first, second, third, fourth)]
        assert sorted(codes) == [0, 0, 0, 3], [each.text() for each in (first, second, third, fourth)]
        assert any("branch same is taken" in each.text() for each in (third, fourth))
    assert len(repo.records()) == 1 + 5 + 5 + 1
    assert {repo.git("rev-parse", name) for name in repo.records()} == {repo.git("rev-parse", "b")}
    assert not list(repo.state.glob("workspaces/.*"))


def test_a_tree_of_forks(repo: UserRepo) -> None:
    repo.inside("echo 1 >one")
    repo.inside("true", branch="other")
    for source, name in (("b", "b1"), ("b", "b2"), ("b1", "b11"), ("b11", "b111")):
        assert repo.overlayrun("fork", source, "-b", name).code == 0
    lines = [
        line.partition("  idle")[0].rstrip() for line in repo.overlayrun("ls", "--tree").out.splitlines()[1:]
    ]
    assert lines == ["b", "├ b1", "│ └ b11", "│   └ b111", "└ b2", "other"]
    assert repo.overlayrun("rm", "b1").code == 0
    told = {name: item["parent"] for name, item in _listed(repo).items()}
    assert told == {"b": None, "other": None, "b11": None, "b2": "b", "b111": "b11"}
    assert "(fork of a removed branch) b11  idle" in repo.overlayrun("ls", "--tree").out
    assert repo.overlayrun("diff", "b111").code == 0


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
