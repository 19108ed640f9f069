"""A batch in GitHub Actions: the step's summary, annotations and outputs; the Markdown is for other eyes too.

What agents wrote stands in code alone, spans or fences, where no renderer looks for HTML, mentions or links.
Sources: docs.github.com, "Workflow commands for GitHub Actions"; GitHub Flavored Markdown, 4.5 and 6.3.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from overlayrun.batch.reports.summary import (
    MODE,
    Verdict,
    cost_of,
    decisive,
    has_failed_to_land,
    has_succeeded,
    reason_of,
    verdict_of,
    word_of,
)
from overlayrun.batch.reports.text import evidence, on_a_line
from overlayrun.batch.result import BatchReport, TaskReport
from overlayrun.errors import HostError
from overlayrun.files import write_whole

LIMIT: Final = (1 << 20) - (16 << 10)
"""Bytes of a step's summary: GitHub drops one that is only just below 1 MiB without a word (actions/runner
issue 4337), and its masks for secrets may make it longer."""
_SHOWN: Final = 10  # annotations of a kind that GitHub shows of a step
_ROWS: Final = 0.5  # of the limit, for the table
_LOG: Final = 4 << 10  # bytes of each log
_MESSAGE: Final = 1000  # letters of an annotation
_ORDER: Final = (Verdict.FAILED, Verdict.ERROR, Verdict.SKIPPED, Verdict.PASSED)
_MARK: Final = {Verdict.FAILED: "✗", Verdict.ERROR: "!", Verdict.SKIPPED: "-", Verdict.PASSED: "✓"}
_BAD: Final = (Verdict.FAILED, Verdict.ERROR)


def write_markdown(report: BatchReport, directory: str) -> None:
    """Write summary.md, whole, into the directory that also holds `tasks/`."""
    text = summary_markdown(report, directory)
    write_whole(f"{directory}/summary.md", text.encode(), durable=True, mode=MODE)


def tell_github(
    report: BatchReport, directory: str, environment: Mapping[str, str], *, copy: str | None = None
) -> list[str]:
    """Append summary and outputs to the files that the environment names; lines to print on stdout.

    copy: of the directory, where a later step finds it. Where it names none nothing happens.
    Raises HostError where one can't be written.
    """
    place = environment.get("GITHUB_STEP_SUMMARY")
    if place:
        _append(place, summary_markdown(report, directory, LIMIT - _size(place)))
    place = environment.get("GITHUB_OUTPUT")
    if place:
        _append(place, outputs(report, copy or directory))
    return workflow_commands(report) if environment.get("GITHUB_ACTIONS") == "true" else []


def _size(path: str) -> int:
    return os.path.getsize(path) if os.path.exists(path) else 0


def _append(path: str, text: str) -> None:
    try:
        with open(path, "ab") as file:
            file.write(text.encode())
    except OSError as err:
        raise HostError(f"{path} can't be written: {err.strerror}") from err


def summary_markdown(report: BatchReport, directory: str, limit: int = LIMIT) -> str:
    """A table of all tasks, those to look at first, and the ends of their logs; at most `limit` bytes.

    What does not fit is left out by whole tasks, and a line says how many. directory: holds `tasks/`.
    """
    tasks = sorted(report.tasks, key=lambda task: _ORDER.index(verdict_of(task)))
    head = _head(report)
    room = limit - len(head.encode()) - 400  # for the lines that count what is left out
    rows, room = _fitting(map(_row, tasks), int(room * _ROWS), room)
    bad = [task for task in tasks if verdict_of(task) in _BAD]
    sections, _ = _fitting((_section(task, directory) for task in bad), room, room)
    parts = [head, *rows, "\n"]
    if len(rows) < len(tasks):
        parts.append(
            f"{_count(len(tasks) - len(rows), 'task')} left out of the table; see results.jsonl.\n\n"
        )
    parts += sections
    if len(sections) < len(bad):
        parts.append(
            f"{_count(len(bad) - len(sections), 'task')} left out here; their logs are below tasks/.\n"
        )
    text = "".join(parts)
    return text if len(text.encode()) <= limit else ""  # there was no room at all


def _fitting(texts: Iterable[str], share: int, room: int) -> tuple[list[str], int]:
    """As many as fit into a share of the room, from the first on; and the room that is left."""
    taken: list[str] = []
    for text in texts:
        size = len(text.encode())
        if size > share:
            break
        taken.append(text)
        share -= size
        room -= size
    return taken, room


def _head(report: BatchReport) -> str:
    succeeded = sum(map(has_succeeded, report.tasks))
    facts = [
        f"{succeeded} of {_count(len(report.tasks), 'task')} succeeded",
        _span(report.ended - report.started),
    ]
    facts.append(f"cost USD {report.cost:.2f}" + (f", unknown for {report.unpriced}" * bool(report.unpriced)))
    facts.append(f"exit code {report.status}")
    why = f"Ended early: {_code(report.why)}\n\n" if report.why else ""
    return (
        f"\n## Batch {_code(report.run)}\n\n{', '.join(facts)}.\n\n{why}"
        "| | Task | Outcome | Why | Branch | Change | Attempts | Time | Cost |\n"
        "| --- | --- | --- | --- | --- | --- | ---: | ---: | ---: |\n"
    )


def _row(task: TaskReport) -> str:
    last = decisive(task)
    verdict = verdict_of(task)
    cost = cost_of(task)
    outcome = task.outcome.value + (f", {task.landing}" if task.landing else "")
    cells = [
        _MARK[verdict],
        _code(task.task.id),
        outcome + (", winner" if task.winner else ""),
        "" if verdict is Verdict.PASSED else _code(reason_of(task)),
        _code(last.branch) if last and last.tip else "",
        f"{_count(last.files, 'file')} +{last.insertions} -{last.deletions}" if last and last.tip else "",
        str(len(task.results)),
        _span(last.seconds) if last else "",
        "" if cost is None else f"{cost:.2f}",
    ]
    return f"| {' | '.join(cells)} |\n"


def _section(task: TaskReport, directory: str) -> str:
    """A task to look at: why, what to type, and folded logs."""
    last = decisive(task)
    parts = [f"### {_code(task.task.id)}: {word_of(task)}\n\n{_code(reason_of(task))}\n\n"]
    if last and last.tip:
        parts.append(f"{_code(f'overlayrun diff {last.branch}')}\n\n")
    if last is None or has_failed_to_land(task):  # its own logs tell of success
        return "".join(parts)
    for name, text in evidence(directory, last, _LOG):
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
        parts.append(f"<details><summary>{name}</summary>\n\n{fence}text\n{text}\n{fence}\n\n</details>\n\n")
    return "".join(parts)


def _code(text: str) -> str:
    """Text as a code span, also in a table, where a pipe would end the cell whatever stands before it."""
    line = on_a_line(text).replace("`", "'").replace("|", "¦")
    return f"`{line}`" if line else ""


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _span(seconds: float) -> str:
    whole = round(max(0.0, seconds))
    if whole < 60:
        return f"{seconds:.1f} s"
    return (
        f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"
    )


def workflow_commands(report: BatchReport) -> list[str]:
    """Annotations, a line each: errors for failures, warnings for what was not done, notices for no change.

    Of each kind as many as GitHub shows; the last one then says how many there are more.
    """
    kinds: dict[str, list[TaskReport]] = {"error": [], "warning": [], "notice": []}
    for task in sorted(report.tasks, key=lambda task: _ORDER.index(verdict_of(task))):
        verdict = verdict_of(task)
        if verdict in _BAD:
            kinds["error"].append(task)
        elif verdict is Verdict.SKIPPED and task.winner is None:
            kinds["notice" if task.succeeded else "warning"].append(task)
    return [line for kind, tasks in kinds.items() for line in _commands(kind, tasks)]


def _commands(kind: str, tasks: list[TaskReport]) -> Iterator[str]:
    shown = tasks if len(tasks) <= _SHOWN else tasks[: _SHOWN - 1]
    for task in shown:
        last = decisive(task)
        kept = f" (branch {last.branch})" if last and last.tip else ""
        yield _command(kind, f"{task.task.id}: {word_of(task)}", on_a_line(reason_of(task), _MESSAGE) + kept)
    if len(shown) < len(tasks):
        left = ", ".join(task.task.id for task in tasks[len(shown) :])
        yield _command(kind, f"{_count(len(tasks) - len(shown), 'task')} more", on_a_line(left, _MESSAGE))


def _command(kind: str, title: str, message: str) -> str:
    # No line break is left to escape: both stand on a line.
    safe = on_a_line(title).replace("%", "%25").replace(":", "%3A").replace(",", "%2C")
    return f"::{kind} title={safe}::{message.replace('%', '%25')}"


def outputs(report: BatchReport, directory: str) -> str:
    """What $GITHUB_OUTPUT takes. Lists are JSON, for `fromJSON` in a later job's matrix.

    The delimiter is random: a value can't end itself and begin another.
    """
    passed = [task for task in report.tasks if verdict_of(task) is Verdict.PASSED]
    branches = [last.branch for last in map(decisive, passed) if last and last.tip]
    values = {
        "run": report.run,
        "status": str(report.status),
        "total": str(len(report.tasks)),
        "succeeded": str(sum(map(has_succeeded, report.tasks))),
        "cost": f"{report.cost:.4f}",
        "branches": json.dumps(branches),
        "failed": json.dumps([task.task.id for task in report.tasks if verdict_of(task) in _BAD]),
        "report": directory,
    }
    end = f"overlayrun_{secrets.token_hex(16)}"
    return "".join(f"{name}<<{end}\n{value}\n{end}\n" for name, value in values.items())
