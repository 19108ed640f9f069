"""The scheduler alone: facts in, decisions out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayrun.batch import facts as records
from overlayrun.batch.account import status_of
from overlayrun.batch.engines.api import Host
from overlayrun.batch.facts import Facts, Stop
from overlayrun.batch.plan import Decision, Plan, State
from overlayrun.batch.result import Result
from overlayrun.batch.settings import Rate, Settings, parse_rate
from overlayrun.batch.task import Attempt, AttemptKey, Outcome, Task
from overlayrun.batch.window import Room
from overlayrun.errors import UsageError

pytestmark = pytest.mark.shared

BASE = "b" * 40


def task(name: str, **more: Any) -> Task:
    return Task(**{"id": name, "command": ("true",), "branch": f"batch/r/{name}", "group": name, **more})


def result(name: str, number: int, outcome: Outcome, at: float, **more: Any) -> Result:
    known = {
        "status": 0,
        "started": at,
        "ended": at,
        "host": "local",
        "branch": "b",
        "base": BASE,
        "ref": "r",
    }
    return Result(**{"run": "r", "task": name, "attempt": number, "outcome": outcome, **known, **more})


@dataclass
class Batch:
    """A batch in which the test plays engine and clock."""

    tasks: list[Task]
    settings: Settings = field(default_factory=lambda: Settings(jobs=9))
    hosts: list[Host] = field(default_factory=lambda: [Host("local", 9)])
    room: Room = field(default_factory=Room)
    now: float = 1000.0

    def __post_init__(self) -> None:
        self.log: list[records.Record] = [records.began(self.now)]
        self.renew()

    def renew(self) -> None:
        """What a resumed batch does: fold the log, begin."""
        facts = Facts(self.tasks)
        for record in self.log:
            facts.add(record)
        self.plan = Plan(self.tasks, self.settings, facts)

    def note(self, record: records.Record) -> None:
        self.log.append(record)
        self.plan.facts.add(record)

    def decide(self) -> Decision:
        return self.plan.decide(self.now, self.hosts, self.room)

    def start(self) -> list[str]:
        """Start what may start; ids in order, a retry as `id#2`."""
        decision = self.decide()
        if decision.stop is not None:
            self.note(records.stopped(decision.stop, decision.stop.value, self.now))
            decision = self.decide()
        for one in decision.starts:
            attempt = Attempt(run="r", task=one.task, number=one.number, base=BASE)
            self.note(records.submitted(attempt, one.host, self.now))
        return [one.task.id + (f"#{one.number}" if one.number > 1 else "") for one in decision.starts]

    def end(
        self, name: str, outcome: Outcome = Outcome.OK, *, interrupted: bool = False, **more: Any
    ) -> None:
        number = self.plan.facts.histories[name].tries[-1].number
        more.setdefault("host", self.plan.facts.histories[name].tries[-1].host)
        self.note(
            records.ended(result(name, number, outcome, self.now, **more), self.now, interrupted=interrupted)
        )

    def status(self) -> int:
        self.plan.update()
        return status_of(self.plan)

    def outcomes(self) -> dict[str, Outcome | None]:
        self.plan.update()
        return {each.id: self.plan.verdict(each).outcome for each in self.tasks}


def test_order_is_priority_then_the_file() -> None:
    batch = Batch([task("a"), task("b", priority=1), task("c"), task("d", priority=1)])

    assert batch.start() == ["b", "d", "a", "c"]


def test_no_more_runs_than_jobs_and_than_a_hosts_slots() -> None:
    tasks = [task(name) for name in "abcdef"]
    batch = Batch(tasks, Settings(jobs=9), [Host("x", 1), Host("y", 3)])

    assert batch.start() == ["a", "b", "c", "d"]
    assert Counter(each.host for each in batch.plan.facts.running.values()) == {"x": 1, "y": 3}
    batch.end("a")
    assert batch.start() == ["e"]
    assert Batch(tasks, Settings(jobs=2), [Host("x", 1), Host("y", 3)]).start() == ["a", "b"]


def test_a_task_waits_for_its_needs_and_is_skipped_when_one_fails() -> None:
    batch = Batch([task("last", needs=("a", "b")), task("a"), task("b"), task("after", needs=("last",))])

    assert batch.start() == ["a", "b"]
    batch.end("a")
    assert batch.start() == []
    batch.end("b", Outcome.FAILED)
    assert batch.start() == []
    assert batch.decide().over
    assert batch.outcomes() == {
        "a": Outcome.OK,
        "b": Outcome.FAILED,
        "last": Outcome.SKIPPED,
        "after": Outcome.SKIPPED,
    }
    verdicts = {name: batch.plan.verdict(batch.plan.tasks[name]) for name in ("last", "after")}
    assert verdicts["last"].detail == "it needs b, which ended as failed"
    assert verdicts["after"].detail == "it needs last, which was skipped"
    assert batch.status() == 1


def test_needs_that_can_never_be_met_skip_the_task() -> None:
    batch = Batch([task("a", needs=("b",)), task("b", needs=("a",)), task("c", needs=("gone",)), task("d")])

    assert batch.start() == ["d"]
    assert [batch.outcomes()[name] for name in "abc"] == [Outcome.SKIPPED] * 3


def test_a_task_that_changed_nothing_lets_others_go_on() -> None:
    batch = Batch([task("a"), task("b", needs=("a",))])
    batch.start()
    batch.end("a", Outcome.NO_CHANGE)

    assert batch.start() == ["b"]


def test_retries_wait_longer_each_time_and_end_with_the_attempts() -> None:
    batch = Batch([task("a", attempts=3)], Settings(jobs=1, backoff=10.0))
    waits = []
    for number in (1, 2):
        batch.start()
        batch.end("a", Outcome.INFRA)
        wake = batch.decide().wake
        assert wake is not None
        assert batch.start() == []
        waits.append(wake - batch.now)
        batch.now = wake
        assert number < 3
    batch.start()
    batch.end("a", Outcome.INFRA)

    assert 5.0 <= waits[0] <= 10.0 <= waits[1] <= 20.0
    assert batch.decide().over
    assert [each.number for each in batch.plan.facts.histories["a"].tries] == [1, 2, 3]
    assert batch.status() == 3


def test_what_failed_of_its_own_is_not_tried_again_unless_asked() -> None:
    batch = Batch([task("a"), task("b", retry_on=(Outcome.CHECK_FAILED,))])
    batch.start()
    batch.end("a", Outcome.CHECK_FAILED)
    batch.end("b", Outcome.CHECK_FAILED)
    batch.now += 60

    assert batch.start() == ["b#2"]


def test_a_lost_hosts_task_goes_elsewhere_if_there_is_an_elsewhere() -> None:
    batch = Batch([task("a", attempts=9)], Settings(jobs=1, backoff=0.0), [Host("x", 9), Host("y", 1)])
    batch.start()
    batch.end("a", Outcome.LOST)
    batch.start()
    assert [each.host for each in batch.plan.facts.histories["a"].tries] == ["x", "y"]
    batch.end("a", Outcome.LOST)

    batch.start()

    assert len(batch.plan.facts.histories["a"].tries) == 3


def test_starts_are_staggered() -> None:
    batch = Batch([task("a"), task("b")], Settings(jobs=9, stagger=5.0))

    assert batch.start() == ["a"]
    assert batch.start() == []
    assert batch.decide().wake == batch.now + 5
    batch.now += 5
    assert batch.start() == ["b"]


def test_a_providers_rate_holds_its_tasks_alone() -> None:
    tasks = [task("a", provider="p"), task("b", provider="p"), task("c", agent="p"), task("d")]
    batch = Batch(tasks, Settings(jobs=9, rates={"p": Rate(2, 60.0)}))

    assert batch.start() == ["a", "b", "d"]
    assert batch.decide().wake == batch.now + 60
    batch.now += 60
    assert batch.start() == ["c"]


def test_a_provider_that_refused_is_left_alone_for_a_while() -> None:
    tasks = [task("a", provider="p"), task("b", provider="p"), task("c", provider="q")]
    batch = Batch(tasks, Settings(jobs=1, hold=100.0))
    batch.start()
    batch.end("a", Outcome.RATE_LIMITED)

    assert batch.start() == ["c"]
    batch.end("c")
    wake = batch.decide().wake
    assert wake is not None
    assert 50 <= wake - batch.now <= 100
    batch.now += 100
    assert batch.start() in (["a#2"], ["b"])


def test_too_many_failures_start_nothing_more_but_end_nothing() -> None:
    batch = Batch([task(name) for name in "abcde"], Settings(jobs=3, max_failures=2))
    batch.start()
    batch.end("a", Outcome.FAILED)
    assert batch.start() == ["d"]
    batch.end("b", Outcome.EMPTY)

    assert batch.start() == []
    assert batch.plan.facts.stop is Stop.FAILURES
    assert batch.decide().cancels == ()
    batch.end("c")
    batch.end("d")
    assert batch.decide().over
    assert batch.status() == 1


def test_a_machine_that_can_make_no_attempt_is_not_asked_for_two_hundred() -> None:
    batch = Batch([task(name) for name in "abcdefghij"], Settings(jobs=3))
    assert batch.start() == ["a", "b", "c"]
    for name in "abc":
        batch.end(name, Outcome.INFRA, detail="no user namespaces")
    assert batch.start() == []
    assert batch.plan.facts.stop is Stop.MACHINE
    assert batch.decide().over
    assert batch.status() == 3

    # One that worked tells that the machine can.
    other = Batch([task(name) for name in "abcdefghij"], Settings(jobs=4))
    other.start()
    other.end("a", Outcome.FAILED)
    for name in "bcd":
        other.end(name, Outcome.INFRA)
    assert other.start() == ["e", "f", "g", "h"]


def test_failures_before_a_kill_count_and_those_before_a_stop_do_not() -> None:
    batch = Batch([task(name) for name in "abcd"], Settings(jobs=1, max_failures=2))
    batch.start()
    batch.end("a", Outcome.FAILED)
    batch.log.append(records.began(batch.now))
    batch.renew()
    batch.start()
    batch.end("b", Outcome.FAILED)
    assert batch.start() == []
    assert batch.plan.facts.stop is Stop.FAILURES

    batch.log.append(records.began(batch.now))
    batch.renew()

    assert batch.start() == ["c"]


def test_fail_fast_ends_what_runs_and_a_resumed_batch_does_that_again() -> None:
    batch = Batch([task(name) for name in "abc"], Settings(jobs=2, fail_fast=True))
    batch.start()
    batch.end("a", Outcome.FAILED)

    assert batch.start() == []
    assert batch.decide().cancels == (("b", 1),)
    batch.end("b", Outcome.CANCELLED, interrupted=True)
    assert batch.decide().over
    assert batch.status() == 1
    batch.log.append(records.began(batch.now))
    batch.renew()
    assert batch.start() == ["b#2", "c"]


def test_the_budget_counts_what_is_known() -> None:
    batch = Batch([task(name) for name in "abc"], Settings(jobs=1, budget=1.0))
    batch.start()
    batch.end("a", cost=None)
    assert batch.start() == ["b"]
    batch.end("b", cost=1.5)

    assert batch.start() == []
    assert (batch.plan.facts.stop, batch.plan.facts.cost, batch.plan.facts.unpriced) == (Stop.BUDGET, 1.5, 1)
    assert batch.status() == 4


def test_a_spent_task_is_not_tried_again() -> None:
    batch = Batch([task("a", budget=1.0, attempts=9), task("b", budget=1.0, attempts=9)])
    batch.start()
    batch.end("a", Outcome.TIMEOUT, cost=1.0)
    batch.end("b", Outcome.TIMEOUT, cost=0.9)
    batch.now += 600

    assert batch.start() == ["b#2"]


def test_the_deadline_ends_what_runs_but_a_batch_that_is_done_keeps_its_status() -> None:
    batch = Batch([task("a"), task("b")], Settings(jobs=1, deadline=60.0))
    batch.start()
    assert batch.decide().wake == batch.now + 60
    batch.now += 60

    assert batch.start() == []
    assert batch.decide().cancels == (("a", 1),)
    batch.end("a", Outcome.CANCELLED, interrupted=True)
    assert batch.decide().over
    assert batch.status() == 4
    done = Batch([task("a")], Settings(jobs=1, deadline=60.0))
    done.start()
    done.now += 61
    done.start()
    done.end("a")
    assert done.status() == 0


def test_a_drain_replaces_a_softer_stop_and_gives_130() -> None:
    batch = Batch([task(name) for name in "abc"], Settings(jobs=2, max_failures=1))
    batch.start()
    batch.end("a", Outcome.FAILED)
    batch.start()
    batch.note(records.stopped(Stop.CANCELLED, "cancelled by SIGINT", batch.now))

    assert batch.decide().cancels == (("b", 1),)
    batch.end("b", Outcome.CANCELLED, interrupted=True)
    assert batch.decide().over
    assert batch.status() == 130


def test_an_interrupted_attempt_does_not_count() -> None:
    batch = Batch([task("a", attempts=1)])
    for _ in range(3):
        batch.start()
        batch.end("a", Outcome.LOST, interrupted=True)

    assert batch.start() == ["a#4"]
    batch.end("a")
    assert batch.decide().over


def test_memory_is_shared_out_and_what_asks_for_much_is_not_passed_by() -> None:
    tasks = [task("a", memory=3), task("big", memory=9), task("c", memory=1)]
    batch = Batch(tasks, room=Room(memory=4))

    assert batch.start() == ["a"]
    batch.room = Room(memory=1)
    assert batch.start() == []
    assert batch.decide().wake is not None
    batch.end("a")
    batch.room = Room(memory=4)
    # Alone it may start whatever it asks for: it would wait for ever.
    assert batch.start() == ["big"]


def test_a_judge_picks_the_best_of_the_accepted() -> None:
    tries = [task(f"t-{number}", group="t", judge="score") for number in range(1, 5)]
    batch = Batch([*tries, task("next", needs=("t-1",))])
    batch.start()
    batch.end("t-1", Outcome.CHECK_FAILED, score=99.0)
    batch.end("t-2", score=5.0)
    batch.end("t-3", score=5.0)
    assert batch.start() == []
    batch.end("t-4", score=None)

    assert batch.start() == ["next"]  # its need is the group's winner
    assert batch.plan.winner("t") == tries[1]
    assert batch.plan.failures() == 0
    batch.end("next")
    assert batch.status() == 0


def test_without_an_accepted_try_nobody_wins() -> None:
    batch = Batch([task(f"t-{number}", group="t", judge="score") for number in (1, 2)])
    batch.start()
    batch.end("t-1", Outcome.FAILED)
    assert batch.plan.failures() == 0
    batch.end("t-2", score=None)
    batch.plan.update()

    assert batch.plan.winner("t") is None
    assert batch.plan.failures() == 1
    assert batch.status() == 1


def test_a_rerun_begins_anew_with_the_next_number() -> None:
    batch = Batch([task("a"), task("b", needs=("a",))])
    batch.start()
    batch.end("a", Outcome.FAILED)
    assert batch.decide().over
    batch.log += [records.over(1, batch.now), records.rerun(["a"], batch.now), records.began(batch.now)]
    batch.renew()

    assert batch.start() == ["a#2"]
    batch.end("a")
    assert batch.start() == ["b"]


@pytest.mark.parametrize(
    ("text", "rate"), [("30/m", Rate(30, 60.0)), ("5/10s", Rate(5, 10.0)), ("1/h", Rate(1, 3600.0))]
)
def test_rates_as_users_write_them(text: str, rate: Rate) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "30", "m/30", "0/m", "5/0s", "5/day", "/m", "5/"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_rate(text)


def test_settings_pass_through_json() -> None:
    made = Settings(jobs=3, rates={"p": Rate(2, 60.0)}, budget=1.5)

    assert Settings.from_json(made.to_json()) == made


NAMES = "abcdefg"
TASKS = st.lists(
    st.fixed_dictionaries(
        {
            "needs": st.lists(st.sampled_from(NAMES), max_size=2, unique=True).map(tuple),
            "priority": st.integers(0, 2),
            "attempts": st.integers(1, 3),
            "provider": st.sampled_from([None, "p"]),
            "memory": st.sampled_from([None, 1 << 20, 1 << 40]),
            "budget": st.sampled_from([None, 1.0]),
        }
    ),
    max_size=len(NAMES),
).map(lambda found: [task(NAMES[place], **more) for place, more in enumerate(found)])
SETTINGS = st.builds(
    Settings,
    jobs=st.integers(1, 4),
    stagger=st.sampled_from([0.0, 3.0]),
    rates=st.sampled_from([{}, {"p": Rate(1, 10.0)}]),
    max_failures=st.sampled_from([None, 1, 2]),
    fail_fast=st.booleans(),
    budget=st.sampled_from([None, 2.0]),
    deadline=st.sampled_from([None, 50.0]),
    seed=st.integers(0, 3),
)
ENDINGS = [each for each in Outcome if each is not Outcome.SKIPPED]


class Course:
    """Plays a random engine against the plan, and watches the promises."""

    def __init__(self, batch: Batch, data: st.DataObject) -> None:
        self.batch, self.data = batch, data
        self.keys: set[AttemptKey] = set()
        self.times: list[float] = []
        self.cancelled: set[AttemptKey] = set()

    def through(self) -> None:
        for _ in range(2000):
            if self.data.draw(st.integers(0, 30)) == 0:
                self.batch.log.append(records.began(self.batch.now))
                self.batch.renew()  # killed, and taken up again
            failures = self.batch.plan.facts.stop is None and self.batch.plan.failures() if self.keys else 0
            decision = self.batch.decide()
            if decision.stop is not None:
                self.batch.note(records.stopped(decision.stop, "", self.batch.now))
                continue
            assert decision.wake is None or decision.wake > self.batch.now, "it would look without a pause"
            self.begin(decision, int(failures))
            if decision.over:
                assert not self.batch.plan.facts.running
                return
            self.go_on(decision)
        pytest.fail("it never ends")

    def begin(self, decision: Decision, failures: int) -> None:
        batch, limit = self.batch, self.batch.settings.max_failures
        assert not decision.starts or limit is None or failures < limit
        for one in decision.starts:
            attempt = Attempt(run="r", task=one.task, number=one.number, base=BASE)
            assert attempt.key not in self.keys
            self.keys.add(attempt.key)
            self.times.append(batch.now)
            for need in one.task.needs:
                assert batch.plan.verdict(batch.plan.tasks[need]).outcome in (Outcome.OK, Outcome.NO_CHANGE)
            batch.note(records.submitted(attempt, one.host, batch.now))
        running = Counter(each.host for each in batch.plan.facts.running.values())
        assert sum(running.values()) <= batch.settings.jobs
        assert all(running[host.name] <= host.slots for host in batch.hosts)
        assert len({name for name, _ in batch.plan.facts.running}) == len(batch.plan.facts.running)
        self.cancelled |= set(decision.cancels)

    def go_on(self, decision: Decision) -> None:
        running = sorted(self.batch.plan.facts.running)
        assert running or decision.wake is not None, "nobody would ever look again"
        if decision.wake is not None and (not running or self.data.draw(st.booleans())):
            self.batch.now = max(self.batch.now + 0.001, decision.wake)
            return
        self.batch.now += self.data.draw(st.sampled_from([0.0, 1.0, 20.0]))
        key = self.data.draw(st.sampled_from(running))
        outcome = Outcome.CANCELLED if key in self.cancelled else self.data.draw(st.sampled_from(ENDINGS))
        cost = self.data.draw(st.sampled_from([None, 0.5]))
        self.batch.end(key[0], outcome, interrupted=key in self.cancelled, cost=cost)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(tasks=TASKS, wanted=SETTINGS, data=st.data())
def test_whatever_comes_the_batch_ends_and_keeps_its_promises(
    tasks: list[Task], wanted: Settings, data: st.DataObject
) -> None:
    batch = Batch(tasks, wanted, [Host("x", 1), Host("y", 2)], Room(memory=1 << 30))
    course = Course(batch, data)

    course.through()

    counted = Counter(
        (name, history.since)
        for name, history in batch.plan.facts.histories.items()
        for each in history.tries
        if each.counts
    )
    most = {each.id: each.attempts for each in tasks}
    assert all(count <= most[name] for (name, _), count in counted.items())
    assert all(later - earlier >= wanted.stagger for earlier, later in pairwise(course.times))
    if batch.plan.facts.stop is None:
        assert all(batch.plan.verdict(each).state is State.OVER for each in tasks)
    assert batch.status() in (0, 1, 3, 4)
