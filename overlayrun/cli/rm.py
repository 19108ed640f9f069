"""`rm`: remove a branch and its workspace, unless work would be lost."""

from __future__ import annotations

import os

import click  # noqa: TID251  # this is overlayrun/cli/

from overlayrun.cli.opened import Opened, locked, open_here
from overlayrun.cli.render import count_text, say
from overlayrun.cli.telling import tell
from overlayrun.cli.words import BRANCH
from overlayrun.errors import WorkspaceError
from overlayrun.removal import drop
from overlayrun.report import printable
from overlayrun.unsaved import Unsaved, branch_is_checked_out, unsaved
from overlayrun.workspace.record import Record


@click.command("rm", short_help="Remove a branch and its workspace.")
@click.argument("texts", metavar="BRANCH...", type=BRANCH, nargs=-1, required=True)
@click.option("-f", "--force", is_flag=True, help="Even where work is lost with it.")
@click.option("--keep-branch", is_flag=True, help="Remove the workspace alone; the git branch stays.")
def rm_command(*, texts: tuple[str, ...], force: bool, keep_branch: bool) -> None:
    """Remove branches with their workspaces and snapshots.

    Refused while a command runs there, and, without --force, where commits or files would be lost.
    """
    opened = open_here()
    for text in texts:
        with locked(opened, text, "end it first, or see: overlayrun status") as record:
            _remove(opened, record, force=force, keep_branch=keep_branch)


def _remove(opened: Opened, record: Record, *, force: bool, keep_branch: bool) -> None:
    tree = branch_is_checked_out(opened.repo, record.branch)
    stays = keep_branch or tree is not None
    if not force:
        _refuse_loss(record, unsaved(opened.layout, opened.repo, record, keep_branch=stays))
    drop(opened.layout, record, branch=not stays)
    if tree is not None and not keep_branch:
        tell(f"branch {record.branch} stays: it is checked out in {printable(tree)}")
    say(f"removed the workspace of {record.branch}" if stays else f"removed {record.branch}")


def _refuse_loss(record: Record, lost: Unsaved) -> None:
    if not lost.reasons:
        return
    details = [
        *lost.reasons,
        *(f"{printable(os.fsdecode(item.path))}: {item.reason.value}" for item in lost.left_out[:5]),
    ]
    raise WorkspaceError(
        f"branch {record.branch} holds what is nowhere else ({count_text(len(lost.reasons), 'reason')})",
        details="\n".join(details),
        hint=f"overlayrun merge {record.branch}, or lose it: overlayrun rm --force {record.branch}",
    )
