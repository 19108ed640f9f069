"""`apply` and `merge`: a branch's change comes home."""

from __future__ import annotations

import os

import click  # noqa: TID251  # this is overlayrun/cli/

from overlayrun.bring import Brought, apply, merge
from overlayrun.cli.opened import Opened, open_here
from overlayrun.cli.render import say, say_json
from overlayrun.cli.telling import tell
from overlayrun.cli.words import BRANCH, branch_argument, json_option
from overlayrun.model import BranchName
from overlayrun.overview import State, state_of
from overlayrun.report import printable
from overlayrun.store.refs import parse_branch_name
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


@click.command("merge", short_help="Merge a branch into its target.")
@branch_argument()
@click.option("--into", metavar="BRANCH", type=BRANCH, help="Into this branch instead of its target.")
@json_option
def merge_command(*, text: str, into: str | None, as_json: bool) -> int:
    """Merge a branch into its target: the branch that was checked out when it began.

    Fast-forward, else a merge commit. On conflicts nothing is changed, and the exit code is 1.
    """
    opened = open_here()
    record = _find(opened, text)
    target: BranchName | None = None if into is None else parse_branch_name(into)
    return _said(record, merge(opened.repository, record, target), as_json=as_json)


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
