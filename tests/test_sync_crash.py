"""Kill -9 at each step of a sync that changes the disk: the old state or the new one, nothing between, nothing lost."""

from __future__ import annotations

import subprocess
from typing import Final

import pytest
from conftest import SHARE, UserRepo

# Steps that change the disk, with the stride: strace counts each of them by itself.
_STEPS: Final = (("rename", 2), ("renameat2", 1), ("syncfs", 1), ("linkat", 2), ("unlink", 2), ("fsync", 4))
_MOST: Final = 400


def _killed_at(repo: UserRepo, call: str, step: int, *words: str) -> bool:
    """Run a command with a kill at the given step; whether it came to that."""
    inject = ["-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={step}"]
    log = repo.home.parent / "strace"
    subprocess.run(
        ["strace", "-o", str(log), *inject, *repo.command(*words)],
        cwd=repo.root,
        env={**repo.env, "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=60,
    )
    return "killed by SIGKILL" in log.read_text(errors="replace")


def _own_change(repo: UserRepo) -> list[str]:
    """What the branch changed since it last had all of main."""
    base = repo.git("merge-base", "main", "b")
    return repo.git("diff", "--name-only", base, "b").split()


@pytest.mark.parametrize(("call", "stride"), _STEPS)
def test_a_sync_killed_at_any_step_loses_nothing(repo: UserRepo, call: str, stride: int) -> None:
    repo.commit("start", **{".gitignore": "*.o\n", ".env.o": "host\n"})
    repo.write("README", "uncommitted\n")
    repo.inside(
        "echo w >work; git add work; git commit -qm work; echo u >loose; echo o >x.o; echo mine >.env.o"
    )
    repo.git("stash", "-q")
    steps = 0
    start, width = (1 + SHARE * stride, 2 * stride) if stride > 1 else (1, 1)  # what is rare is for both
    for step in range(start, _MOST, width):
        repo.commit("ahead", ahead=f"{step}\n")
        was_killed = _killed_at(repo, call, step, "sync", "b")
        before = repo.git("rev-parse", "main~1"), repo.git("rev-parse", "main")
        files = "work loose x.o .env.o README"
        out = repo.inside(
            f"cat {files}; git status --porcelain; git merge-base HEAD {before[1]}"
        ).splitlines()
        assert out[:-1] == ["w", "u", "o", "mine", "uncommitted", " M README", "?? loose"], step
        assert out[-1] in before, step
        assert _own_change(repo) in (["README", "loose", "work"], ["loose", "work"]), step
        assert repo.git("merge-base", "main", "b") == out[-1], step
        assert repo.overlayrun("sync", "b").code == 0, step
        assert repo.inside("cat ahead") == f"{step}\n", step
        if not was_killed:
            break
        steps += 1
    assert steps > 0
    repo.git("fsck", "--strict")


def test_a_snapshot_after_a_kill_in_the_middle_of_the_exchange_is_right(repo: UserRepo) -> None:
    """Any command finishes it, not a run alone."""
    repo.inside("echo w >work")
    repo.commit("ahead", ahead="a\n")
    before = repo.records()["b"]
    assert _killed_at(repo, "renameat2", 1, "sync", "b")
    assert repo.records()["b"]["base"] == repo.git("rev-parse", "main")
    assert (repo.workspace() / "upper").stat().st_ino == before["inode"]
    assert repo.overlayrun("snapshot", "b").code == 0
    assert repo.git("diff", "--name-only", "main", "b") == "work"


def test_a_restore_killed_at_any_step_loses_no_carried_file(repo: UserRepo) -> None:
    repo.commit("start", **{".gitignore": ".env\n"})
    repo.write(".env", "host\n")
    repo.inside("echo 1 >one; echo branch >.env")
    repo.inside("echo 2 >two")
    for step in range(1 + SHARE * 2, _MOST, 4):
        if not _killed_at(repo, "rename", step, "restore", "b@{1}"):
            break
        assert step < _MOST - 4
        assert repo.inside("cat .env one") == "branch\n1\n", step
    assert repo.inside("cat .env") == "branch\n"
