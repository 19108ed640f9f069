"""Which attempt starts where, what is skipped, when to look again, and whether it is over.

Pure: no disk, no clock. `Plan` goes by `Facts` alone, so that a batch that was killed goes on as if it had
not been.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from graphlib import CycleError, TopologicalSorter
from typing import Final

from overlayrun.batch.engines.api import Host
from overlayrun.batch.facts import Facts, History, Stop, Try
from overlayrun.batch.result import Result
from overlayrun.batch.settings import Settings
from overlayrun.batch.task import AttemptKey, Outcome, Task
from overlayrun.batch.window import Room, Start, Window

_FAULTS: Final = 3
"""Attempts, the first of a batch, that could not be made, after which no more are tried."""


class State(Enum):
    """Where a task stands."""

    WAITING = "waiting"
    RUNNING = "running"
    OVER = "over"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known of a task. outcome: of its last attempt; with OVER it is the task's.

    ready: not before this moment is it tried. blocked: it waits for what it needs.
    """

    state: State
    outcome: Outcome | None = None
    detail: str | None = None
    ready: float = 0.0
    blocked: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now.

    stop: why nothing more is to be started, new with this decision; nothing else is decided then. wake: when
    to ask again even if nothing happens. note: what kept it from starting more.
    """

    starts: tuple[Start, ...] = ()
    cancels: tuple[AttemptKey, ...] = ()
    stop: Stop | None = None
    wake: float | None = None
    note: str | None = None
    over: bool = False


class Plan:
    """The tasks of a batch, and what follows for them from the facts."""

    def __init__(self, tasks: Sequence[Task], settings: Settings, facts: Facts) -> None:
        self.settings = settings
        self.facts = facts
        self.tasks = {task.id: task for task in tasks}
        self._groups: dict[str, list[Task]] = defaultdict(list)
        for task in tasks:
            self._groups[task.group].append(task)
        self._verdicts: dict[str, Verdict] = {}
        self._open = self._by_needs()  # those that are not over
        self._places = {task.id: (-task.priority, place) for place, task in enumerate(tasks)}
        self.update()

    def verdict(self, task: Task) -> Verdict:
        """Where a task stands, by the facts as they were at the last `update`."""
        return self._verdicts[task.id]

    def update(self) -> None:
        """Take the facts in. A task that is over stays as it is."""
        for task in self._open:
            self._verdicts[task.id] = self._find(task)
        self._open = [task for task in self._open if self.verdict(task).state is not State.OVER]

    @property
    def is_waiting(self) -> bool:
        """Whether a task is to be tried, now or later."""
        return any(self.verdict(task).state is State.WAITING for task in self._open)

    def is_judged(self, group: str) -> bool:
        """Whether the tasks of a group are tries of one, of which a judge picks the winner."""
        tries = self._groups[group]
        return len(tries) > 1 and tries[0].judge is not None

    def winner(self, group: str) -> Task | None:
        """The try of a judged group with the best score; of equals the first. None: no try was accepted."""
        scores = {}
        for task in self._groups[group] if self.is_judged(group) else ():
            result, verdict = self._last(task), self._verdicts[task.id]
            if verdict.outcome in task.accept and result is not None and result.score is not None:
                scores[task.id] = result.score
        return self.tasks[max(scores, key=scores.__getitem__)] if scores else None

    def failures(self) -> int:
        """Tasks that failed for good since the last stop; the tries of a judged group are one."""
        return sum(map(self._failures_of, self._groups))

    def decide(self, now: float, hosts: Sequence[Host], room: Room) -> Decision:
        """What to do now. room: of this machine, for what starts now.

        Whoever asks again has added to the facts what he did of it.
        """
        self.update()
        waiting = [task for task in self._open if self.verdict(task).state is State.WAITING]
        stop = self._stop(now, is_waiting=bool(waiting))
        if stop is not None and stop.is_harder_than(self.facts.stop):
            return Decision(stop=stop)
        running = self.facts.running
        if self.facts.stop is not None:
            cancels = tuple(running) if self.facts.stop.ends_what_runs else ()
            wake = None if self.facts.stop.ends_what_runs else self._deadline()
            return Decision(cancels=cancels, wake=wake, over=not running)
        window = Window(self.settings, self.facts, now, hosts, room)
        for task in sorted(waiting, key=lambda task: self._places[task.id]):
            if window.is_closed:
                break
            if not self.verdict(task).blocked:
                window.offer(task, self.verdict(task).ready)
        wakes = [at for at in (*window.wakes, self._deadline()) if at is not None]
        is_over = not running and not window.starts and not self._can_go_on(waiting)
        return Decision(tuple(window.starts), (), None, min(wakes, default=None), window.note, is_over)

    def _by_needs(self) -> list[Task]:
        """Tasks after what they need; those on a circle, or behind one, are over before they began."""
        known = {name: self._members(task) & self.tasks.keys() for name, task in self.tasks.items()}
        sorter = TopologicalSorter(known)
        try:
            sorter.prepare()
        except CycleError:
            pass  # what is on no circle comes all the same (graphlib, "prepare")
        order: list[str] = []
        while found := sorter.get_ready():
            order += found
            sorter.done(*found)
        for name in self.tasks.keys() - set(order):
            self._verdicts[name] = Verdict(State.OVER, Outcome.SKIPPED, "its needs wait for each other")
        return [self.tasks[name] for name in order]

    def _members(self, task: Task) -> set[str]:
        """Ids of what a task needs; with one try of a judged group all of them."""
        groups = [self.tasks[need].group for need in task.needs if need in self.tasks]
        judged = [member.id for group in groups if self.is_judged(group) for member in self._groups[group]]
        return {*task.needs, *judged}

    def _find(self, task: Task) -> Verdict:
        history = self.facts.histories[task.id]
        if history.is_open:
            return Verdict(State.RUNNING)
        if history.current:
            verdict = self._after(task, history)
            if verdict.state is State.OVER:
                return verdict
        else:
            verdict = Verdict(State.WAITING)
        return self._with_needs(task, verdict)

    def _after(self, task: Task, history: History) -> Verdict:
        """What an attempt that ended means for its task."""
        last = history.current[-1]
        assert last.result is not None
        outcome, detail = last.result.outcome, last.result.detail
        if not last.counts:
            return Verdict(State.WAITING, outcome, detail)
        counted = [each for each in history.current if each.counts]
        again = outcome in task.retry_on and outcome not in task.accept and len(counted) < task.attempts
        if not again or _is_spent(task, history.current):
            return Verdict(State.OVER, outcome, detail)
        return Verdict(State.WAITING, outcome, detail, self._ready(last, len(counted)))

    def _ready(self, last: Try, counted: int) -> float:
        result = last.result
        assert result is not None
        first = self.settings.hold if result.outcome is Outcome.RATE_LIMITED else self.settings.backoff
        return result.ended + self.settings.wait(first, counted, f"{result.task}/{last.number}")

    def _with_needs(self, task: Task, verdict: Verdict) -> Verdict:
        """The same, or that the task waits for what it needs, or that it is skipped for it."""
        for need in task.needs:
            other = self.tasks.get(need)
            if other is None or need not in self._verdicts:
                return _skipped(f"it needs {need}, which is not in this batch")
            has_judge = self.is_judged(other.group)
            asked = self._groups[other.group] if has_judge else [other]
            if any(self.verdict(each).state is not State.OVER for each in asked):
                return Verdict(verdict.state, verdict.outcome, verdict.detail, verdict.ready, blocked=True)
            if not (self.winner(other.group) if has_judge else _is_good(other, self.verdict(other))):
                return _skipped(f"it needs {need}, which {_fate(self.verdict(other))}")
        return verdict

    def _last(self, task: Task) -> Result | None:
        tries = self.facts.histories[task.id].current
        return tries[-1].result if tries else None

    def _failures_of(self, group: str) -> int:
        tasks = self._groups[group]
        ended = [task for task in tasks if self.verdict(task).state is State.OVER and self._is_fresh(task)]
        if self.is_judged(group):
            return int(len(ended) == len(tasks) and self.winner(group) is None)
        return sum(not _is_good(task, self.verdict(task)) for task in ended)

    def _is_fresh(self, task: Task) -> bool:
        """Whether it ran, and that ended after the last stop."""
        tries = self.facts.histories[task.id].current
        return bool(tries) and tries[-1].order >= self.facts.fresh

    def _stop(self, now: float, *, is_waiting: bool) -> Stop | None:
        settings, facts = self.settings, self.facts
        deadline = self._deadline()
        if deadline is not None and now >= deadline and (is_waiting or facts.running):
            return Stop.DEADLINE
        if settings.fail_fast and (is_waiting or facts.running) and self.failures():
            return Stop.FAIL_FAST
        return self._softer_stop() if is_waiting else None

    def _softer_stop(self) -> Stop | None:
        """What starts nothing more, and lets what runs come to its end."""
        settings, facts = self.settings, self.facts
        if len(facts.faults) >= _FAULTS:
            return Stop.MACHINE
        if settings.budget is not None and facts.cost >= settings.budget:
            return Stop.BUDGET
        if settings.max_failures is not None and self.failures() >= settings.max_failures:
            return Stop.FAILURES
        return None

    def _deadline(self) -> float | None:
        span = self.settings.deadline
        return None if span is None else self.facts.began + span

    def _can_go_on(self, waiting: Sequence[Task]) -> bool:
        """Whether one of them waits for a moment or a machine, and not for another that never comes."""
        return any(not self.verdict(task).blocked for task in waiting)


def _is_spent(task: Task, tries: Sequence[Try]) -> bool:
    cost = sum(each.result.cost or 0.0 for each in tries if each.result)
    return task.budget is not None and cost >= task.budget


def _is_good(task: Task, verdict: Verdict) -> bool:
    return verdict.outcome in task.accept


def _skipped(why: str) -> Verdict:
    return Verdict(State.OVER, Outcome.SKIPPED, why)


def _fate(verdict: Verdict) -> str:
    """What became of a task, as the end of a sentence."""
    if verdict.outcome is Outcome.SKIPPED:
        return "was skipped"
    return f"ended as {verdict.outcome.value}" if verdict.outcome else "never ended"
