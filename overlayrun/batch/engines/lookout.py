"""One watchdog for all attempts of a batch: a process for each of them would take a megabyte more."""

from __future__ import annotations

import json
import mmap
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NoReturn

from overlayrun import keeper
from overlayrun.kernel import abi, namespaces, syscalls
from overlayrun.kernel.passed import receive
from overlayrun.sandbox.limits import LimitOptions
from overlayrun.watchdog import SOONEST, Watchdog, close_all_but, reason_to_end

if TYPE_CHECKING:
    from overlayrun.live import LiveSandbox
    from overlayrun.watchdog import Numbers

_PULSE: Final = struct.Struct("=d")  # when it was last seen to work, by time.monotonic
_IDLE: Final = 1.0  # seconds after which it shows that it works
_STUCK: Final = 10.0  # seconds
_MEASURE_AGAIN: Final = 5.0  # seconds: each time costs a process
_LONGEST: Final = 1 << 16  # bytes of a message; a path has at most 4096


class Lookout:
    """The process as its clients see it: this one, and each that is forked from it."""

    def __init__(self) -> None:
        """Start it; it dies with this process, which has a single thread. Raises OSError."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pulse = mmap.mmap(-1, _PULSE.size)
        _beat(self._pulse)
        parent = os.getpid()
        if syscalls.clone(0) == 0:
            _serve(theirs, self._pulse, parent)
        theirs.close()

    def entrust(self, live: LiveSandbox, place: str) -> Entrusted:
        """Have a sandbox looked after. place: of its workspace. Raises OSError."""
        reports, said = os.pipe()
        os.set_blocking(reports, False)
        limits = live.command.confinement.limits
        data = json.dumps([live.pid, place, limits.to_json()]).encode()
        try:
            fds = [live.orders, live.joined[0], said]
            socket.send_fds(self._socket, [data], fds, socket.MSG_DONTWAIT)
        except OSError:
            os.close(reports)
            raise
        finally:
            os.close(said)
        return Entrusted(reports, self._pulse)


class Entrusted:
    """One run that is looked after. reports: closed at its other end when nobody does so any more."""

    __slots__ = ("_pulse", "_said", "reports")

    def __init__(self, reports: int, pulse: mmap.mmap) -> None:
        self.reports = reports
        self._pulse = pulse
        self._said = b""

    def is_lost(self) -> bool:
        """Whether nobody looks after it any more."""
        if not self._hear() and not self._said:
            return True
        beaten: float = _PULSE.unpack_from(self._pulse)[0]
        return time.monotonic() - beaten > _STUCK

    def end(self) -> str | None:
        """Stop looking, without waiting; why the run was ended, None if it was not."""
        self._hear()
        os.close(self.reports)
        return self._said.decode("utf-8", "replace") or None

    def _hear(self) -> bool:
        """Take what was said; whether more may follow."""
        try:
            said = os.read(self.reports, 1 << 12)
        except BlockingIOError:
            return True
        self._said += said
        return bool(said)


def _beat(pulse: mmap.mmap) -> None:
    _PULSE.pack_into(pulse, 0, time.monotonic())


class _Aside:
    """Work for a child in the sandbox's user namespace, in which no mode keeps it out of a directory.

    Called again until it gives what came of it, None before.
    """

    def __init__(self, work: Callable[[], Numbers], userns: int) -> None:
        self._work = work
        self._userns = userns
        self._pid = 0
        self._answer = -1

    def __call__(self) -> Numbers | None:
        if not self._pid and not self._start():
            return self._work()
        try:
            data = os.read(self._answer, 1 << 12)
        except BlockingIOError:
            return None
        self.stop()
        # Where the child failed, that here gives or raises what there is.
        return tuple(map(float, data.split())) if data else self._work()

    def _start(self) -> bool:
        """Start the child; false where none can be: a run may have as many processes as its user may."""
        parent = os.getpid()
        try:
            self._answer, write = os.pipe()
        except OSError:
            return False
        try:
            self._pid = syscalls.clone(0)
        except OSError:
            os.close(self._answer)
            os.close(write)
            return False
        if self._pid == 0:
            _work_aside(self._work, self._userns, write, parent)
        os.close(write)
        os.set_blocking(self._answer, False)
        return True

    @property
    def is_busy(self) -> bool:
        """Whether the child is at work."""
        return self._pid > 0

    def stop(self) -> None:
        """End the child if there is one."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            os.close(self._answer)
            self._pid = 0


