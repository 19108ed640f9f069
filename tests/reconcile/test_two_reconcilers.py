"""Several reconcilers on one target: every branch lands once, and whoever comes second sees no error."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Final

import pytest
from conftest import SHARE, Running, UserRepo

from reconcile.world import (
    agents,
    asked,
    assert_delivered,
    assert_only_forward,
    assert_sound,
    queue,
    renew,
    times_brought,
)

_NAMES: Final = ("a", "b", "c", "d", "e")
_ROUNDS: Final = 3


def _together(repo: UserRepo, *commands: list[str]) -> list[Running]:
    """Start them at the same moment and wait for all."""
    with ExitStack() as stack:
        running = [stack.enter_context(repo.started(*command)) for command in commands]
        for one in running:
            assert one.end() == 0, one.text()
    return running


def _told(running: list[Running], branch: str) -> int:
    """How many times somebody said that a branch is merged."""
    return sum(one.text().count(f"branch {branch} is merged: ") for one in running)


@pytest.mark.parametrize("reconcilers", [2 + SHARE])
@pytest.mark.parametrize(
    "check", [[], ["--check", "true"], ["--check", "true", "--check-each"]], ids=["free", "checked", "each"]
)
def test_each_branch_lands_once_and_is_told_once(repo: UserRepo, reconcilers: int, check: list[str]) -> None:
    agents(repo, *_NAMES)
    for number in range(_ROUNDS):
        start = repo.git("rev-parse", "main")
        renew(repo, {name: {name: f"{number}\n"} for name in _NAMES})
        running = _together(repo, *[["reconcile", *check]] * reconcilers)
        brought = {name: (times_brought(repo, start, name), _told(running, name)) for name in _NAMES}
        assert brought == dict.fromkeys(_NAMES, (1, 1)), [one.text() for one in running]
        assert not any("moved by somebody" in one.text() for one in running)
        assert set(queue(repo).values()) == {"landed"}
        assert_delivered(repo)
    assert_only_forward(repo)
    assert_sound(repo)


@pytest.mark.shared
def test_a_merge_by_name_in_between_is_one_of_them(repo: UserRepo) -> None:
    agents(repo, *_NAMES)
    for number in range(_ROUNDS):
        start = repo.git("rev-parse", "main")
        renew(repo, {name: {name: f"{number}\n"} for name in _NAMES})
        check = ["--check", "true"] if number % 2 else []
        running = _together(
            repo, ["reconcile", *check], ["merge", "c", "e"], ["reconcile", *check], ["merge", "e"]
        )
        brought = {name: (times_brought(repo, start, name), _told(running, name)) for name in _NAMES}
        assert brought == dict.fromkeys(_NAMES, (1, 1)), [one.text() for one in running]
        assert_delivered(repo)
    assert_only_forward(repo)
    assert_sound(repo)


@pytest.mark.shared
def test_two_that_give_the_same_branch_back_agree(repo: UserRepo) -> None:
    agents(repo, "bad", "good")
    with ExitStack() as stack:
        pair = [stack.enter_context(repo.started("reconcile", "--check", "test ! -e bad")) for _ in range(2)]
        codes = {one.end() for one in pair}
    assert codes <= {0, 1}
    assert queue(repo) == {"bad": "failed", "good": "landed"}
    assert sum(one.text().count("branch good is merged") for one in pair) == 1
    assert_sound(repo)


@pytest.mark.shared
def test_two_targets_are_reconciled_side_by_side(repo: UserRepo) -> None:
    agents(repo, "a")
    repo.git("checkout", "-q", "-b", "release")
    agents(repo, "r")
    _together(repo, ["reconcile", "--into", "main"], ["reconcile", "--into", "release"])
    assert repo.show("main", "a") == "a\n"
    assert repo.show("release", "r") == "r\n"
    assert "r" not in repo.files("main")


@pytest.mark.shared
def test_two_that_try_a_held_delivery_again_deliver_it_once(repo: UserRepo) -> None:
    agents(repo, "a")
    repo.write("a", "in the way\n")
    assert repo.overlayrun("reconcile").code == 1
    (repo.root / "a").unlink()
    _together(repo, ["reconcile"], ["reconcile"], ["reconcile"])
    assert asked(repo, "queue")["waiting"] == 0
    assert_delivered(repo)
    assert_only_forward(repo)
