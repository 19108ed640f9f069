"""`sync`: the target comes into a branch."""

from __future__ import annotations

import os

import click  # noqa: TID251  # this is overlayrun/cli/

from overlayrun.cli.opened import locked, open_here
from overlayrun.cli.render import say, say_json
from overlayrun.cli.telling import tell
from overlayrun.cli.words import BRANCH, branch_argument, json_option
from overlayrun.report import printable
from overlayrun.store.refs import parse_branch_name
from overlayrun.sync import Synced, sync
from overlayrun.workspace.catalogue import find
from overlayrun.workspace.record import Record


@click.command("sync", short_help="Bring the target into a branch that is not running.")
@branch_argument()
@click.option("--into", metavar="BRANCH", type=BRANCH, help="This branch instead of the target.")
@json_option
def sync_command(*, text: str, into: str | None, as_json: bool) -> int:
    """Merge a branch's target into it, also under work that is not committed.

    The branch stands on the target's newest commit then, and its own change lies on top. What is there now
    becomes a snapshot first. On conflicts nothing is changed, and the exit code is 1.
    """
    opened = open_here()
    target = None if into is None else parse_branch_name(into)
    branch = find(opened.layout, text).branch
    hint = f"end it, or merge inside: overlayrun shell {branch}"
    with locked(opened, branch, hint) as record:
        return _said(record, sync(opened.repository, opened.layout, record, target), as_json=as_json)


def _said(record: Record, synced: Synced, *, as_json: bool) -> int:
    if as_json:
        say_json(_shape(record, synced))
    else:
        say(synced.said)
        for each in synced.conflicts:
            say(f"conflict: {printable(os.fsdecode(each.path))} ({each.kind})")
        for note in synced.notes:
            tell(note)
    if synced.conflicts:
        tell(f"hint: sync later, or inside: overlayrun shell {record.branch}; git merge {synced.goal[:10]}")
        return 1
    return 0


def _shape(record: Record, synced: Synced) -> dict[str, object]:
    taken = synced.snapshot
    return {
        "branch": record.branch,
        "said": synced.said,
        "target": synced.target,
        "target_commit": synced.goal,
        "number": taken.number if taken else None,
        "commit": taken.commit if taken else None,
        "conflicts": [{"path": os.fsdecode(each.path), "kind": each.kind} for each in synced.conflicts],
        "notes": list(synced.notes),
    }
