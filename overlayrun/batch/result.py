"""What an attempt, a task and a batch came to: values that journal, reports and exit code are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from overlayrun.batch.task import Outcome, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """How a check, or a judge, ended."""

    command: str
    status: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How one attempt ended. Times in seconds since the epoch, cost in US dollars, None for unknown.

    detail: why, in a few words. status: the command's, None where it was not started. tip: commit of what it
    made, None for nothing. ref: that keeps the tip. score: the judge's, more is better.
    """

    run: str
    task: str
    attempt: int
    outcome: Outcome
    started: float
    ended: float
    host: str
    branch: str
    base: str
    ref: str
    detail: str | None = None
    status: int | None = None
    tip: str | None = None
    files: int = 0
    insertions: int = 0
    deletions: int = 0
    cost: float | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    model: str | None = None
    session: str | None = None
    check: CheckResult | None = None
    score: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """How long it took, check included."""
        return self.ended - self.started

    def to_json(self) -> dict[str, Any]:
        """Plain values; a row of results.jsonl."""
        return {**asdict(self), "outcome": self.outcome.value, "notes": list(self.notes)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        check = CheckResult(**data["check"]) if data["check"] else None
        return cls(
            **{**data, "outcome": Outcome(data["outcome"]), "check": check, "notes": tuple(data["notes"])}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskReport:
    """What became of a task. results: of its attempts, oldest first; none where it was skipped.

    landing: None where nobody asked for a merge, else `landed`, `conflict`, `check failed`, `withheld` or
    `nothing to land`. winner: of several tries of one task, whether it is the one; None where it has none.
    """

    task: Task
    outcome: Outcome
    detail: str | None = None
    results: tuple[Result, ...] = ()
    landing: str | None = None
    landing_detail: str | None = None
    winner: bool | None = None

    @property
    def succeeded(self) -> bool:
        """Whether it counts as success, its landing included."""
        return self.outcome in self.task.accept and self.landing in (None, "landed", "nothing to land")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchReport:
    """A whole batch. tasks: in the order of the file. jobs: slots. status: exit code of `overlayrun batch`.

    why: what ended it early, None for nothing. cost: sum of what is known. unpriced: attempts whose cost
    nobody knows.
    """

    run: str
    version: str
    repository: str
    base: str
    target: str | None
    engine: str
    jobs: int
    started: float
    ended: float
    tasks: tuple[TaskReport, ...]
    status: int
    why: str | None = None
    cost: float = 0.0
    unpriced: int = 0
