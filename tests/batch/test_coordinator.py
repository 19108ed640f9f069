"""The loop, with a small engine that starts real processes and no sandbox."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import UserRepo

from overlayrun.batch import coordinator
from overlayrun.batch.capacity import Capacity
from overlayrun.batch.coordinator import Rerun, Site, plan_batch, run_batch
from overlayrun.batch.engines.api import Ended, Event, Host, Lost, Started
from overlayrun.batch.journal import Planned, create_run, find_run, read_journal, read_plan
from overlayrun.batch.layout import BatchLayout
from overlayrun.batch.progress import Board, News, NewsKind, Phase
from overlayrun.batch.result import BatchReport, Result
from overlayrun.batch.settings import Settings
from overlayrun.batch.task import Attempt, AttemptKey, Outcome, Task
from overlayrun.errors import HostError, UsageError, WorkspaceBusy
from overlayrun.store.location import find_repository
from overlayrun.workspace.layout import open_state

pytestmark = pytest.mark.shared  # what is done in what order

OUTCOMES = {
    0: Outcome.OK,
    9: Outcome.OK,
    3: Outcome.INFRA,
    4: Outcome.TIMEOUT,
    -signal.SIGTERM: Outcome.CANCELLED,
}


class Processes:
    """One process an attempt; status 9 is a lost one. Results are in the attempt's folder, as engines do it."""

    def __init__(self, place: BatchLayout, hosts: Sequence[Host] = (Host("here", 2),)) -> None:
        self.place = place
        self.most: dict[str, int] = {}
        self.submitted: list[Attempt] = []
        self.is_closed = False
        self._hosts = hosts
        self._running: dict[AttemptKey, tuple[Attempt, str, subprocess.Popen[bytes], float]] = {}
        self._events: list[Event] = []

    def submit(self, attempt: Attempt, host: str) -> None:
        known = [json.loads(line) for line in Path(self.place.journal).read_text().splitlines()]
        assert any(
            (row.get("task"), row.get("attempt"), row["event"]) == (*attempt.key, "submitted")
            for row in known
        ), "the journal comes first"
        if attempt.task.command == ("no-room",):
            raise HostError("no process can be started")
        self.submitted.append(attempt)
        process = subprocess.Popen(attempt.task.command, env={**os.environ, "N": str(attempt.number)})
        self._running[attempt.key] = (attempt, host, process, time.time())
        self._events.append(Started(attempt.key, host))
        self.most[host] = max(self.most.get(host, 0), sum(one[1] == host for one in self._running.values()))

    def poll(self, seconds: float) -> Sequence[Event]:
        end = time.monotonic() + seconds
        self._look()
        while not self._events and time.monotonic() < end:
            time.sleep(0.005)
            self._look()
        events, self._events = self._events, []
        return events

    def _look(self) -> None:
        for key, (attempt, host, process, began) in list(self._running.items()):
            status = process.poll()
            if status is None:
                continue
            del self._running[key]
            result = Result(
                run=attempt.run,
                task=key[0],
                attempt=key[1],
                outcome=OUTCOMES.get(status, Outcome.FAILED),
                started=began,
                ended=time.time(),
                host=host,
                branch=attempt.task.branch,
                base=attempt.base,
                ref=attempt.ref,
                status=status,
                tip="f" * 40 if "tip" in attempt.task.values else None,
                cost=float(attempt.task.values["cost"]) if "cost" in attempt.task.values else None,
                score=float(attempt.task.values["score"]) if "score" in attempt.task.values else None,
            )
            if status == 9:
                # What it comes up with after it was given up must not count.
                self._events += [Lost(key, host, "its machine is gone"), Ended(key, result)]
                continue
            folder = Path(self.place.attempt(key).root)
            folder.mkdir(parents=True)
            (folder / "result.json").write_text(json.dumps(result.to_json()))
            self._events.append(Ended(key, result))

    def cancel(self, key: AttemptKey) -> None:
        if key in self._running:
            self._running[key][2].terminate()

    def hosts(self) -> Sequence[Host]:
        return self._hosts

    def close(self) -> None:
        self.is_closed = True
        for _, _, process, _ in self._running.values():
            process.kill()
            process.wait()


