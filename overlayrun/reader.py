"""The process that reads an upper layer for a snapshot: forked, confined, believed nothing.

It is a copy of this process and not a new program, because a Python of its own would cost more than the
snapshot of a small change.
"""

from __future__ import annotations

import fcntl
import gc
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NoReturn, Self

from overlayrun.errors import SnapshotError
from overlayrun.giving import give_to_nobody
from overlayrun.kernel import syscalls
from overlayrun.kernel.namespaces import NOBODY
from overlayrun.layers import wire
from overlayrun.layers.upper import serve
from overlayrun.layers.wire import Channel
from overlayrun.sandbox.reading import confine_to

_PIPE: Final = 1 << 20  # bytes; what one may have without privilege (pipe(7), pipe-max-size)

# (descriptor of the layer, questions, answers)
Serve = Callable[[int, int, int], object]


class Reader:
    """One reading process as a context manager; afterwards it is dead.

    upper: path of the layer. seconds: for all its answers together, None for no end. Raises
    SnapshotError.
    """

    def __init__(self, upper: str, seconds: float | None, work: Serve = serve) -> None:
        asked, questions = os.pipe()
        answers, said = os.pipe()
        with suppress(PermissionError):  # the user's share of pipes is used up: a smaller one does it too
            fcntl.fcntl(answers, fcntl.F_SETPIPE_SZ, _PIPE)
        # A handler of ours must not run in the child, nor an interrupt throw it back into the caller's code.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._pid = syscalls.clone(0)  # half a millisecond less than by os.fork
            if self._pid == 0:
                _become(upper, asked, said, work)
        except OSError as err:
            os.close(questions)
            os.close(answers)
            raise SnapshotError("no process can be started to read the changes", details=str(err)) from err
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(asked)
            os.close(said)
        self._pipes = (questions, answers)
        self._is_ended = False
        self.channel = Channel(questions, answers, seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        os.waitpid(self._pid, 0)

    def end(self) -> None:
        """Nothing is to be asked any more. What it takes to die, the caller need not wait for yet."""
        if self._is_ended:
            return
        self._is_ended = True
        os.kill(self._pid, signal.SIGKILL)
        for fd in self._pipes:
            os.close(fd)


def _become(upper: str, asked: int, said: int, work: Serve) -> NoReturn:
    """In the child: it must not return into the caller's code."""
    try:
        gc.disable()  # it would write to every page that is shared with the parent
        try:
            if os.geteuid() == 0 and os.lstat(upper).st_uid == NOBODY:
                give_to_nobody(upper)  # what root has written there since
            root = confine_to(upper, (asked, said))
        except OSError as err:
            words = f"the reader could not be confined: {err}".encode("utf-8", "replace")[:1000]
            os.write(said, wire.HEADER.pack(wire.FAILED, len(words), 0, 0, 0, 0, 0) + words)
        else:
            work(root, asked, said)
    finally:
        os._exit(0)
