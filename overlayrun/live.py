"""A live sandbox from outside: start its keeper, run the command, join it, end it."""

from __future__ import annotations

import errno
import os
import select
import signal
import time

from overlayrun import keeper
from overlayrun.errors import HostError, MountError
from overlayrun.joined import attend
from overlayrun.keeper import Command
from overlayrun.kernel import namespaces, syscalls
from overlayrun.kernel.groups import Group
from overlayrun.sandbox import mounts
from overlayrun.sandbox.plan import writable_places
from overlayrun.streams import pump

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn, Self

    from overlayrun.sandbox.asking import Asked
    from overlayrun.sandbox.plan import Layer

_USERNS_HINT = "overlayrun doctor tells which switch of this machine forbids it"
_PATIENCE = 120.0  # seconds; packs of the command's own commits may be large
_TIMED_OUT = 124  # as timeout(1)
OURS = 125  # exit status of every failure that is not the command's
_NOBODY_HINT = "give the repository to an ordinary user and run as him, or: --allow-root-uid"


def _closed(err: OSError) -> HostError:
    return HostError(f"namespaces are closed on this machine: {err.strerror}", hint=_USERNS_HINT)


def _open_as_nobodys(layers: Sequence[Layer]) -> mounts.Opened:
    """The mounts of a run by root, whose command is nobody on the host and root of its own files."""
    try:
        opened = mounts.Opened(namespaces.id_map_namespace())
    except OSError as err:
        raise _closed(err) from err
    try:
        mounts.open_all(layers, opened)
    except (OSError, MountError) as err:
        reason = err if isinstance(err, OSError) else err.__cause__
        if not isinstance(reason, OSError) or reason.errno not in (errno.EINVAL, errno.EPERM):
            raise
        words = err.brief if isinstance(err, MountError) else err.strerror
        hint = "--home private" if "HOME" in str(words) else _NOBODY_HINT
        raise HostError(f"run by root, the command must not be root: {words}", hint=hint) from err
    return opened


