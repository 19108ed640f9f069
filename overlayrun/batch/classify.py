"""What became of an attempt, told from how its parts ended. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from overlayrun.batch.result import CheckResult
from overlayrun.batch.task import Outcome
from overlayrun.batch.transcript import Transcript

_TIMED_OUT: Final = 124  # as timeout(1), and as a run of ours that was ended for its time
_OURS: Final = 125  # a run that could not be started


class End(Enum):
    """Why the command is over."""

    ITSELF = "itself"  # it exited, or a limit on its memory or disk ended it
    TIMEOUT = "timeout"  # overlayrun ended it: its time, or its silence, was too long
    CANCELLED = "cancelled"  # the user or the batch ended it
    NOT_STARTED = "not started"  # our fault or the machine's: no sandbox, no workspace
    NOT_RECORDED = "not recorded"  # it ran, but its snapshot failed
    KILLED = "killed"  # its sandbox died under it


_CONCLUDED: Final = {
    End.NOT_RECORDED: (Outcome.INFRA, "its snapshot failed"),
    End.NOT_STARTED: (Outcome.INFRA, "it could not be started"),
    End.CANCELLED: (Outcome.CANCELLED, "cancelled"),
    End.TIMEOUT: (Outcome.TIMEOUT, "it took too long"),
    End.KILLED: (Outcome.INFRA, "its sandbox was killed"),
}
"""Ends that say all, and their words where nobody has better ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of an attempt. status: the command's, as a shell shows it; None where it never started.

    why: what overlayrun said of the end, in words. printed: whether either stream has a byte beside blanks.
    changed: whether there is a tip. check: None where none ran.
    """

    end: End
    status: int | None
    transcript: Transcript
    printed: bool
    changed: bool
    why: str | None = None
    check: CheckResult | None = None


def classify(facts: Facts) -> tuple[Outcome, str | None]:
    """What became of it, and why in a few words (None where there is nothing to say).

    The first of these that holds, because each makes what follows mean nothing:

    1. its work is not recorded, it was not started, or it was cancelled;
    2. the check took too long, could not run, or failed: it runs only where all else was acceptable;
    3. the provider refused it for a while, also where that made it run out of time or fail;
    4. it took too long, or its sandbox was killed;
    5. the command failed, by its status or, where that is 0, by what the agent says;
    6. a permission was refused: it may have gone on, but not with all that it was asked for;
    7. it changed something; it said something; neither.
    """
    if facts.end in (End.NOT_RECORDED, End.NOT_STARTED, End.CANCELLED):
        return _concluded(facts)
    return _checked(facts.check) or _ended(facts) or _refused(facts.transcript) or _worked(facts)


def _concluded(facts: Facts) -> tuple[Outcome, str]:
    outcome, words = _CONCLUDED[facts.end]
    return outcome, facts.why or words


def _ended(facts: Facts) -> tuple[Outcome, str | None] | None:
    """What its end makes of it; None where it ended well."""
    said = facts.transcript
    if said.rate_limited:
        return Outcome.RATE_LIMITED, said.error or facts.why
    if facts.end is not End.ITSELF:
        return _concluded(facts)
    if facts.status is None:
        return Outcome.INFRA, facts.why or "nobody knows how it ended"
    if facts.status:
        return Outcome.FAILED, _failure(facts)
    return (Outcome.FAILED, said.error) if said.error else None


def _failure(facts: Facts) -> str:
    words = (f"exit status {facts.status}", facts.why, facts.transcript.error)
    return ": ".join(each for each in words if each)


def _checked(check: CheckResult | None) -> tuple[Outcome, str] | None:
    """What the check makes of it; None where it has nothing against it."""
    if check is None or check.status == 0:
        return None
    if check.status == _TIMED_OUT:
        return Outcome.TIMEOUT, f"the check took too long: {check.seconds:.0f} s"
    if check.status == _OURS:
        return Outcome.INFRA, "the check could not be started"
    return Outcome.CHECK_FAILED, f"the check's exit status is {check.status}"


def _refused(said: Transcript) -> tuple[Outcome, str] | None:
    return (Outcome.REJECTED, f"refused: {'; '.join(said.rejected)}") if said.rejected else None


def _worked(facts: Facts) -> tuple[Outcome, str | None]:
    if facts.changed:
        return Outcome.OK, None
    # A known agent's stream is never empty: what counts is whether it said or did anything.
    spoke = bool(facts.transcript.text.strip()) if facts.transcript.agent else facts.printed
    return (Outcome.NO_CHANGE if spoke else Outcome.EMPTY), None
