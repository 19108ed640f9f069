"""Who inside asked for what only an option allows: refused, and remembered for the user.

The keeper hears of such a system call before it is done, and answers for the kernel. The answer is always the
same: nothing that the asker could change meanwhile is looked at (seccomp_unotify(2), "NOTES").
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from overlayrun.kernel import abi, calls
from overlayrun.sandbox.seccomp import TRACING

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


class Asked:
    """Names of programs by the option that they need. listener: descriptor of `seccomp.listen`."""

    __slots__ = ("_names", "listener")

    def __init__(self, listener: int) -> None:
        self.listener = listener
        self._names: dict[str, list[str]] = {USERNS: [], PTRACE: []}

    def answer(self) -> None:
        """Refuse the one who waits, if he has not died."""
        data = bytearray(abi.SECCOMP_NOTIF_SIZE)
        try:
            fcntl.ioctl(self.listener, abi.SECCOMP_IOCTL_NOTIF_RECV, data)
            asker, pid, _, number = struct.unpack_from(abi.SECCOMP_NOTIF, data)
            self._remember(PTRACE if _is_tracing(number) else USERNS, pid)
            refusal = struct.pack(abi.SECCOMP_NOTIF_RESP, asker, 0, -errno.EPERM, 0)
            fcntl.ioctl(self.listener, abi.SECCOMP_IOCTL_NOTIF_SEND, refusal)
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


def _is_tracing(number: int) -> bool:
    numbers = calls.X86_64 if os.uname().machine == "x86_64" else calls.AARCH64
    return number in (numbers[name] for name in TRACING)


def asked_lines(text: str) -> Iterator[str]:
    """Sentences for the user: who asked, what for, and the option that lets it."""
    for part in text.split():
        option, _, names = part.partition("=")
        yield f"{names.replace(',', ', ')} {_WORDS[option]}; {option} lets it"
