"""What connects a sandbox that has a network of its own: a proxy out, published ports in. On the launch path.

The proxy listens on a socket that was made inside, and accepts on it from outside: a socket stays in the
network in which it was made (network_namespaces(7)). So nothing of ours runs inside, and no socket file is
there to be reached, with its descriptors, from a place that was not meant.
"""

from __future__ import annotations

import errno
import os
import select
import signal

from overlayrun.errors import HostError, UsageError
from overlayrun.kernel import abi, namespaces, syscalls
from overlayrun.sandbox.network import PROXY_PORT, NetworkKind, proxy_environment

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Final, Self

    from overlayrun.sandbox.network import Network

    Work = Callable[[int, int], None]

_WAITING: Final = 128  # connections that the kernel keeps until they are accepted
_PATIENCE: Final = 2000  # milliseconds for a last word
_LONGEST_REPORT: Final = 1 << 16
_SHOWN: Final = 5


class _Helper:
    """A process of ours beside the sandbox. stop: ends it in good order. report: its last words, then EOF.

    lost: what the user is told when it dies before that.
    """

    __slots__ = ("lost", "pid", "report", "stop")

    def __init__(self, lost: str, pid: int, stop: int, report: int) -> None:
        self.lost = lost
        self.pid = pid
        self.stop = stop
        self.report = report

    def last_words(self) -> bytes:
        """Tell it to stop and read what it says; nothing from one that is dead already."""
        try:
            os.write(self.stop, b".")
        except BrokenPipeError:
            pass
        said = b""
        waiting = select.poll()
        waiting.register(self.report, select.POLLIN)
        while len(said) < _LONGEST_REPORT and waiting.poll(_PATIENCE):
            part = os.read(self.report, _LONGEST_REPORT)
            if not part:
                break
            said += part
        return said

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)  # not reaped yet: nobody else has the number
        os.waitpid(self.pid, 0)
        os.close(self.stop)
        os.close(self.report)


class Connections:
    """A context manager that leaves no process behind. blocked: times by what, once `finish` was called."""

    __slots__ = ("_helpers", "_listeners", "_proxy", "blocked", "network", "tell")

    def __init__(self, network: Network, published: Sequence[int], tell: Callable[[str], None]) -> None:
        """Take the published ports of the host; raises UsageError for one that can't be had.

        tell: shows a line to the user.
        """
        self.network = network
        self.tell = tell
        self.blocked: dict[str, int] = {}
        self._helpers: list[_Helper] = []
        self._proxy: _Helper | None = None
        self._listeners = _listen_on_host(published) if network.is_own else {}
        if published and not network.is_own:
            tell("--publish: nothing to do, the command has the host's network and its ports")

    @property
    def environment(self) -> dict[str, str]:
        """Variables for the command."""
        return proxy_environment() if self.network.kind is NetworkKind.ALLOW else {}

    def open(self, joined: Sequence[int]) -> None:
        """Start what is needed, before the command starts; raises HostError where it can't be.

        joined: the sandbox's namespaces, as `LiveSandbox` has them: the user's first, the network's last.
        """
        inside = [joined[0], joined[-1]]
        if self.network.kind is NetworkKind.ALLOW:
            listener = _listen_inside(inside)
            with listener:
                self._proxy = self._start(
                    _proxy_work(listener, self.network),
                    [listener.fileno()],
                    "the proxy is gone: nothing gets out of the sandbox any more",
                )
        if self._listeners:
            fds = [listener.fileno() for listener in self._listeners.values()]
            self._start(
                _publisher_work(self._listeners, inside),
                [*fds, *inside],
                "published ports are closed: the process behind them is gone",
            )
            self._close_listeners()

    def _start(self, work: Work, keep: Sequence[int], lost: str) -> _Helper:
        parent = os.getpid()
        stop_read, stop = os.pipe()
        report, report_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                _leave_everything([*keep, stop_read, report_write])
                namespaces.die_with_parent(parent)
                work(stop_read, report_write)
                status = 0
            finally:
                os._exit(status)
        os.close(stop_read)
        os.close(report_write)
        helper = _Helper(lost, pid, stop, report)
        self._helpers.append(helper)
        return helper

    @property
    def watched(self) -> dict[int, Callable[[], None]]:
        """Descriptors that become readable when something dies that should not, and what to do then, once."""
        return {helper.report: _teller(self.tell, helper.lost) for helper in self._helpers}

    def finish(self) -> None:
        """After the command's end: take the proxy's report."""
        if self._proxy is not None:
            self.blocked = _parse_report(self._proxy.last_words())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close_listeners()
        while self._helpers:
            self._helpers.pop().end()

    def _close_listeners(self) -> None:
        for listener in self._listeners.values():
            listener.close()
        self._listeners = {}