@dataclass
class Audience:
    """A watcher that remembers, and acts on news."""

    on: Callable[[News], object] = lambda _: None
    news: list[News] = field(default_factory=list)
    boards: list[Board] = field(default_factory=list)

    def hear(self, news: News) -> None:
        self.news.append(news)
        self.on(news)

    def tick(self, board: Callable[[], Board]) -> None:
        self.boards.append(board())

    def kinds(self) -> list[tuple[NewsKind, str | None]]:
        return [(one.kind, one.task.id if one.task else None) for one in self.news]


@dataclass
class Bench:
    """A repository with a batch to be."""

    repo: UserRepo
    settings: Settings = field(default_factory=lambda: Settings(jobs=2, backoff=0.01))
    audience: Audience = field(default_factory=Audience)

    def __post_init__(self) -> None:
        self.repository = find_repository(str(self.repo.root))
        self.layout = open_state(self.repository.common_dir)
        self.place = create_run(self.layout)

    def plan(self, *tasks: Task) -> Planned:
        return plan_batch(self.repository, self.place, tasks, self.settings, engine="test", given={"x": 1})

    def run(self, planned: Planned, engine: Processes | None = None, **more: Any) -> BatchReport:
        site = Site(
            repository=self.repository,
            layout=self.layout,
            watcher=self.audience,
            capacity=more.pop("capacity", None),
        )
        self.engine = engine or Processes(self.place)
        return run_batch(self.engine, planned, self.place, site, **more)

    def events(self) -> list[dict[str, Any]]:
        return list(read_journal(self.place.journal)[0])


@pytest.fixture
def bench(repo: UserRepo) -> Iterator[Bench]:
    made = Bench(repo)
    yield made
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def task(name: str, script: str = "exit 0", **more: Any) -> Task:
    known = {"command": ("/bin/sh", "-c", script), "branch": f"batch/r/{name}", "group": name}
    return Task(**{"id": name, **known, **more})


def outcomes(report: BatchReport) -> dict[str, Outcome]:
    return {one.task.id: one.outcome for one in report.tasks}


@pytest.mark.by_both
def test_a_batch_from_its_tasks_to_its_report(bench: Bench) -> None:
    first = bench.repo.git("rev-parse", "HEAD~1")
    head = bench.repo.git("rev-parse", "HEAD")
    planned = bench.plan(
        task("good", values={"cost": "0.5", "tip": ""}),
        task("bad", "exit 1"),
        task("old", base="HEAD~1"),
        task("on-top", base="task:good", needs=("good",)),
        task("flaky", "[ $N = 2 ] || exit 3"),
        task("lost", "exit 9", attempts=2),
        task("skipped", needs=("bad",)),
        task("never", "exit 3", attempts=1),
        Task(id="no-room", command=("no-room",), branch="x", group="no-room", attempts=2),
    )
    assert read_plan(bench.place) == planned
    assert find_run(bench.layout, "latest").run == bench.place.run

    report = bench.run(planned)

    assert outcomes(report) == {
        "good": Outcome.OK,
        "bad": Outcome.FAILED,
        "old": Outcome.OK,
        "on-top": Outcome.OK,
        "flaky": Outcome.OK,
        "lost": Outcome.LOST,
        "skipped": Outcome.SKIPPED,
        "never": Outcome.INFRA,
        "no-room": Outcome.INFRA,
    }
    assert (report.status, report.cost, report.base, report.target, report.why) == (
        1,
        0.5,
        head,
        "main",
        None,
    )
    attempts = {one.task.id: [result.attempt for result in one.results] for one in report.tasks}
    assert attempts["flaky"] == attempts["lost"] == attempts["no-room"] == [1, 2]
    assert attempts["skipped"] == []
    bases = {attempt.key: attempt.base for attempt in bench.engine.submitted}
    assert (bases["old", 1], bases["on-top", 1], bases["good", 1]) == (first, "f" * 40, head)
    assert bench.engine.is_closed
    assert bench.engine.most == {"here": 2}
    lost = next(one for one in report.tasks if one.task.id == "lost").results[0]
    assert (lost.detail, lost.host, lost.base, lost.tip) == ("its machine is gone", "here", head, None)
    kinds = bench.audience.kinds()
    assert kinds.count((NewsKind.STARTED, "flaky")) == kinds.count((NewsKind.ENDED, "flaky")) == 2
    assert (NewsKind.RETRY, "flaky") in kinds
    assert (NewsKind.RETRY, "bad") not in kinds
    assert kinds.count((NewsKind.LOST, "lost")) == 2
    assert kinds.count((NewsKind.SKIPPED, "skipped")) == 1
    assert kinds[-1] == (NewsKind.OVER, None)
    board = bench.audience.boards[-1]
    assert {row.phase for row in board.rows} == {Phase.OVER}
    assert (board.over, board.running) == (9, 0)
    assert any(board.running for board in bench.audience.boards)
    events = bench.events()
    assert [events[0]["event"], events[-1]["event"], events[-1]["status"]] == ["began", "over", 1]

    # Resumed, nothing is left to do; run again, only what failed.
    again = bench.run(read_plan(bench.place))
    assert bench.engine.submitted == []
    assert (outcomes(again), again.status) == (outcomes(report), 1)
    assert again.started == report.started
    fixed = replace(planned, tasks=tuple(replace(one, command=("true",)) for one in planned.tasks))
    healed = bench.run(fixed, rerun=Rerun.FAILED)
    assert {attempt.key for attempt in bench.engine.submitted} == {
        ("bad", 2),
        ("lost", 3),
        ("skipped", 1),
        ("never", 2),
        ("no-room", 3),
    }
    assert healed.status == 0
    assert len(bench.run(fixed, rerun=Rerun.ALL).tasks) == 9
    assert len(bench.engine.submitted) == 9
    bench.run(fixed, rerun=Rerun.TIMEOUT)
    assert bench.engine.submitted == []


