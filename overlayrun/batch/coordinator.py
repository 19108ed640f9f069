"""Runs a batch: the loop between plan, journal and engine. One process, one thread."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from types import FrameType
from typing import Any, Final

from overlayrun.batch import facts as records
from overlayrun.batch.account import report_of
from overlayrun.batch.capacity import Capacity
from overlayrun.batch.engines.api import Ended, Engine, Event, Lost, Started
from overlayrun.batch.facts import Facts, Record, Stop
from overlayrun.batch.journal import Journal, Planned, locked, write_plan
from overlayrun.batch.layout import BatchLayout
from overlayrun.batch.leavings import refuse_taken
from overlayrun.batch.plan import Decision, Plan, State
from overlayrun.batch.progress import Board, News, NewsKind, Watcher, board_of
from overlayrun.batch.result import BatchReport, Result
from overlayrun.batch.salvage import Salvor, read_result
from overlayrun.batch.settings import Settings
from overlayrun.batch.task import Attempt, AttemptKey, Outcome, Task
from overlayrun.batch.window import Room, Start
from overlayrun.errors import HostError, OverlayrunError, UsageError
from overlayrun.store.location import Repository, resolve_commit
from overlayrun.workspace.layout import Layout

OF_TASK: Final = "task:"
"""What begins a base that is another task's result."""
_TICK: Final = 0.25
_HOSTS_PATIENCE: Final = 60.0  # seconds without any machine
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Rerun(Enum):
    """Which tasks of a run begin anew."""

    FAILED = "failed"  # all that did not succeed
    TIMEOUT = "timeout"
    ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a batch runs and who watches.

    capacity: of this machine; None where attempts run elsewhere. variables: RunOptions.env of its runs.
    """

    repository: Repository
    layout: Layout
    watcher: Watcher
    capacity: Capacity | None = None
    variables: Sequence[str] = ()


def plan_batch(
    repository: Repository,
    place: BatchLayout,
    tasks: Sequence[Task],
    settings: Settings,
    *,
    engine: str,
    given: Mapping[str, Any],
) -> Planned:
    """What a new run is to do, on the disk: every base is the commit that its name means now.

    Raises UsageError for a base that is no commit, for a branch that can't be made, and in a repository
    without a commit.
    """
    if repository.head is None:
        raise UsageError("this repository has no commit yet", hint="make one: git commit")
    refuse_taken(repository, tasks)
    names = {task.base for task in tasks if task.base and not task.base.startswith(OF_TASK)}
    planned = Planned(
        run=place.run,
        created=time.time(),
        repository=repository.root,
        base=repository.head,
        target=repository.branch,
        engine=engine,
        tasks=tuple(tasks),
        settings=settings,
        bases={name: resolve_commit(repository, name)[0] for name in sorted(names)},
        given=given,
    )
    write_plan(place, planned)
    return planned


def run_batch(
    engine: Engine, planned: Planned, place: BatchLayout, site: Site, *, rerun: Rerun | None = None
) -> BatchReport:
    """Run a batch, or what is left of one that was stopped or killed, and close the engine.

    SIGINT, SIGTERM and SIGHUP end what runs, which is snapshotted, and give the report. A second SIGINT
    raises KeyboardInterrupt at once: the engine is not closed, what runs dies with this process.
    Raises WorkspaceBusy where the run is going on, HostError where the journal can't be written.
    """
    with locked(place), Journal(place.journal, place.run) as journal, _signals() as caught:
        facts = Facts(planned.tasks)
        for record in journal.records:
            facts.add(record)
        course = _Course(engine, planned, place, site, (journal, facts))
        try:
            course.begin(rerun)
            course.through(caught)
        except Exception:
            engine.close()
            raise
        engine.close()
        return course.finish()


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Signals that came, as they come; the second SIGINT raises KeyboardInterrupt."""
    caught: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        is_second = number == signal.SIGINT and number in caught
        caught.append(number)
        if is_second:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield caught  # signals are another's
        return
    # What is ignored (nohup) stays so.
    heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in heard}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Course:
    """A batch on its way."""

    def __init__(
        self,
        engine: Engine,
        planned: Planned,
        place: BatchLayout,
        site: Site,
        log: tuple[Journal, Facts],
    ) -> None:
        self._engine = engine
        self._planned = planned
        self._place = place
        self._site = site
        self._journal, self._facts = log
        self._plan = Plan(planned.tasks, planned.settings, self._facts)
        self._salvor = Salvor(site.repository, site.layout, place, site.variables, self._tell_note)
        # Waits and limits must not jump with the wall clock.
        self._offset = time.time() - time.monotonic()
        self._cancelled: set[AttemptKey] = set()
        self._announced: set[str] = set()
        self._said: set[str] = set()
        self._is_due = False
        self._hosts_seen = time.monotonic()

    def begin(self, rerun: Rerun | None) -> None:
        """Close what a killed batch left open, and mark the tasks that begin anew."""
        for key, attempt in list(self._facts.running.items()):
            self._take_up(self._attempt(key), attempt.host)
        if rerun is not None:
            self._note(records.rerun(self._again(rerun), self._now()))
        self._note(records.began(self._now()))
        self._plan = Plan(self._planned.tasks, self._planned.settings, self._facts)
        self._plan.update()
        self._journal.flush()

    def through(self, caught: list[int]) -> None:
        """Start, wait and take results until it is over."""
        while True:
            if caught and self._facts.stop is not Stop.CANCELLED:
                self._stop(Stop.CANCELLED, f"cancelled by {signal.Signals(caught[0]).name}")
            decision = self._decide()
            if decision.stop is not None:
                self._stop(decision.stop, self._reason(decision.stop))
                continue
            self._act(decision)
            self._announce()
            self._site.watcher.tick(self._board)
            if decision.over:
                return
            self._take(self._engine.poll(self._span(decision.wake)))

    def finish(self) -> BatchReport:
        """The report; nothing runs any more."""
        report = report_of(self._planned, self._plan, self._now())
        self._note(records.over(report.status, self._now()))
        self._journal.flush()
        self._site.watcher.tick(self._board)
        self._tell(NewsKind.OVER, text=report.why)
        return report

    def _now(self) -> float:
        return self._offset + time.monotonic()

    def _note(self, record: Record) -> None:
        self._journal.append(record)
        self._facts.add(record)
        # That a command began is nothing to flush for.
        self._is_due |= record["event"] != "started"

    def _tell(self, kind: NewsKind, **about: Any) -> None:
        self._site.watcher.hear(News(kind=kind, at=self._now(), **about))

    def _tell_note(self, text: str) -> None:
        self._tell(NewsKind.NOTE, text=text)

    def _board(self) -> Board:
        self._plan.update()
        return board_of(self._plan, self._place.run, self._now())

    def _decide(self) -> Decision:
        hosts, room = self._engine.hosts(), Room()
        if hosts or self._facts.running:
            self._hosts_seen = time.monotonic()
        fault = None
        if time.monotonic() - self._hosts_seen > _HOSTS_PATIENCE:
            fault = f"no machine came to take an attempt for {_HOSTS_PATIENCE:.0f} s"
        try:
            room = self._room()
        except HostError as err:
            fault = err.brief
        if fault is not None and self._facts.stop is None and self._plan.is_waiting:
            self._stop(Stop.MACHINE, fault)
        return self._plan.decide(self._now(), hosts, room)

    def _room(self) -> Room:
        if self._site.capacity is None:
            return Room()
        return self._site.capacity.room([self._plan.tasks[name] for name, _ in self._facts.running])

    def _stop(self, stop: Stop, why: str) -> None:
        self._note(records.stopped(stop, why, self._now()))
        self._journal.flush()
        self._tell(NewsKind.STOPPING, text=why)

    def _reason(self, stop: Stop) -> str:
        settings, failures = self._planned.settings, self._plan.failures()
        cost, budget = self._facts.cost, settings.budget or 0.0
        reasons = {
            Stop.BUDGET: f"the budget of ${budget:.2f} is spent: ${cost:.2f} so far",
            Stop.MACHINE: f"no attempt could be made here: {self._facts.faults[-1]}"
            if self._facts.faults
            else "",
            Stop.FAILURES: f"{failures} task{'s' * (failures != 1)} failed",
            Stop.DEADLINE: f"the deadline of {settings.deadline:g} s has passed" if settings.deadline else "",
        }
        return reasons.get(stop) or stop.value

    def _act(self, decision: Decision) -> None:
        for key in decision.cancels:
            if key not in self._cancelled:
                self._cancelled.add(key)
                self._engine.cancel(key)
        if decision.note is not None and decision.note not in self._said:
            self._said.add(decision.note)
            self._tell_note(decision.note)
        attempts = [(self._make(start), start.host) for start in decision.starts]
        for attempt, host in attempts:
            self._note(records.submitted(attempt, host, self._now()))
        # On the disk before anything happens: a number is never used again, whatever comes.
        if self._is_due:
            self._journal.flush()
            self._is_due = False
        for attempt, host in attempts:
            self._submit(attempt, host)

    def _make(self, start: Start) -> Attempt:
        return Attempt(run=self._place.run, task=start.task, number=start.number, base=self._base(start.task))

    def _base(self, task: Task) -> str:
        """Commit that a task starts from; of `task:ID` what that task made, or started from."""
        if task.base is None:
            return self._planned.base
        if not task.base.startswith(OF_TASK):
            return self._planned.bases[task.base]
        name = task.base.removeprefix(OF_TASK)
        group = self._plan.tasks[name].group
        other = self._plan.winner(group) if self._plan.is_judged(group) else self._plan.tasks[name]
        assert other is not None, "a task starts after what it needs"
        result = self._facts.histories[other.id].current[-1].result
        assert result is not None
        return result.tip or result.base

    def _submit(self, attempt: Attempt, host: str) -> None:
        try:
            self._engine.submit(attempt, host)
        except (OverlayrunError, OSError) as err:
            now = self._now()
            why = err.brief if isinstance(err, OverlayrunError) else f"it could not be started: {err}"
            lost = self._salvor.lost(attempt, host, (now, now), None, why)
            self._end(replace(lost, outcome=Outcome.INFRA))

    def _span(self, wake: float | None) -> float:
        return _TICK if wake is None else max(0.0, min(_TICK, wake - self._now()))

    def _take(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Started):
                self._note(records.started(event.key, self._now()))
                self._tell(
                    NewsKind.STARTED,
                    task=self._plan.tasks[event.key[0]],
                    attempt=event.key[1],
                    host=event.host,
                )
            elif isinstance(event, Ended):
                self._end(event.result)
            else:
                self._lose(event)

    def _lose(self, event: Lost) -> None:
        if event.key in self._facts.running:
            self._end(self._salvaged(self._attempt(event.key), event.host, event.why))

    def _salvaged(self, attempt: Attempt, host: str, why: str) -> Result:
        """Result of an attempt that wrote none, after what it left is kept."""
        tried = self._facts.running[attempt.key]
        tip, fault = self._salvor.salvage(attempt, tried.submitted)
        times = (tried.started or tried.submitted, self._now())
        return self._salvor.lost(attempt, host, times, tip, f"{why}; {fault}" if fault else why)

    def _take_up(self, attempt: Attempt, host: str) -> None:
        """Close an attempt that the batch's own end left open: by its result, else as lost without blame."""
        result = read_result(self._place, attempt)
        if result is None:
            result = self._salvaged(attempt, host, "the batch was killed while it ran")
        # The batch was about to end it: that is no fault of the task.
        is_ours = result.outcome in (Outcome.LOST, Outcome.CANCELLED)
        self._note(records.ended(result, self._now(), interrupted=is_ours))
        self._tell_result(result)

    def _end(self, result: Result) -> None:
        key = result.task, result.attempt
        if key not in self._facts.running:
            return
        is_ours = key in self._cancelled and result.outcome in (Outcome.CANCELLED, Outcome.LOST)
        self._note(records.ended(result, self._now(), interrupted=is_ours))
        self._tell_result(result)

    def _tell_result(self, result: Result) -> None:
        task = self._plan.tasks[result.task]
        kind = NewsKind.LOST if result.outcome is Outcome.LOST else NewsKind.ENDED
        about = {"task": task, "attempt": result.attempt, "host": result.host, "result": result}
        self._tell(kind, **about, text=result.detail)
        self._plan.update()
        verdict = self._plan.verdict(task)
        if verdict.state is State.WAITING and self._facts.stop is None:
            self._tell(NewsKind.RETRY, **about, until=verdict.ready, text=result.detail)

    def _announce(self) -> None:
        """Tell of tasks that are skipped, each once."""
        for task in self._plan.tasks.values():
            verdict = self._plan.verdict(task)
            if verdict.outcome is Outcome.SKIPPED and task.id not in self._announced:
                self._announced.add(task.id)
                self._tell(NewsKind.SKIPPED, task=task, text=verdict.detail)

    def _attempt(self, key: AttemptKey) -> Attempt:
        tried = self._facts.running[key]
        return Attempt(run=self._place.run, task=self._plan.tasks[key[0]], number=key[1], base=tried.base)

    def _again(self, rerun: Rerun) -> list[str]:
        """Ids of the tasks that begin anew."""
        self._plan.update()
        found = []
        for task in self._plan.tasks.values():
            outcome = self._plan.verdict(task).outcome
            asked = {
                Rerun.ALL: True,
                Rerun.TIMEOUT: outcome is Outcome.TIMEOUT,
                Rerun.FAILED: outcome is not None and outcome not in task.accept,
            }
            found += [task.id] * asked[rerun]
        return found
