"""What becomes of an attempt: every combination of how its parts ended has one outcome."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Final

import pytest

from overlayrun.batch.classify import End, Facts, classify
from overlayrun.batch.result import CheckResult
from overlayrun.batch.task import Outcome
from overlayrun.batch.transcript import Transcript

pytestmark = pytest.mark.shared

QUIET: Final = Transcript(agent="opencode")
SPOKE: Final = replace(QUIET, text="Done.\n")
GOOD: Final = Facts(end=End.ITSELF, status=0, transcript=SPOKE, printed=True, changed=True)
TRANSCRIPTS: Final = (
    Transcript(),
    QUIET,
    SPOKE,
    replace(SPOKE, error="it broke"),
    replace(SPOKE, rejected=("bash: rm",)),
    replace(SPOKE, rate_limited=True, error="429"),
    replace(SPOKE, rate_limited=True),
    replace(SPOKE, rejected=("bash: rm",), error="it broke", rate_limited=True),
)
CHECKS: Final = (None, *(CheckResult(command="true", status=code, seconds=1.0) for code in (0, 1, 124, 125)))
ALL: Final = [
    Facts(end=end, status=status, transcript=said, printed=printed, changed=changed, why=why, check=check)
    for end, status, said, printed, changed, why, check in product(
        End, (None, 0, 1, 137), TRANSCRIPTS, (False, True), (False, True), (None, "its words"), CHECKS
    )
]


def check(status: int) -> CheckResult:
    return CheckResult(command="make test", status=status, seconds=2.0)


@pytest.mark.parametrize(
    ("changes", "outcome", "detail"),
    [
        ({}, Outcome.OK, None),
        ({"check": check(0)}, Outcome.OK, None),
        ({"check": check(2)}, Outcome.CHECK_FAILED, "the check's exit status is 2"),
        ({"check": check(124)}, Outcome.TIMEOUT, "the check took too long: 2 s"),
        ({"check": check(125)}, Outcome.INFRA, "the check could not be started"),
        ({"changed": False}, Outcome.NO_CHANGE, None),
        ({"changed": False, "transcript": QUIET}, Outcome.EMPTY, None),
        ({"changed": False, "transcript": Transcript()}, Outcome.NO_CHANGE, None),
        ({"changed": False, "transcript": Transcript(), "printed": False}, Outcome.EMPTY, None),
        ({"status": 3}, Outcome.FAILED, "exit status 3"),
        ({"status": 124}, Outcome.FAILED, "exit status 124"),
        ({"status": 137, "why": "out of memory"}, Outcome.FAILED, "exit status 137: out of memory"),
        ({"transcript": TRANSCRIPTS[3]}, Outcome.FAILED, "it broke"),
        ({"status": 1, "transcript": TRANSCRIPTS[3]}, Outcome.FAILED, "exit status 1: it broke"),
        ({"transcript": TRANSCRIPTS[4]}, Outcome.REJECTED, "refused: bash: rm"),
        ({"status": 1, "transcript": TRANSCRIPTS[5]}, Outcome.RATE_LIMITED, "429"),
        ({"end": End.TIMEOUT, "status": 124, "transcript": TRANSCRIPTS[5]}, Outcome.RATE_LIMITED, "429"),
        ({"end": End.TIMEOUT, "status": 124, "why": "ended after 5 s"}, Outcome.TIMEOUT, "ended after 5 s"),
        ({"end": End.TIMEOUT, "status": 124}, Outcome.TIMEOUT, "it took too long"),
        ({"end": End.CANCELLED, "status": 143, "check": check(1)}, Outcome.CANCELLED, "cancelled"),
        ({"end": End.KILLED, "status": 137}, Outcome.INFRA, "its sandbox was killed"),
        ({"end": End.NOT_STARTED, "status": None, "why": "no room"}, Outcome.INFRA, "no room"),
        ({"end": End.NOT_RECORDED, "why": "the disk is full"}, Outcome.INFRA, "the disk is full"),
        ({"status": None}, Outcome.INFRA, "nobody knows how it ended"),
    ],
)
def test_each_end_has_its_outcome_and_its_words(
    changes: dict[str, object], outcome: Outcome, detail: str | None
) -> None:
    assert classify(replace(GOOD, **changes)) == (outcome, detail)  # type: ignore[arg-type]  # names of fields


def test_every_combination_has_one_outcome_of_an_attempt() -> None:
    possible = set(Outcome) - {Outcome.SKIPPED, Outcome.LOST}  # of what never was, and of what nobody saw
    seen = set()
    for facts in ALL:
        outcome, detail = classify(facts)
        assert (outcome, detail) == classify(replace(facts))
        assert detail is None or detail.strip()
        seen.add(outcome)
    assert seen == possible


def test_success_means_that_nothing_went_wrong() -> None:
    for facts in ALL:
        outcome, detail = classify(facts)
        if outcome in (Outcome.OK, Outcome.NO_CHANGE, Outcome.EMPTY):
            said = facts.transcript
            assert (facts.end, facts.status, detail) == (End.ITSELF, 0, None)
            assert (said.error, said.rejected, said.rate_limited) == (None, (), False)
            assert facts.check is None or facts.check.status == 0
            assert facts.changed == (outcome is Outcome.OK)


def test_a_failed_check_is_never_accepted_with_what_else_was() -> None:
    """A task may accept `rejected` or `failed`; its check still has to pass."""
    for facts in ALL:
        if facts.check is not None and facts.check.status == 1:
            assert classify(facts)[0] in (Outcome.CHECK_FAILED, Outcome.INFRA, Outcome.CANCELLED)