def _work_aside(work: Callable[[], Numbers], userns: int, answer: int, parent: int) -> NoReturn:
    try:
        close_all_but({0, 1, 2, userns, answer})
        if os.geteuid():  # root reads every directory as it is
            syscalls.setns(userns, abi.CLONE_NEWUSER)
        # After the join: new credentials clear the signal (prctl(2), PR_SET_PDEATHSIG).
        namespaces.die_with_parent(parent)
        os.write(answer, " ".join(map(str, work())).encode())
    finally:
        os._exit(0)


class _Run:
    """One that is looked after. due: when to look next, by time.monotonic."""

    def __init__(self, data: bytes, fds: list[int]) -> None:
        """Raises OSError where it can't be looked after."""
        self.orders, self._userns, self.report = fds
        pid, place, limits = json.loads(data)
        # Should the id be another process's by now, the orders have no reader: nothing is done to that one.
        self._dog = Watchdog(pid, place, LimitOptions.from_json(limits))
        self._aside = [_Aside(work, self._userns) for work in (self._dog.measure, self._dog.share)]
        self._dog.measured, self._dog.shared = self._aside
        self._dog.again = _MEASURE_AGAIN
        self.due = time.monotonic()

    def look(self) -> bool:
        """Look; whether it must be looked at again."""
        reason = reason_to_end(self._dog)
        busy = any(aside.is_busy for aside in self._aside)
        self.due = time.monotonic() + (SOONEST if busy else self._dog.interval)
        if reason is None:
            return True
        with suppress(BrokenPipeError):  # it is over: then nothing is to be killed any more
            os.write(self.report, reason.encode("utf-8", "surrogateescape"))
            os.write(self.orders, b"%s0\n" % keeper.KILL)
        return False

    def close(self) -> None:
        for aside in self._aside:
            aside.stop()
        for fd in (self.orders, self._userns, self.report):
            os.close(fd)


class _Server:
    """The loop around all runs, by the descriptor of each one's report."""

    def __init__(self, requests: socket.socket, pulse: mmap.mmap) -> None:
        self._requests = requests
        self._pulse = pulse
        self._runs: dict[int, _Run] = {}
        self._waiting = select.poll()
        self._waiting.register(requests, select.POLLIN)

    def serve(self) -> None:
        """Until no client is left."""
        while True:
            _beat(self._pulse)
            for fd, _ in self._waiting.poll(self._patience()):
                if fd != self._requests.fileno():
                    self._forget(fd)  # nobody reads its report: the run is over, or its supervisor dead
                elif not self._take():
                    return
            now = time.monotonic()
            for fd in [fd for fd, run in self._runs.items() if run.due <= now]:
                if not self._runs[fd].look():
                    self._forget(fd)

    def _patience(self) -> float:
        """Milliseconds until the next thing is due."""
        now = time.monotonic()
        return max(0.0, min([now + _IDLE, *(run.due for run in self._runs.values())]) - now) * 1000

    def _take(self) -> bool:
        """A new run; false when none will come any more."""
        data, fds, _ = receive(self._requests, _LONGEST, 3)
        try:
            run = _Run(data, fds)
        except (OSError, ValueError):  # too many descriptors, or no such place: who asked sees a closed pipe
            for fd in fds:
                os.close(fd)
            return bool(data)
        self._runs[run.report] = run
        self._waiting.register(run.report, 0)
        return True

    def _forget(self, fd: int) -> None:
        self._waiting.unregister(fd)
        self._runs.pop(fd).close()


def _serve(requests: socket.socket, pulse: mmap.mmap, parent: int) -> NoReturn:
    try:
        namespaces.die_with_parent(parent)
        close_all_but({0, 1, 2, requests.fileno()})
        syscalls.prctl(abi.PR_SET_DUMPABLE, 0)
        _Server(requests, pulse).serve()
    finally:
        os._exit(0)
