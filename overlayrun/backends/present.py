"""A whole tree once more, as it is now: for a fork, whose source somebody may be writing to.

A snapshot of a subvolume keeps inodes and change times, and with them all that is known of its files. In a
copy every file is another one: what was known of it is told anew there, and only where nobody has changed it.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from overlayrun.backends.joining import outlive_tick
from overlayrun.bases.index import read_stamps, restat, stamp_of
from overlayrun.files import copy_file
from overlayrun.layers.duplicate import Duplicate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from overlayrun.workspace.layout import WorkspaceLayout

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LARGEST: Final = 256 << 20  # bytes of a command's index; one of a million files has half of it


class Present:
    """The tree of a workspace, made again in another one, whose `git` is copied by the caller in between.

    clone: as `Backend.cloner` gives it. is_quiet: nobody writes to the source.
    """

    def __init__(
        self,
        source: WorkspaceLayout,
        target: WorkspaceLayout,
        clone: Callable[[str, str], None] | None,
        *,
        is_quiet: bool,
    ) -> None:
        self._source = source
        self._target = target
        self._clone = clone
        self._copy = Duplicate(is_quiet=is_quiet)

    def make(self) -> list[bytes]:
        """Make the tree; paths that had to stay behind. Raises OSError, SnapshotError."""
        source, target = self._source, self._target
        os.mkdir(target.whole, 0o700)
        for name in ("index", "size"):
            with suppress(FileNotFoundError):  # without them a snapshot reads every file
                copy_file(f"{source.whole}/{name}", f"{target.whole}/{name}")
        if self._clone:
            # Before the tree: what is known must be older than what it is known of.
            with suppress(FileNotFoundError):
                copy_file(source.hashes, target.hashes)
            self._clone(source.upper, target.upper)
            return []
        os.mkdir(target.upper, 0o700)
        fd = os.open(source.upper, _DIRECTORY)
        try:
            self._copy.make(fd, target.upper)
        finally:
            os.close(fd)
        return self._copy.left_out

    def settle(self) -> None:
        """Let both indexes know the copies of files that they knew. Raises OSError, StoreError."""
        if self._copy.sources:
            for index in (f"{self._target.whole}/index", f"{self._target.git_upper}/index"):
                self._restat(index)
        outlive_tick()

    def _restat(self, index: str) -> None:
        """Of an index that the command made, no link is followed and no path believed but a copied one's."""
        try:
            info = os.lstat(index)
        except FileNotFoundError:
            return
        if not stat.S_ISREG(info.st_mode) or info.st_size > _LARGEST:
            return
        sources, stamps = self._copy.sources, read_stamps(index)
        same = {path for path in stamps.keys() & sources.keys() if stamps[path] == stamp_of(*sources[path])}
        if same:
            restat(index, os.fsencode(self._target.upper), same, lambda _: None)
            # Git looks into every file that is not older than its index.
            os.utime(index, ns=(info.st_atime_ns, info.st_mtime_ns))
