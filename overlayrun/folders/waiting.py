"""Requests that wait for somebody, whose callers can be killed meanwhile.

Without an answer a caller sleeps where no signal reaches him, however long who knows the trees is busy, or is
stopped. The kernel tells of a signal, whichever it is, once for a request (INTERRUPT of linux/fuse.h).
"""

from __future__ import annotations

import errno
import signal
import threading
import time
from collections.abc import Callable
from typing import Final

_ENDING: Final = sum(
    1 << number - 1 for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
)
_LOOK_SECONDS: Final = 0.5
_KILL: Final = 1 << signal.SIGKILL - 1
"""Pending for every thread of a process that any signal ends, if it has no handler for it."""


class Waiting:
    """Requests that wait, by number. refuse: answers one with an errno."""

    def __init__(self, refuse: Callable[[int, int], None]) -> None:
        self._refuse = refuse
        self._lock = threading.Lock()
        self._callers: dict[int, int] = {}
        self._disturbed: set[int] = set()

    def begin(self, unique: int, caller: int) -> None:
        """A request waits from now on. caller: its thread, 0 if unknown."""
        with self._lock:
            self._callers[unique] = caller

    def end(self, unique: int) -> bool:
        """The caller answers it now; False where that was done, and he must not."""
        with self._lock:
            self._disturbed.discard(unique)
            return self._callers.pop(unique, None) is not None

    def disturb(self, unique: int) -> None:
        """A signal came to who waits. Most are no reason to fail: programs expect no EINTR of a file."""
        with self._lock:
            is_first = not self._disturbed
            if unique in self._callers:
                self._disturbed.add(unique)
        self._look()
        if is_first and self._disturbed:
            threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        """Go on looking while there are any: only the first signal is told of."""
        while self._disturbed:
            time.sleep(_LOOK_SECONDS)
            self._look()

    def _look(self) -> None:
        with self._lock:
            ending = [unique for unique in self._disturbed if _is_ending(self._callers[unique])]
        for unique in ending:
            if self.end(unique):
                self._refuse(unique, errno.EINTR)


def _is_ending(thread: int) -> bool:
    """Whether a signal waits for a thread that ends it, or is meant to."""
    try:
        with open(f"/proc/{thread}/status", "rb") as file:
            told = dict(line.split(b":", 1) for line in file if line.startswith(b"S"))
    except OSError:  # it can't be gone; it is of a namespace that is not ours
        return True
    pending = int(told[b"SigPnd"], 16) | int(told[b"ShdPnd"], 16)
    deaf = int(told[b"SigBlk"], 16) | int(told[b"SigIgn"], 16)
    return bool(pending & (_ENDING & ~deaf | _KILL))
