"""Put keys into the terminal that the user's shell would read, and change what the terminal is."""

from __future__ import annotations

import ctypes  # noqa: TID251  # commands with bits above the low 32, as a system call takes them
import errno
import os
import termios

from inside import LIBC, REPORT

LINE = f"touch {os.environ['PWN']}\n".encode()
TIOCSTI, TIOCLINUX, TIOCSCTTY, TIOCSETD, KDSKBSENT, TIOCCONS = 0x5412, 0x541C, 0x540E, 0x5423, 0x4B49, 0x541D


def asked(fd: int, number: int, data: bytes) -> str:
    ctypes.set_errno(0)
    LIBC.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_char_p]
    answer = LIBC.ioctl(fd, number, data)
    return "ok" if answer >= 0 else errno.errorcode[ctypes.get_errno()]


places = {name: number for number, name in enumerate(("stdin", "stdout", "stderr"))}
places["/dev/tty"] = os.open("/dev/tty", os.O_RDWR)
try:
    places["name"] = os.open(os.ttyname(0), os.O_RDWR)
except OSError as err:
    REPORT["name"] = errno.errorcode[err.errno or 0]
for place, fd in places.items():
    for high in (0, 1 << 32):
        for start in range(len(LINE)):
            REPORT[f"{place} TIOCSTI {high}"] = asked(fd, TIOCSTI | high, LINE[start : start + 1])
        REPORT[f"{place} TIOCLINUX {high}"] = asked(fd, TIOCLINUX | high, b"\3\0")
    REPORT[f"{place} TIOCCONS"] = asked(fd, TIOCCONS, b"")
    REPORT[f"{place} KDSKBSENT"] = asked(fd, KDSKBSENT, b"\0" * 16)
attributes = termios.tcgetattr(0)
attributes[3] = 0
termios.tcsetattr(0, termios.TCSANOW, attributes)
worked = [f"{name}={how}" for name, how in REPORT.items() if how == "ok"]
print(f"worked: {worked} end", flush=True)
