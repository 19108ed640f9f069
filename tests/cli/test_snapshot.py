"""`snapshot`: of a running branch, of an idle one, from inside a workspace."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import UserRepo

pytestmark = pytest.mark.shared  # what is typed and told

_KEYS = {"schema", "branch", "commit", "tip", "number", "unchanged", "left_out", "notes"}
_WAITING = ["-b", "b", "--", "sh", "-c", "echo 1 >one; echo ready; cat"]


def _lean(repo: UserRepo, *words: str) -> tuple[Any, list[str]]:
    """Status of the lean client, None where it leaves the matter to click; and the modules that it loaded."""
    code = (
        "import sys; from overlayrun.cli.snapshot_client import snapshot_lean\n"
        "print('status', snapshot_lean(sys.argv[1:]), *sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=repo.root,
        env=repo.env,
        check=True,
        capture_output=True,
        text=True,
    )
    last = done.stderr.splitlines()[-1].split()
    return (None if last[1] == "None" else int(last[1])), last[2:]


@pytest.mark.by_both
def test_a_running_branch_is_committed_at_once(repo: UserRepo) -> None:
    with repo.started(*_WAITING) as run:
        run.expect("ready")
        done = repo.overlayrun("snapshot", "b", "-m", "Half done")
        assert (done.code, done.err) == (0, "")
        tip = repo.git("rev-parse", "b")
        assert done.out == f"branch b: snapshot 1 ({tip[:10]})\n"
        assert repo.git("log", "-1", "--format=%s", "b") == "Half done"
        assert repo.show("b", "one") == "1\n"


def test_nothing_changed_makes_none_unless_a_message_is_given(repo: UserRepo) -> None:
    with repo.started(*_WAITING) as run:
        run.expect("ready")
        repo.overlayrun("snapshot", "b")
        done = repo.overlayrun("snapshot")
        assert done.out == "branch b: nothing changed since the last snapshot; snapshot 1 holds it\n"
        assert repo.overlayrun("snapshot", "-m", "Milestone").out.startswith("branch b: snapshot 2 (")


@pytest.mark.parametrize("is_running", [True, False])
def test_json(repo: UserRepo, *, is_running: bool) -> None:
    if is_running:
        with repo.started(*_WAITING) as run:
            run.expect("ready")
            data = json.loads(repo.overlayrun("snapshot", "b", "--json", "--message=x").out)
    else:
        repo.inside("echo 1 >one; mkfifo pipe")
        data = json.loads(repo.overlayrun("snapshot", "b", "--json", "-m", "x").out)
        assert data["left_out"] == [{"path": "pipe", "reason": "a socket, FIFO or device"}]
    assert set(data) == _KEYS
    assert (data["schema"], data["branch"], data["unchanged"]) == (1, "b", False)
    assert data["commit"] == repo.snapshots()[0]


@pytest.mark.by_both
def test_an_idle_branch_can_get_one_too(repo: UserRepo) -> None:
    repo.inside("echo 1 >one")
    assert "nothing changed since the last snapshot" in repo.overlayrun("snapshot", "b").out
    assert re.match(
        r"branch b: snapshot 2 \([0-9a-f]{10}\)\n$", repo.overlayrun("snapshot", "b", "-m", "Done").out
    )
    assert repo.git("log", "-1", "--format=%s", f"{repo.snapshots()[0]}") == "Done"


@pytest.mark.by_both
def test_from_inside_it_is_this_branch(repo: UserRepo) -> None:
    script = "echo 1 >one; sleep 0.5; overlayrun snapshot -m 'From inside' && overlayrun snapshot other"
    done = repo.overlayrun("-b", "b", "--", "sh", "-c", script)
    assert done.code == 3
    assert done.out.startswith("branch b: snapshot 1 (")
    assert "from here only branch b can be snapshotted" in done.ours
    assert repo.git("log", "-1", "--format=%s", repo.snapshots()[-1]) == "From inside"


@pytest.mark.parametrize("name", ["ls", "log", "rm b", "merge b", "config"])
def test_from_inside_nothing_else_reaches_the_repository(repo: UserRepo, name: str) -> None:
    done = repo.sh(f"overlayrun {name}; echo code $?")
    assert done.out == "code 3\n"
    assert "this is a workspace (branch b), and its repository is out of reach here" in done.ours
    assert (
        "hint: type it in a terminal outside; here there is: overlayrun snapshot | status | fork" in done.ours
    )


def test_a_throwaway_says_that_it_takes_none(repo: UserRepo) -> None:
    done = repo.sh("echo 1 >one; sleep 0.5; overlayrun snapshot", "--rm", branch=None)
    assert done.code == 3
    assert "no snapshot was taken: a throwaway run takes no snapshots" in done.ours


def test_an_unknown_branch(repo: UserRepo) -> None:
    done = repo.overlayrun("snapshot", "nope")
    assert (done.code, done.out) == (3, "")
    assert done.ours == ["no workspace is called 'nope'", "hint: see: overlayrun ls"]


def test_the_lean_client_loads_nothing_heavy(repo: UserRepo) -> None:
    with repo.started(*_WAITING) as run:
        run.expect("ready")
        status, loaded = _lean(repo, "b", "-m", "lean")
    assert status == 0
    assert not {"click", "dataclasses", "pygit2", "psutil", "rich", "subprocess"} & set(loaded)
    assert repo.git("log", "-1", "--format=%s", repo.snapshots()[-1]) == "lean"


@pytest.mark.parametrize("words", [["--help"], ["b", "surplus"], ["--bogus"], ["-m"], ["b"], []])
def test_the_lean_client_leaves_the_rest_to_click(repo: UserRepo, words: list[str]) -> None:
    repo.inside("true")
    assert _lean(repo, *words)[0] is None
