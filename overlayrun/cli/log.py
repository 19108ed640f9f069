"""`log`: the snapshots of a branch."""

from __future__ import annotations

import click  # noqa: TID251  # this is overlayrun/cli/

from overlayrun.cli.opened import Opened, open_here
from overlayrun.cli.patches import say_patch
from overlayrun.cli.render import coloured, moment_text, say, say_json
from overlayrun.cli.shapes import snapshot_shape
from overlayrun.cli.words import branch_argument, json_option
from overlayrun.report import printable
from overlayrun.revision import parse_revision, start
from overlayrun.store.repo import SnapshotInfo
from overlayrun.workspace.record import Record


@click.command("log", short_help="List the snapshots of a branch.")
@branch_argument(required=False)
@click.option("-p", "--patch", is_flag=True, help="With the change of each against the one before.")
@json_option
def log_command(*, text: str, patch: bool, as_json: bool) -> None:
    """List the snapshots of a branch, the newest first: that one is @{0}."""
    opened = open_here()
    record = parse_revision(opened.layout, opened.repo, text).record
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
