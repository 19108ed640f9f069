"""Who looks after a command that has joined a living sandbox: answers its calls, and outlives it.

The keeper can't: its filter lies on its own children alone, and of a joined command it knows nothing. This
process stays until all that the command started is dead, because a call that nobody can answer fails with
ENOSYS (seccomp_unotify(2)). It is not dumpable, and no signal but SIGKILL and SIGSTOP reaches it.
"""

from __future__ import annotations

import os
import select
import signal

from overlayrun.keeper import listen_for
from overlayrun.kernel import abi, namespaces, syscalls
from overlayrun.kernel.waits import exit_code
from overlayrun.sandbox.asking import Asked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final, NoReturn

    from overlayrun.sandbox.confinement import Confinement

_KILLED: Final = 128 + signal.SIGKILL  # the command, by the death of the one who looks after it


def attend(confinement: Confinement, become: Callable[[Asked | None], NoReturn]) -> int:
    """Run a command in the pid namespace that the caller's children belong to; its exit status, 128+n for n.

    become: executes it; told who hears of its calls, by a filter that lies on it then. The command dies with
    the caller; what it left in the background goes on, and the one who looks after it too.
    """
    lives, held = os.pipe()
    told, tells = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(held)
        os.close(told)
        try:
            # Its parent is gone when it dies, and the keeper collects it: nobody outside would.
            if syscalls.clone(0) == 0:
                _Companion(lives, tells).serve(confinement, become)
        finally:
            os._exit(0)
    os.close(lives)
    os.close(tells)
    for number in (signal.SIGINT, signal.SIGQUIT):  # they are the command's: it shares our terminal
        signal.signal(number, signal.SIG_IGN)
    os.waitpid(pid, 0)
    status = os.read(told, 16)
    return exit_code(int(status)) if status else _KILLED


class _Companion:
    """The process in between. lives: a pipe that ends with the one outside; tells: where to he hears."""

    __slots__ = ("_asked", "_child", "_is_needed", "_lives", "_tells")

    def __init__(self, lives: int, tells: int) -> None:
        self._lives = lives
        self._tells = tells
        self._child = 0
        self._asked: Asked | None = None
        self._is_needed = True

    def serve(self, confinement: Confinement, become: Callable[[Asked | None], NoReturn]) -> NoReturn:
        """Never returns."""
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            syscalls.prctl(abi.PR_SET_CHILD_SUBREAPER, 1)
            self._asked = listen_for(confinement)
            above = os.getpid()
            self._child = syscalls.clone(0)
            if self._child == 0:
                namespaces.die_with_parent(above)
                become(self._asked)
            self._let_go()
            self._wait()
        finally:
            os._exit(126)

    def _let_go(self) -> None:
        """Hold no end of the user's pipes."""
        fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        for standard in range(3):
            os.dup2(fd, standard)
        os.close(fd)

    def _wait(self) -> None:
        """Until no process is left."""
        signals = syscalls.signalfd([signal.SIGCHLD])
        waiting = select.poll()
        for fd in (signals, self._lives, *([self._asked.listener] if self._asked else [])):
            waiting.register(fd, select.POLLIN)
        while self._is_needed:
            for fd, _ in waiting.poll():
                if fd == signals:
                    os.read(signals, 64 * abi.SIGNALFD_SIGINFO_SIZE)
                    self._reap()
                elif fd == self._lives:
                    waiting.unregister(fd)
                    self._end()
                elif self._asked:
                    self._asked.answer()

    def _end(self) -> None:
        """The one outside is dead."""
        if self._child:
            os.kill(self._child, signal.SIGKILL)

    def _reap(self) -> None:
        """Collect the dead; nobody is needed when none is left alive."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self._is_needed = False
                return
            if not pid:
                return
            if pid == self._child:
                self._child = 0
                self._tell(status)
            elif self._asked:
                self._asked.renames.reaped(pid, status)

    def _tell(self, status: int) -> None:
        try:
            os.write(self._tells, b"%d" % status)
        except BrokenPipeError:
            pass
        os.close(self._tells)
