"""What a run of a batch came to: its report and its exit code, from the facts."""

from __future__ import annotations

import importlib.metadata
from typing import Final

from overlayrun.batch.facts import Stop
from overlayrun.batch.journal import Planned
from overlayrun.batch.plan import Plan, State
from overlayrun.batch.result import BatchReport, TaskReport
from overlayrun.batch.task import Outcome, Task

DONE: Final = 0
FAILED: Final = 1
INFRASTRUCTURE: Final = 3
LIMIT: Final = 4
CANCELLED: Final = 130
_LIMITS: Final = (Stop.BUDGET, Stop.DEADLINE)
_NOT_THEIRS: Final = (Outcome.INFRA, Outcome.LOST)


def report_of(planned: Planned, plan: Plan, now: float) -> BatchReport:
    """The report on a run as it stands, with nothing running."""
    plan.update()
    facts = plan.facts
    tasks = tuple(_task_report(plan, task) for task in planned.tasks)
    return BatchReport(
        run=planned.run,
        version=importlib.metadata.version("overlayrun"),
        repository=planned.repository,
        base=planned.base,
        target=planned.target,
        engine=planned.engine,
        jobs=plan.settings.jobs,
        started=now if facts.created is None else facts.created,
        ended=now,
        tasks=tasks,
        status=status_of(plan),
        why=facts.why,
        cost=facts.cost,
        unpriced=facts.unpriced,
    )


def status_of(plan: Plan) -> int:
    """Exit code. What our machines did counts as infrastructure where no task failed of its own."""
    stop = plan.facts.stop
    is_undone = any(plan.verdict(task).state is not State.OVER for task in plan.tasks.values())
    if stop is Stop.CANCELLED:
        return CANCELLED
    if stop is Stop.MACHINE and is_undone:
        return INFRASTRUCTURE
    if stop in _LIMITS and is_undone:
        return LIMIT
    failed = [outcome for task in plan.tasks.values() for outcome in _failure(plan, task)]
    own = [outcome for outcome in failed if outcome not in (*_NOT_THEIRS, Outcome.SKIPPED)]
    if not failed:
        return DONE
    return INFRASTRUCTURE if not own and set(failed) & set(_NOT_THEIRS) else FAILED


def _failure(plan: Plan, task: Task) -> list[Outcome]:
    """The outcome of a task that makes the batch fail. Of a judged group one success is enough."""
    outcome, _ = _fate(plan, task)
    if plan.is_judged(task.group):
        return [] if plan.winner(task.group) else [outcome]
    return [] if outcome in task.accept else [outcome]


def _fate(plan: Plan, task: Task) -> tuple[Outcome, str | None]:
    """What became of a task, and why; of one that is not over too."""
    verdict, why = plan.verdict(task), plan.facts.why
    if verdict.state is State.OVER and verdict.outcome is not None:
        return verdict.outcome, verdict.detail
    if verdict.outcome is None:
        return Outcome.SKIPPED, why
    said = [text for text in (verdict.detail, why and f"not tried again: {why}") if text]
    return verdict.outcome, "; ".join(said) or None


def _task_report(plan: Plan, task: Task) -> TaskReport:
    outcome, detail = _fate(plan, task)
    tries = plan.facts.histories[task.id].tries
    winner = plan.winner(task.group)
    return TaskReport(
        task=task,
        outcome=outcome,
        detail=detail,
        results=tuple(each.result for each in tries if each.result is not None),
        winner=None if winner is None else winner.id == task.id,
    )
