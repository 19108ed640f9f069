"""`log`: the snapshots of a branch."""

from __future__ import annotations

from dataclasses import asdict
from typing import Final

import click  # noqa: TID251  # this is overlayrun/cli/

from overlayrun.cli.opened import Opened, open_here
from overlayrun.cli.patches import say_patch
from overlayrun.cli.render import coloured, moment_text, say, say_json
from overlayrun.cli.shapes import snapshot_shape
from overlayrun.cli.words import branch_argument, json_option
from overlayrun.reconcile.checks import answers_about, tail
from overlayrun.revision import parse_revision, start
from overlayrun.store.commits import printable
from overlayrun.store.repo import SnapshotInfo
from overlayrun.workspace.record import Record

_LOG_LINES: Final = 40


@click.command("log", short_help="List the snapshots of a branch.")
@branch_argument(required=False)
@click.option("-p", "--patch", is_flag=True, help="With the change of each against the one before.")
@click.option("--checks", is_flag=True, help="The checks of a branch instead, with what they printed.")
@json_option
def log_command(*, text: str, patch: bool, checks: bool, as_json: bool) -> None:
    """List the snapshots of a branch, the newest first: that one is @{0}.

    With --checks: every check of a tree that it was part of, the newest first, with the end of its output.
    """
    opened = open_here()
    record = parse_revision(opened.layout, opened.repo, text).record
    if checks:
        _say_checks(opened, record, as_json=as_json)
        return
    snapshots = list(opened.repo.snapshots(record.id))
    if as_json:
        listed = [snapshot_shape(snapshot, back) for back, snapshot in enumerate(snapshots)]
        say_json({"branch": record.branch, "snapshots": listed})
        return
    if not snapshots:
        say(f"branch {record.branch} has no snapshot yet")
    for back, snapshot in enumerate(snapshots):
        say(snapshot_line(snapshot, back))
        if patch:
            _say_change(opened, record, snapshot)


def snapshot_line(snapshot: SnapshotInfo, back: int) -> str:
    """One snapshot on one line."""
    name = coloured(f"@{{{back}}}", "yellow")
    tip = snapshot.tip[:10] if snapshot.tip else "-"
    return f"{name}  {moment_text(snapshot.time)}  {snapshot.reason:<8}  {tip}  {printable(snapshot.subject)}"


def _say_change(opened: Opened, record: Record, snapshot: SnapshotInfo) -> None:
    before = (
        opened.repo.snapshot(snapshot.previous).tree if snapshot.previous else start(opened.repo, record).tree
    )
    say()
    say_patch(opened.repo.git_dir, before, snapshot.tree)
    say()


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
