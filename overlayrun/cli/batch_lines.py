"""A batch in words: a line for each thing that happens, and what is told at its end."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from overlayrun.batch.progress import Board, News, NewsKind
from overlayrun.batch.reports.summary import has_succeeded, reason_of
from overlayrun.batch.result import BatchReport, Result, TaskReport
from overlayrun.batch.task import Outcome
from overlayrun.cli.render import count_text, say, span_text
from overlayrun.report import printable

COLOURS: Final = {
    Outcome.OK: "green",
    Outcome.NO_CHANGE: "cyan",
    Outcome.SKIPPED: "bright_black",
    Outcome.CANCELLED: "yellow",
}
"""Colours of outcomes; others are red."""
_LONGEST: Final = 200  # characters of a line that tells why
_SHOWN: Final = 40  # rows at the end


_What = TypeVar("_What")


def unbroken(show: Callable[[_What], None]) -> Callable[[_What], None]:
    """The same, for a reader who may go away: hours of agents are worth more than the lines on them.

    From the first that can't be written on (a closed pipe, a terminal that hung up, a full disk) standard
    output goes nowhere.
    """

    def show_or_not(what: _What) -> None:
        try:
            show(what)
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(null, 1)
            os.close(null)

    return show_or_not


say_on: Final = unbroken(say)
"""`render.say`, whoever still reads it."""


class Lines:
    """Tells each piece of news in a line on standard output: for pipes and CI."""

    def hear(self, news: News) -> None:
        """Take a piece of news."""
        line = line_of(news)
        if line:
            say_on(f"{time.strftime('%H:%M:%S', time.localtime(news.at))}  {line}")

    def tick(self, board: Callable[[], Board]) -> None:
        """Nothing: what lasts is told by `hear`."""


class Silence:
    """Tells nothing."""

    def hear(self, news: News) -> None:
        """Nothing."""

    def tick(self, board: Callable[[], Board]) -> None:
        """Nothing."""


def line_of(news: News) -> str | None:
    """A piece of news in a line, safe to print; None for what is not worth one."""
    text = safe(news.text or "")
    if news.kind is NewsKind.OVER:  # the last lines tell of it
        return None
    if news.task is None:
        return text or None
    name = news.task.id
    if news.kind is NewsKind.ENDED and news.result is not None:
        return f"{name}: {ending(news.result)}"
    if news.kind is NewsKind.RETRY and news.until is not None:
        wait = max(0.0, news.until - news.at)
        return f"{name}: tried again" + (f" in {wait:.0f} s" if wait >= 1 else "")
    if news.kind is NewsKind.STARTED:
        number = f", attempt {news.attempt}" if news.attempt != 1 else ""
        place = f" on {safe(news.host)}" if news.host not in (None, "local") else ""
        return f"{name}: started{place}{number}"
    return f"{name}: {news.kind.value}" + (f": {text}" if text else "")


def ending(result: Result) -> str:
    """How an attempt ended, in a line, safe to print."""
    parts = [f"{result.outcome.value} after {span_text(result.seconds)}"]
    if result.tip:
        parts.append(f"{count_text(result.files, 'file')} +{result.insertions} -{result.deletions}")
    if result.score is not None:
        parts.append(f"score {result.score:g}")
    if result.cost is not None:
        parts.append(f"${result.cost:.2f}")
    if result.detail and result.outcome is not Outcome.OK:
        parts.append(safe(result.detail))
    return ", ".join(parts)


def safe(text: str) -> str:
    """A line of text that an agent may have written, for a terminal or the log of a CI job."""
    shown = printable(text)
    # A runner of GitHub Actions obeys such words wherever they stand in a line.
    shown = shown.replace("##[", "# #[")
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"


def heading(tasks: int, run: str, base: str, jobs: int) -> str:
    """The first line of a run."""
    return f"batch {run}: {count_text(tasks, 'task')} from {base[:10]}, {jobs} at a time"


def ended(report: BatchReport) -> Iterator[str]:
    """The last lines of a run: counts, then what needs a look."""
    counts = Counter(task.outcome for task in report.tasks)
    told = [f"{number} {outcome.value}" for outcome, number in counts.most_common()]
    landings = Counter(task.landing for task in report.tasks if task.landing)
    told += [f"{number} {landing}" for landing, number in landings.most_common()]
    took = span_text(report.ended - report.started)
    yield f"{count_text(len(report.tasks), 'task')} in {took}: {', '.join(told)}{_cost(report)}"
    if report.why:
        yield f"stopped: {safe(report.why)}"
    left_out = (Outcome.SKIPPED,) if report.why else ()
    failed = [task for task in report.tasks if not has_succeeded(task) and task.winner is not False]
    yield from _rows([task for task in failed if task.outcome not in left_out])
    for task in report.tasks:
        if task.winner:
            yield f"{task.task.id} wins {task.task.group}: branch {task.task.branch}"


def _cost(report: BatchReport) -> str:
    unknown = f", unknown for {count_text(report.unpriced, 'attempt')}" if report.unpriced else ""
    known = any(result.cost is not None for task in report.tasks for result in task.results)
    return f"; ${report.cost:.2f}{unknown}" if known else ""


def _rows(tasks: Sequence[TaskReport]) -> Iterator[str]:
    for task in tasks[:_SHOWN]:
        landing = task.landing if task.landing not in (None, "landed", "nothing to land") else None
        state = landing or task.outcome.value
        detail = (task.landing_detail if landing else task.detail) or ""
        if task.succeeded:  # its group failed
            detail = reason_of(task)
        yield f"{task.task.id}: {state}" + (f": {safe(detail)}" if detail else "")
    if len(tasks) > _SHOWN:
        yield f"and {len(tasks) - _SHOWN} more"


def next_steps(report: BatchReport, place: str) -> Iterator[str]:
    """What to type next. place: directory of the reports."""
    yield f"report: {printable(place)}/report.html"
    chosen = [task for task in report.tasks if has_succeeded(task) and task.winner is not False]
    good = [task.task.branch for task in chosen if task.results and task.results[-1].tip]
    if good and not any(task.landing for task in report.tasks):
        yield f"next: overlayrun diff {good[0]} | merge {good[0]} | reconcile"
    if any(not task.succeeded for task in report.tasks):
        yield f"again: overlayrun batch --resume {report.run} --rerun failed"
