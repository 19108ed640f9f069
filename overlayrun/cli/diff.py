"""`diff`: what a branch changed."""

from __future__ import annotations

from typing import Any

import click  # noqa: TID251  # this is overlayrun/cli/

from overlayrun.cli.carrying import notes_of
from overlayrun.cli.opened import Opened, open_here
from overlayrun.cli.patches import FileChange, file_changes, file_shape, say_names, say_patch, say_stat
from overlayrun.cli.render import say_json
from overlayrun.cli.shapes import incoming_shape
from overlayrun.cli.snapshot_client import ask_running
from overlayrun.cli.telling import tell
from overlayrun.cli.words import branch_argument, json_option
from overlayrun.incoming import Incoming, incoming
from overlayrun.overview import State, state_of
from overlayrun.revision import Revision, Span, parse_revision, parse_span


@click.command("diff", short_help="Show what a branch changed.")
@branch_argument("[BRANCH | B@{N} | A..B]", required=False)
@click.option("--stat", is_flag=True, help="Only the number of lines a file.")
@click.option("--name-only", is_flag=True, help="Only the paths.")
@click.option("--live", is_flag=True, help="Of a running branch: take a snapshot first.")
@json_option
def diff_command(*, text: str, stat: bool, name_only: bool, live: bool, as_json: bool) -> None:
    r"""Show what a branch changed since it started, uncommitted changes that it took along left aside.

    \b
      diff B            the newest snapshot against the start
      diff B@{1}        the snapshot before against the start
      diff B@{3}..B     two snapshots against each other

    A running branch is shown at its newest snapshot. Files that run code on your machine when opened or built
    are listed at the end, on standard error: the patch can go to `git apply`.
    """
    opened = open_here()
    if live:
        _take_live(opened, text)
    span = parse_span(opened.layout, opened.repo, text)
    trees = opened.repo.git_dir, span.old.tree, span.new.tree
    if name_only and not as_json:
        say_names(*trees)
        return
    found = incoming(opened.repo, span.old.tree, span.new.tree)
    if as_json:
        say_json(_shape(span, file_changes(*trees), found))
        return
    (say_stat if stat else say_patch)(*trees)
    for line in notes_of(found):
        tell(line)


def _take_live(opened: Opened, text: str) -> None:
    record = parse_revision(opened.layout, opened.repo, text.rpartition("..")[2].partition("@")[0]).record
    if state_of(opened.layout, record) is State.RUNNING:
        ask_running(opened.layout, record, None)


def _shape(span: Span, files: list[FileChange], found: Incoming) -> dict[str, Any]:
    return {
        "branch": span.new.record.branch,
        "from": _place(span.old),
        "to": _place(span.new),
        "files": [file_shape(file) for file in files],
        "insertions": sum(file.insertions or 0 for file in files),
        "deletions": sum(file.deletions or 0 for file in files),
        **incoming_shape(found),
    }


def _place(revision: Revision) -> dict[str, Any]:
    snapshot = revision.snapshot
    return {"label": revision.label, "tree": revision.tree, "snapshot": snapshot.commit if snapshot else None}
