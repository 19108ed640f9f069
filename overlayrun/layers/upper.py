"""Read an upper layer that an agent may be writing to at this moment, for somebody else who asks.

Everything goes by descriptors and O_NOFOLLOW, so that no swapped link leads out of the layer; no recursion,
and no more than a few hundred descriptors at any depth.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from overlayrun.layers import wire
from overlayrun.layers.marks import is_opaque, is_whiteout, is_xattr_whiteout
from overlayrun.layers.wire import TROUBLES, Trouble

_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
# Gone, a link now, no directory now, a FIFO without reader now, no link now, a handle that went stale.
_RACES: Final = {errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EINVAL, errno.ESTALE}
_OPEN_LEVELS: Final = (
    128  # deeper directories are closed while their children are read, and opened again by name
)
_KINDS: Final = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
_RULES: Final = ".gitignore"
_LISTINGS: Final = 5
_FULL: Final = 1 << 16  # bytes that are worth a write


@dataclass(slots=True)
class _Level:
    """A directory on the way down. fd: None while it is closed; identity: what opening it again must find."""

    name: bytes
    fd: int | None
    identity: tuple[int, int]


@dataclass(slots=True)
class _Server:
    """The answering end. root: descriptor of the layer. has_marks: it is one, and no whole tree."""

    root: int
    answers: int
    has_marks: bool = True
    levels: list[_Level] = field(default_factory=list)
    waiting: bytearray = field(default_factory=bytearray)

    def answer(self, letter: bytes, payload: bytes) -> None:
        """One question."""
        if letter == wire.DESCEND:
            self._descend(payload)
        elif letter == wire.LEAVE:
            for _ in range(*wire.COUNT.unpack(payload)):
                _close(self.levels.pop())
        else:
            (bound,) = wire.BOUND.unpack_from(payload)
            for name in payload[wire.BOUND.size :].split(b"\0"):
                self._read(name[:1], name[1:], bound)

    def put(self, letter: bytes, payload: bytes = b"", *, mode: int = 0, size: int = 0) -> None:
        """Say one frame that is about no file."""
        self.waiting += wire.HEADER.pack(letter, len(payload), mode, 0, size, 0, 0)
        self.waiting += payload

    def tell(self, letter: bytes, payload: bytes, info: os.stat_result) -> None:
        """Say one frame about what `info` is of."""
        times = info.st_mtime_ns, info.st_ctime_ns
        header = wire.HEADER.pack(letter, len(payload), info.st_mode, info.st_ino, info.st_size, *times)
        self.waiting += header
        self.waiting += payload
        if len(self.waiting) > _FULL:
            self.flush()

    def flush(self) -> None:
        """Send what waits."""
        rest = memoryview(self.waiting)
        while rest:
            rest = rest[os.write(self.answers, rest) :]
        rest.release()
        self.waiting = bytearray()

    def _trouble(self, name: bytes, what: Trouble) -> None:
        self.put(wire.TROUBLE, name, mode=TROUBLES.index(what))

    def _descend(self, name: bytes) -> None:
        try:
            fd = self._open(name) if name else self.root
        except OSError as err:
            self._trouble(b"", _meaning(err))
            return
        info = os.fstat(fd)
        level = _Level(name, fd, (info.st_dev, info.st_ino))
        if len(self.levels) >= _OPEN_LEVELS:
            _close(self.levels[-1])
        self.levels.append(level)
        self._list(fd)

    def _open(self, name: bytes) -> int:
        return os.open(name, _FLAGS | os.O_DIRECTORY, dir_fd=_reopen(self.levels))

    def _list(self, fd: int) -> None:
        rules = _read_rules(fd)
        self.put(wire.OPENED, rules or b"", mode=is_opaque(fd), size=-1 if rules is None else len(rules))
        for entry in _entries(fd):
            self._report(entry)
        self.put(wire.END)

    def _report(self, entry: os.DirEntry[str]) -> None:
        name = os.fsencode(entry.name)
        try:
            info = entry.stat(follow_symlinks=False)
        except OSError as err:
            self._trouble(name, _meaning(err))
            return
        if is_whiteout(info):
            self.put(wire.GONE, name)
        elif stat.S_IFMT(info.st_mode) in _KINDS:
            self.tell(wire.ENTRY, name, info)
        else:
            self._trouble(name, Trouble.UNSUPPORTED)

    def _read(self, kind: bytes, name: bytes, bound: int) -> None:
        at = self.levels[-1].fd
        assert at is not None
        try:
            if kind == wire.LINK:
                self.put(wire.LINK, os.readlink(name, dir_fd=at))
                return
            fd = os.open(name, _FLAGS, dir_fd=at)
        except OSError as err:
            self._trouble(b"", _meaning(err))
            return
        try:
            self._send_file(fd, bound)
        finally:
            os.close(fd)

    def _send_file(self, fd: int, bound: int) -> None:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_size > bound:
            self._trouble(b"", Trouble.RACED)
            return
        if self.has_marks and is_xattr_whiteout(fd, info):
            self.put(wire.GONE)
            return
        left = info.st_size
        block = os.read(fd, min(left, wire.BLOCK))
        self.tell(wire.FILE, block, info)
        while block and (left := left - len(block)):
            block = os.read(fd, min(left, wire.BLOCK))
            self.tell(wire.DATA, block, info)


def _unseen(entries: Iterator[os.DirEntry[str]], seen: set[str]) -> Iterator[os.DirEntry[str]]:
    for entry in entries:
        if entry.name not in seen:
            seen.add(entry.name)
            yield entry


def _entries(fd: int) -> Iterator[os.DirEntry[str]]:
    """What a directory holds; again while it changes, so that a file that is replaced by a rename is found.

    btrfs lists by age: the new name comes after the end that was when the directory was opened, or rewound
    (btrfs_opendir, btrfs_dir_llseek of fs/btrfs/inode.c).
    """
    seen: set[str] = set()
    for _ in range(_LISTINGS):
        before = os.fstat(fd).st_mtime_ns
        os.lseek(fd, 0, os.SEEK_SET)
        with os.scandir(fd) as entries:
            yield from _unseen(entries, seen)
        if os.fstat(fd).st_mtime_ns == before:
            return


def serve_tree(root: int, questions: int, answers: int) -> None:
    """The same as `serve` about a whole tree, where an attribute of the agent's deletes nothing."""
    serve(root, questions, answers, has_marks=False)