def test_a_judges_winner_is_marked(bench: Bench) -> None:
    tries = [task(f"t-{n}", group="t", judge="score", values={"score": str(n % 3)}) for n in range(1, 5)]

    report = bench.run(bench.plan(*tries, task("alone")))

    assert [one.winner for one in report.tasks] == [False, True, False, False, None]
    assert report.status == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_drains_and_resume_goes_on(bench: Bench, number: signal.Signals) -> None:
    def interrupt(news: News) -> None:
        if news.kind is NewsKind.STARTED and news.task is not None and news.task.id == "long":
            os.kill(os.getpid(), number)

    bench.audience.on = interrupt
    planned = bench.plan(
        task("quick"), task("long", "[ $N = 2 ] || exec sleep 60", attempts=1), task("later")
    )

    report = bench.run(planned)

    assert report.status == 130
    assert report.why == f"cancelled by {number.name}"
    ends = outcomes(report)
    assert ends["long"] is Outcome.CANCELLED
    assert ends["later"] is Outcome.SKIPPED
    assert "stopped" in [row["event"] for row in bench.events()]
    bench.audience.on = lambda _: None
    again = bench.run(read_plan(bench.place))
    assert set(outcomes(again).values()) == {Outcome.OK}  # its one attempt was not used up
    assert again.status == 0
    assert ("long", 2) in {attempt.key for attempt in bench.engine.submitted}


def test_a_second_ctrl_c_ends_it_at_once_and_loses_nothing(bench: Bench) -> None:
    def interrupt(news: News) -> None:
        if news.kind in (NewsKind.STARTED, NewsKind.STOPPING):
            os.kill(os.getpid(), signal.SIGINT)

    bench.audience.on = interrupt
    planned = bench.plan(task("long", "trap '' TERM; [ $N = 2 ] && exit; exec sleep 60"))
    with pytest.raises(KeyboardInterrupt):
        bench.run(planned)
    assert not bench.engine.is_closed
    bench.engine.close()

    bench.audience.on = lambda _: None
    report = bench.run(planned)

    assert outcomes(report) == {"long": Outcome.OK}
    assert [result.outcome for result in report.tasks[0].results] == [Outcome.LOST, Outcome.OK]


