r"""The keeper: pid 1 of the sandbox. It mounts, starts the command, reaps, and ends with the supervisor.

It talks with the supervisor over two pipes, one record a message: `<letter><number>\n`. It takes no
snapshots and reads nothing that the command wrote.
"""

from __future__ import annotations

import errno
import os
import select
import signal

from overlayrun.errors import HostError, OverlayrunError
from overlayrun.kernel import abi, namespaces, syscalls
from overlayrun.sandbox import mounts, seccomp
from overlayrun.sandbox.asking import Asked
from overlayrun.sandbox.confinement import (
    Confinement,
    confine,
    filter_program,
    forbid_namespaces,
    leave_keyring,
)
from overlayrun.sandbox.limits import spare_host
from overlayrun.sandbox.network import bring_up_loopback
from overlayrun.sandbox.plan import overlay_places

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final, NoReturn

    from overlayrun.sandbox.plan import Layer

# From the keeper.
READY: Final = b"R"  # everything is mounted
FAILED: Final = b"E"  # a required layer could not be applied: nothing runs; the text follows
NO_EXEC: Final = b"F"  # the command could not be executed; errno
FROZEN: Final = b"Z"  # every process is stopped, or goes on
ASKED: Final = b"A"  # who asked for what only an option allows; `asking.asked_lines` reads the text
ENDED: Final = b"X"  # the command and all its children are dead; wait status of the command
# To the keeper.
START: Final = b"G"
SIGNAL: Final = b"S"  # send a signal to the command
FREEZE: Final = b"Z"  # 1: stop every process, 0: let them go on
KILL: Final = b"K"  # kill every process
END: Final = b"Q"  # end at once, and every process with it


class Command:
    """What to execute: argv, directory, environment, what it gives up before.

    streams: descriptors in place of standard ones.
    """

    __slots__ = ("argv", "confinement", "cwd", "environment", "streams")

    def __init__(self, argv: Sequence[str], cwd: str, environment: dict[str, str]) -> None:
        self.argv = list(argv)
        self.cwd = cwd
        self.environment = environment
        self.confinement = Confinement()
        self.streams: dict[int, int] = {}


class Keeper:
    """State of pid 1: the pipes, and the command once it runs."""

    __slots__ = ("asked", "child", "command", "orders", "overlays", "report_fd")

    def __init__(self, command: Command, orders: int, report_fd: int) -> None:
        self.command = command
        self.orders = orders
        self.report_fd = report_fd
        self.child = 0
        self.asked: Asked | None = None
        self.overlays: Sequence[str] = ()  # mountpoints

    def report(self, letter: bytes, text: str = "") -> None:
        """Tell the supervisor."""
        os.write(self.report_fd, letter + text.replace("\n", " ").encode("utf-8", "surrogateescape") + b"\n")

    def forget_descriptors(self) -> None:
        """Hold none of the supervisor's: a pipe of its would never end, and the command could be lent it."""
        last = 2
        for fd in sorted({self.orders, self.report_fd, *self.command.streams.values()}):
            os.closerange(last + 1, fd)
            last = max(last, fd)
        os.closerange(last + 1, os.sysconf("SC_OPEN_MAX"))

    def obey(self) -> None:
        """Read orders until the supervisor says so, closes the pipe or dies."""
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        signals = syscalls.signalfd([signal.SIGCHLD])
        waiting = select.poll()
        waiting.register(signals, select.POLLIN)
        waiting.register(self.orders, select.POLLIN)
        if self.asked:
            waiting.register(self.asked.listener, select.POLLIN)
        buffered = b""
        while True:
            for fd, _ in waiting.poll():
                if fd == signals:
                    os.read(signals, 64 * abi.SIGNALFD_SIGINFO_SIZE)
                    self.reap()
                    continue
                if self.asked and fd == self.asked.listener:
                    self.asked.answer()
                    continue
                data = os.read(self.orders, 4096)
                if not data or END in data:
                    return
                *lines, buffered = (buffered + data).split(b"\n")
                for line in lines:
                    self.execute(line[:1], int(line[1:] or b"0"))

    def tidy(self) -> None:
        """Put in place what renames that were killed have left aside."""
        if self.asked:
            self.asked.renames.tidy(self.overlays)

    def execute(self, order: bytes, number: int) -> None:
        """Carry out one order."""
        if order == START:
            self.child = syscalls.clone(0)  # half a millisecond less than by os.fork
            if self.child == 0:
                self.become_command()
        elif order == SIGNAL and self.child:
            # The terminal's keys reach a whole group; what reached ours alone goes on to the command's.
            alone = self.command.confinement.shares_group or number not in (signal.SIGINT, signal.SIGQUIT)
            _quietly(os.kill, self.child if alone else -self.child, number)
        elif order == FREEZE:
            _quietly(os.kill, -1, signal.SIGSTOP if number else signal.SIGCONT)
            self.report(FROZEN)
        elif order == KILL:
            _quietly(os.kill, -1, signal.SIGKILL)

    def reap(self) -> None:
        """Collect the dead; when the command is among them, end all others and report."""
        status = None
        while (dead := _wait(os.WNOHANG)) is not None:
            if dead[0] == self.child:
                status = dead[1]
            elif self.asked:
                self.asked.renames.reaped(*dead)
        if status is None:
            return
        # pid 1 can signal every process of its namespace, and no other (pid_namespaces(7)).
        _quietly(os.kill, -1, signal.SIGKILL)
        while _wait(0) is not None:
            pass
        self.child = 0
        self.tidy()
        if self.asked:
            self.report(ASKED, self.asked.text())
        self.report(ENDED, str(status))

    def become_command(self) -> NoReturn:
        """In the child: give up every privilege and execute the command."""
        try:
            execute(self.command, is_filtered=self.asked is not None)
        except HostError as err:
            self.report(FAILED, err.brief)
        except OSError as err:
            self.report(NO_EXEC, str(err.errno))
        finally:
            os._exit(127)


