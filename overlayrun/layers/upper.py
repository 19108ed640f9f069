"""Walk an upper layer that an agent may be writing to at this moment.

Everything goes by descriptors and O_NOFOLLOW, so that no swapped link leads out of the layer; no recursion,
and no
more than a few hundred descriptors at any depth.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Generic, Protocol, TypeVar

from overlayrun.layers.marks import is_whiteout, is_xattr_whiteout

_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
# Gone, a link now, no directory now, a FIFO without reader now, no link now, a handle that went stale.
_RACES: Final = {errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EINVAL, errno.ESTALE}
_OPEN_LEVELS: Final = (
    128  # deeper directories are closed while their children are read, and opened again by name
)


class Trouble(Enum):
    """Why an entry gave nothing."""

    UNREADABLE = "no permission to read it"
    UNSUPPORTED = "a socket, FIFO or device"
    RACED = "it changed while it was read"


State = TypeVar("State")


class Visitor(Protocol[State]):
    """What a walk reports to. Names are single path components; a state belongs to one directory."""

    def wants(self, where: State, name: bytes, info: os.stat_result) -> bool:
        """Whether to open a file, read a link or descend into a directory; info: of lstat."""

    def enter(self, where: State, name: bytes, fd: int) -> State | None:
        """A directory was opened; its state, or None to leave it again."""

    def file(self, where: State, name: bytes, fd: int, info: os.stat_result) -> None:
        """A regular file was opened; info: of its descriptor. The walk closes it."""

    def link(self, where: State, name: bytes, text: bytes) -> None:
        """A symlink with this text."""

    def deleted(self, where: State, name: bytes) -> None:
        """A whiteout: the name is gone, whatever lay below."""

    def trouble(self, where: State, name: bytes, what: Trouble) -> None:
        """An entry that could not be read, or that no snapshot can hold."""


@dataclass(slots=True)
class _Level(Generic[State]):
    """A directory on the way down. fd: None while it is closed; identity: what opening it again must find."""

    name: str
    state: State
    fd: int | None
    identity: tuple[int, int]
    below: list[str] = field(default_factory=list)


def walk_upper(root: str, top: State, visitor: Visitor[State]) -> None:
    """Report every entry of the layer at `root` to `visitor`.

    Order: a directory's files, links and whiteouts before its directories; otherwise as the filesystem lists
    them.
    Entries that vanish or change their type meanwhile are reported as Trouble.RACED. Raises OSError for
    `root` alone.
    """
    fd = os.open(root, _FLAGS | os.O_DIRECTORY)
    levels = [_open_level("", top, fd)]
    try:
        _list(levels[0], visitor)
        while levels:
            level = levels[-1]
            if level.below:
                _descend(levels, level.below.pop(), visitor)
            else:
                _close(levels.pop())
    finally:
        for level in levels:
            _close(level)


def _descend(levels: list[_Level[State]], name: str, visitor: Visitor[State]) -> None:
    parent = levels[-1]
    try:
        fd = os.open(name, _FLAGS | os.O_DIRECTORY, dir_fd=_reopen(levels))
    except OSError as err:
        visitor.trouble(parent.state, os.fsencode(name), _trouble(err))
        return
    try:
        state = visitor.enter(parent.state, os.fsencode(name), fd)
    except BaseException:
        os.close(fd)
        raise
    if state is None:
        os.close(fd)
        return
    level = _open_level(name, state, fd)
    levels.append(level)
    _list(level, visitor)
    if len(levels) > _OPEN_LEVELS:
        _close(parent)


def _open_level(name: str, state: State, fd: int) -> _Level[State]:
    info = os.fstat(fd)
    return _Level(name, state, fd, (info.st_dev, info.st_ino))


def _close(level: _Level[State]) -> None:
    if level.fd is not None:
        os.close(level.fd)
        level.fd = None


def _reopen(levels: list[_Level[State]]) -> int:
    """Descriptor of the last level; it may have been closed. Raises OSError if one on the way was moved."""
    at = len(levels) - 1
    while levels[at].fd is None:
        at -= 1
    kept = fd = levels[at].fd
    assert fd is not None
    for level in levels[at + 1 :]:
        try:
            below = os.open(level.name, _FLAGS | os.O_DIRECTORY, dir_fd=fd)
        finally:
            if fd != kept:
                os.close(fd)
        fd = below
        info = os.fstat(fd)
        if (info.st_dev, info.st_ino) != level.identity:
            os.close(fd)
            raise FileNotFoundError(errno.ENOENT, "moved away", level.name)
    levels[-1].fd = fd
    return fd


def _list(level: _Level[State], visitor: Visitor[State]) -> None:
    assert level.fd is not None
    with os.scandir(level.fd) as entries:
        for entry in entries:
            _report(level, entry, visitor)


def _report(level: _Level[State], entry: os.DirEntry[str], visitor: Visitor[State]) -> None:
    name = os.fsencode(entry.name)
    try:
        info = entry.stat(follow_symlinks=False)
        if is_whiteout(info):
            visitor.deleted(level.state, name)
        elif stat.S_ISDIR(info.st_mode) and visitor.wants(level.state, name, info):
            level.below.append(entry.name)
        elif stat.S_ISREG(info.st_mode) and visitor.wants(level.state, name, info):
            _read_file(level, entry.name, visitor)
        elif stat.S_ISLNK(info.st_mode) and visitor.wants(level.state, name, info):
            visitor.link(level.state, name, os.readlink(os.fsencode(name), dir_fd=level.fd))
        elif stat.S_IFMT(info.st_mode) not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
            visitor.trouble(level.state, name, Trouble.UNSUPPORTED)
    except OSError as err:
        visitor.trouble(level.state, name, _trouble(err))


def _read_file(level: _Level[State], name: str, visitor: Visitor[State]) -> None:
    fd = os.open(name, _FLAGS, dir_fd=level.fd)
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            visitor.trouble(level.state, os.fsencode(name), Trouble.RACED)
        elif is_xattr_whiteout(fd, info):
            visitor.deleted(level.state, os.fsencode(name))
        else:
            visitor.file(level.state, os.fsencode(name), fd, info)
    finally:
        os.close(fd)


def _trouble(err: OSError) -> Trouble:
    """What an error of one entry means; others (no descriptors left, a broken disk) are raised again."""
    if isinstance(err, PermissionError):
        return Trouble.UNREADABLE
    if err.errno in _RACES:
        return Trouble.RACED
    raise err


def read_small(dir_fd: int, name: str, limit: int) -> bytes | None:
    """Content of a regular file of at most `limit` bytes; None for anything else, and where there is nothing.

    Raises FileNotFoundError only where the name does not exist.
    """
    try:
        fd = os.open(name, _FLAGS, dir_fd=dir_fd)
    except FileNotFoundError:
        raise
    except OSError:
        return None
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_size > limit:
            return None
        return read_up_to(fd, limit)
    finally:
        os.close(fd)


def read_up_to(fd: int, limit: int) -> bytes:
    """At most `limit` bytes from a descriptor."""
    parts: list[bytes] = []
    while limit and (part := os.read(fd, min(limit, 1 << 20))):
        parts.append(part)
        limit -= len(part)
    return b"".join(parts)
