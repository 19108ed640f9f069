"""When the command last printed something: a terminal and a file have times, a pipe is passed on by us."""

from __future__ import annotations

import os
import stat
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_CHUNK: Final = 1 << 16


class Relay:
    """Standard output and error of a command whose silence counts.

    streams: descriptors that the command is to have in place of 1 and 2. readers: our ends of them, by
    descriptor, with the descriptor that they go to. A pipe's own times do not move on every kernel.
    """

    __slots__ = ("_last", "_timed", "readers", "streams")

    def __init__(self) -> None:
        self.streams: dict[int, int] = {}
        self.readers: dict[int, int] = {}
        self._timed: list[int] = []
        self._last = time.time()
        for target in (1, 2):
            if os.isatty(target) or stat.S_ISREG(os.fstat(target).st_mode):
                self._timed.append(target)
                continue
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
        self._last = time.time()
        while data:
            data = data[os.write(self.readers[reader], data) :]
        return True

    def drain(self) -> None:
        """Pass on all that the dead command left."""
        for reader in self.readers:
            while self.pass_on(reader):
                pass

    def idle(self) -> float:
        """Seconds since something was printed; a terminal's time is 8 s coarse."""
        return time.time() - max([self._last, *(os.fstat(fd).st_mtime for fd in self._timed)])
