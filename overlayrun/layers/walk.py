"""Walk an upper layer through its reader: a question for each directory, one for the files wanted of it."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

from overlayrun.layers import wire
from overlayrun.layers.wire import TROUBLES, Channel, FileInfo, Frame, Trouble, lie

# Bytes of names in one question. Two questions fit into the smallest pipe (a page, where the user's share is
# used up), so that we never wait for a reader who waits for us.
_BATCH: Final = 1536
_NO_MORE: Final[list[bytes]] = []


class Opened(NamedTuple):
    """What a directory says of itself. ignore: its .gitignore, None where it has none."""

    opaque: bool
    ignore: bytes | None


class Content:
    """The bytes of one file, once, in pieces; fewer than `size` if somebody shortened it meanwhile."""

    def __init__(self, channel: Channel, size: int, first: bytes) -> None:
        self._channel = channel
        self._block = first
        self._left = size - len(first)
        if self._left < 0:
            raise lie("more bytes than the file has")

    def __iter__(self) -> Iterator[bytes]:
        while self._block:
            block, self._block = self._block, b""
            if self._left:
                self._next()
            yield block

    def drain(self) -> None:
        """Pass over what nobody read."""
        for _ in self:
            pass

    def _next(self) -> None:
        frame = self._channel.frame()
        if frame.letter != wire.DATA or len(frame.payload) > self._left:
            raise lie("not the bytes of the file")
        self._block = frame.payload
        self._left -= len(frame.payload)


State = TypeVar("State")


class Visitor(Protocol[State]):
    """What a walk reports to. Names are single path components; a state belongs to one directory."""

    def wants(self, where: State, name: bytes, info: FileInfo) -> bool:
        """Whether to read a file or link or to descend into a directory; info: of lstat."""

    def enter(self, where: State, name: bytes, opened: Opened) -> State:
        """A directory was opened; its state."""

    def file(self, where: State, name: bytes, content: Content, info: FileInfo) -> None:
        """A regular file; info: of its descriptor. What is not read of it is passed over."""

    def link(self, where: State, name: bytes, text: bytes) -> None:
        """A symlink with this text."""

    def deleted(self, where: State, name: bytes) -> None:
        """A whiteout: the name is gone, whatever lay below."""

    def trouble(self, where: State, name: bytes, what: Trouble) -> None:
        """An entry that could not be read, or that no snapshot can hold."""


@dataclass(slots=True)
class _Level(Generic[State]):
    """A directory on the way down. below: directories in it that are still to be entered."""

    state: State
    below: list[bytes] = field(default_factory=list)


def walk_upper(
    channel: Channel, top: Callable[[Opened], State], visitor: Visitor[State], *, largest: int
) -> None:
    """Report every entry of the layer that `channel` leads to.

    top: makes the root's state. largest: bytes of a file; one that has grown beyond it is raced.
    Order: a directory's files, links and whiteouts before its directories; otherwise as the filesystem lists
    them. Entries that vanish or change their type meanwhile are Trouble.RACED.
    Raises SnapshotError, LimitReached, and what the visitor raises.
    """
    walk = _Walk(channel, visitor, largest)
    levels: list[_Level[State]] = []
    name: bytes | None = b""
    channel.ask(wire.DESCEND)
    while name is not None:
        opened = walk.opened()
        if isinstance(opened, Trouble):
            if not levels:
                raise lie("no layer")
            visitor.trouble(levels[-1].state, name, opened)
            name = walk.go_on(levels)
            continue
        level = _Level(visitor.enter(levels[-1].state, name, opened) if levels else top(opened))
        batches = [*_batches(walk.listed(level)), _NO_MORE]
        levels.append(level)
        name = walk.ask_ahead(levels, batches[0])
        for batch, following in pairwise(batches):
            # The next question is there before the answers to this one are read: nobody waits for nobody.
            name = walk.ask_ahead(levels, following)
            walk.read(level.state, batch)


@dataclass(frozen=True, slots=True)
class _Walk(Generic[State]):
    channel: Channel
    visitor: Visitor[State]
    largest: int

    def opened(self) -> Opened | Trouble:
        """The answer to a descent; a listing follows where it went well."""
        frame = self.channel.frame()
        if frame.letter == wire.TROUBLE:
            return _trouble(frame)
        if frame.letter != wire.OPENED:
            raise lie(f"{frame.letter!a} for a directory")
        return Opened(bool(frame.info.mode), None if frame.info.size < 0 else frame.payload)

    def listed(self, level: _Level[State]) -> list[bytes]:
        """Take a listing in, and give what is to be read of it: a letter for its kind, then the name."""
        state = level.state
        wanted: list[bytes] = []
        while (frame := self.channel.frame()).letter != wire.END:
            name = frame.payload
            if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
                raise lie("not a name")
            if frame.letter == wire.GONE:
                self.visitor.deleted(state, name)
            elif frame.letter == wire.TROUBLE:
                self.visitor.trouble(state, name, _trouble(frame))
            elif frame.letter == wire.ENTRY:
                self._entry(level, name, frame.info, wanted)
            else:
                raise lie(f"{frame.letter!a} in a listing")
        return wanted

    def ask_ahead(self, levels: list[_Level[State]], batch: list[bytes]) -> bytes | None:
        """Ask for the files of a batch, or where there is none go on as `go_on` does."""
        if not batch:
            return self.go_on(levels)
        self.channel.ask(wire.READ, wire.BOUND.pack(self.largest) + b"\0".join(batch))
        return b""

    def go_on(self, levels: list[_Level[State]]) -> bytes | None:
        """Ask for the next directory and give its name, None after the last; its level is then the last."""
        finished = 0
        while levels and not levels[-1].below:
            levels.pop()
            finished += 1
        if not levels:
            return None
        name = levels[-1].below.pop()
        if finished:
            self.channel.ask(wire.LEAVE, wire.COUNT.pack(finished))
        self.channel.ask(wire.DESCEND, name)
        return name

    def read(self, state: State, batch: list[bytes]) -> None:
        """The answers about a batch."""
        for wanted in batch:
            kind, name = wanted[:1], wanted[1:]
            frame = self.channel.frame()
            if frame.letter == wire.TROUBLE:
                self.visitor.trouble(state, name, _trouble(frame))
            elif frame.letter not in (kind, wire.GONE):
                raise lie(f"{frame.letter!a} for {kind!a}")
            elif kind == wire.LINK:
                self._link(state, name, frame)
            elif frame.letter == wire.GONE:
                self.visitor.deleted(state, name)
            else:
                self._file(state, name, frame)

    def _entry(self, level: _Level[State], name: bytes, info: FileInfo, wanted: list[bytes]) -> None:
        kind = stat.S_IFMT(info.mode)
        if kind not in (stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK):
            raise lie("neither file nor link nor directory")
        if not self.visitor.wants(level.state, name, info):
            return
        if kind == stat.S_IFDIR:
            level.below.append(name)
        else:
            wanted.append((wire.LINK if kind == stat.S_IFLNK else wire.FILE) + name)

    def _link(self, state: State, name: bytes, frame: Frame) -> None:
        if frame.letter != wire.LINK or not frame.payload or b"\0" in frame.payload:
            raise lie("not a link's text")
        self.visitor.link(state, name, frame.payload)

    def _file(self, state: State, name: bytes, frame: Frame) -> None:
        if not 0 <= frame.info.size <= self.largest:
            raise lie(f"a file of {frame.info.size} bytes")
        content = Content(self.channel, frame.info.size, frame.payload)
        self.visitor.file(state, name, content, frame.info)
        content.drain()


def _trouble(frame: Frame) -> Trouble:
    if frame.info.mode >= len(TROUBLES):
        raise lie("an unknown trouble")
    return TROUBLES[frame.info.mode]


def _batches(names: list[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    length = 0
    for name in names:
        if length + len(name) > _BATCH:
            yield batch
            batch, length = [], 0
        batch.append(name)
        length += len(name) + 1
    if batch:
        yield batch
