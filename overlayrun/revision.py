"""What a user types for a place in a branch's history: `B`, `B@{2}`, `@{2}`, `B@{3}..B`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import islice
from typing import Final

from overlayrun.errors import UsageError
from overlayrun.model import TreeId
from overlayrun.store.repo import Repo, SnapshotInfo
from overlayrun.workspace.catalogue import find, records
from overlayrun.workspace.layout import Layout
from overlayrun.workspace.lock import is_locked
from overlayrun.workspace.record import Record

_AT: Final = re.compile(r"(?P<branch>[^@]*)(?:@\{(?P<back>[0-9]{1,9})\})?")


@dataclass(frozen=True, slots=True)
class Revision:
    """A branch at one of its snapshots, or as it started (snapshot: None). label: its name for the user."""

    record: Record
    snapshot: SnapshotInfo | None
    tree: TreeId
    label: str


@dataclass(frozen=True, slots=True)
class Span:
    """Two places to compare, older first as a rule."""

    old: Revision
    new: Revision


def parse_revision(layout: Layout, repo: Repo, text: str, default: Record | None = None) -> Revision:
    """The place that `text` names: `@{0}` is the newest snapshot; a branch alone means it, or the start.

    default: the branch of an `@{n}` that names none; without one, the branch that `pick` gives.
    Raises UsageError.
    """
    found = _AT.fullmatch(text)
    if found is None:
        raise UsageError(f"not a branch or a snapshot: {text[:80]!a}", hint="write it like: fix-login@{2}")
    name, back = found["branch"], found["back"]
    record = find(layout, name) if name else default or pick(layout)
    if back is None:
        return newest(repo, record)
    snapshot = next(islice(repo.snapshots(record.id), int(back), None), None)
    if snapshot is None:
        count = sum(1 for _ in repo.snapshots(record.id))
        raise UsageError(
            f"branch {record.branch} has no @{{{back}}}: it has {count} snapshot{'s' * (count != 1)}",
            hint=f"see: overlayrun log {record.branch}",
        )
    return Revision(record, snapshot, snapshot.tree, f"{record.branch}@{{{back}}}")


def parse_span(layout: Layout, repo: Repo, text: str) -> Span:
    """`A..B`, or one place compared with its workspace's start; "" means the branch that `pick` gives."""
    old, dots, new = text.partition("..")
    if not dots:
        place = parse_revision(layout, repo, text)
        return Span(start(repo, place.record), place)
    first = parse_revision(layout, repo, old)
    return Span(first, parse_revision(layout, repo, new, first.record))


def newest(repo: Repo, record: Record) -> Revision:
    """The last snapshot, or the start where there is none."""
    last = next(repo.snapshots(record.id), None)
    return Revision(record, last, last.tree, record.branch) if last else start(repo, record)


def start(repo: Repo, record: Record) -> Revision:
    """What the workspace started with: its base, the user's uncommitted changes included."""
    return Revision(record, None, repo.tree_of(record.dirty or record.base), f"start of {record.branch}")


def pick(layout: Layout) -> Record:
    """The branch that is meant where none was named: the only one, or the only one that runs.

    Raises UsageError.
    """
    known = [record for record in records(layout) if not record.throwaway]
    running = [record for record in known if is_locked(layout.workspace(record.id).lock)]
    for meant in (known, running):
        if len(meant) == 1:
            return meant[0]
    if not known:
        raise UsageError("there is no workspace yet", hint="start one: overlayrun -- COMMAND")
    raise UsageError(f"which of the {len(known)} branches?", hint="name one; see: overlayrun ls")
