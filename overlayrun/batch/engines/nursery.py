"""Where attempts are forked: a process that stays as it was when the batch began.

They share its memory for as long as neither writes to it. Forked from the coordinator they would keep what
that was at each moment, 2 MB for each of them.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, NoReturn

from overlayrun.batch.attempt import Reports, Shared, make_attempt
from overlayrun.batch.engines.lookout import Lookout
from overlayrun.batch.task import Attempt, AttemptKey
from overlayrun.errors import HostError
from overlayrun.kernel import abi, namespaces, syscalls
from overlayrun.kernel.passed import receive
from overlayrun.model import TreeId
from overlayrun.supervisor import PASSED_ON

BEGUN: Final = b"S"
"""What a child says first: that its command runs. A line for each workspace follows that it leaves."""
_REFUSED: Final = -1
_ANSWER: Final = struct.Struct("=i")  # a process id, or _REFUSED


@dataclass(frozen=True, slots=True)
class Order:
    """What a child is to do. new_branch: see `location.Known`. tree: of the attempt's base."""

    attempt: Attempt
    new_branch: str | None
    tree: TreeId

    def encode(self) -> bytes:
        """As it passes to the child."""
        return json.dumps([self.attempt.to_json(), self.new_branch, self.tree]).encode()

    @classmethod
    def decode(cls, data: bytes) -> Order:
        """The inverse of `encode`."""
        attempt, new_branch, tree = json.loads(data)
        return cls(Attempt.from_json(attempt), new_branch, TreeId(tree))


class Child:
    """A child of this process that waits for an attempt to make, or makes it.

    pidfd: readable when it is dead. news: what it says, without blocking. key: of its attempt.
    """

    def __init__(self, pid: int, news: int, orders: int) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.news = news
        self.key: AttemptKey = ("", 0)
        self._orders = orders

    def take(self, order: Order) -> None:
        """Give it its attempt; that one is dead shows when it is buried."""
        self.key = order.attempt.key
        with suppress(BrokenPipeError), open(self._orders, "wb") as file:
            file.write(order.encode())

    def dismiss(self) -> None:
        """Let one go that has no attempt."""
        for fd in (self._orders, self.news, self.pidfd):
            os.close(fd)
        os.waitpid(self.pid, 0)


class Nursery:
    """The process that forks, and its end here; it dies with the thread that made it."""

    def __init__(self, shared: Shared) -> None:
        """Raises HostError."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # A child that collected garbage would write to, and so copy, every page that it shares with us.
        gc.collect()
        gc.freeze()
        if sys.version_info < (3, 13):
            # What a child puts in there would take the place of names whose pages it shares with us.
            sys._clear_type_cache()
        parent = os.getpid()
        # No signal of the terminal's is for it, and one for a child must wait until that is ready for it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._pid = syscalls.clone(0)
            if self._pid == 0:
                _serve(shared, theirs, parent, self._socket.fileno())
        except OSError as err:
            raise HostError(f"no process can be started: {err.strerror}") from err
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def child(self) -> Child:
        """A new child of this process. Raises HostError."""
        orders, order = os.pipe()
        news, said = os.pipe()
        try:
            socket.send_fds(self._socket, [b"-"], [orders, said])
            answer = self._socket.recv(_ANSWER.size)
            pid = _ANSWER.unpack(answer)[0] if answer else _REFUSED
        except OSError:  # it was killed
            pid = _REFUSED
        finally:
            os.close(orders)
            os.close(said)
        if pid == _REFUSED:
            os.close(order)
            os.close(news)
            raise HostError("no process can be started for an attempt", hint="see: ulimit -u")
        os.set_blocking(news, False)
        return Child(pid, news, order)

    def close(self) -> None:
        """End it; its children are ours and go on."""
        if self._pid:
            self._socket.close()
            os.waitpid(self._pid, 0)
            self._pid = 0


def _serve(shared: Shared, requests: socket.socket, parent: int, other: int) -> NoReturn:
    """In the process that forks: never returns. other: descriptor of the end that is not its own."""
    try:
        namespaces.die_with_parent(parent)
        os.close(other)
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (*PASSED_ON, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        lookout = Lookout()
        while True:
            data, fds, _ = receive(requests, 1, 2)
            if not data:
                break
            requests.send(_ANSWER.pack(_fork(shared, lookout, fds, parent, requests.fileno())))
            for fd in fds:
                os.close(fd)
    finally:
        _tell_failure()
        os._exit(0)


def _fork(shared: Shared, lookout: Lookout, fds: list[int], parent: int, other: int) -> int:
    """A child of our parent's, to be buried by that; its process id."""
    try:
        pid = syscalls.clone(abi.CLONE_PARENT)
    except OSError:
        return _REFUSED
    if pid == 0:
        _become(shared, lookout, fds, parent, [other])
    return pid


def _become(shared: Shared, lookout: Lookout, fds: list[int], parent: int, others: Iterable[int]) -> NoReturn:
    """In the child: it must not return into the caller's code. others: descriptors that are not its own."""
    status = 1
    orders, said = fds
    try:
        namespaces.die_with_parent(parent)
        os.setsid()  # no terminal: nobody is there to answer what an agent would ask
        signal.pthread_sigmask(signal.SIG_SETMASK, PASSED_ON)
        for fd in others:
            os.close(fd)
        with open(orders, "rb") as file:
            order = file.read()
        if order:
            _obey(shared, lookout, Order.decode(order), said)
        status = 0
    finally:
        _tell_failure()
        os._exit(status)


def _obey(shared: Shared, lookout: Lookout, order: Order, said: int) -> None:
    """Make the attempt that an order tells of."""
    known = shared.repository.known
    assert known is not None
    known.new_branch = order.new_branch
    known.trees[order.attempt.base] = order.tree
    log = _take_streams(shared.place.attempt(order.attempt.key).overlayrun)
    reports = Reports(
        tell=partial(_write_line, log),
        begun=partial(os.write, said, BEGUN),
        left=partial(_write_line, said),
        entrust=lookout.entrust,
    )
    make_attempt(shared, order.attempt, reports)


def _tell_failure() -> None:
    """Where something unforeseen is on its way out, write it down."""
    failed = sys.exception()
    if failed is not None:
        _write_line(2, "".join(traceback.format_exception(failed)).rstrip())


def _take_streams(log: str) -> int:
    """Read nothing, and let go whatever this process prints into overlayrun's own log; its descriptor."""
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for number, source in enumerate((null, fd, fd)):
        os.dup2(source, number)
    os.close(null)
    return fd


def _write_line(fd: int, line: str) -> None:
    os.write(fd, f"{line}\n".encode("utf-8", "surrogateescape"))
