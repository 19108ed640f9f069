"""Directories of ours for a moment. What a killed process left goes when the next one is made."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from types import TracebackType
from typing import Final, Self

from overlayrun.files import remove_tree

_PREFIX: Final = "overlayrun-scratch-"
_YOUNG: Final = 60.0  # seconds; whoever makes one has locked it long before


class Scratch:
    """A new empty directory, this process's alone; a context manager.

    above: where it is made; None for the place of temporary files. Raises OSError.
    """

    __slots__ = ("_lock", "path")

    def __init__(self, above: str | None = None) -> None:
        clear_abandoned(above)
        self.path = tempfile.mkdtemp(prefix=_PREFIX, dir=above)
        # What clears old files away leaves a locked directory alone. Source: tmpfiles.d(5), "Age".
        self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_SH)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Remove it with all that is in it; a second time does nothing."""
        if self._lock >= 0:
            remove_tree(self.path)
            os.close(self._lock)
            self._lock = -1


def clear_abandoned(above: str | None = None) -> None:
    """Remove what nobody holds any more; above: as for `Scratch`."""
    try:
        with os.scandir(above or tempfile.gettempdir()) as entries:
            paths = [entry.path for entry in entries if entry.name.startswith(_PREFIX)]
    except OSError:  # a directory that nobody may list
        return
    for path in paths:
        _clear(path)


def _clear(path: str) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # just removed, or somebody else's
        return
    try:
        info = os.fstat(fd)
        if info.st_uid == os.geteuid() and info.st_mtime < time.time() - _YOUNG:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_tree(path)
    except BlockingIOError:
        pass
    finally:
        os.close(fd)
