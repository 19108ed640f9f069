"""summary.json and results.jsonl: a batch for programs. Schemas lie beside this module."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

from overlayrun.batch.reports.text import attempt_place
from overlayrun.batch.result import BatchReport, Result, TaskReport
from overlayrun.batch.task import Outcome
from overlayrun.files import write_whole

SCHEMA: Final = 1
"""Version of both files: it changes where a reader of the old ones would go wrong."""
MODE: Final = 0o644
"""Of report files: they lie in a directory that is the user's alone, until he copies them elsewhere."""
_LONGEST: Final = 10_000  # letters of a value
_ARTIFACTS: Final = (
    *("stdout", "stderr", "events", "overlayrun", "check", "judge", "diff", "bundle", "result"),
)


class Verdict(Enum):
    """What became of a task, in the four words of test reports."""

    PASSED = "passed"
    FAILED = "failed"  # its work was done and is not good, or did not land
    ERROR = "error"  # its work could not be done
    SKIPPED = "skipped"  # there is no work to judge


_NEVER_DONE: Final = (Outcome.SKIPPED, Outcome.CANCELLED)
_NOT_DONE: Final = (Outcome.TIMEOUT, Outcome.INFRA, Outcome.LOST, Outcome.RATE_LIMITED)
_WORDS: Final[Mapping[Outcome, str]] = {
    Outcome.OK: "it changed something and passed",
    Outcome.NO_CHANGE: "it changed nothing",
    Outcome.EMPTY: "it neither printed nor changed anything",
    Outcome.REJECTED: "it was refused a permission",
    Outcome.FAILED: "its command failed",
    Outcome.CHECK_FAILED: "its check failed",
    Outcome.TIMEOUT: "it ran out of time",
    Outcome.RATE_LIMITED: "the model's provider refused it for a while",
    Outcome.LOST: "nobody knows what became of it",
    Outcome.INFRA: "it could not be started or recorded",
    Outcome.CANCELLED: "it was ended",
    Outcome.SKIPPED: "it never began",
}


def verdict_of(task: TaskReport) -> Verdict:
    """Judge a task by what it accepts; one whose work was to land and did not has failed.

    Of several tries before a judge the winner alone counts, so that viewers count as the exit code does.
    """
    if task.outcome in _NEVER_DONE or task.winner is False:
        return Verdict.SKIPPED
    if _is_unjudged(task):
        return Verdict.FAILED
    if task.succeeded:
        return Verdict.SKIPPED if task.outcome is Outcome.NO_CHANGE else Verdict.PASSED
    return Verdict.ERROR if is_error(task.outcome) and not has_failed_to_land(task) else Verdict.FAILED


def has_succeeded(task: TaskReport) -> bool:
    """Whether it counts as success; a good try of which the judge took none does not, as in the exit code."""
    return task.succeeded and not _is_unjudged(task)


def _is_unjudged(task: TaskReport) -> bool:
    """Whether it is a good try, and the judge took none."""
    is_try = task.task.judge is not None and task.task.group != task.task.id
    return is_try and task.winner is None and task.outcome in task.task.accept


def is_error(outcome: Outcome) -> bool:
    """Whether an attempt that ended so could not do its work, and is not to blame."""
    return outcome in _NOT_DONE


def has_failed_to_land(task: TaskReport) -> bool:
    """Whether its work is good, and the target did not take it."""
    return task.outcome in task.task.accept and not task.succeeded


def reason_of(task: TaskReport) -> str:
    """Why it ended so, in words; from outside in parts, so not escaped for anything."""
    if has_failed_to_land(task):
        return f"{task.landing}: {task.landing_detail}" if task.landing_detail else str(task.landing)
    if _is_unjudged(task):
        return "the judge took none of its tries"
    if task.winner is False:
        return "another try won" + (f"; {task.detail}" if task.detail else "")
    return task.detail or _WORDS[task.outcome]


def why_of(result: Result) -> str:
    """The same of one attempt."""
    return result.detail or _WORDS[result.outcome]


def word_of(task: TaskReport) -> str:
    """What became of it in a word: its outcome, or what kept its good work from landing."""
    return str(task.landing) if has_failed_to_land(task) else task.outcome.value


