"""The user's terminal: remember its state, and take it back afterwards. On the launch path."""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

# Leave the alternate screen, show the cursor, end mouse reports and bracketed paste: what a killed
# full-screen program leaves on (xterm control sequences, DECRST).
_PLAIN_SCREEN: Final = b"\x1b[?1049l\x1b[?25h\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[0m"


def is_in_foreground() -> bool:
    """Whether our process group is the one that the terminal's keys reach; False without a terminal."""
    try:
        fd = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:  # hung up
        return False
    finally:
        os.close(fd)


class Terminal:
    """State of the terminal on standard input, if it is one and we are in its foreground."""

    __slots__ = ("_attributes",)

    def __init__(self) -> None:
        self._attributes: list[Any] | None = None
        if os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp():
            import termios  # 1 ms that only a terminal pays

            self._attributes = termios.tcgetattr(0)

    def take_back(self, *, abnormal: bool) -> None:
        """Be in the foreground again, with the modes of before; after an abnormal end with a plain screen."""
        if self._attributes is None:
            return
        import termios

        # A shell inside had the terminal for a process group of its own; asking for it from the background
        # would stop us.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
        try:
            os.tcsetpgrp(0, os.getpgrp())
            termios.tcsetattr(0, termios.TCSADRAIN, self._attributes)
            if abnormal:
                os.write(0, _PLAIN_SCREEN)
        except (OSError, termios.error):  # the terminal is gone
            pass
