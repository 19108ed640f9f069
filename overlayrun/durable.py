"""What volatile mounts leave to the page cache is flushed, in a run and after it, while the user types on."""

from __future__ import annotations

import os
import time

from overlayrun.bases.stack import is_synced, mark_synced
from overlayrun.errors import WorkspaceBroken
from overlayrun.files import write_whole
from overlayrun.kernel import syscalls
from overlayrun.workspace.flushed import note_synced
from overlayrun.workspace.record import Record, forget_flushed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from overlayrun.workspace.layout import Layout, WorkspaceLayout


def sync_in_background(layout: Layout, records: Sequence[Record]) -> None:
    """Flush the state's file system in a process of its own, then note which uppers and layers are on disk.

    When this returns it holds neither lock nor mount nor the user's streams: nobody has to wait for it.
    Killed, it leaves no note, and a power cut then means a rebuild from the last snapshot.
    """
    detached, held = os.pipe()
    if os.fork():
        os.close(held)
        os.read(detached, 1)  # ends as the child lets go of what was ours, with its end of the pipe
        os.close(detached)
        return
    try:
        _detach(layout)
        layers = {*_masters(layout), *(layer for record in records for layer in record.stack)}
        saved = {record.id: _version(layout.workspace(record.id).record) for record in records}
        syscalls.syncfs(3)
        for layer in layers:
            if not is_synced(layout, layer):
                mark_synced(layout, layer)
        for record in records:
            _note_flushed(layout, record, saved[record.id])
    finally:
        os._exit(0)


def _note_flushed(layout: Layout, record: Record, saved: tuple[int, int]) -> None:
    """saved: version of the record's file before the flush.

    Where another has come since, a merge or a restore of the same run may have changed files under the flush:
    these flush them again. A run that has begun since does not go on from other files than were flushed.
    """
    place = layout.workspace(record.id)
    if not os.path.isdir(place.root):
        return
    if saved == _version(place.record):
        forget_flushed(place.record)
    elif _number(place) <= (record.last_run.number if record.last_run else 0):
        return
    note_synced(place, record)


def _number(place: WorkspaceLayout) -> int:
    """Of the last run, as the record says now."""
    try:
        run = Record.load(place.record).last_run
    except WorkspaceBroken:  # it is being removed
        return 0
    return run.number if run else 0


def sync_aside(layout: Layout, record: Record) -> None:
    """The same for a process that lives on: in a child's child, for which nobody here has to wait."""
    pid = os.fork()
    if pid == 0:
        try:
            sync_in_background(layout, [record])
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def flush_meanwhile(layout: Layout, record: Record) -> None:
    """Flush what a run has written so far, in a child's child, and note when that was.

    For HOME, which no snapshot holds: after a power cut, what has not changed since is whole.
    """
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        if os.fork() == 0:
            began = time.time()
            _detach(layout)
            syscalls.syncfs(3)
            place = layout.workspace(record.id)
            if os.path.isdir(place.root):
                number = record.last_run.number if record.last_run else 0
                write_whole(place.flushed, f"{began} {number}".encode(), durable=True)
    finally:
        os._exit(0)


def _version(path: str) -> tuple[int, int]:
    """Inode and ctime (ns): the number alone is given again to the file after the next."""
    try:
        info = os.stat(path)
    except FileNotFoundError:
        return 0, 0
    return info.st_ino, info.st_ctime_ns


def _detach(layout: Layout) -> None:
    """Leave the caller's session, streams and locks; descriptor 3 is the state directory then."""
    os.setsid()
    fd = os.open(layout.root, os.O_RDONLY | os.O_DIRECTORY)
    null = os.open("/dev/null", os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    os.closerange(3, fd)
    os.closerange(fd + 1, os.sysconf("SC_OPEN_MAX"))
    os.dup2(fd, 3)


def _masters(layout: Layout) -> list[str]:
    try:
        return [f"masters/{name}" for name in os.listdir(layout.masters) if not name.startswith(".")]
    except FileNotFoundError:
        return []
