"""Kill -9 of `reconcile`, at each step that changes the disk and at random times: the next one brings all home."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from itertools import count
from typing import Final

import pytest
from conftest import SHARE, UserRepo, wait_until

from reconcile.world import (
    agents,
    assert_delivered,
    assert_only_forward,
    assert_sound,
    landed,
    reconcile,
    renew,
)

_NAMES: Final = ("a", "b", "c")
_STEPS: Final = "rename,renameat,renameat2,link,linkat,fsync,syncfs,unlink,unlinkat,mkdir,mkdirat,rmdir,clone,clone3,vfork,pwrite64,ftruncate"
_MOST: Final = 300
_PARTS: Final = 2
_RANDOM_PARTS: Final = 4
_GROUPS: Final = 10
_IN_A_ROW: Final = 5
_CHECKS: Final = pytest.mark.parametrize("check", [(), ("--check", "true")], ids=["free", "checked"])


class Field:
    """Branches that are ready, and the two states that main may be in while they land."""

    def __init__(self, repo: UserRepo) -> None:
        self.repo = repo
        self._numbers = count()
        agents(repo, *_NAMES)
        repo.write("dir/old", "x\n")
        repo.commit("start", **dict.fromkeys(_NAMES, "start\n"))
        self.next()

    def next(self) -> None:
        """Let every branch go on: each changes, adds and keeps files."""
        number = next(self._numbers)
        self.old = self.repo.files("main")
        renew(
            self.repo,
            {
                name: {name: f"{name} {number}\n", f"new/{name}.{number % 7}": f"{number}\n"}
                for name in _NAMES
            },
        )
        brought = [self.repo.files(name) for name in _NAMES]
        changed = {
            path: what for files in brought for path, what in files.items() if self.old.get(path) != what
        }
        self.new = {**self.old, **changed}

    def assert_whole(self) -> bool:
        """Main is where it was or has everything; whether it has."""
        now = self.repo.files("main")
        assert now in (self.old, self.new)
        return now == self.new

    def recover(self, *args: str) -> None:
        """The next command lands what is left, and nobody can tell from the files that there was a kill."""
        done = reconcile(self.repo, *args)
        assert done.code == 0, str(done)
        assert self.repo.files("main") == self.new, str(done)
        assert_delivered(self.repo)
        assert_only_forward(self.repo)
        assert_sound(self.repo)


@pytest.fixture
def field(repo: UserRepo) -> Iterator[Field]:
    yield Field(repo)
    said = repo.overlayrun("doctor")
    assert "reconcile" not in said.out, said.out
    assert repo.overlayrun("queue", "--json").code == 0


def _killed_at(repo: UserRepo, step: int, *args: str) -> bool:
    """Reconcile with a kill at the n-th step of the process itself; whether it came that far."""
    log = repo.home.parent / "strace"
    command = [
        "strace",
        "-o",
        str(log),
        "-e",
        f"trace={_STEPS}",
        "-e",
        f"inject={_STEPS}:signal=SIGKILL:when={step}",
    ]
    done = subprocess.run(
        [*command, *repo.command("reconcile", *args)],
        cwd=repo.root,
        env=repo.env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode in (0, 1, -9, 137), done
    return "killed by SIGKILL" in log.read_text(errors="replace")


@_CHECKS
@pytest.mark.parametrize("part", [SHARE])
def test_a_kill_at_any_step_is_made_good_by_the_next_command(
    field: Field, part: int, check: tuple[str, ...]
) -> None:
    steps = 0
    for step in range(1 + part, _MOST, _PARTS):
        if not _killed_at(field.repo, step, *check):
            break
        steps += 1
        field.assert_whole()
        field.recover(*check)
        field.next()
    assert steps > 5


@_CHECKS
@pytest.mark.parametrize("part", range(SHARE, _RANDOM_PARTS, 2))
def test_kills_at_random_times_lose_nothing(field: Field, part: int, check: tuple[str, ...]) -> None:
    """Some hit the recovery from the one before."""
    dice = random.Random(f"{part} {check}")
    for _ in range(_GROUPS // 2):
        for _ in range(_IN_A_ROW):
            with field.repo.started("reconcile", *check) as running:
                _wait_or_end(running.process, dice.uniform(0.1, 0.9))
            if field.assert_whole() and dice.random() < 0.5:
                field.recover(*check)
                field.next()
        field.recover(*check)
        field.next()


def _wait_or_end(process: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()


@pytest.mark.shared
def test_a_kill_while_a_delivery_is_held_changes_nothing_of_the_users(field: Field) -> None:
    repo = field.repo
    repo.write("a", "mine\n")
    for step in range(5, 40, 5):
        _killed_at(repo, step)
        assert (repo.root / "a").read_text() == "mine\n"
        assert repo.files("main") == field.old
        assert repo.git("status", "--porcelain") == "M a"
    repo.git("checkout", "-q", "--", "a")
    field.recover()


def test_a_check_dies_with_the_reconciler(field: Field) -> None:
    repo = field.repo
    with repo.started("reconcile", "--check", repo.sleeper()) as running:
        running.expect("checking ")
        running.process.kill()
    wait_until(lambda: not repo.marked(), "the end of the checks")
    assert landed(reconcile(repo)) == list(_NAMES)
    assert "throwaway" not in repo.overlayrun("gc", "--dry-run").out
