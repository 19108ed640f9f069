"""Work that takes long, done by children: everybody's folders would wait for this process's one thread."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import NoReturn

from overlayrun.folders.api import Later
from overlayrun.folders.shown import Tell, as_errno
from overlayrun.kernel import namespaces


class Children:
    """Children by what they do. tell: writes a line to the log, also for them."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._running: dict[str, tuple[int, int]] = {}
        self._ended: dict[str, int] = {}

    @property
    def fds(self) -> list[int]:
        """To be watched for input: there is some when a child has ended."""
        return [fd for _, fd in self._running.values()]

    def is_done(self, key: str) -> bool:
        """Whether a child has done it, said once. Raises Later until then, OSError where it failed."""
        if key in self._running:
            raise Later
        number = self._ended.pop(key, -1)
        if number > 0:
            raise OSError(number, os.strerror(number))
        return number == 0

    def begin(self, key: str, work: Callable[[], object]) -> NoReturn:
        """Have it done. Raises Later."""
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._do(work, parent)
        self._running[key] = pid, os.pidfd_open(pid)
        raise Later

    def has_news(self) -> bool:
        """Whether a child has ended since the last look."""
        running = len(self._running)
        for key, (pid, fd) in list(self._running.items()):
            gone, status = os.waitpid(pid, os.WNOHANG)
            if gone:
                os.close(fd)
                del self._running[key]
                self._ended[key] = max(os.waitstatus_to_exitcode(status), 0) or errno.EIO if status else 0
        return len(self._running) < running

    def _do(self, work: Callable[[], object], parent: int) -> NoReturn:
        status = errno.EIO
        try:
            namespaces.die_with_parent(parent)
            with as_errno(self._tell):
                work()
            status = 0
        except OSError as err:
            status = min(err.errno or errno.EIO, 0xFF)
        finally:
            os._exit(status)
