"""What passes between the reader of an upper layer and who asks it, and believes nothing that it says.

Questions go one way, frames come back: a header of fixed size, then as many bytes as it says. The asking
side checks every letter, length, size and name before it uses them, waits no longer than it was told to, and
holds one frame at a time.
"""

from __future__ import annotations

import os
import select
import struct
import time
from enum import Enum
from typing import Final, NamedTuple

from overlayrun.errors import SnapshotError

# Questions: a letter and the number of bytes that follow.
QUESTION: Final = struct.Struct("<cI")
DESCEND: Final = b"D"  # into a directory by its name, at first into the layer itself by none; list it
LEAVE: Final = b"U"  # COUNT directories; no answer
COUNT: Final = struct.Struct("<I")
READ: Final = b"R"  # BOUND, then names after a letter (FILE, LINK) that says what they are, NUL between them
BOUND: Final = struct.Struct("<Q")  # bytes of a file; a larger one counts as raced

# Frames: letter, number of bytes that follow, mode, inode, size, mtime and ctime in ns.
HEADER: Final = struct.Struct("<cIIQqqq")
OPENED: Final = b"o"  # mode: 1 for opaque; the .gitignore follows, size is -1 where none is
ENTRY: Final = b"e"  # the name follows
GONE: Final = b"w"  # a whiteout; in a listing the name follows
TROUBLE: Final = b"t"  # mode: number of the Trouble; in a listing the name follows
END: Final = b"."  # of a listing
FILE: Final = b"f"  # its first bytes follow
DATA: Final = b"d"  # the next bytes; none where it is shorter than it was
LINK: Final = b"l"  # its text follows
FAILED: Final = b"x"  # words; nothing comes after them

NAME_MAX: Final = 255  # linux/limits.h
LINK_MAX: Final = 4095  # a link's text is shorter than PATH_MAX
RULES_MAX: Final = 1 << 18  # bytes of one .gitignore; the biggest in use are a fifth of it
BLOCK: Final = 1 << 18
_WORDS: Final = 1024
_LONGEST: Final = {
    OPENED: RULES_MAX,
    ENTRY: NAME_MAX,
    GONE: NAME_MAX,
    TROUBLE: NAME_MAX,
    END: 0,
    FILE: BLOCK,
    DATA: BLOCK,
    LINK: LINK_MAX,
    FAILED: _WORDS,
}
_PIECE: Final = 1 << 20
_SILENCE: Final = 600.0  # seconds without a byte, even where the whole may take as long as it likes


class Trouble(Enum):
    """Why an entry gave nothing."""

    UNREADABLE = "no permission to read it"
    UNSUPPORTED = "a socket, FIFO or device"
    RACED = "it changed while it was read"


TROUBLES: Final = tuple(Trouble)  # by number


KEPT: Final = "the files are kept, and so is the last snapshot"


class LimitReached(Exception):
    """More than one snapshot takes unasked; the text is a sentence for the user."""


class FileInfo(NamedTuple):
    """Of a stat: the fields that a snapshot looks at, times in ns since the epoch."""

    mode: int
    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @property
    def stamp(self) -> tuple[int, int, int, int]:
        """What is equal as long as nobody writes the file."""
        return (self.ino, self.size, self.mtime_ns, self.ctime_ns)


class Frame(NamedTuple):
    """One frame whose letter and length are as they may be; nothing else is checked yet."""

    letter: bytes
    info: FileInfo
    payload: bytes


def lie(what: str) -> SnapshotError:
    """The error for an answer that no honest reader gives."""
    return SnapshotError(f"the reader of the changed files gave a wrong answer; {KEPT}", details=what)


class Channel:
    """The asking end. questions, answers: pipes; closing them is the caller's work.

    seconds: for everything together, None for no end.
    """

    def __init__(self, questions: int, answers: int, seconds: float | None) -> None:
        os.set_blocking(questions, False)
        self._questions = questions
        self._answers = answers
        self._seconds = seconds
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._asked = bytearray()
        self._data = b""
        self._at = 0

    def ask(self, letter: bytes, payload: bytes = b"") -> None:
        """Put a question; it is sent when an answer is waited for."""
        self._asked += QUESTION.pack(letter, len(payload)) + payload

    def frame(self) -> Frame:
        """The next frame. Raises SnapshotError, LimitReached."""
        if self._at + HEADER.size > len(self._data):
            self._fill(HEADER.size)
        letter, length, *numbers = HEADER.unpack_from(self._data, self._at)
        self._at += HEADER.size
        if length > _LONGEST.get(letter, -1):
            raise lie(f"a frame {letter!a} of {length} bytes")
        payload = self._take(length) if length else b""
        if letter == FAILED:
            words = ascii(payload.decode("utf-8", "replace"))[1:-1]
            raise SnapshotError(f"the changed files could not be read; {KEPT}", details=words)
        return Frame(letter, FileInfo._make(numbers), payload)

    def _take(self, count: int) -> bytes:
        if self._at + count > len(self._data):
            self._fill(count)
        part = self._data[self._at : self._at + count]
        self._at += count
        return part

    def _fill(self, count: int) -> None:
        self._send()
        parts = [self._data[self._at :]]
        missing = count - len(parts[0])
        while missing > 0:
            self._wait(self._answers, select.POLLIN)
            parts.append(os.read(self._answers, _PIECE))
            if not parts[-1]:
                raise self._death()
            missing -= len(parts[-1])
        self._data, self._at = b"".join(parts), 0

    def _send(self) -> None:
        rest = memoryview(bytes(self._asked))
        self._asked.clear()
        while rest:
            try:
                rest = rest[os.write(self._questions, rest) :]
            except BlockingIOError:
                self._wait(self._questions, select.POLLOUT)
            except BrokenPipeError:
                return  # it has ended; what it said last tells why

    def _wait(self, fd: int, event: int) -> None:
        left = _SILENCE if self._deadline is None else self._deadline - time.monotonic()
        poll = select.poll()
        poll.register(fd, event)
        if left > 0 and poll.poll(min(left, _SILENCE) * 1000):
            return
        seconds = _SILENCE if self._seconds is None else min(self._seconds, _SILENCE)
        raise LimitReached(f"reading the changed files took more than {seconds:g} s")

    def _death(self) -> SnapshotError:
        return SnapshotError(f"the reader of the changed files died; {KEPT}")