def serve(root: int, questions: int, answers: int, *, has_marks: bool = True) -> None:
    """Answer about the layer that the descriptor `root` is open on, until the questions end.

    Order: a directory is listed as the filesystem does. Entries that vanish or change their type meanwhile
    are Trouble.RACED. What no entry is to blame for (no descriptors left, a broken disk) is the last frame.
    """
    server = _Server(root, answers, has_marks)
    try:
        for letter, payload in _questions(questions, server.flush):
            server.answer(letter, payload)
    except OSError as err:
        server.put(wire.FAILED, str(err).encode("utf-8", "replace")[:1000])
        server.flush()


def _questions(fd: int, before_waiting: Callable[[], None]) -> Iterator[tuple[bytes, bytes]]:
    """Yield each question. Answers wait as long as questions do: who asks ahead is woken once."""
    asked = b""
    need = wire.QUESTION.size
    while True:
        while len(asked) < need:
            before_waiting()
            part = os.read(fd, _FULL)
            if not part:
                return
            asked += part
        letter, length = wire.QUESTION.unpack_from(asked)
        need = wire.QUESTION.size + length
        if len(asked) >= need:
            yield letter, asked[wire.QUESTION.size : need]
            asked, need = asked[need:], wire.QUESTION.size


def _close(level: _Level) -> None:
    if level.fd is not None:
        os.close(level.fd)
        level.fd = None


def _reopen(levels: list[_Level]) -> int:
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
            raise FileNotFoundError(errno.ENOENT, "moved away", os.fsdecode(level.name))
    levels[-1].fd = fd
    return fd


def _meaning(err: OSError) -> Trouble:
    """What an error of one entry means; others (no descriptors left, a broken disk) are raised again."""
    if isinstance(err, PermissionError):
        return Trouble.UNREADABLE
    if err.errno in _RACES:
        return Trouble.RACED
    raise err


def _read_rules(directory: int) -> bytes | None:
    """The .gitignore there; None where the name does not exist, nothing for one that no rules can be in."""
    try:
        fd = os.open(_RULES, _FLAGS, dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError:
        return b""
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_size > wire.RULES_MAX:
            return b""
        return os.read(fd, wire.RULES_MAX)
    finally:
        os.close(fd)
