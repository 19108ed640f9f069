"""Copy an upper layer, or a whole tree, as it is, though an agent may be writing to it at this moment.

Everything goes by descriptors and O_NOFOLLOW, so that no swapped link leads out of the layer. A file that is
written while it is copied is copied again, and left out where that never ends: nothing torn comes out. What
was made, renamed or removed in a directory after it was listed is found by going through all of them again.
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
    from typing import Final, TypeAlias

    # inode, size, mtime and ctime in ns
    Facts: TypeAlias = tuple[int, int, int, int]

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


class _Listing:
    """What was in a directory. facts: of it, None where it had changed a moment ago.

    found: by name, the inode's number, and whether it was a directory: numbers are used again at once.
    """

    __slots__ = ("facts", "found")

    def __init__(self, directory: int) -> None:
        began = time.time_ns()
        info = os.fstat(directory)
        with os.scandir(directory) as entries:
            self.found = {
                os.fsencode(entry.name): (entry.inode(), entry.is_dir(follow_symlinks=False))
                for entry in entries
            }
        self.facts = _facts(info) if info.st_ctime_ns < began - _TICK else None


class Duplicate:
    """One copy of one layer. is_quiet: nobody writes to the source, whose modes may be opened for a moment.

    left_out: below the layer, what is not in the copy: it was written all the time, or may not be read.
    skips: whether a path below the layer stays out of it, without a word. sources: of each file and link that
    was copied, what its source was then.
    """

    __slots__ = ("_below", "_links", "_listed", "_owner", "_top", "is_quiet", "left_out", "skips", "sources")

    def __init__(self, *, is_quiet: bool, skips: Callable[[bytes], bool] = lambda _: False) -> None:
        self.is_quiet = is_quiet
        self.skips = skips
        self.sources: dict[bytes, Facts] = {}
        self.left_out: list[bytes] = []
        self._links: dict[tuple[int, int, int], bytes] = {}
        self._listed: dict[bytes, _Listing] = {}
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
            for _ in range(0 if self.is_quiet else _TRIES):
                if not self._catch_up(source, self._top, b""):
                    break
                time.sleep(_TICK / 1e9)
        finally:
            os.close(self._top)

    def _directory(self, source: int, target: int, path: bytes) -> None:
        self._below += 1
        if self._below > _DEEPEST:
            raise SnapshotError(f"the changes are deeper than {_DEEPEST} directories")
        listing = _Listing(source)
        if not self.is_quiet:
            self._listed[path] = listing
        for name in listing.found:
            self._entry(source, target, name, _join(path, name))
        self._finish(source, target)
        self._below -= 1

    def _catch_up(self, source: int, target: int, path: bytes) -> bool:
        """Bring into a directory's copy what was made or removed there since; whether more may come."""
        is_new = self._listed[path].facts != _facts(os.fstat(source))
        if is_new:
            is_new = self._exchange(source, target, path)
        for name in _directories(target):
            below = _join(path, name)
            try:
                inner = os.open(name, _FLAGS | os.O_DIRECTORY, dir_fd=source)
            except OSError:  # moved away: the next time through finds it
                is_new = True
                continue
            try:
                is_new |= below in self._listed and self._catch_up_in(inner, target, name, below)
            finally:
                os.close(inner)
        return is_new

    def _catch_up_in(self, inner: int, target: int, name: bytes, path: bytes) -> bool:
        mode = os.stat(name, dir_fd=target, follow_symlinks=False).st_mode
        is_closed = mode & stat.S_IRWXU != stat.S_IRWXU
        if is_closed:
            os.chmod(name, stat.S_IRWXU, dir_fd=target)
        made = os.open(name, _FLAGS | os.O_DIRECTORY, dir_fd=target)
        try:
            is_new = self._catch_up(inner, made, path)
            if is_closed:
                self._finish(inner, made)
        finally:
            os.close(made)
        return is_new

    def _exchange(self, source: int, target: int, path: bytes) -> bool:
        """Take what else is in a directory now, or another thing under its name; whether more may come."""
        known, now = self._listed[path], _Listing(source)
        os.fchmod(target, stat.S_IRWXU)
        there = {os.fsencode(name) for name in os.listdir(target)}
        gone = {name for name, found in known.found.items() if now.found.get(name) != found}
        for name in gone:
            _remove(target, name)
            self._forget(_join(path, name))
        missing = [name for name in now.found if name in gone or name not in there]
        for name in missing:
            below = _join(path, name)
            self.left_out = [each for each in self.left_out if each != below]
            self._entry(source, target, name, below)
        self._listed[path] = now
        self._finish(source, target)
        return now.facts is None or bool(gone) or now.found.keys() != known.found.keys()

    def _forget(self, path: bytes) -> None:
        """What was copied to a path, and below it, is gone."""
        self.sources.pop(path, None)
        if self._listed.pop(path, None) is None:
            return
        below = path + b"/"
        for known in (self._listed, self.sources):
            for each in [each for each in known if each.startswith(below)]:
                del known[each]
        self.left_out = [each for each in self.left_out if not each.startswith(below)]

    def _entry(self, source: int, target: int, name: bytes, path: bytes) -> None:
        if self.skips(path):
            return
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
            # A link is never written, but another one may have come in its place.
            if stat.S_ISLNK(info.st_mode) and _is_still(source, name, info):
                self.sources[path] = _facts(info)

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
            if not stat.S_ISREG(info.st_mode):
                return  # it was a file a moment ago
            key = (info.st_dev, info.st_ino, info.st_ctime_ns)
            if info.st_nlink > 1 and self._link(target, name, key):
                self.sources[path] = _facts(info)
            elif not any(self._copy(reader, target, name, path) for _ in range(_TRIES)):
                self.left_out.append(path)
            elif info.st_nlink > 1:
                self._links[key] = path
        finally:
            os.close(reader)

    def _link(self, target: int, name: bytes, key: tuple[int, int, int]) -> bool:
        """Make the further name of a file that is copied already."""
        known = self._links.get(key)
        if known is None:
            return False
        try:
            os.link(known, name, src_dir_fd=self._top, dst_dir_fd=target, follow_symlinks=False)
        except OSError:  # too many, or a path that is too long: a file of its own then
            return False
        return True

    def _copy(self, reader: int, target: int, name: bytes, path: bytes) -> bool:
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
            self.sources[path] = _facts(info)
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


