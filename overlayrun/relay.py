"""Standard streams that pass through us: files, which the command must not hold, and those we time.

A command that has a descriptor of a file can open it again by /proc/self/fd, to read what it was only to
write, or to cut it short. A pipe leads nowhere.
"""

from __future__ import annotations

import os
import stat
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_CHUNK: Final = 1 << 16


class Relay:
    """Pipes in place of standard streams.

    streams: descriptors that the command is to have in place of 0, 1 and 2. readers: our ends of its output,
    by descriptor, with the descriptor that they go to. feeds: our ends of its input, by descriptor, with the
    descriptor that it comes from. files: whether files go through pipes. timed: whether silence counts, so
    that pipes go through ours: a pipe's own times do not move on every kernel. largest: bytes of an output
    that are passed on, what comes then is dropped; None for all.
    """

    __slots__ = ("_last", "_passed", "_rest", "_timed", "_times", "feeds", "largest", "readers", "streams")

    def __init__(self, *, files: bool, timed: bool) -> None:
        self.streams: dict[int, int] = {}
        self.readers: dict[int, int] = {}
        self.feeds: dict[int, int] = {}
        self._timed = [fd for fd in (1, 2) if os.isatty(fd)]
        self._times = self._look()
        self._last = time.monotonic()
        self._rest = b""
        self._passed: dict[int, int] = {}
        self.largest: int | None = None
        if files and _is_file(0):
            reader, writer = os.pipe()
            os.set_blocking(writer, False)
            self.streams[0] = reader
            self.feeds[writer] = 0
        for target in (1, 2):
            if (files and _is_file(target)) or (timed and not os.isatty(target)):
                self._pass_on_output(target)

    def _pass_on_output(self, target: int) -> None:
        if target == 2 and 1 in self.streams and os.path.sameopenfile(1, 2):
            self.streams[2] = self.streams[1]  # one pipe keeps the order of both
            return
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        self.streams[target] = writer
        self.readers[reader] = target

    def pass_on(self, reader: int) -> bool:
        """Pass on what waits in one of `readers`; whether there was anything."""
        try:
            data = memoryview(os.read(reader, _CHUNK))
        except BlockingIOError:
            return False
        if not data:
            return False
        self._last = time.monotonic()
        if self.largest is not None:
            passed = self._passed.get(reader, 0)
            self._passed[reader] = passed + len(data)
            data = data[: max(0, self.largest - passed)]
        while data:
            data = data[os.write(self.readers[reader], data) :]
        return True

    def feed(self, writer: int) -> bool:
        """Pass a piece of the input on to the command; whether there is more, else `writer` is closed."""
        try:
            self._rest = self._rest or os.read(self.feeds[writer], _CHUNK)
            if self._rest:
                self._rest = self._rest[os.write(writer, self._rest) :]
                return True
        except BlockingIOError:
            return True
        except OSError:  # a directory, or nobody reads any more
            pass
        os.close(writer)
        del self.feeds[writer]
        return False

    def drain(self) -> None:
        """Pass on all that the dead command left."""
        for reader in self.readers:
            while self.pass_on(reader):
                pass

    def idle(self) -> float:
        """Seconds since something was printed, as far as was asked; a terminal's time is 8 s coarse.

        Not by the terminal's own time: the clock may be set, and goes on while the machine sleeps.
        """
        times = self._look()
        if times != self._times:
            self._times, self._last = times, time.monotonic()
        return time.monotonic() - self._last

    def _look(self) -> list[float]:
        return [os.fstat(fd).st_mtime for fd in self._timed]


def _is_file(fd: int) -> bool:
    """Whether a descriptor leads to something on a disk, or to a device other than the null one."""
    info = os.fstat(fd)
    if stat.S_ISCHR(info.st_mode):
        return not os.isatty(fd) and info.st_rdev != os.makedev(1, 3)
    return not (stat.S_ISFIFO(info.st_mode) or stat.S_ISSOCK(info.st_mode))
