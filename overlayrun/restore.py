"""Put a workspace back to one of its snapshots. The present state is put aside, never removed."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from overlayrun.adopt import link_tree, make_way
from overlayrun.bases.gitdir import write_git_directory
from overlayrun.capture import capture
from overlayrun.chain import ABSENT
from overlayrun.errors import UsageError
from overlayrun.idle import idle_sandbox
from overlayrun.model import CommitId, SnapshotReason
from overlayrun.sandbox.plan import OBJECTS
from overlayrun.sandbox.seeds import excluded
from overlayrun.snapshot import Snapshot
from overlayrun.store.commits import parse_trailers
from overlayrun.store.location import Repository
from overlayrun.store.refs import branch_ref
from overlayrun.store.repo import Repo, SnapshotInfo
from overlayrun.swap import (
    complete,
    complete_git,
    dirty_on,
    installed,
    layers_kept,
    make_fresh,
    open_fresh,
    run_git,
    stand_on,
)
from overlayrun.workspace.layout import Layout
from overlayrun.workspace.record import Record

ALWAYS: Final = math.inf
"""Whole however young: no power cut came between."""


def restore(repository: Repository, layout: Layout, record: Record, wanted: SnapshotInfo) -> Snapshot:
    """Go back to a snapshot: what is there now is snapshotted first, and the result is a new snapshot.

    The base goes back with it, so that what the branch changed is what it had changed then. The caller holds
    the lock. Carried files stay as they are: no snapshot ever held them.
    """
    with idle_sandbox(repository, layout, record) as live:
        capture(layout, record, SnapshotReason.REQUEST, None, live)
    with (
        _rebuilt(repository, layout, record, wanted.number, ALWAYS),
        idle_sandbox(repository, layout, record) as live,
    ):
        return capture(layout, record, SnapshotReason.REQUEST, f"Restore snapshot {wanted.number}", live)


def rebuild(
    repository: Repository,
    layout: Layout,
    record: Record,
    *,
    number: int | None,
    whole_before: float = ALWAYS,
) -> str:
    """Make the upper layers anew from a snapshot (None: the last), and give where the old ones were put.

    whole_before: seconds since the epoch; carried files in which anything is younger stay aside, and those
    that the workspace began with take their place. An exchange that a kill cut off is finished instead: then
    the new layers are there already.
    """
    aside = complete(layout, record)
    if aside is None:
        with _rebuilt(repository, layout, record, number, whole_before) as aside:
            pass
    return aside


@contextmanager
def _rebuilt(
    repository: Repository, layout: Layout, record: Record, number: int | None, whole_before: float
) -> Iterator[str]:
    repo = Repo(record.common_dir)
    wanted = _snapshot(repo, record, number)
    with layers_kept(layout):
        base = _base_of(repo, wanted) if wanted else record.base
        dirty = record.dirty if base == record.base else dirty_on(repo, record, base)
        stand_on(repository, layout, record, base, dirty)
        tree = wanted.tree if wanted else repo.tree_of(record.dirty or record.base)
        fresh = make_fresh(repository, layout, record, tree)
        _link_carried(record, layout.workspace(record.id).upper, fresh.upper, whole_before)
        _write_git(repository, repo, record, wanted, fresh.git)
        complete_git(record, fresh)
        if wanted and wanted.head:
            # The frozen index is the base's; the agent's own commits need one of theirs.
            with open_fresh(repository, layout, record, fresh) as live:
                run_git(live, "reset", "-q")
        with installed(layout, record, fresh) as aside:
            yield aside


def _snapshot(repo: Repo, record: Record, number: int | None) -> SnapshotInfo | None:
    for found in repo.snapshots(record.id):
        if number is None or found.number == number:
            return found
    if number is None:
        return None
    raise UsageError(
        f"branch {record.branch} has no snapshot {number}", hint=f"see: overlayrun log {record.branch}"
    )


def _base_of(repo: Repo, wanted: SnapshotInfo) -> CommitId | None:
    """What the workspace stood on when a snapshot was taken; a sync moves it."""
    base = parse_trailers(repo.commit(wanted.commit).message)["Base"]
    return None if base == ABSENT else CommitId(base)


def _link_carried(record: Record, old: str, new: str, whole_before: float) -> None:
    for path in record.carried:
        if not (_leads_there(old, path) and _leads_there(new, path) and os.path.lexists(f"{old}/{path}")):
            continue
        if whole_before != ALWAYS and _youngest(f"{old}/{path}") >= whole_before:
            continue
        os.makedirs(os.path.dirname(f"{new}/{path}"), exist_ok=True)
        make_way(f"{new}/{path}")  # a whole tree has them already, as they were at first
        link_tree(os.fsencode(f"{old}/{path}"), os.fsencode(f"{new}/{path}"))


def _youngest(place: str) -> float:
    """When anything at or below a path last changed, by the time that no program can set."""
    found = [os.lstat(place).st_ctime]
    for directory, names, files in os.walk(place):
        found += [os.lstat(f"{directory}/{name}").st_ctime for name in (*names, *files)]
    return max(found)


def _leads_there(upper: str, path: str) -> bool:
    """Whether all above `path` that there is are directories: a link that the agent made leads elsewhere."""
    place = upper
    for part in path.split("/")[:-1]:
        place = f"{place}/{part}"
        if os.path.lexists(place) and (os.path.islink(place) or not os.path.isdir(place)):
            return False
    return True


def _write_git(
    repository: Repository, repo: Repo, record: Record, wanted: SnapshotInfo | None, place: str
) -> None:
    """A fresh `.git` whose branch stands at the agent's last commit of that snapshot."""
    head = (wanted.head if wanted else None) or record.base
    refs = {branch_ref(record.branch): head} if head else {}
    target = repo.ref(f"refs/heads/{record.target}") if record.target else None
    if target:
        refs[f"refs/heads/{record.target}"] = target
    own = branch_ref(record.branch)
    write_git_directory(repository, place, OBJECTS, own, refs, excluded(record.profile))