def _facts(info: os.stat_result) -> Facts:
    return info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns


def _join(path: bytes, name: bytes) -> bytes:
    return path + b"/" + name if path else name


def _directories(directory: int) -> list[bytes]:
    with os.scandir(directory) as entries:
        return [os.fsencode(entry.name) for entry in entries if entry.is_dir(follow_symlinks=False)]


def _remove(directory: int, name: bytes) -> None:
    """Remove what a copy has of a name, whatever it is; nobody else looks into it."""
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        os.chmod(name, stat.S_IRWXU, dir_fd=directory)
        below = os.open(name, _FLAGS | os.O_DIRECTORY, dir_fd=directory)
        try:
            for each in os.listdir(below):
                _remove(below, os.fsencode(each))
        finally:
            os.close(below)
        os.rmdir(name, dir_fd=directory)


def _is_still(directory: int, name: bytes, info: os.stat_result) -> bool:
    try:
        return _facts(os.stat(name, dir_fd=directory, follow_symlinks=False)) == _facts(info)
    except OSError:
        return False


def _is_closed(info: os.stat_result) -> bool:
    """Whether its owner may not read a file, or look into a directory."""
    needed = stat.S_IRUSR | (stat.S_IXUSR if stat.S_ISDIR(info.st_mode) else 0)
    is_either = stat.S_ISDIR(info.st_mode) or stat.S_ISREG(info.st_mode)
    return is_either and info.st_mode & needed != needed


def _is_same(before: os.stat_result, after: os.stat_result, began: int) -> bool:
    """Whether a file that was looked at before and after its copy was certainly not written between."""
    return _facts(before) == _facts(after) and before.st_ctime_ns < began - _TICK


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