def _teller(tell: Callable[[str], None], text: str) -> Callable[[], None]:
    return lambda: tell(text)


def blocked_lines(blocked: Mapping[str, int]) -> Iterator[str]:
    """Lines of a run's summary: what the proxy did not let through, most first."""
    rows = sorted(blocked.items(), key=lambda row: (-row[1], row[0]))
    for what, times in rows[:_SHOWN]:
        yield f"blocked: {what}, {times} time{'' if times == 1 else 's'}"
    if len(rows) > _SHOWN:
        yield f"blocked: {len(rows) - _SHOWN} more"


def _parse_report(said: bytes) -> dict[str, int]:
    """Times by what; lines that are no such row are dropped: the proxy reads what hostile programs send."""
    rows = (line.partition(" ") for line in said.decode("ascii", "replace").split("\n"))
    return {what: int(times) for times, _, what in rows if times.isdigit() and what.isprintable()}


def _listen_on_host(ports: Sequence[int]) -> dict[int, socket.socket]:
    if not ports:
        return {}
    import socket  # 2 ms, for --publish alone

    made: dict[int, socket.socket] = {}
    for port in dict.fromkeys(ports):
        try:
            made[port] = socket.create_server(("127.0.0.1", port), backlog=_WAITING)
        except OSError as err:
            for listener in made.values():
                listener.close()
            raise UsageError(
                f"port {port} can't be published: {os.strerror(err.errno or 0)}", hint=_cure(err, port)
            ) from err
    return made


def _cure(err: OSError, port: int) -> str:
    if err.errno == errno.EADDRINUSE:
        return f"end what listens there (ss -ltnp 'sport = :{port}'), or let the command use another port"
    return "ports below 1024 are root's: let the command use a higher one"


def _listen_inside(inside: list[int]) -> socket.socket:
    """The proxy's listening socket, made by a child in the sandbox's network and handed out of it."""
    import socket  # 2 ms, for --net allow= alone

    from overlayrun.kernel.passed import receive

    ours, theirs = socket.socketpair()
    with ours, theirs:
        pid = os.fork()
        if pid == 0:
            try:
                namespaces.join(inside)
                server = socket.create_server(("127.0.0.1", PROXY_PORT), backlog=_WAITING)
                socket.send_fds(theirs, [b"."], [server.fileno()])
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        theirs.close()
        _, fds, _ = receive(ours, 1, 1)
    if not fds:
        raise HostError("the sandbox's network has no loopback", hint="see: overlayrun doctor")
    return socket.socket(fileno=fds[0])


def _proxy_work(listener: socket.socket, network: Network) -> Work:
    def work(stop: int, report: int) -> None:
        from overlayrun.proxy import run_proxy  # asyncio: 60 ms, beside the command's start

        if namespaces.is_root_of_host():
            os.setgroups([])
            os.setresgid(namespaces.NOBODY, namespaces.NOBODY, namespaces.NOBODY)
            os.setresuid(namespaces.NOBODY, namespaces.NOBODY, namespaces.NOBODY)
        _give_up()
        run_proxy(listener, network, stop, report)

    return work


def _publisher_work(listeners: Mapping[int, socket.socket], inside: list[int]) -> Work:
    def work(stop: int, _: int) -> None:
        from overlayrun.publish import run_publisher  # asyncio: 60 ms, beside the command's start

        namespaces.join(inside)
        _give_up()
        run_publisher(listeners, stop)

    return work


def _leave_everything(keep: Sequence[int]) -> None:
    """In a new helper: no stream, terminal, lock or pipe of the run's, none of its signals."""
    os.setsid()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    null = os.open("/dev/null", os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    first = 3
    for fd in sorted(keep):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def _give_up() -> None:
    """No privilege, and nobody may look in. Last, because new credentials undo the two (prctl(2))."""
    parent = os.getppid()
    syscalls.capset()
    syscalls.prctl(abi.PR_SET_NO_NEW_PRIVS, 1)
    syscalls.prctl(abi.PR_SET_DUMPABLE, 0)
    namespaces.die_with_parent(parent)
