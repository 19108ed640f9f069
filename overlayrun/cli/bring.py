"""`apply`: a branch's change comes into the working tree."""

from __future__ import annotations

import os

import click  # noqa: TID251  # this is overlayrun/cli/

from overlayrun.bring import Brought, apply
from overlayrun.cli.opened import Opened, open_here
from overlayrun.cli.render import say, say_json
from overlayrun.cli.telling import tell
from overlayrun.cli.words import branch_argument, json_option
from overlayrun.overview import State, state_of
from overlayrun.report import printable
from overlayrun.workspace.catalogue import find
from overlayrun.workspace.record import Record


@click.command("apply", short_help="Bring a branch's change into your working tree, uncommitted.")
@branch_argument()
@json_option
def apply_command(*, text: str, as_json: bool) -> int:
    """Bring a branch's change into your working tree as uncommitted changes.

    It is combined with what you have there. On conflicts nothing is changed, and the exit code is 1.
    """
    opened = open_here()
    record = _find(opened, text)
    return _said(record, apply(opened.repository, opened.layout, record), as_json=as_json)


def _find(opened: Opened, text: str) -> Record:
    record = find(opened.layout, text)
    if state_of(opened.layout, record) is State.RUNNING:
        tell(f"branch {record.branch} is running: what its newest snapshot holds is taken")
    return record


def _said(record: Record, brought: Brought, *, as_json: bool) -> int:
    if as_json:
        conflicts = [{"path": os.fsdecode(each.path), "kind": each.kind} for each in brought.conflicts]
        say_json({"branch": record.branch, "said": brought.said, "conflicts": conflicts})
    else:
        say(brought.said)
        for each in brought.conflicts:
            say(f"conflict: {printable(os.fsdecode(each.path))} ({each.kind})")
    return 1 if brought.conflicts else 0
