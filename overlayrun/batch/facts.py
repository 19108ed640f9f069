"""What has happened in a run of a batch: the journal's records, folded in their order. No disk, no clock."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from overlayrun.batch.result import Result
from overlayrun.batch.task import Attempt, AttemptKey, Outcome, Task

Record = dict[str, Any]
"""One line of the journal: `event`, `at` in seconds since the epoch, and what the event has to say."""


class Stop(Enum):
    """Why a batch starts nothing more; a later one of this list replaces an earlier."""

    FAILURES = "too many tasks failed"
    BUDGET = "the budget is spent"
    MACHINE = "no machine can go on"
    FAIL_FAST = "a task failed"
    DEADLINE = "the deadline has passed"
    CANCELLED = "cancelled"

    @property
    def ends_what_runs(self) -> bool:
        """Whether attempts that run are ended too, or left to come to their own end."""
        return self in (Stop.FAIL_FAST, Stop.DEADLINE, Stop.CANCELLED)

    def is_harder_than(self, other: Stop | None) -> bool:
        """Whether this one replaces `other`."""
        return other is None or _HARDNESS[self] > _HARDNESS[other]


_HARDNESS: Final = {stop: hardness for hardness, stop in enumerate(Stop)}


@dataclass(slots=True)
class Try:
    """An attempt as the journal knows it. result: None while it runs, or nobody knows what became of it.

    counts: towards the task's attempts; one that the batch itself interrupted does not. order: place among
    all attempts that ended.
    """

    number: int
    host: str
    base: str
    submitted: float
    started: float | None = None
    result: Result | None = None
    counts: bool = True
    order: int = -1


@dataclass(slots=True)
class History:
    """Attempts of one task, oldest first. since: how many of them came before the last `--rerun`."""

    tries: list[Try] = field(default_factory=list)
    since: int = 0

    @property
    def current(self) -> Sequence[Try]:
        """Those that decide on the task: the ones since it was last asked for."""
        return self.tries[self.since :]

    @property
    def is_open(self) -> bool:
        """Whether the last attempt has no result yet."""
        return bool(self.tries) and self.tries[-1].result is None


class Facts:
    """The state that follows from the records. `add` is the only way to change it."""

    __slots__ = (
        "_at_rest",
        "_ended",
        "_tasks",
        "_works",
        "began",
        "cost",
        "created",
        "faults",
        "fresh",
        "histories",
        "last_start",
        "limited",
        "running",
        "starts",
        "stop",
        "unpriced",
        "why",
    )

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = {task.id: task for task in tasks}
        self._at_rest = True
        self._works = False
        self._ended = 0
        self.histories: dict[str, History] = {task.id: History() for task in tasks}
        self.running: dict[AttemptKey, Try] = {}
        self.created: float | None = None  # when the run began first
        self.began = 0.0  # when it was last started or resumed
        self.stop: Stop | None = None
        self.why: str | None = None
        self.fresh = 0  # failures that ended before this one, in order, stopped an earlier start of the run
        self.faults: list[str | None] = []  # why attempts could not be made, until one was since the start
        self.cost = 0.0
        self.unpriced = 0
        self.last_start: float | None = None
        self.starts: defaultdict[str, list[float]] = defaultdict(list)  # by provider
        self.limited: dict[str, tuple[int, float]] = {}  # by provider: refusals in a row, time of the last

    def add(self, record: Record) -> None:
        """Take one record in; what a newer version wrote, or of unknown tasks, is passed over."""
        event, at = record["event"], record["at"]
        if event == "began":
            self._begin(at)
        elif event == "stopped":
            self.stop, self.why, self._at_rest = Stop[record["stop"]], record["why"], True
        elif event == "over":
            self._at_rest = True
        elif event == "rerun":
            for task in record["tasks"]:
                history = self.histories[task]
                history.since = len(history.tries)
        elif record.get("task") in self.histories:
            self._add_attempt(event, at, record)

    def _begin(self, at: float) -> None:
        self.created = at if self.created is None else self.created
        self.began = at
        self.stop = self.why = None
        self.faults, self._works = [], False
        # After a kill the failures before it count on; after a stop the user has seen them.
        self.fresh = self._ended if self._at_rest else self.fresh
        self._at_rest = False

    def _add_attempt(self, event: str, at: float, record: Record) -> None:
        key = record["task"], record["attempt"]
        if event == "submitted":
            attempt = Try(record["attempt"], record["host"], record["base"], at)
            self.histories[key[0]].tries.append(attempt)
            self.running[key] = attempt
            self.last_start = at
            self.starts[share_of(self._tasks[key[0]])].append(at)
        elif event == "started" and key in self.running:
            self.running[key].started = at
        elif event == "ended" and key in self.running:
            self._end(self.running.pop(key), record, at)

    def _end(self, attempt: Try, record: Record, at: float) -> None:
        result = Result.from_json(record["result"])
        attempt.result, attempt.counts, attempt.order = result, not record["interrupted"], self._ended
        self._ended += 1
        if attempt.counts:
            self._works = self._works or result.outcome is not Outcome.INFRA
            self.faults = [] if self._works else [*self.faults, result.detail]
        if result.cost is not None:
            self.cost += result.cost
        elif result.status is not None:
            self.unpriced += 1
        share = share_of(self._tasks[result.task])
        if result.outcome is Outcome.RATE_LIMITED:
            self.limited[share] = self.limited.get(share, (0, 0.0))[0] + 1, at
        elif attempt.counts:
            self.limited.pop(share, None)


def share_of(task: Task) -> str:
    """Whose rate a task takes from; "" for nobody's."""
    return task.provider or task.agent or ""


def began(at: float) -> Record:
    """The batch was started, or resumed."""
    return {"event": "began", "at": at}


def submitted(attempt: Attempt, host: str, at: float) -> Record:
    """An attempt is about to be given to a host: its number is used up."""
    return {**_of(attempt.key), "event": "submitted", "at": at, "host": host, "base": attempt.base}


def started(key: AttemptKey, at: float) -> Record:
    """Its command runs."""
    return {**_of(key), "event": "started", "at": at}


def ended(result: Result, at: float, *, interrupted: bool) -> Record:
    """An attempt is over. interrupted: by the batch's own end, so that it does not count."""
    key = result.task, result.attempt
    return {
        **_of(key),
        "event": "ended",
        "at": at,
        "interrupted": interrupted,
        "result": result.to_json(),
    }


def stopped(stop: Stop, why: str, at: float) -> Record:
    """Nothing more is started from here on."""
    return {"event": "stopped", "at": at, "stop": stop.name, "why": why}


def rerun(tasks: Sequence[str], at: float) -> Record:
    """These tasks begin anew, whatever they came to."""
    return {"event": "rerun", "at": at, "tasks": list(tasks)}


def over(status: int, at: float) -> Record:
    """The batch came to its end."""
    return {"event": "over", "at": at, "status": status}


def _of(key: AttemptKey) -> Mapping[str, Any]:
    return {"task": key[0], "attempt": key[1]}
