"""Helpers of hostile programs: try a thing, remember how it ended, print everything as JSON at the end."""

from __future__ import annotations

import ctypes  # noqa: TID251  # the attacker calls the kernel himself
import errno
import json
import os
import platform
import sys
from collections.abc import Callable
from typing import Any

GIVEN: dict[str, Any] = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
REPORT: dict[str, Any] = {}
LIBC = ctypes.CDLL(None, use_errno=True)
_X86 = platform.machine() == "x86_64"
# asm/unistd_64.h and asm-generic/unistd.h; from 424 on both are the same.
NUMBERS = {
    name: (x86 if _X86 else arm)
    for name, (x86, arm) in {
        "mount": (165, 40),
        "umount2": (166, 39),
        "pivot_root": (155, 41),
        "chroot": (161, 51),
        "unshare": (272, 97),
        "setns": (308, 268),
        "clone": (56, 220),
        "clone3": (435, 435),
        "add_key": (248, 217),
        "request_key": (249, 218),
        "keyctl": (250, 219),
        "ptrace": (101, 117),
        "bpf": (321, 280),
        "perf_event_open": (298, 241),
        "userfaultfd": (323, 282),
        "kexec_load": (246, 104),
        "init_module": (175, 105),
        "finit_module": (313, 273),
        "delete_module": (176, 106),
        "open_by_handle_at": (304, 265),
        "name_to_handle_at": (303, 264),
        "process_vm_readv": (310, 270),
        "process_vm_writev": (311, 271),
        "pidfd_open": (434, 434),
        "pidfd_getfd": (438, 438),
        "kcmp": (312, 272),
        "quotactl": (179, 60),
        "acct": (163, 89),
        "swapon": (167, 224),
        "swapoff": (168, 225),
        "syslog": (103, 116),
        "reboot": (169, 142),
        "settimeofday": (164, 170),
        "clock_settime": (227, 112),
        "sethostname": (170, 161),
        "fanotify_init": (300, 262),
        "personality": (135, 92),
        "io_uring_setup": (425, 425),
        "open_tree": (428, 428),
        "move_mount": (429, 429),
        "fsopen": (430, 430),
        "fsconfig": (431, 431),
        "fsmount": (432, 432),
        "fspick": (433, 433),
        "mount_setattr": (442, 442),
        "landlock_create_ruleset": (444, 444),
        "memfd_secret": (447, 447),
    }.items()
}


def call(name: str, *args: int | bytes | None) -> str:
    """Make a system call; "ok", or the name of the error."""
    return ended(raw(name, *args))


def raw(name: str, *args: int | bytes | None) -> int:
    """Make a system call; its answer, or the negative error number."""
    ctypes.set_errno(0)
    words = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    words += [ctypes.c_long(0)] * (6 - len(words))
    answer = int(LIBC.syscall(ctypes.c_long(NUMBERS[name]), *words))
    return answer if answer >= 0 else -ctypes.get_errno()


def ended(answer: int) -> str:
    return "ok" if answer >= 0 else errno.errorcode.get(-answer, str(answer))


def probe(name: str) -> Callable[[Callable[[], object]], None]:
    """Run the function at once and remember what it gave, or the error that it ended with."""

    def run(function: Callable[[], object]) -> None:
        try:
            REPORT[name] = function()
        except OSError as err:
            REPORT[name] = errno.errorcode.get(err.errno or 0, str(err))
        except Exception as err:  # noqa: BLE001  # a probe that is wrong must not hide the others
            REPORT[name] = f"{type(err).__name__}: {err}"

    return run


def in_child(function: Callable[[], object]) -> str:
    """Run in a process of its own: what it gave, or "signal N"."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = str(function())
        except OSError as err:
            answer = errno.errorcode.get(err.errno or 0, str(err))
        except Exception as err:  # noqa: BLE001  # the child must not go on as the parent
            answer = f"{type(err).__name__}: {err}"
        os.write(write, answer.encode())
        os._exit(0)
    os.close(write)
    data = os.read(read, 65536)
    os.close(read)
    _, status = os.waitpid(pid, 0)
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else data.decode()


def read_some(path: str) -> str:
    """Up to 4096 bytes of a file."""
    with open(path, "rb") as file:
        return file.read(4096).decode(errors="replace")


def finish() -> None:
    """Print the report."""
    sys.stdout.write(json.dumps(REPORT))
    sys.stdout.flush()
