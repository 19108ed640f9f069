"""Who inside asked for what only an option allows: refused, and remembered for the user. Renames go on.

The keeper hears of such a system call before it is done, and answers for the kernel. The answer to what an
option allows is always the same: nothing that the asker could change meanwhile is looked at
(seccomp_unotify(2), "NOTES"). Renames are for `renames`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from overlayrun.kernel import abi, calls
from overlayrun.sandbox.confinement import Confinement
from overlayrun.sandbox.renames import Renames
from overlayrun.sandbox.seccomp import RENAMING, TRACING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

USERNS: Final = "--allow-userns"
PTRACE: Final = "--allow-ptrace"
_WORDS: Final = {
    USERNS: "asked for a sandbox of its own, which this one refuses",
    PTRACE: "asked to look into another process, which the sandbox refuses",
}
_LETTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.+")
_MOST: Final = 8  # names an option
_NOTICE: Final = struct.Struct(abi.SECCOMP_NOTIF)
_REPLY: Final = struct.Struct(abi.SECCOMP_NOTIF_RESP)
_NOTHING: Final = bytes(_NOTICE.size)  # the kernel wants to fill zeros


class Asked:
    """Names of programs by the option that they need. listener: descriptor of `seccomp.listen`.

    renames: who waits for a rename. confinement: what those who help them give up.
    """

    __slots__ = ("_names", "_renaming", "_tracing", "listener", "renames")

    def __init__(self, listener: int, confinement: Confinement) -> None:
        numbers = calls.X86_64 if os.uname().machine == "x86_64" else calls.AARCH64
        self.listener = listener
        self.renames = Renames(listener, confinement, self._reply)
        self._renaming = {numbers[name]: index for index, name in enumerate(RENAMING) if name in numbers}
        self._tracing = frozenset(numbers[name] for name in TRACING)
        self._names: dict[str, list[str]] = {USERNS: [], PTRACE: []}

    def answer(self) -> None:
        """Answer the one who waits, if he has not died; to one who renames perhaps later."""
        try:
            data = fcntl.ioctl(self.listener, abi.SECCOMP_IOCTL_NOTIF_RECV, _NOTHING)
        except FileNotFoundError:
            return
        asker, pid, _, number, _, _, *arguments = _NOTICE.unpack(data)
        if number in self._renaming:
            self.renames.take(asker, pid, self._renaming[number], arguments)
            return
        self._remember(PTRACE if number in self._tracing else USERNS, pid)
        self._reply(asker, errno.EPERM)

    def _reply(self, asker: int, number: int) -> None:
        """Refuse with an errno; 0: the kernel is to go on."""
        flags = 0 if number else abi.SECCOMP_USER_NOTIF_FLAG_CONTINUE
        try:
            fcntl.ioctl(self.listener, abi.SECCOMP_IOCTL_NOTIF_SEND, _REPLY.pack(asker, 0, -number, flags))
        except FileNotFoundError:
            pass

    def _remember(self, option: str, pid: int) -> None:
        known = self._names[option]
        try:
            with open(f"/proc/{pid}/comm", "rb") as file:
                name = "".join(
                    chr(byte) if 32 < byte < 127 and byte != 44 else "?" for byte in file.read(15).strip()
                )
        except OSError:  # dead, or no /proc of the sandbox's own
            name = "a program"
        if name not in known and len(known) < _MOST:
            known.append(name)

    def text(self) -> str:
        """For `asked_lines`: a line of plain letters."""
        return " ".join(f"{option}={','.join(names)}" for option, names in self._names.items() if names)


def asked_lines(text: str) -> Iterator[str]:
    """Sentences for the user: who asked, what for, and the option that lets it."""
    for part in text.split():
        option, _, names = part.partition("=")
        yield f"{names.replace(',', ', ')} {_WORDS[option]}; {option} lets it"
