"""`ls`: what there is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import click  # noqa: TID251  # this is overlayrun/cli/

from overlayrun.cli.opened import open_here
from overlayrun.cli.render import ago, coloured, disk_text, say, say_json
from overlayrun.cli.sessions import say_with_sessions
from overlayrun.cli.shapes import workspace_shape
from overlayrun.cli.telling import tell
from overlayrun.cli.words import json_option
from overlayrun.errors import OverlayrunError
from overlayrun.overview import Overview, State, overviews
from overlayrun.reconcile.forecast import Known, refresh_in_background
from overlayrun.report import printable
from overlayrun.store.repo import Repo
from overlayrun.wording import command_text
from overlayrun.workspace.catalogue import broken, records, repositories
from overlayrun.workspace.layout import Layout

_HEADS = ("BRANCH", "STATE", "FILES", "LINES", "AHEAD", "CONFLICTS", "SNAPSHOTS", "DISK", "USED", "COMMAND")
_ORPHAN = "(fork of a removed branch) "


@click.command("ls", short_help="List the branches with a workspace.")
@click.option("--all", "everywhere", is_flag=True, help="Of every repository of yours that has any.")
@click.option("--tree", "as_tree", is_flag=True, help="Forks below the branch that they were made from.")
@json_option
def ls_command(*, everywhere: bool, as_tree: bool, as_json: bool) -> None:
    """List the branches that have a workspace: state, size of the change, snapshots, bytes on disk.

    Conflicts are as of the last look, paths with the target and other branches: overlayrun conflicts.
    """
    places = list(_everywhere() if everywhere else _here())
    if as_json:
        say_json(_shape(places))
        return
    shown = [(layout, list(overviews(layout, repo))) for layout, repo in places]
    if not any(items for _, items in shown):
        say("no workspace yet; start one: overlayrun -- COMMAND")
    for layout, items in shown:
        if items and everywhere:
            say(coloured(printable(items[0].record.root), "cyan"))
        if items:
            foreseen = _foreseen(layout, items)
            twigs = _twigs(items) if as_tree else [("", item) for item in items]
            rows = [_row(item, foreseen[item.record.id], twig) for twig, item in twigs]
            say_with_sessions(_HEADS, rows, [item.session for _, item in twigs])
            _look_again(layout, items)
        for path in broken(layout):
            tell(f"broken: {printable(path)}: see: overlayrun doctor")


def _here() -> Iterator[tuple[Layout, Repo]]:
    opened = open_here()
    yield opened.layout, opened.repo


def _everywhere() -> Iterator[tuple[Layout, Repo]]:
    """Every repository in the user's catalogue that can be read; nothing is recovered there."""
    for root in repositories():
        layout = Layout(root)
        beside = os.path.dirname(root)
        known = next((record.common_dir for record in records(layout)), beside)
        try:
            yield layout, Repo(beside if root == f"{beside}/overlayrun" else known)
        except OverlayrunError as err:
            tell(f"left out: {printable(root)}: {err.brief}")


def _shape(places: list[tuple[Layout, Repo]]) -> dict[str, Any]:
    return {
        "workspaces": [workspace_shape(item) for layout, repo in places for item in overviews(layout, repo)],
        "broken": [path for layout, _ in places for path in broken(layout)],
    }


def _foreseen(layout: Layout, items: list[Overview]) -> dict[str, str]:
    """What is known of conflicts, by workspace."""
    known = Known(layout)
    open_tips = {item.record.id: item.tip for item in items if item.tip and not item.landed}
    found = {}
    for item in items:
        source = open_tips.get(item.record.id)
        paths = known.paths(item.target_tip, source)
        others = known.others(source, (tip for tip in open_tips.values() if tip != source))
        parts = [str(paths)] * bool(paths) + [f"{others} branch{'es' * (others != 1)}"] * bool(others)
        found[item.record.id] = ", ".join(parts) or ("-" if paths is None else "0")
    return found


def _look_again(layout: Layout, items: list[Overview]) -> None:
    """While the user reads."""
    targets = {item.record.target for item in items if item.record.target and item.target_tip}
    if targets and not all(item.landed for item in items):
        refresh_in_background(layout, items[0].record.common_dir, targets)


def _twigs(items: list[Overview]) -> list[tuple[str, Overview]]:
    """Each branch with what is drawn before it: forks follow the branch that they were made from.

    Where that one is gone they stand at the top.
    """
    known = {item.record.id for item in items}
    below: dict[str | None, list[Overview]] = {}
    for item in items:
        below.setdefault(item.record.parent if item.record.parent in known else None, []).append(item)
    drawn: list[tuple[str, Overview]] = []
    waiting = [(_ORPHAN * bool(item.record.parent), "", item) for item in reversed(below.get(None, []))]
    while waiting:
        before, under, item = waiting.pop()
        drawn.append((before, item))
        forks = below.get(item.record.id, [])
        for number, fork in reversed(list(enumerate(forks, 1))):
            is_last = number == len(forks)
            waiting.append((under + ("└ " if is_last else "├ "), under + ("  " if is_last else "│ "), fork))
    return drawn


def _state_text(item: Overview) -> str:
    if item.landed and item.state is State.IDLE:
        return "landed"
    return f"{item.state.value}, {item.turn.value}" if item.turn else item.state.value


def _row(item: Overview, conflicts: str, twig: str) -> list[str]:
    run = item.record.last_run
    used = (run.ended or run.started) if run else item.record.created
    return [
        twig + item.record.branch,
        _state_text(item),
        str(item.change.files),
        f"+{item.change.insertions} -{item.change.deletions}",
        "-" if item.ahead is None else str(item.ahead),
        conflicts,
        str(item.snapshots),
        disk_text(item.alone),
        ago(used),
        item.record.prompt or (command_text(run.command) if run else ""),
    ]