class LiveSandbox:
    """One keeper and its namespaces; a context manager that leaves no process behind.

    The keeper's first process is forked from this one, which must have a single thread.
    """

    __slots__ = ("_buffered", "_orders", "_pending", "command", "group", "joined", "pid", "reports")

    def __init__(self, layers: Sequence[Layer], command: Command, group: Group | None = None) -> None:
        """Make the sandbox, mounts and all, in a control group; raises HostError or MountError."""
        self.command = command
        self.group = group or Group({})
        self._buffered = b""
        self._pending: list[tuple[bytes, str]] = []
        order_read, self._orders = os.pipe()
        self.reports, report_write = os.pipe()
        command.confinement.writable = writable_places(layers)
        birth = keeper.Birth(layers, os.geteuid(), os.getegid())
        if namespaces.is_root_of_host():
            if command.confinement.root_uid:
                mounts.take_back_all(layers)
            else:
                birth.opened = _open_as_nobodys(layers)
        try:
            self.pid = syscalls.clone(command.confinement.namespaces)
        except OSError as err:
            raise _closed(err) from err
        if self.pid == 0:
            os.close(self._orders)
            os.close(self.reports)
            keeper.keep(birth, keeper.Keeper(command, order_read, report_write))
        os.close(order_read)
        os.close(report_write)
        self.joined: list[int] = []
        self._enter_group()
        if birth.opened is not None:
            with birth.opened:
                self._give_ids()
        self._await_ready()

    def _give_ids(self) -> None:
        try:
            namespaces.map_root_to_nobody(self.pid)
        except OSError as err:
            self.close()
            raise HostError(f"the command can't be made nobody: {err.strerror}", hint=_NOBODY_HINT) from err
        os.write(self._orders, b"-\n")

    def _enter_group(self) -> None:
        try:
            self.group.add(self.pid)
        except OSError as err:
            self.close()
            raise HostError(f"the control group can't be entered: {err}", hint="--without cgroup") from err

    def _await_ready(self) -> None:
        letter, text = self.next_report() or (keeper.FAILED, "the keeper died")
        if letter != keeper.READY:
            self.close()
            raise MountError(text, hint=_USERNS_HINT)
        self.joined = namespaces.open_namespaces(self.pid)
        os.write(self._orders, b"-\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process of the sandbox and wait for it."""
        if self._orders < 0:
            return
        self.order(keeper.END)  # another process may hold the pipe as well
        os.close(self._orders)
        self._orders = -1
        os.waitpid(self.pid, 0)
        for fd in [*self.joined, self.reports]:
            os.close(fd)

    def seen_from(self, directory: str, branch: str, workspace_id: str) -> LiveSandbox:
        """The same sandbox for those who join it in another tree; it is not to be closed."""
        seen = object.__new__(LiveSandbox)
        for name in self.__slots__:
            setattr(seen, name, getattr(self, name))
        own = {"PWD": directory, "OVERLAYRUN_BRANCH": branch, "OVERLAYRUN_ID": workspace_id}
        seen.command = Command([], directory, {**self.command.environment, **own})
        seen.command.confinement = self.command.confinement
        return seen

    @classmethod
    def of_another(cls, joined: list[int], command: Command) -> Self:
        """Another process's sandbox, to run something inside; not to be closed. joined: its namespaces."""
        seen = object.__new__(cls)
        seen.joined, seen.command = joined, command
        return seen

    def order(self, letter: bytes, number: int = 0) -> None:
        """Tell the keeper; one that is dead is told nothing."""
        try:
            os.write(self._orders, b"%s%d\n" % (letter, number))
        except BrokenPipeError:
            pass

    def next_report(self) -> tuple[bytes, str] | None:
        """The keeper's next message (letter, text), waiting for it; None when the keeper is dead."""
        if self._pending:
            return self._pending.pop(0)
        return self._read_report()

    def freeze(self, *, frozen: bool) -> None:
        """Stop every process of the sandbox, or let them go on, and wait until it is so."""
        if self.group.can_freeze:
            self.group.freeze(frozen=frozen)
            return
        self.order(keeper.FREEZE, int(frozen))
        while (report := self._read_report()) is not None and report[0] != keeper.FROZEN:
            self._pending.append(report)

    @property
    def orders(self) -> int:
        """Descriptor that orders are written to, for a process that looks after the run."""
        return self._orders

    @property
    def has_report(self) -> bool:
        """Whether a message waits that `reports` does not tell of."""
        return bool(self._pending) or b"\n" in self._buffered

    def _read_report(self) -> tuple[bytes, str] | None:
        while b"\n" not in self._buffered:
            data = os.read(self.reports, 4096)
            if not data:
                return None
            self._buffered += data
        line, _, self._buffered = self._buffered.partition(b"\n")
        return line[:1], line[1:].decode("utf-8", "replace")

    def run_inside(self, argv: Sequence[str], data: bytes) -> tuple[int, bytes]:
        """Run `argv` inside with `data` on its stdin, and give its exit status and stdout; stderr is dropped.

        It sees what the command sees and has as few privileges. Never more than `_OUTPUT_LIMIT` bytes are
        taken. What takes longer than _PATIENCE is killed, status 124: the command can stop it, or have put a
        program of its own in its place.
        """
        in_read, in_write = os.pipe()
        out_read, out_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            inside = Command(argv, self.command.cwd, self.command.environment)
            inside.confinement = self.command.confinement
            run_joined(self.joined, inside, (in_read, out_write, os.open("/dev/null", os.O_WRONLY)))
        os.close(in_read)
        os.close(out_write)
        until = time.monotonic() + _PATIENCE
        try:
            (output,) = pump(in_write, data, [out_read], seconds=_PATIENCE)
        except TimeoutError:
            output = b""
        return _end_of(pid, max(0.0, until - time.monotonic())), output


def _end_of(pid: int, seconds: float) -> int:
    """Exit status of a child; after `seconds` it is killed, and what it waits for dies with it."""
    watched = select.poll()
    fd = os.pidfd_open(pid)
    watched.register(fd, select.POLLIN)
    is_late = not watched.poll(seconds * 1000)
    os.close(fd)
    if is_late:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return _TIMED_OUT if is_late else os.waitstatus_to_exitcode(status)


def run_joined(
    joined: Sequence[int],
    command: Command,
    streams: tuple[int, int, int] | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> None:
    """In a forked child: enter a sandbox, run `command` there, exit with its status; never returns.

    streams: descriptors to become stdin, stdout and stderr. tell: shows why the command can't be executed.
    """
    status = 126
    parent = os.getppid()

    def become(asked: Asked | None) -> NoReturn:
        try:
            keeper.execute(command, is_filtered=asked is not None)
        except OSError as err:
            tell(f"{command.argv[0]}: {err.strerror}")
            os._exit(exit_status_of(err))
        except HostError as err:
            tell(err.brief)
            os._exit(OURS)

    try:
        for number, fd in enumerate(streams or ()):
            os.dup2(fd, number)
        namespaces.join(list(joined))
        namespaces.die_with_parent(parent)
        os.closerange(
            3, os.sysconf("SC_OPEN_MAX")
        )  # this process waits; it must not hold a pipe's other end open
        # A pid namespace holds for children alone (setns(2)).
        status = attend(command.confinement, become)
    finally:
        os._exit(status)


def exit_status_of(err: OSError) -> int:
    """126 for a command that can't be executed, 127 for one that is not there, as env(1) does."""
    return 127 if isinstance(err, (FileNotFoundError, NotADirectoryError)) else 126
