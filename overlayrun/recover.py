"""After a kill or a power cut: take the missing snapshot, or rebuild from the last. Nothing is lost."""

from __future__ import annotations

import os
import time

from overlayrun.errors import OverlayrunError, WorkspaceBusy
from overlayrun.files import identity_of, remove_tree
from overlayrun.workspace.lock import is_locked, lock
from overlayrun.workspace.record import UNFILLED, Record, boot_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from overlayrun.store.location import Repository
    from overlayrun.workspace.layout import Layout


_HALF_WRITTEN: Final = 3600.0  # seconds
_MARGIN: Final = 1.0  # seconds; a file is stamped by a coarser clock than ours


def is_interrupted(layout: Layout, record: Record) -> bool:
    """Whether the last run was never closed, or a fork is not filled, and no process holds the workspace."""
    place = layout.workspace(record.id)
    return (
        (record.is_open or _is_unfilled(layout, record) or _is_torn(layout, record))
        and not is_locked(place.lock)
        and not is_locked(place.folder_lock)
    )


def _is_unfilled(layout: Layout, record: Record) -> bool:
    """Whether nothing ever ran here, and the upper is not the one that the record means."""
    return record.last_run is None and _inode(layout, record) not in (None, record.inode)


def _is_torn(layout: Layout, record: Record) -> bool:
    """Whether a branch in which nothing ran went through a power cut before its files were on the disk."""
    if record.last_run is not None or record.filled is None or record.filled == boot_id():
        return False
    return not _reached_disk(layout, record)


def _inode(layout: Layout, record: Record) -> int | None:
    try:
        return identity_of(layout.workspace(record.id).upper)
    except FileNotFoundError:
        return None


def recover_all(repository: Repository, layout: Layout, tell: Callable[[str], None]) -> None:
    """Recover every interrupted workspace; one that can't be is told of and left as it is."""
    from overlayrun.halfway import settle
    from overlayrun.workspace.catalogue import records

    settle(layout, repository.common_dir)
    for record in records(layout):
        if not is_interrupted(layout, record):
            continue
        try:
            held = lock(layout.workspace(record.id).lock)
        except WorkspaceBusy:
            continue
        try:
            recover(repository, layout, Record.load(layout.workspace(record.id).record), tell)
        except OverlayrunError as err:
            tell(f"branch {record.branch} was interrupted and can't be recovered now: {err.brief}")
        finally:
            os.close(held)


def recover(repository: Repository, layout: Layout, record: Record, tell: Callable[[str], None]) -> None:
    """Bring a workspace whose lock we hold to a state that a run can start from.

    After a kill the upper layer is whole: the missing snapshot is taken. After a power cut it is doubtful
    unless it
    had reached the disk, and so is one that was copied, because copies lose marks: it is put aside and
    rebuilt from the last snapshot. A fork that nobody has opened yet gets its upper.
    """
    run = record.last_run
    if record.inode == UNFILLED:
        from overlayrun.restore import rebuild

        remove_tree(rebuild(repository, layout, record, number=None))  # what lay there was empty
        return
    is_another = identity_of(layout.workspace(record.id).upper) != record.inode
    if is_another and not _is_completed(layout, record):
        tell(f"branch {record.branch} is a copy: rebuilding it from its last snapshot")
        _rebuild(repository, layout, record, tell)
    if _is_torn(layout, record):
        tell(f"branch {record.branch} went through a power cut")
        _rebuild(repository, layout, record, tell, is_doubtful=True)
        record.filled = None
        record.save(layout.workspace(record.id).record)
    if run is None:
        return
    if run.boot != boot_id() and not _reached_disk(layout, record):
        tell(f"branch {record.branch} went through a power cut")
        _rebuild(repository, layout, record, tell, is_doubtful=True)
    elif record.is_open:
        _take_missing(repository, layout, record, tell)
    else:
        return
    run.ended, run.boot = run.ended or time.time(), boot_id()
    record.save(layout.workspace(record.id).record)


def _is_completed(layout: Layout, record: Record) -> bool:
    """Whether a sync or a restore was killed in the middle of its exchange, which is finished now."""
    from overlayrun.swap import complete

    return complete(layout, record) is not None


def synced_mark(layout: Layout, record: Record) -> str:
    """File whose content says of which run and boot the upper layer is on the disk."""
    return f"{layout.workspace(record.id).root}/synced"


def sync_stamp(record: Record) -> bytes:
    """What the mark must say for the last run; of a fork in which nothing ran, for its copies."""
    if record.last_run is None:
        return f"{record.filled} 0".encode()
    return f"{record.last_run.boot} {record.last_run.number}".encode()


def _reached_disk(layout: Layout, record: Record) -> bool:
    try:
        with open(synced_mark(layout, record), "rb") as file:
            return file.read() == sync_stamp(record)
    except FileNotFoundError:
        return False


def _take_missing(
    repository: Repository, layout: Layout, record: Record, tell: Callable[[str], None]
) -> None:
    from overlayrun.capture import capture
    from overlayrun.folders.gitdir import hand_over, head_of
    from overlayrun.idle import idle_sandbox
    from overlayrun.model import SnapshotReason

    _clear_half_written(f"{record.common_dir}/objects")
    with idle_sandbox(repository, layout, record) as live:
        taken = capture(layout, record, SnapshotReason.RECOVERY, None, live)
        if record.last_run and record.last_run.folder:
            hand_over(live, layout.workspace(record.id), head_of(record))
    tell(f"branch {record.branch} was interrupted: its changes are in snapshot {taken.number}")


def _clear_half_written(objects: str) -> None:
    """Remove what a killed snapshot left of objects and packs, once nobody can be writing it any more."""
    for directory in os.scandir(objects):
        if len(directory.name) != 2 and directory.name != "pack":
            continue
        for entry in os.scandir(directory.path):
            half = entry.name.startswith(("tmp_obj_", "tmp_pack_", "tmp_idx_"))
            if half and time.time() - entry.stat().st_mtime > _HALF_WRITTEN:
                os.unlink(entry.path)


def _whole_before(layout: Layout, record: Record) -> float:
    """When the last run began, if what was there then had reached the disk; else 0."""
    if record.last_run is None:
        return 0.0
    try:
        with open(synced_mark(layout, record), "rb") as file:
            number = file.read().rpartition(b" ")[2]
    except FileNotFoundError:
        return 0.0
    return record.last_run.started - _MARGIN if number == b"%d" % (record.last_run.number - 1) else 0.0


def _rebuild(
    repository: Repository,
    layout: Layout,
    record: Record,
    tell: Callable[[str], None],
    *,
    is_doubtful: bool = False,
) -> None:
    from overlayrun.restore import ALWAYS, rebuild

    limit = _whole_before(layout, record) if is_doubtful else ALWAYS
    aside = rebuild(repository, layout, record, number=None, whole_before=limit)
    tell(f"branch {record.branch} is rebuilt from its last snapshot; what was there is in {aside}")
