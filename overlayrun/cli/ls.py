"""`ls`: what there is."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from typing import Any

import click  # noqa: TID251  # this is overlayrun/cli/

from overlayrun.cli.opened import open_here
from overlayrun.cli.render import ago, coloured, say, say_json, say_table, size_text
from overlayrun.cli.shapes import workspace_shape
from overlayrun.cli.telling import tell
from overlayrun.cli.words import json_option
from overlayrun.errors import OverlayrunError
from overlayrun.overview import Overview, State, overviews
from overlayrun.report import printable
from overlayrun.store.repo import Repo
from overlayrun.workspace.catalogue import broken, records, repositories
from overlayrun.workspace.layout import Layout

_HEADS = ("BRANCH", "STATE", "FILES", "LINES", "AHEAD", "SNAPSHOTS", "DISK", "USED", "COMMAND")


@click.command("ls", short_help="List the branches with a workspace.")
@click.option("--all", "everywhere", is_flag=True, help="Of every repository of yours that has any.")
@json_option
def ls_command(*, everywhere: bool, as_json: bool) -> None:
    """List the branches that have a workspace: state, size of the change, snapshots, bytes on disk."""
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
            say_table(_HEADS, [_row(item) for item in items])
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


def _row(item: Overview) -> list[str]:
    run = item.record.last_run
    used = (run.ended or run.started) if run else item.record.created
    return [
        item.record.branch,
        "landed" if item.landed and item.state is State.IDLE else item.state.value,
        str(item.change.files),
        f"+{item.change.insertions} -{item.change.deletions}",
        "-" if item.ahead is None else str(item.ahead),
        str(item.snapshots),
        size_text(item.size),
        ago(used),
        item.record.prompt or (shlex.join(run.command) if run else ""),
    ]