def cost_of(task: TaskReport) -> float | None:
    """What all its attempts cost, as far as anybody knows; None where nobody knows it of any."""
    known = [result.cost for result in task.results if result.cost is not None and _is_priced(result)]
    return sum(known) if known else None


def _is_priced(result: Result) -> bool:
    """Whether its cost is known; JSON of agents can hold NaN."""
    return result.cost is not None and math.isfinite(result.cost)


def decisive(task: TaskReport) -> Result | None:
    """The attempt that decided: the last one."""
    return task.results[-1] if task.results else None


def write_summary(report: BatchReport, directory: str) -> None:
    """Write summary.json and results.jsonl, each whole, into the directory that also holds `tasks/`."""
    summary = json.dumps(_clean(summary_of(report, directory)), indent=1, allow_nan=False)
    write_whole(f"{directory}/summary.json", f"{summary}\n".encode(), durable=True, mode=MODE)
    rows = [result_row(result) for task in report.tasks for result in task.results]
    lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    write_whole(f"{directory}/results.jsonl", lines.encode(), durable=True, mode=MODE)


def result_row(result: Result) -> dict[str, Any]:
    """A row of results.jsonl: `Result.from_json` reads it."""
    row: dict[str, Any] = _clean(result.to_json())
    return row


def summary_of(report: BatchReport, directory: str) -> dict[str, Any]:
    """What summary.json holds; paths are relative to the directory."""
    outcomes = Counter(task.outcome for task in report.tasks)
    verdicts = Counter(map(verdict_of, report.tasks))
    succeeded = sum(map(has_succeeded, report.tasks))
    own = ("run", "version", "repository", "base", "target", "engine", "jobs", "started", "ended", "status")
    return {
        "schema": SCHEMA,
        **{name: getattr(report, name) for name in own},
        "why": report.why,
        "seconds": report.ended - report.started,
        "total": len(report.tasks),
        "succeeded": succeeded,
        "counts": {outcome.value: outcomes[outcome] for outcome in Outcome},
        "verdicts": {verdict.value: verdicts[verdict] for verdict in Verdict},
        "cost": report.cost,
        "unpriced": report.unpriced,
        "tasks": [_task_row(task, directory) for task in report.tasks],
    }


def _task_row(task: TaskReport, directory: str) -> dict[str, Any]:
    last = decisive(task)
    return {
        "id": task.task.id,
        "group": task.task.group,
        "outcome": task.outcome.value,
        "verdict": verdict_of(task).value,
        "succeeded": has_succeeded(task),
        "detail": task.detail,
        "winner": task.winner,
        "landing": task.landing,
        "landing_detail": task.landing_detail,
        "branch": last.branch if last else task.task.branch,
        "tip": last.tip if last else None,
        **_cost(task),
        "attempts": [_attempt_row(result, directory) for result in task.results],
    }


def _cost(task: TaskReport) -> dict[str, Any]:
    unpriced = sum(not _is_priced(result) for result in task.results)
    return {"cost": cost_of(task), "unpriced": unpriced}


def _attempt_row(result: Result, directory: str) -> dict[str, Any]:
    plain = ("detail", "host", "started", "ended", "seconds", "status", "base", "tip", "ref", "cost", "score")
    return {
        "attempt": result.attempt,
        "outcome": result.outcome.value,
        **{name: getattr(result, name) for name in plain},
        "files": result.files,
        "insertions": result.insertions,
        "deletions": result.deletions,
        "artifacts": _artifacts(result, directory),
    }


def _artifacts(result: Result, directory: str) -> dict[str, str]:
    """Files that there are, by what they hold."""
    place = attempt_place(directory, result)
    paths = {name: str(getattr(place, name)) for name in _ARTIFACTS}
    return {name: os.path.relpath(path, directory) for name, path in paths.items() if os.path.isfile(path)}


def _clean(value: Any) -> Any:
    """Values that any reader of JSON takes: no lone surrogates, no NaN, no endless text."""
    if isinstance(value, str):
        return value[:_LONGEST].encode("utf-8", "replace").decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _clean(each) for key, each in value.items()}
    return [_clean(each) for each in value] if isinstance(value, list) else value
