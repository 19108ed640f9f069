"""One command in one branch: start the sandbox, pass signals on, keep time, take snapshots, close the run.

On the launch path: nothing that the command's start does not need is imported before it runs.
"""

from __future__ import annotations

import os
import select
import signal
import struct
import time

from overlayrun import keeper
from overlayrun.errors import OverlayrunError
from overlayrun.kernel import abi, syscalls
from overlayrun.kernel.waits import exit_code
from overlayrun.live import OURS, LiveSandbox, exit_status_of
from overlayrun.model import RunOptions, SnapshotReason
from overlayrun.relay import Relay
from overlayrun.sandbox.limits import events_text
from overlayrun.workspace.layout import WorkspaceLayout

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Final, Protocol

    from overlayrun.answers import Answers
    from overlayrun.control import Handler
    from overlayrun.snapshot import Snapshot
    from overlayrun.watchdog import Watcher

    class Entrusted(Protocol):
        """A run that the watchdog of many looks after. reports: readable when that may have changed."""

        reports: int

        def is_lost(self) -> bool:
            """Whether nobody looks after it any more."""

        def end(self) -> str | None:
            """Stop looking; why the run was ended, None if it was not."""

    Entrust = Callable[[LiveSandbox, str], Entrusted]

PASSED_ON: Final = (
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
"""Signals that go on to the command."""
_ENDING: Final = (signal.SIGTERM, signal.SIGHUP)
# From the terminal these reach the command by themselves: it shares our process group.
_FROM_TERMINAL: Final = (signal.SIGINT, signal.SIGQUIT)
_GRACE: Final = 5.0  # seconds from TERM to KILL
_TWICE: Final = 1.0  # seconds between two Ctrl-C that mean it
_QUICK: Final = 0.05  # seconds after which a command is no quick one: sockets and timers start
_LONG: Final = 1.0  # seconds after which it is worth while to get ready for snapshots
_TRUST: Final = 5.0  # seconds between two looks at whether another process still looks after the run
_TIMED_OUT: Final = 124  # as timeout(1)


class Outcome:
    """How a run went. status: as a shell shows it. note: why it was ended, if we ended it.

    missing: errno of a command that can't be executed. failure: why it was not started, by our fault or the
    machine's. asked: for `asking.asked_lines`. timed_out: it, or its silence, was too long. ended_by: the
    signal that was passed on to end it. killed: the sandbox died under it, by a limit or from outside.
    """

    __slots__ = ("asked", "ended_by", "failure", "killed", "missing", "note", "status", "timed_out")

    def __init__(self) -> None:
        self.status = 0
        self.note: str | None = None
        self.missing: int | None = None
        self.failure: str | None = None
        self.asked = ""
        self.timed_out = False
        self.ended_by: int | None = None
        self.killed = False


class Supervisor:
    """The loop around one live sandbox.

    take: takes a snapshot (reason, message, whether without limits), None where this run keeps none.
    entrust: who has the run looked after (its sandbox, its place) in place of a process of its own; OSError
    where it can't be. is_untouched: whether nothing has changed since the workspace was made.
    """

    def __init__(
        self,
        live: LiveSandbox,
        options: RunOptions,
        sockets: str,
        take: Callable[..., Snapshot] | None,
        tell: Callable[[str], None],
        relay: Relay,
    ) -> None:
        self.live = live
        self.options = options
        self.sockets = sockets
        self.take = take
        self.tell = tell
        self.relay = relay
        self.outcome = Outcome()
        self.started = time.monotonic()
        self.kill_at: float | None = None
        self.next_snapshot: float | None = None
        self.interrupted_at = 0.0
        self.warm = False
        self.servers: dict[int, tuple[socket.socket, str, Handler]] = {}
        self.waiting = select.poll()
        # Descriptors that become readable when something beside the sandbox dies, and what to do then, once.
        self.watched: dict[int, Callable[[], None]] = {}
        self.entrust: Entrust | None = None
        self.entrusted: Entrusted | None = None
        self.is_untouched: Callable[[], bool] = lambda: False
        self.watcher: Watcher | None = None
        self.answers: Callable[[], Answers]

    def run(self) -> Outcome:
        """From start to the death of every process."""
        signals = syscalls.signalfd(PASSED_ON)
        self.waiting.register(signals, select.POLLIN)
        self.waiting.register(self.live.reports, select.POLLIN)
        for reader in self.relay.readers:
            self.waiting.register(reader, select.POLLIN)
        for writer in self.relay.feeds:
            self.waiting.register(writer, select.POLLOUT)
        for fd in self.watched:
            self.waiting.register(fd, select.POLLIN)
        self.live.order(keeper.START)
        try:
            while not self._step(signals):
                pass
        finally:
            self._stop_watching()
            self.relay.drain()
            os.close(signals)
            self._close_servers()
        return self.outcome

    def _close_servers(self) -> None:
        for number in list(self.servers):
            self.unlisten(number)

    def listen(self, place: str, name: str, handle: Handler) -> int:
        """Open the control socket `place`/`name`; a number for `unlisten`."""
        from overlayrun import control

        server = control.listen(place, name)
        self.servers[server.fileno()] = (server, f"{place}/{name}", handle)
        self.waiting.register(server.fileno(), select.POLLIN)
        return server.fileno()

    def unlisten(self, number: int) -> None:
        """Close a control socket."""
        server, path, _ = self.servers.pop(number)
        self.waiting.unregister(number)
        server.close()
        try:
            os.unlink(path)
        except OSError:  # the user removed the whole workspace, or the disk takes no writes any more
            pass

    def _step(self, signals: int) -> bool:
        """Wait for one thing and deal with it; true when the command is over."""
        for fd, _ in self.waiting.poll(self._patience()):
            if fd == self.live.reports:
                if self._is_over():
                    return True
            elif fd == signals:
                self._pass_on(signals)
            elif fd in self.relay.readers:
                self.relay.pass_on(fd)
            elif fd in self.relay.feeds:
                if not self.relay.feed(fd):
                    self.waiting.unregister(fd)
            elif fd in self.watched:
                self.waiting.unregister(fd)
                self.watched.pop(fd)()
            elif fd in self.servers:  # serving one client may close what another one waits for
                self._serve(fd)
        self._keep_time()
        self._keep_watched()
        return self.live.has_report and self._is_over()

    def _patience(self) -> float:
        """Milliseconds until the next thing is due."""
        now = time.monotonic()
        if not self.servers:
            return _QUICK * 1000
        due = [now + 3600.0 if self.warm or self.take is None else self.started + _LONG]
        if self.kill_at is not None:
            due.append(self.kill_at)
        elif self.options.timeout is not None:
            due.append(self.started + self.options.timeout)
        if self.options.idle_timeout is not None:
            due.append(now + 1.0)
        if self.next_snapshot is not None:
            due.append(self.next_snapshot)
        if self.entrusted is not None:
            due.append(now + _TRUST)
        return max(0.0, (min(due) - now) * 1000 + 1)

    def _is_over(self) -> bool:
        """Read what the keeper says: all that waits, because poll(2) does not know of what is buffered."""
        while True:
            if self._ends(self.live.next_report()):
                return True
            if not self.live.has_report:
                return False

    def _ends(self, report: tuple[bytes, str] | None) -> bool:
        if report is None:  # the keeper was killed, and its pid namespace with it
            self.outcome.status = 128 + signal.SIGKILL
            self.outcome.note = "the sandbox was killed"
            self.outcome.killed = True
            return True
        letter, text = report
        if letter == keeper.NO_EXEC:
            self.outcome.missing = int(text)
        elif letter == keeper.FAILED:
            self.outcome.failure = text
        elif letter == keeper.ASKED:
            self.outcome.asked = text
        elif letter == keeper.ENDED:
            self.outcome.status = exit_code(int(text))
            if self.outcome.timed_out:
                self.outcome.status = _TIMED_OUT
            if self.outcome.failure is not None:
                self.outcome.status = OURS
            elif self.outcome.missing is not None:
                self.outcome.status = exit_status_of(OSError(self.outcome.missing, ""))
            return True
        return False

    def _pass_on(self, signals: int) -> None:
        """Signals that reached us go to the command (signalfd(2): number at 0, si_code at 8)."""
        try:
            data = os.read(signals, abi.SIGNALFD_SIGINFO_SIZE)
        except BlockingIOError:
            return
        number, code = struct.unpack_from("=I4xi", data)
        reached = self.live.command.confinement.shares_group
        if number in _FROM_TERMINAL and code > abi.SI_USER and reached:
            now = time.monotonic()
            if number == signal.SIGINT and now - self.interrupted_at < _TWICE:
                self.outcome.ended_by = number
                self._end("interrupted twice", signal.SIGTERM)
            self.interrupted_at = now
            return
        if number in _ENDING:
            self.outcome.ended_by = number
            self._end(f"ended by {signal.Signals(number).name}", number)
        else:
            self.live.order(keeper.SIGNAL, number)

    def _end(self, why: str, number: int) -> None:
        """Ask the command to end, and set the time after which it is killed."""
        if self.kill_at is None:
            self.outcome.note = why
            self.kill_at = time.monotonic() + _GRACE
        self.live.order(keeper.SIGNAL, number)

    def _time_out(self, why: str) -> None:
        self.outcome.timed_out = True
        self._end(why, signal.SIGTERM)

    def _keep_time(self) -> None:
        now = time.monotonic()
        if not self.servers and now - self.started >= _QUICK:
            self._settle()
        if not self.warm and self.take is not None and now - self.started >= _LONG:
            # While the command works, so that neither its start nor its end waits for pygit2 (90 ms).
            import overlayrun.capture  # noqa: F401

            self.warm = True
        if self.kill_at is not None:
            if now >= self.kill_at:
                self.live.order(keeper.KILL)
                self.kill_at = now + 3600.0
            return
        limit, idle = self.options.timeout, self.options.idle_timeout
        if limit is not None and now - self.started >= limit:
            self._time_out(f"ended after {limit:g} s (--timeout)")
        elif idle is not None and self.relay.idle() >= idle:
            self._time_out(f"ended after {idle:g} s without output (--idle-timeout)")
        if self.next_snapshot is not None and now >= self.next_snapshot:
            self._snapshot_by_timer()

    def _settle(self) -> None:
        """The command is no quick one: look after it, open the control sockets and start the timer."""
        self.listen(self.sockets, "outside", lambda request: self.answers().outside(request))
        self.listen(f"{self.sockets}/inside", "control", lambda request: self.answers().inside(request))
        if self.take is not None and self.options.every > 0:
            self.next_snapshot = time.monotonic() + self.options.every
        if "watchdog" not in self.options.without:  # last: what we write to afterwards, each of us has
            self._watch()

    def _watch(self) -> None:
        place = os.path.dirname(self.sockets)
        try:
            os.unlink(WorkspaceLayout(place).guests)  # of a run that was killed
        except FileNotFoundError:
            pass
        try:
            self.entrusted = self.entrust and self.entrust(self.live, place)
        except OSError as err:
            self.tell(f"this run has a watchdog of its own: {err.strerror}")
        if self.entrusted is None:
            self._watch_alone(place)
        else:
            self.watched[self.entrusted.reports] = self._keep_watched
            self.waiting.register(self.entrusted.reports, select.POLLIN)

    def _keep_watched(self) -> None:
        """Look after the run in a process of its own where the other one is gone or stuck."""
        if self.entrusted is None or not self.entrusted.is_lost():
            return
        self.tell("the batch's watchdog is lost: this run has one of its own")
        if self.watched.pop(self.entrusted.reports, None):
            self.waiting.unregister(self.entrusted.reports)
        self.entrusted.end()
        self.entrusted = None
        self._watch_alone(os.path.dirname(self.sockets))

    def _watch_alone(self, place: str) -> None:
        from overlayrun.watchdog import Watchdog, Watcher

        watchdog = Watchdog(self.live.pid, place, self.live.command.confinement.limits)
        self.watcher = Watcher(watchdog, self.live.orders, self.live.joined[0])

    def _stop_watching(self) -> None:
        """Learn what ended the run, if that was a limit."""
        looking = self.entrusted or self.watcher
        said = looking.end() if looking else None
        said = said or events_text(self.live.command.confinement.limits, self.live.group)
        if said:
            self.outcome.killed = self.outcome.killed or self.outcome.status == 128 + signal.SIGKILL
            self.outcome.note = f"{self.outcome.note}; {said}" if self.outcome.note else said

    def _serve(self, fd: int) -> None:
        from overlayrun import control

        server, _, handle = self.servers[fd]
        control.answer(server, handle)

    def _snapshot_by_timer(self) -> None:
        assert self.take is not None
        began = time.monotonic()
        if self.is_untouched():  # a snapshot of nothing costs megabytes of memory
            self.next_snapshot = began + self.options.every
            return
        try:
            if self.options.freeze:
                self.live.freeze(frozen=True)
            self.take(SnapshotReason.INTERVAL, None)
        except OverlayrunError as err:
            why = err.brief + (f": {err.details}" if err.details else "")
            self.tell(f"no snapshot this time: {why}" + (f"; {err.hint}" if err.hint else ""))
        finally:
            if self.options.freeze:
                self.live.freeze(frozen=False)
        # A tree that takes long to read is read less often: at most a tenth of the time goes into snapshots.
        now = time.monotonic()
        self.next_snapshot = now + max(self.options.every, 9 * (now - began))


def block_signals() -> None:
    """Keep the signals that we pass on for the signal descriptor; the command gets a clean mask."""
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
