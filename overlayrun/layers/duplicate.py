"""Copy an upper layer as it is, marks included, though an agent may be writing to it at this moment.

Everything goes by descriptors and O_NOFOLLOW, so that no swapped link leads out of the layer. A file that is
written while it is copied is copied again, and left out where that never ends: nothing torn comes out.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from contextlib import suppress

from overlayrun.errors import SnapshotError
from overlayrun.files import copy_content
from overlayrun.layers.marks import is_whiteout, write_whiteout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# Gone, a link now, no directory now, a FIFO without reader now, no link now, a handle that went stale.
_RACES: Final = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EINVAL, errno.ESTALE)
_DEEPEST: Final = 200  # directories below each other: two descriptors each
# The kernel stamps files by a clock that ticks every 1 to 10 ms; two writes within a tick look like one.
_TICK: Final = 20_000_000
_TRIES: Final = 4  # copies of a file that is written meanwhile
_NAMESPACE: Final = "user."


class Bill:
    """What a layer holds. entries: of every kind. size: bytes of its files, holes counted."""

    __slots__ = ("entries", "size")

    def __init__(self) -> None:
        self.entries = 0
        self.size = 0


class Duplicate:
    """One copy of one layer. is_quiet: nobody writes to the source, whose modes may be opened for a moment.

    left_out: below the layer, what is not in the copy: it was written all the time, or may not be read.
    skips: whether a path below the layer stays out of it, without a word.
    """

    __slots__ = ("_below", "_links", "_owner", "_top", "is_quiet", "left_out", "skips")

    def __init__(self, *, is_quiet: bool, skips: Callable[[bytes], bool] = lambda _: False) -> None:
        self.is_quiet = is_quiet
        self.skips = skips
        self.left_out: list[bytes] = []
        self._links: dict[tuple[int, int], bytes] = {}
        self._owner = (os.geteuid(), os.getegid())
        self._top = -1
        self._below = 0

    def make(self, source: int, target: str) -> None:
        """Fill `target`, a new directory, with what the directory `source` holds.

        Raises OSError, and SnapshotError for a layer that is too deep.
        """
        self._top = os.open(target, _FLAGS | os.O_DIRECTORY)
        try:
            self._directory(source, self._top, b"")
        finally:
            os.close(self._top)

    def _directory(self, source: int, target: int, path: bytes) -> None:
        self._below += 1
        if self._below > _DEEPEST:
            raise SnapshotError(f"the changes are deeper than {_DEEPEST} directories")
        for name in map(os.fsencode, os.listdir(source)):
            below = path + b"/" + name if path else name
            if not self.skips(below):
                self._entry(source, target, name, below)
        self._finish(source, target)
        self._below -= 1

    def _entry(self, source: int, target: int, name: bytes, path: bytes) -> None:
        try:
            info = os.stat(name, dir_fd=source, follow_symlinks=False)
            if self.is_quiet and _is_closed(info):
                self._opened(source, target, name, path, info)
            else:
                self._any(source, target, name, path, info)
        except PermissionError:
            self.left_out.append(path)
        except OSError as err:
            if self.is_quiet or err.errno not in _RACES:
                raise

    def _opened(self, source: int, target: int, name: bytes, path: bytes, info: os.stat_result) -> None:
        """Copy what the agent has closed, be it for itself. Nobody works here: names stay what they are."""
        mode = stat.S_IMODE(info.st_mode)
        os.chmod(name, mode | stat.S_IRWXU, dir_fd=source)
        try:
            self._any(source, target, name, path, info)
        finally:
            for directory in (source, target):
                with suppress(FileNotFoundError):
                    os.chmod(name, mode, dir_fd=directory)

    def _any(self, source: int, target: int, name: bytes, path: bytes, info: os.stat_result) -> None:
        if stat.S_ISDIR(info.st_mode):
            self._enter(source, target, name, path)
        elif stat.S_ISREG(info.st_mode):
            self._file(source, target, name, path)
        else:
            _special(source, target, name, info)

    def _enter(self, source: int, target: int, name: bytes, path: bytes) -> None:
        below = os.open(name, _FLAGS | os.O_DIRECTORY, dir_fd=source)
        try:
            os.mkdir(name, 0o700, dir_fd=target)
            made = os.open(name, _FLAGS | os.O_DIRECTORY, dir_fd=target)
            try:
                self._directory(below, made, path)
            finally:
                os.close(made)
        finally:
            os.close(below)

    def _file(self, source: int, target: int, name: bytes, path: bytes) -> None:
        reader = os.open(name, _FLAGS, dir_fd=source)
        try:
            info = os.fstat(reader)
            if not stat.S_ISREG(info.st_mode) or (info.st_nlink > 1 and self._link(target, name, info)):
                return  # it was a file a moment ago, or is a further name of one
            if not any(self._copy(reader, target, name) for _ in range(_TRIES)):
                self.left_out.append(path)
            elif info.st_nlink > 1:
                self._links[info.st_dev, info.st_ino] = path
        finally:
            os.close(reader)

    def _link(self, target: int, name: bytes, info: os.stat_result) -> bool:
        """Make the further name of a file that is copied already."""
        known = self._links.get((info.st_dev, info.st_ino))
        if known is None:
            return False
        try:
            os.link(known, name, src_dir_fd=self._top, dst_dir_fd=target, follow_symlinks=False)
        except OSError:  # too many, or a path that is too long: a file of its own then
            return False
        return True

    def _copy(self, reader: int, target: int, name: bytes) -> bool:
        """Copy a file; false, and nothing is there, where it was written meanwhile."""
        began = time.time_ns()
        info = os.fstat(reader)
        writer = os.open(name, _NEW, 0o600, dir_fd=target)
        try:
            if info.st_size:
                os.lseek(reader, 0, os.SEEK_SET)
                copy_content(reader, writer)
            self._dress(reader, writer, info)
        finally:
            os.close(writer)
        if self.is_quiet or _is_same(info, os.fstat(reader), began):
            return True
        os.unlink(name, dir_fd=target)
        time.sleep(_TICK / 1e9)
        return False

    def _finish(self, source: int, target: int) -> None:
        """Marks, mode and times of a directory, when nothing more is made in it."""
        self._dress(source, target, os.fstat(source))

    def _dress(self, source: int, target: int, info: os.stat_result) -> None:
        for attribute in os.listxattr(source):
            if attribute.startswith(_NAMESPACE):
                os.setxattr(target, attribute, os.getxattr(source, attribute))
        if (info.st_uid, info.st_gid) != self._owner:  # root alone has such
            os.fchown(target, info.st_uid, info.st_gid)
        os.fchmod(target, stat.S_IMODE(info.st_mode))
        os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))


def _is_closed(info: os.stat_result) -> bool:
    """Whether its owner may not read a file, or look into a directory."""
    needed = stat.S_IRUSR | (stat.S_IXUSR if stat.S_ISDIR(info.st_mode) else 0)
    is_either = stat.S_ISDIR(info.st_mode) or stat.S_ISREG(info.st_mode)
    return is_either and info.st_mode & needed != needed


def _is_same(before: os.stat_result, after: os.stat_result, began: int) -> bool:
    """Whether a file that was looked at before and after its copy was certainly not written between."""
    facts = [(info.st_size, info.st_mtime_ns, info.st_ctime_ns) for info in (before, after)]
    return facts[0] == facts[1] and before.st_ctime_ns < began - _TICK


def _special(source: int, target: int, name: bytes, info: os.stat_result) -> None:
    """Links, whiteouts and FIFOs; sockets and devices are nothing without the process that made them."""
    if stat.S_ISLNK(info.st_mode):
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        os.utime(name, ns=(info.st_atime_ns, info.st_mtime_ns), dir_fd=target, follow_symlinks=False)
    elif is_whiteout(info):
        write_whiteout(target, name)
    elif stat.S_ISFIFO(info.st_mode):
        os.mkfifo(name, stat.S_IMODE(info.st_mode), dir_fd=target)


def bill(source: int, *, entries: int) -> Bill:
    """Count what the directory `source` holds, until there are more than `entries`. Links are not followed.

    What can't be looked into counts as one entry.
    """
    found = Bill()
    _count(source, found, entries, 0)
    return found


def _count(directory: int, found: Bill, most: int, depth: int) -> None:
    below: list[str] = []
    with os.scandir(directory) as listed:
        for entry in listed:
            found.entries += 1
            with suppress(OSError):
                found.size += _size(entry)
            below += [entry.name] * entry.is_dir(follow_symlinks=False)
    for name in below:
        if found.entries > most or depth == _DEEPEST:
            return
        with suppress(OSError):
            _count_in(directory, name, found, most, depth)


def _count_in(above: int, name: str, found: Bill, most: int, depth: int) -> None:
    fd = os.open(name, _FLAGS | os.O_DIRECTORY, dir_fd=above)
    try:
        _count(fd, found, most, depth + 1)
    finally:
        os.close(fd)


def _size(entry: os.DirEntry[str]) -> int:
    return entry.stat(follow_symlinks=False).st_size if entry.is_file(follow_symlinks=False) else 0
