"""`log`: the snapshots of a branch."""

from __future__ import annotations

from dataclasses import asdict
from typing import Final

import click  # noqa: TID251  # this is overlayrun/cli/

from overlayrun.account import cut
from overlayrun.cli.opened import Opened, open_here
from overlayrun.cli.patches import say_patch
from overlayrun.cli.render import ago, coloured, count_text, moment_text, say, say_json
from overlayrun.cli.shapes import step_shape
from overlayrun.cli.words import branch_argument, json_option
from overlayrun.reconcile.checks import answers_about, tail
from overlayrun.revision import parse_revision
from overlayrun.store.commits import printable
from overlayrun.store.repo import DiffStat, Repo, SnapshotInfo
from overlayrun.story import Step, story
from overlayrun.workspace.record import Record

_LOG_LINES: Final = 40
_ASKED, _WORD = 100, 30  # characters
_GAP: Final = "  "


@click.command("log", short_help="List the snapshots of a branch.")
@branch_argument(required=False)
@click.option("-p", "--patch", is_flag=True, help="With the change of each against the one before.")
@click.option("--reverse", is_flag=True, help="The oldest first.")
@click.option("--checks", is_flag=True, help="The checks of a branch instead, with what they printed.")
@json_option
def log_command(*, text: str, patch: bool, reverse: bool, checks: bool, as_json: bool) -> None:
    """List the snapshots of a branch, the newest first: that one is @{0}.

    Each with its number, age, change against the one before, tool and subject; what the user asked for stands
    above the steps that were taken for it. One step whole: overlayrun show B@{n}.

    With --checks: every check of a tree that it was part of, the newest first, with the end of its output.
    """
    opened = open_here()
    record = parse_revision(opened.layout, opened.repo, text).record
    if checks:
        _say_checks(opened, record, as_json=as_json)
        return
    steps = story(opened.repo, record)[:: -1 if reverse else 1]
    if as_json:
        listed = [step_shape(step, opened.repo) for step in steps]
        say_json({"branch": record.branch, "snapshots": listed})
        return
    if not steps:
        say(f"branch {record.branch} has no snapshot yet")
    _say_story(opened.repo, steps, patch=patch)


def _say_story(repo: Repo, steps: list[Step], *, patch: bool) -> None:
    rows = [_row(step, step.change(repo)) for step in steps]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    chapter = ""
    for step, row in zip(steps, rows, strict=True):
        if step.chapter != chapter:
            if step is not steps[0]:
                say()
            chapter = step.chapter
            say(coloured(_heading(step), "cyan"))
        name, *cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        subject = printable(step.snapshot.subject)
        say(_GAP.join([coloured(name, "yellow"), *filter(None, cells), subject]))
        if patch:
            say()
            say_patch(repo.git_dir, step.before, step.snapshot.tree)
            say()


def _heading(step: Step) -> str:
    """What was asked, in one line."""
    first, _, more = step.prompt.partition("\n")
    lines = more.count("\n") + 1 if more else 0
    rest = f" (and {count_text(lines, 'line')} more)" if lines else ""
    return f"asked: {printable(cut(first, _ASKED))}{rest}" if step.prompt else "without a prompt:"


def _row(step: Step, change: DiffStat) -> list[str]:
    size = f"{count_text(change.files, 'file')} +{change.insertions} -{change.deletions}"
    words = [f"@{{{step.back}}}", str(step.snapshot.number), ago(step.snapshot.time), size, step.tool]
    return [printable(cut(word, _WORD), one_line=True) for word in words]


def snapshot_line(snapshot: SnapshotInfo, back: int) -> str:
    """One snapshot on one line."""
    name = coloured(f"@{{{back}}}", "yellow")
    tip = snapshot.tip[:10] if snapshot.tip else "-"
    return f"{name}  {moment_text(snapshot.time)}  {snapshot.reason:<8}  {tip}  {printable(snapshot.subject)}"


def _say_checks(opened: Opened, record: Record, *, as_json: bool) -> None:
    answers = list(answers_about(opened.layout, record.branch))
    if as_json:
        listed = [{**asdict(answer), "passed": answer.passed} for answer in answers]
        say_json({"branch": record.branch, "checks": listed})
        return
    if not answers:
        say(f"branch {record.branch} was in no check yet")
    for answer in answers:
        how = coloured("passed", "green") if answer.passed else coloured(answer.why, "red")
        say(f"{moment_text(answer.started)}  {answer.commit[:10]}  {how} ({answer.seconds:.1f} s)")
        say(f"  of: {', '.join(answer.branches)}")
        say(f"  ran: {printable(answer.command, one_line=True)}")
        say(f"  log: {printable(answer.log)}")
        for line in tail(answer.log).splitlines()[-_LOG_LINES:]:
            say(f"  | {printable(line)}")
