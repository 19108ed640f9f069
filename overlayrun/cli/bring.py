"""`apply`: a branch's change comes into the working tree."""

from __future__ import annotations

import os
from typing import Any, Final

import click  # noqa: TID251  # this is overlayrun/cli/

from overlayrun.bring import Brought, apply, refuse
from overlayrun.cli.carrying import (
    carrier_lines,
    consent_options,
    consented,
    fault_lines,
    has_someone,
    is_wanted,
)
from overlayrun.cli.opened import Opened, open_here
from overlayrun.cli.render import say, say_json
from overlayrun.cli.shapes import incoming_shape
from overlayrun.cli.telling import tell
from overlayrun.cli.words import branch_argument, json_option
from overlayrun.incoming import Incoming
from overlayrun.overview import State, state_of
from overlayrun.reconcile.settings import ExecPolicy, Settings, read_settings
from overlayrun.report import printable
from overlayrun.workspace.catalogue import find
from overlayrun.workspace.record import Record

_DECLINED: Final = "you did not want it"


@click.command("apply", short_help="Bring a branch's change into your working tree, uncommitted.")
@branch_argument()
@consent_options
@json_option
def apply_command(*, text: str, as_json: bool, **given: Any) -> int:
    """Bring a branch's change into your working tree as uncommitted changes.

    It is combined with what you have there. On conflicts nothing is changed, and the exit code is 1. Before
    files that run code on your machine when opened or built you are asked.
    """
    opened = open_here()
    settings = read_settings(opened.repository.root).merged(consented(given))
    record = _find(opened, text)

    def refused(found: Incoming) -> str | None:
        left = _left(found, settings)
        if left.unsafe or left.bare or not left.carriers or not has_someone(as_json=as_json):
            return refuse(left)
        return None if is_wanted(record.branch, "apply", left.carriers) else _DECLINED

    return _said(record, apply(opened.repository, opened.layout, record, refused, tell), as_json=as_json)


def _left(found: Incoming, settings: Settings) -> Incoming:
    """What of it needs the user's word still."""
    carriers = () if settings.exec is ExecPolicy.ALLOW else found.carriers
    bare = () if settings.allow_bare_layout else found.bare
    return Incoming(found.files, carriers, bare, found.unsafe)


def _find(opened: Opened, text: str) -> Record:
    record = find(opened.layout, text)
    if state_of(opened.layout, record) is State.RUNNING:
        tell(f"branch {record.branch} is running: what its newest snapshot holds is taken")
    return record


def _said(record: Record, brought: Brought, *, as_json: bool) -> int:
    if as_json:
        conflicts = [{"path": os.fsdecode(each.path), "kind": each.kind} for each in brought.conflicts]
        withheld = incoming_shape(brought.withheld) if brought.withheld else None
        said = {"said": brought.said, "conflicts": conflicts, "withheld": withheld}
        say_json({"branch": record.branch, **said})
    elif brought.withheld and not brought.said.endswith(_DECLINED):
        _tell_withheld(record, brought.said, brought.withheld)
    else:
        say(brought.said)
        for each in brought.conflicts:
            say(f"conflict: {printable(os.fsdecode(each.path))} ({each.kind})")
    if brought.withheld and not brought.said.endswith(_DECLINED):
        return 3
    return int(not brought.is_whole)


def _tell_withheld(record: Record, said: str, found: Incoming) -> None:
    tell(said)
    for line in (*carrier_lines(found.carriers), *fault_lines(found)):
        tell(line)
    if found.carriers:
        tell(f"hint: overlayrun diff {record.branch}, then: overlayrun apply {record.branch} --yes-exec")
