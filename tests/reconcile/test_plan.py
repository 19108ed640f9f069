"""Which prefixes are checked next: a few rounds find every bad candidate, and no good one is blamed."""

from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayrun.reconcile.plan import Odds, each_prefix, judge, prefixes

pytestmark = pytest.mark.shared

CHAINS = st.lists(st.booleans(), max_size=40)


def rounds_of(bad: list[bool], slots: int, *, each: bool = False) -> tuple[int, list[int], list[int]]:
    """Play the gate over a chain; rounds, and which candidates landed and failed.

    One that failed by itself is asked once more beside the others, as the gate does.
    """
    left, failing, odds = list(range(len(bad))), None, Odds()
    landed: list[int] = []
    failed: list[int] = []
    suspect: int | None = None
    count = 0
    while left or suspect is not None:
        count += 1
        free = slots - (suspect is not None)
        asked = []
        if left and free:
            reach = odds.reach(free)
            asked = each_prefix(len(left), free) if each else prefixes(len(left), failing, free, reach)
        assert len(asked) <= free
        verdict = judge({k: not any(bad[one] for one in left[:k]) for k in asked}, failing, each=each)
        odds = odds.after(passed=verdict.lands, failed=suspect is not None)
        landed += left[: verdict.lands]
        left, failing = left[verdict.lands :], verdict.failing
        if suspect is not None:
            failed.append(suspect)
            suspect = None
        if failing == 1:
            suspect, left, failing = left[0], left[1:], None
    return count, landed, failed


@given(CHAINS, st.integers(1, 8), st.booleans())
def test_good_ones_land_in_order_and_bad_ones_fail(bad: list[bool], slots: int, each: bool) -> None:  # noqa: FBT001  hypothesis gives it
    _, landed, failed = rounds_of(bad, slots, each=each)
    assert landed == [number for number, is_bad in enumerate(bad) if not is_bad]
    assert sorted(failed) == [number for number, is_bad in enumerate(bad) if is_bad]


@pytest.mark.parametrize(("slots", "bound"), [(2, 20), (8, 14)])
def test_sixty_branches_with_three_bad_ones_take_few_rounds(slots: int, bound: int) -> None:
    chance = random.Random(7)
    counts = []
    for _ in range(300):
        places = chance.sample(range(60), 3)
        counts.append(rounds_of([number in places for number in range(60)], slots)[0])
    assert statistics.quantiles(counts, n=20)[-1] <= bound  # 95 % of them


def test_a_longer_prefix_that_passes_covers_a_shorter_one_that_failed() -> None:
    assert judge({2: False, 4: True}, None).lands == 4
    assert judge({2: False, 4: True}, None).failing is None


def test_where_each_must_pass_it_does_not() -> None:
    verdict = judge({1: True, 2: False, 3: True}, None, each=True)
    assert (verdict.lands, verdict.failing) == (1, 1)


def test_a_failure_counts_from_what_has_landed() -> None:
    verdict = judge({3: True, 6: False}, None)
    assert (verdict.lands, verdict.failing) == (3, 3)


def test_after_many_failures_segments_are_short() -> None:
    assert Odds().reach(2) == 14
    assert Odds().after(passed=0, failed=20).reach(2) == 2


def test_a_known_failure_splits_the_gap_below_it() -> None:
    assert prefixes(60, 12, 2, 14) == [4, 8]
    assert prefixes(60, 2, 2, 14) == [1]
    assert prefixes(60, 1, 2, 14) == []
