"""What a volatile mount leaves to the page cache is flushed after the run, while the user types on."""

from __future__ import annotations

import os

from overlayrun.bases.stack import is_synced, mark_synced
from overlayrun.files import write_whole
from overlayrun.kernel import syscalls
from overlayrun.recover import sync_stamp, synced_mark

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from overlayrun.workspace.layout import Layout
    from overlayrun.workspace.record import Record


def sync_in_background(layout: Layout, records: Sequence[Record]) -> None:
    """Flush the state's file system in a process of its own, then note which uppers and layers are on disk.

    It holds neither the lock nor the user's streams, so that nobody waits for it. Killed, it leaves no note,
    and a power cut then means a rebuild from the last snapshot.
    """
    if os.fork():
        return
    try:
        os.setsid()
        fd = os.open(layout.root, os.O_RDONLY | os.O_DIRECTORY)
        null = os.open("/dev/null", os.O_RDWR)
        for stream in range(3):
            os.dup2(null, stream)
        os.dup2(fd, 3)
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))
        layers = {*_masters(layout), *(layer for record in records for layer in record.stack)}
        syscalls.syncfs(3)
        for layer in layers:
            if not is_synced(layout, layer):
                mark_synced(layout, layer)
        for record in records:
            if os.path.isdir(layout.workspace(record.id).root):
                write_whole(synced_mark(layout, record), sync_stamp(record), durable=True)
    finally:
        os._exit(0)


def _masters(layout: Layout) -> list[str]:
    try:
        return [f"masters/{name}" for name in os.listdir(layout.masters) if not name.startswith(".")]
    except FileNotFoundError:
        return []