def test_a_result_that_was_written_before_the_kill_counts(bench: Bench) -> None:
    planned = bench.plan(task("a"), task("b"))
    bench.run(planned)
    lines = Path(bench.place.journal).read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["event"] not in ("ended", "over")]
    Path(bench.place.journal).write_bytes(b"".join(kept))

    report = bench.run(planned)

    assert bench.engine.submitted == []
    assert set(outcomes(report).values()) == {Outcome.OK}
    assert report.status == 0


def test_a_run_that_goes_on_is_not_taken_up_twice(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overlayrun.batch.journal._PATIENCE", 0.1)
    refused: list[WorkspaceBusy] = []

    def resume(news: News) -> None:
        if news.kind is NewsKind.STARTED:
            site = Site(repository=bench.repository, layout=bench.layout, watcher=Audience())
            try:
                run_batch(Processes(bench.place), planned, bench.place, site)
            except WorkspaceBusy as err:
                refused.append(err)

    bench.audience.on = resume
    planned = bench.plan(task("a", "sleep 0.1"))

    assert bench.run(planned).status == 0
    assert [err.brief for err in refused] == [f"run {bench.place.run} is going on"]


def test_limits_give_their_exit_codes(bench: Bench) -> None:
    bench.settings = Settings(jobs=1, deadline=0.3)
    late = bench.run(bench.plan(task("a", "exec sleep 60"), task("b")))
    assert (late.status, late.why) == (4, "the deadline of 0.3 s has passed")
    assert outcomes(late) == {"a": Outcome.CANCELLED, "b": Outcome.SKIPPED}
    assert late.tasks[1].detail == late.why

    bench.settings = Settings(jobs=1, budget=1.0)
    bench.place = create_run(bench.layout)
    spent = bench.run(bench.plan(task("a", values={"cost": "2"}), task("b")))
    assert (spent.status, spent.why) == (4, "the budget of $1.00 is spent: $2.00 so far")

    bench.place = create_run(bench.layout)
    full = bench.run(bench.plan(task("a")), capacity=Capacity(str(bench.repo.root), reserve=1 << 60))
    assert full.status == 3
    assert "MiB of disk" in (full.why or "")
    assert outcomes(full) == {"a": Outcome.SKIPPED}


def test_without_machines_it_waits_and_then_gives_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "_HOSTS_PATIENCE", 0.3)

    report = bench.run(bench.plan(task("a")), Processes(bench.place, ()))

    assert report.status == 3
    assert "no machine" in (report.why or "")


def test_what_the_memory_cannot_hold_is_told_of_once_and_done_one_by_one(bench: Bench) -> None:
    tasks = [task(f"t{n}", "sleep 0.05", memory=1 << 50) for n in range(3)]

    report = bench.run(bench.plan(*tasks), capacity=Capacity(str(bench.repo.root), reserve=0))

    assert report.status == 0
    assert bench.engine.most == {"here": 1}
    notes = [news.text for news in bench.audience.news if news.kind is NewsKind.NOTE]
    assert len(notes) == len(set(notes)) == 2


def test_an_engine_that_breaks_is_closed(bench: Bench) -> None:
    class Broken(Processes):
        def poll(self, seconds: float) -> Sequence[Event]:
            raise ZeroDivisionError(seconds)

    engine = Broken(bench.place)
    with pytest.raises(ZeroDivisionError):
        bench.run(bench.plan(task("a")), engine)

    assert engine.is_closed


def test_bases_must_be_commits(bench: Bench) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        bench.plan(task("a", base="nowhere"))
    bench.repo.git("checkout", "--quiet", "--orphan", "fresh")
    bench.repository = find_repository(str(bench.repo.root))
    with pytest.raises(UsageError, match="no commit"):
        bench.plan(task("a"))


def test_signals_are_left_alone_outside_the_main_thread(bench: Bench) -> None:
    statuses: list[int] = []
    planned = bench.plan(task("a"))

    thread = threading.Thread(target=lambda: statuses.append(bench.run(planned).status))
    thread.start()
    thread.join()

    assert statuses == [0]
    assert sys.exc_info() == (None, None, None)
