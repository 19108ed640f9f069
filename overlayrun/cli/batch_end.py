"""What comes after the last attempt of a batch: landing, reports, publishing, the lines that tell of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from overlayrun.batch.artifacts import secret_values
from overlayrun.batch.journal import Planned
from overlayrun.batch.landing import land
from overlayrun.batch.layout import BatchLayout
from overlayrun.batch.publish import Published
from overlayrun.batch.reports.files import copy_reports, write_reports
from overlayrun.batch.reports.github import tell_github
from overlayrun.batch.reports.summary import summary_of
from overlayrun.batch.result import BatchReport
from overlayrun.batch.run_options import let_in, options_from_json
from overlayrun.cli.batch_lines import ended, next_steps, say_on, unbroken
from overlayrun.cli.batch_publish import publish_run, published_lines, published_status
from overlayrun.cli.carrying import has_someone, is_wanted
from overlayrun.cli.opened import Opened
from overlayrun.cli.reconcile import Report
from overlayrun.cli.render import say_json
from overlayrun.cli.telling import show_error, tell
from overlayrun.errors import OverlayrunError
from overlayrun.reconcile.settings import ExecPolicy, Settings, read_settings

_CANCELLED: Final = 130  # as a shell shows SIGINT
_FAILED: Final = 3  # this machine, or one that we asked


def end(
    opened: Opened, place: BatchLayout, report: BatchReport, planned: Planned, *, quiet: bool, as_json: bool
) -> int:
    """Merge, report, publish and copy, as it was asked for, and tell of it; the exit code.

    Each is done though another may fail.
    """
    results = planned.given["results"]
    failed: list[OverlayrunError] = []
    with _noted(failed):
        report = _landed(opened, report, results, quiet=quiet or as_json)
    variables = let_in(options_from_json(planned.given["options"]).env)
    secrets = secret_values(os.environ, variables)

    def written(status: int) -> BatchReport:
        told = replace(report, status=report.status or status)
        with _noted(failed):
            write_reports(told, place.reports, secrets)
        return told

    told = written(_FAILED * bool(failed))  # first of all: the rest can fail
    published: list[Published] = []
    if results.get("publish") and told.status != _CANCELLED:
        with _noted(failed):
            published = publish_run(opened, report, results)
        status = report.status or published_status(published) or _FAILED * bool(failed)
        if failed or status != told.status:  # else every report stands as it would be written again
            told = written(status)
    with _noted(failed):
        copy_reports(place.reports, results.get("report"), results.get("junit"))
    if failed and not told.status:
        told = written(_FAILED)
    commands: list[str] = []
    with _noted(failed):
        commands = tell_github(told, place.reports, os.environ, copy=results.get("report"))
    if as_json:
        say_json(summary_of(told, place.reports))
    else:
        _tell(told, published, commands, results.get("report") or place.reports)
    for err in failed:
        show_error(err)
    return told.status


def _tell(report: BatchReport, published: Sequence[Published], commands: Sequence[str], place: str) -> None:
    """The last lines. commands: to GitHub's runner. place: of the reports."""
    for line in (*ended(report), *published_lines(published)):
        say_on(line)
    for line in next_steps(report, place):
        tell(line)
    for line in commands:
        say_on(line)


def _landed(opened: Opened, report: BatchReport, results: Mapping[str, Any], *, quiet: bool) -> BatchReport:
    """The report with what became of the branches, where they are to be merged."""
    if not results.get("merge") or report.status == _CANCELLED:
        return report
    settings = _landing_settings(opened, report, results)
    ask = _is_wanted if has_someone(as_json=quiet) else None
    show = unbroken(Report(settings, as_json=quiet).show)
    try:
        with _interrupted_by(signal.SIGTERM, signal.SIGHUP):
            tasks = land(opened.repository, opened.layout, report.tasks, settings, show, ask)
    except KeyboardInterrupt:
        return replace(report, status=_CANCELLED, why="interrupted while it was merged")
    failed = any(task.landing and not task.succeeded for task in tasks)
    return replace(report, tasks=tasks, status=report.status or int(failed))


def _is_wanted(item: Any, carriers: Any) -> bool:
    """Ask the user about files that run code on his machine."""
    return is_wanted(item.branch, "merge", carriers)


def _landing_settings(opened: Opened, report: BatchReport, results: Mapping[str, Any]) -> Settings:
    """The reconciler's settings; without a check, the one that all tasks have."""
    settings = read_settings(opened.repository.root)
    checks = {task.task.check for task in report.tasks}
    common = checks.pop() if len(checks) == 1 else None
    return settings.merged(
        {
            "check": results.get("check") or settings.check or common,
            "exec": ExecPolicy.ALLOW if results.get("yes_exec") else None,
            "allow_bare_layout": results.get("allow_bare_layout") or None,
        }
    )


@contextmanager
def _interrupted_by(*numbers: int) -> Iterator[None]:
    """Let these signals do what Ctrl-C does, where they are not ignored."""
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, signal.default_int_handler) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _noted(failed: list[OverlayrunError]) -> Iterator[None]:
    """Go on after an error, which is told at the end."""
    try:
        yield
    except OverlayrunError as err:
        failed.append(err)
