"""`gc`: what of the state can go, as values, then removed. Work that is nowhere else is never listed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from overlayrun.errors import WorkspaceBusy
from overlayrun.files import disk_usage, remove_tree
from overlayrun.overview import target_tip
from overlayrun.removal import drop
from overlayrun.store.landings import has_landed
from overlayrun.store.refs import branch_ref
from overlayrun.store.repo import Repo
from overlayrun.workspace.catalogue import records
from overlayrun.workspace.layout import Layout
from overlayrun.workspace.lock import is_held, is_locked, lock
from overlayrun.workspace.record import Record

DAY: Final = 86_400.0
HALF_MADE: Final = 3600.0  # seconds after which nobody is still making it
KEPT: Final = 30 * DAY


@dataclass(frozen=True, slots=True)
class Garbage:
    """Something that can go. size: bytes on the disk. record: of a workspace; its branch stays."""

    path: str
    size: int
    why: str
    record: Record | None = None


def garbage(layout: Layout, *, max_age: float = 14 * DAY, max_size: int | None = None) -> list[Garbage]:
    """What can go: leftovers, layers that no workspace stands on, landed workspaces not used for `max_age`.

    max_age: seconds. max_size: bytes; while the state is larger, younger layers and landed workspaces go too,
    the longest unused first.
    """
    known = list(records(layout))
    found = [*_leftovers(layout), *_throwaways(layout), *_kept(layout, known)]
    found += [*_checks(layout), *_batches(layout), *_torn(layout)]
    cutoff = time.time() - max_age
    spare: list[tuple[float, Garbage]] = []
    for used, item in [*_layers(layout, known), *_landed(layout, known)]:
        if used < cutoff:
            found.append(item)
        else:
            spare.append((used, item))
    if max_size is not None:
        excess = disk_usage(layout.root) - sum(item.size for item in found) - max_size
        for _, item in sorted(spare, key=lambda pair: pair[0]):
            if excess <= 0:
                break
            found.append(item)
            excess -= item.size
    return found


def _leftovers(layout: Layout) -> Iterator[Garbage]:
    """Directories that a killed process was making or removing."""
    for place in (layout.bases, layout.layers, layout.carried, layout.masters, layout.workspaces):
        for entry in os.scandir(place) if os.path.isdir(place) else ():
            half = entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
            if half and time.time() - entry.stat().st_mtime > HALF_MADE:
                yield Garbage(entry.path, disk_usage(entry.path), "left by a killed process")


def _throwaways(layout: Layout) -> Iterator[Garbage]:
    for entry in os.scandir(layout.workspaces):
        place = layout.workspace(entry.name)
        if os.path.exists(place.throwaway) and not is_locked(place.lock):
            yield Garbage(place.root, disk_usage(place.root), "a throwaway that was killed")


def _kept(layout: Layout, known: list[Record]) -> Iterator[Garbage]:
    for record in known:
        place = layout.workspace(record.id)
        for entry in os.scandir(place.kept) if os.path.isdir(place.kept) else ():
            since = entry.stat().st_mtime
            # After a power cut a machine's clock may stand in another century until it is set.
            if time.time() - since > KEPT and since >= record.created:
                yield Garbage(
                    entry.path, disk_usage(entry.path), f"put aside when {record.branch} was restored"
                )


def _torn(layout: Layout) -> Iterator[Garbage]:
    """All of it, when the last was put there long ago: a directory's time is that of its newest name."""
    times = [os.stat(directory).st_mtime for directory, _, _ in os.walk(layout.torn)]
    if times and time.time() - max(times) > KEPT:
        yield Garbage(layout.torn, disk_usage(layout.torn), "what a power cut tore of git's files")


def _checks(layout: Layout) -> Iterator[Garbage]:
    for entry in os.scandir(layout.checks) if os.path.isdir(layout.checks) else ():
        if time.time() - entry.stat().st_mtime > KEPT:  # a directory's time is that of its newest result
            yield Garbage(entry.path, disk_usage(entry.path), "results of old checks")


def _batches(layout: Layout) -> Iterator[Garbage]:
    """Logs and reports of old runs; what their attempts made stays, by their refs."""
    for entry in os.scandir(layout.batches) if os.path.isdir(layout.batches) else ():
        is_old = time.time() - entry.stat().st_mtime > KEPT
        if is_old and not is_locked(f"{entry.path}/lock"):
            yield Garbage(entry.path, disk_usage(entry.path), "logs and reports of an old batch")


def _layers(layout: Layout, known: list[Record]) -> Iterator[tuple[float, Garbage]]:
    """(last use, layer) of every frozen layer that no workspace and no other layer stands on."""
    needed = {layer for record in known for layer in (*record.stack, *record.carried_layers)}
    below = {name.partition("-")[0] for name in os.listdir(layout.layers)}
    for kind in ("bases", "layers", "carried", "masters"):  # no snapshot needs its master any more
        for entry in os.scandir(f"{layout.root}/{kind}") if os.path.isdir(f"{layout.root}/{kind}") else ():
            name = f"{kind}/{entry.name}"
            tree = entry.name.rpartition("-")[2]
            stood_on = name in needed or (kind in ("bases", "layers") and tree in below)
            if entry.name.startswith(".") or not entry.is_dir() or stood_on or is_held(entry.path):
                continue
            yield (
                entry.stat().st_mtime,
                Garbage(entry.path, disk_usage(entry.path), "no workspace stands on it"),
            )


def _landed(layout: Layout, known: list[Record]) -> Iterator[tuple[float, Garbage]]:
    for record in known:
        place = layout.workspace(record.id)
        if record.is_open or is_locked(place.lock) or not _is_home(record):
            continue
        used = record.last_run.ended if record.last_run and record.last_run.ended else record.created
        yield used, Garbage(place.root, disk_usage(place.root), f"branch {record.branch} has landed", record)


def _is_home(record: Record) -> bool:
    """Whether all of the branch is in its target: computed from the commits."""
    repo = Repo(record.common_dir)
    tip, target = repo.ref(branch_ref(record.branch)), target_tip(repo, record)
    if tip is None or target is None or record.target is None:
        return False
    return has_landed(repo, record.id, tip, record.target, target)


def collect(layout: Layout, items: list[Garbage]) -> int:
    """Remove what `garbage` found, less what somebody has begun to use since; bytes that came free."""
    # Not under the lock: who shows one as a folder lets it go first, and may be waiting for that lock.
    freed = sum(item.size for item in items if item.record is not None and _drop(layout, item.record))
    alone = lock(layout.lock)
    try:
        needed = {layer for record in records(layout) for layer in (*record.stack, *record.carried_layers)}
        for item in items:
            if item.record is not None or os.path.relpath(item.path, layout.root) in needed:
                continue
            if not is_held(item.path):
                remove_tree(item.path)
                freed += item.size
    finally:
        os.close(alone)
    return freed


def _drop(layout: Layout, known: Record) -> bool:
    place = layout.workspace(known.id)
    try:
        held = lock(place.lock)
    except (WorkspaceBusy, FileNotFoundError):
        return False
    try:
        record = Record.load(place.record)  # as it was let go
        if record.is_open or not _is_home(record):
            return False
        drop(layout, record, branch=False)
    finally:
        os.close(held)
    return True
