"""What a batch shows of itself while it runs: news as they come, and a board of where every task stands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from overlayrun.batch.facts import Stop
from overlayrun.batch.plan import Plan, State
from overlayrun.batch.result import Result
from overlayrun.batch.task import Outcome, Task


class NewsKind(Enum):
    """What a piece of news is about."""

    STARTED = "started"
    ENDED = "ended"
    LOST = "lost"
    RETRY = "retry"  # the task will be tried again, from `until` on
    SKIPPED = "skipped"
    NOTE = "note"
    STOPPING = "stopping"  # nothing more is started
    OVER = "over"


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """Something that happened. text: what there is to say of it, for people; an agent may have written it."""

    kind: NewsKind
    at: float
    task: Task | None = None
    attempt: int | None = None
    host: str | None = None
    result: Result | None = None
    until: float | None = None
    text: str | None = None


class Phase(Enum):
    """Where a task stands, for people."""

    BLOCKED = "blocked"  # it waits for what it needs
    READY = "ready"  # it waits for a slot
    BACKING_OFF = "backing off"
    RUNNING = "running"
    OVER = "over"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A task on the board. attempt: number of the last, 0 for none. since: when it started. until: of a wait.

    outcome: of the last attempt that ended, or with OVER of the task.
    """

    task: Task
    phase: Phase
    outcome: Outcome | None
    detail: str | None
    attempt: int
    host: str | None
    since: float | None
    until: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """Where everything stands. Rows in the order of the file; cost of what is known."""

    run: str
    now: float
    began: float
    rows: tuple[Row, ...]
    jobs: int
    running: int
    over: int
    cost: float
    unpriced: int
    stop: Stop | None
    why: str | None


class Watcher(Protocol):
    """Whoever shows a batch to people. Called by the coordinator in its own thread; must be quick."""

    def hear(self, news: News) -> None:
        """Take a piece of news."""

    def tick(self, board: Callable[[], Board]) -> None:
        """Called at least four times a second; `board` gives the board of this moment."""


def board_of(plan: Plan, run: str, now: float) -> Board:
    """The board of a moment."""
    rows = tuple(_row(plan, task, now) for task in plan.tasks.values())
    facts = plan.facts
    return Board(
        run=run,
        now=now,
        began=facts.began,
        rows=rows,
        jobs=plan.settings.jobs,
        running=len(facts.running),
        over=sum(row.phase is Phase.OVER for row in rows),
        cost=facts.cost,
        unpriced=facts.unpriced,
        stop=facts.stop,
        why=facts.why,
    )


def _row(plan: Plan, task: Task, now: float) -> Row:
    verdict = plan.verdict(task)
    tries = plan.facts.histories[task.id].tries
    last = tries[-1] if tries else None
    is_running = last is not None and last.result is None
    waits = Phase.BACKING_OFF if verdict.ready > now else Phase.READY
    waiting = Phase.BLOCKED if verdict.blocked else waits
    phases = {State.RUNNING: Phase.RUNNING, State.OVER: Phase.OVER, State.WAITING: waiting}
    return Row(
        task=task,
        phase=Phase.RUNNING if is_running else phases[verdict.state],
        outcome=verdict.outcome,
        detail=verdict.detail,
        attempt=last.number if last else 0,
        host=last.host if last else None,
        since=(last.started or last.submitted) if last else None,
        until=verdict.ready if waiting is Phase.BACKING_OFF else None,
    )
