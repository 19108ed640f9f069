"""`snapshot`: commit a branch's state now; the idle and the odd cases of it."""

from __future__ import annotations

import click  # noqa: TID251  # this is overlayrun/cli/

from overlayrun.capture import answer_of, capture
from overlayrun.cli.here import inside_of
from overlayrun.cli.opened import Opened, locked, open_here
from overlayrun.cli.snapshot_client import ask_running, show, snapshot_lean
from overlayrun.cli.words import branch_argument, json_option
from overlayrun.idle import idle_sandbox
from overlayrun.model import SnapshotReason
from overlayrun.overview import State, state_of
from overlayrun.revision import parse_revision
from overlayrun.snapshot import Snapshot
from overlayrun.workspace.record import Record


@click.command("snapshot", short_help="Commit the state of a branch now.")
@branch_argument(required=False)
@click.option(
    "-m", "--message", metavar="TEXT", help="Message of the commit; with one it is made in any case."
)
@click.option("--force-large", is_flag=True, help="However many or large the changed files are.")
@json_option
def snapshot_command(*, text: str, message: str | None, force_large: bool, as_json: bool) -> None:
    """Commit the state of a branch now, running or not. Inside a workspace: of this one."""
    if inside_of() is not None:
        words = [
            *([text] if text else []),
            *([] if message is None else ["-m", message]),
            *["--force-large"] * force_large,
            *["--json"] * as_json,
        ]
        raise SystemExit(snapshot_lean(words) or 0)
    opened = open_here()
    record = parse_revision(opened.layout, opened.repo, text).record
    if state_of(opened.layout, record) is State.RUNNING:
        answer = ask_running(opened.layout, record, message, force_large=force_large)
        show(record.branch, answer, as_json=as_json)
        return
    taken = _take_idle(opened, record, message, force_large=force_large)
    show(record.branch, answer_of(taken), as_json=as_json)


def _take_idle(opened: Opened, record: Record, message: str | None, *, force_large: bool) -> Snapshot:
    with (
        locked(opened, record.branch, f"try again: overlayrun snapshot {record.branch}") as held,
        idle_sandbox(opened.repository, opened.layout, held) as live,
    ):
        return capture(opened.layout, held, SnapshotReason.REQUEST, message, live, force_large=force_large)
