"""Try something in a forked child, and tell what came of it.

Lean, and free of every floor but this one: it is loaded when a sandbox could not be made.
"""

from __future__ import annotations

import errno
import os
import select
import signal

from overlayrun.kernel import abi, namespaces, syscalls
from overlayrun.kernel.waits import exit_code

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final, NoReturn

_PATIENCE: Final = 10_000  # milliseconds; a hung network file system must not hang the doctor


class Try:
    """What came of a try. errno: 0 where it works. text: what was found, or the words of the refusal."""

    __slots__ = ("errno", "text")

    def __init__(self, number: int, text: str) -> None:
        self.errno = number
        self.text = text

    @property
    def works(self) -> bool:
        """Whether the ability is there."""
        return not self.errno


def attempt(action: Callable[[], str], flags: int = 0) -> Try:
    """Do `action` in a child with new namespaces `flags`; its mounts, limits and filters go with the child.

    action: gives what it found, raises OSError where it is refused. In a user namespace ids are mapped to
    themselves unless it is the only one.
    """
    read, write = os.pipe()
    try:
        pid = os.fork()
    except OSError as err:  # EAGAIN: no more processes for this user
        os.close(read)
        os.close(write)
        return Try(err.errno or errno.EAGAIN, words_of(err))
    if pid == 0:
        _be_child(write, action, flags)
    os.close(write)
    waiting = select.poll()
    waiting.register(read, select.POLLIN)
    hung = not waiting.poll(_PATIENCE)
    answer = b"" if hung else os.read(read, 4096)
    os.close(read)
    if hung:
        # Not waited for: a process that waits for a dead server can't even be killed.
        os.kill(pid, signal.SIGKILL)
        return Try(errno.ETIMEDOUT, "no answer in 10 s")
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if not answer:
        number = -status if status < 0 else status - 128
        return Try(errno.EPERM, f"killed by {_signal_name(number)}" if number > 0 else "the try died")
    number_text, _, text = answer.decode("utf-8", "replace").partition(" ")
    return Try(int(number_text), text)


def _signal_name(number: int) -> str:
    return "a seccomp filter (SIGSYS)" if number == signal.SIGSYS else f"signal {number}"


def _be_child(write: int, action: Callable[[], str], flags: int) -> NoReturn:
    status = 1
    try:
        namespaces.die_with_parent()
        answer = _answer_of(action, flags)
        if isinstance(answer, int):
            status = answer
        else:
            os.write(write, answer[:4000].encode("utf-8", "surrogateescape"))
            status = 0
    finally:
        os._exit(status)


def _answer_of(action: Callable[[], str], flags: int) -> str | int:
    """The answer, or in the process between the exit status of the one that answers."""
    owner = os.geteuid(), os.getegid()
    try:
        if flags:
            # clone(2), as a run does it: a filter may treat unshare(2) otherwise. A fork leaves one thread.
            pid = syscalls.clone(flags)
            if pid:
                return exit_code(os.waitpid(pid, 0)[1])
            namespaces.die_with_parent()
        if flags & ~abi.CLONE_NEWUSER:
            namespaces.map_identity(*owner)
        if flags & abi.CLONE_NEWNS:
            syscalls.mount("none", "/", None, abi.MS_REC | abi.MS_PRIVATE)
        return f"0 {action()}"
    except OSError as err:
        return f"{err.errno or errno.EIO} {words_of(err)}"


def words_of(err: OSError) -> str:
    """The kernel's words, and the path that they are about."""
    return f"{err.strerror or err}" + (f": {err.filename}" if err.filename else "")


def confirm(ok: object, otherwise: str) -> str:
    """The answer of a try that worked; raises OSError with the words `otherwise` where it did not."""
    if not ok:
        raise OSError(errno.EIO, otherwise)
    return "works"