def listen_for(confinement: Confinement) -> Asked | None:
    """Lay the filter on this process and its children, to be told what it refuses and who renames.

    None where there is to be no filter, or somebody outside listens to this process already: the children
    then get a filter that is silent, or none.
    """
    if "seccomp" in confinement.without:
        return None
    leave_keyring(confinement)  # what the filter refuses
    try:
        return Asked(seccomp.listen(filter_program(confinement, heard=True)), confinement)
    except OSError as err:
        if err.errno != errno.EBUSY:
            raise
        return None


def _quietly(call: Callable[[int, int], object], target: int, number: int) -> None:
    try:
        call(target, number)
    except ProcessLookupError:
        pass


def _wait(options: int) -> tuple[int, int] | None:
    try:
        pid, status = os.waitpid(-1, options)
    except ChildProcessError:
        return None
    return (pid, status) if pid else None


def _enter(directory: str) -> None:
    """Change to a directory, or to the nearest above it: the user's may hold nothing that came along."""
    while True:
        try:
            return os.chdir(directory)
        except FileNotFoundError:
            directory = os.path.dirname(directory)


def execute(command: Command, *, is_filtered: bool = False) -> NoReturn:
    """Give up every privilege and replace this process by the command.

    Raises OSError where it can't be executed, HostError where something can't be given up.
    """
    _enter(command.cwd)
    for standard, fd in command.streams.items():
        os.dup2(fd, standard)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores these two
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        confine(command.confinement, is_filtered=is_filtered)
    except OSError as err:
        raise HostError(f"the command can't be confined: {err.strerror}") from err
    os.execvpe(command.argv[0], command.argv, command.environment)


class Birth:
    """How pid 1 comes to be. uid, gid: ours, as the parent knew them.

    opened: mounts that root made for a command that is nobody; None where pid 1 opens them itself.
    """

    __slots__ = ("gid", "layers", "opened", "uid")

    def __init__(self, layers: Sequence[Layer], uid: int, gid: int) -> None:
        self.layers = layers
        self.opened: mounts.Opened | None = None
        self.uid = uid
        self.gid = gid


def keep(birth: Birth, keeper: Keeper) -> NoReturn:
    """Be pid 1: called in the child of clone(2), never returns."""
    status = 0
    try:
        if "rlimits" not in keeper.command.confinement.without:
            spare_host()
        _take_ids(birth, keeper)
        # After the ids, which would clear it (prctl(2)).
        namespaces.die_with_parent()
        confinement = keeper.command.confinement
        if confinement.network:
            bring_up_loopback()
        if not confinement.userns and "namespaces" not in confinement.without:
            forbid_namespaces()  # while the host's /proc is there to be written to
        mounts.apply(birth.layers, birth.opened)
        os.chdir("/")
        keeper.forget_descriptors()
        keeper.asked = listen_for(confinement)
        keeper.overlays = overlay_places(birth.layers)
        keeper.tidy()
        keeper.report(READY)
        if os.read(keeper.orders, 2) == b"-\n":  # the supervisor holds our namespaces now
            # A dumpable pid 1 would lend its /proc/1/mem and /proc/1/exe to the command (CVE-2019-5736's
            # class).
            syscalls.prctl(abi.PR_SET_DUMPABLE, int("dumpable" in confinement.without))
            keeper.obey()
    except (OSError, OverlayrunError) as err:
        status = 1
        keeper.report(FAILED, str(err))
    finally:
        os._exit(status)


def _take_ids(birth: Birth, keeper: Keeper) -> None:
    if birth.opened is None:
        namespaces.map_identity(birth.uid, birth.gid)
    elif os.read(keeper.orders, 2) == b"-\n":  # the supervisor has written the maps
        namespaces.become_root_inside()
    else:
        raise OSError(errno.ESRCH, "the supervisor is gone")
