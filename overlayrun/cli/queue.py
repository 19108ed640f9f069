"""`queue`, `approve`, `unapprove`: what waits to land, and why it does not."""

from __future__ import annotations

import time
from typing import Any, Final

import click  # noqa: TID251  # this is overlayrun/cli/

from overlayrun.cli.carrying import carrier_lines
from overlayrun.cli.opened import Opened, open_here
from overlayrun.cli.render import coloured, say, say_json, say_table, span_text
from overlayrun.cli.shapes import carrier_shapes
from overlayrun.cli.targets import target_of
from overlayrun.cli.words import BRANCH, branch_argument, json_option
from overlayrun.errors import UsageError
from overlayrun.incoming import MEANING
from overlayrun.reconcile.board import Work, boards
from overlayrun.reconcile.land import approve, unapprove, waiting
from overlayrun.reconcile.queue import Item, Queue, Standing, carriers_in
from overlayrun.reconcile.settings import Settings, read_settings
from overlayrun.workspace.catalogue import find
from overlayrun.workspace.record import Record

HEADS: Final = ("BRANCH", "STATE", "FILES", "COMMIT", "WHY")
"""The columns of `rows`."""
COLOURS: Final = {
    Standing.WAITING: "cyan",
    Standing.RUNNING: "blue",
    Standing.UNAPPROVED: "yellow",
    Standing.CONFLICT: "red",
    Standing.LANDED: "green",
    Standing.FAILED: "red",
    Standing.PARKED: "red",
    Standing.TAKEN_OUT: "yellow",
    Standing.UNCHANGED: "white",
}


@click.command("queue", short_help="What waits to be merged, and why it does not land.")
@click.option("--into", metavar="BRANCH", type=BRANCH, help="Of this target instead of what is checked out.")
@json_option
def queue_command(*, into: str | None, as_json: bool) -> None:
    """List every branch of a target in the order in which they land.

    What waits, runs, is checked or resolved now, has landed, failed, conflicts or is parked, and why.
    """
    opened = open_here()
    queue = Queue(opened.layout, opened.repo, target_of(opened, into), read_settings(opened.repository.root))
    items = list(queue.items())
    work = {work.branch: work for work in boards(opened.layout) if work.target == queue.target}
    undelivered = waiting(opened.repo, queue.target)
    if as_json:
        shapes = [_shape(opened, item, work.get(item.branch)) for item in items]
        say_json({"target": queue.target, "tip": queue.tip, "waiting": undelivered, "branches": shapes})
        return
    if not items:
        say(f"no branch is on its way to {queue.target}")
        return
    say_table(HEADS, [row(opened, item, work.get(item.branch)) for item in items])
    if undelivered:
        say(f"{undelivered} landed commit{'s' * (undelivered != 1)} of {queue.target} not delivered yet")


def row(opened: Opened, item: Item, work: Work | None) -> list[str]:
    """One branch as a row of a table."""
    state = work.what if work else item.standing.value
    why = f"for {span_text(time.time() - work.since)}" if work else item.why
    at = item.landing.commit if item.standing is Standing.LANDED and item.landing else item.tip
    return [item.branch, state, str(_files(opened, item)), at[:10], why]


def _files(opened: Opened, item: Item) -> int:
    began = item.record.dirty or item.record.base
    start = began if item.standing is Standing.LANDED else item.base or began
    return opened.repo.diff_stat(opened.repo.tree_of(start), opened.repo.tree_of(item.tip)).files


def _shape(opened: Opened, item: Item, work: Work | None) -> dict[str, Any]:
    return {
        "branch": item.branch,
        "id": item.record.id,
        "state": item.standing.value,
        "why": item.why,
        "commit": item.tip,
        "landed": item.landing.commit if item.landing else None,
        "files": _files(opened, item),
        "work": {"what": work.what, "since": work.since} if work else None,
    }


@click.command("approve", short_help="Let a branch land as it stands now.")
@branch_argument()
@json_option
def approve_command(*, text: str, as_json: bool) -> None:
    """Let a branch land as it stands now; what it does afterwards needs approval again.

    Needed with `reconcile.require-approval`, and where a branch changes overlayrun.toml or other files that
    run code on your machine when opened or built; those are listed.
    """
    opened = open_here()
    queue, record = _place(opened, text)
    item = queue.item(record)
    if item.standing is Standing.UNCHANGED:
        raise UsageError(f"branch {item.branch} changed nothing", hint="there is nothing to approve")
    carriers = carriers_in(opened.repo, item, queue.tip)
    approve(opened.repo, item)
    if as_json:
        say_json({"branch": item.branch, "approved": item.tip, "carriers": carrier_shapes(carriers)})
        return
    for line in (f"{MEANING}:", *carrier_lines(carriers)) if carriers else ():
        say(line)
    say(f"branch {item.branch} is approved as it stands: {coloured(item.tip[:10], 'yellow')}")


@click.command("unapprove", short_help="Take an approval back.")
@branch_argument()
@json_option
def unapprove_command(*, text: str, as_json: bool) -> None:
    """Take an approval back. What has landed stays."""
    opened = open_here()
    queue, record = _place(opened, text)
    item = queue.item(record)
    was = unapprove(opened.repo, item)
    if as_json:
        say_json({"branch": item.branch, "was": was})
        return
    say(f"branch {item.branch} {'is not approved any more' if was else 'was not approved'}")


def _place(opened: Opened, text: str) -> tuple[Queue, Record]:
    record = find(opened.layout, text)
    target = record.target or target_of(opened, None)
    return Queue(opened.layout, opened.repo, target, Settings()), record
