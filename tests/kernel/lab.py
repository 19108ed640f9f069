"""Machines that lack something, made for real: a scenario is Python text that runs in a process of its own.

The text sees the names of this module. As any user: a new user namespace lends the rights that it takes.
"""

from __future__ import annotations

import ctypes  # noqa: TID251  a filter is loaded from outside the package
import json
import os
import struct
import subprocess
import sys
from errno import EACCES, EAGAIN, EINVAL, ENOSYS, EOPNOTSUPP, EPERM  # noqa: F401  names for scenarios
from pathlib import Path
from typing import Any, Final

from overlayrun.checks import KERNEL_CHECKS, judge
from overlayrun.doctor import examine, explain
from overlayrun.kernel import abi, syscalls
from overlayrun.kernel.probe import Capabilities
from overlayrun.store.location import find_repository

CLONE: Final = abi.NR_CLONE
MOUNT: Final = 40 if os.uname().machine == "aarch64" else 165  # asm/unistd_64.h, asm-generic/unistd.h
PRCTL: Final = 167 if os.uname().machine == "aarch64" else 157
KILL: Final = -1
_LOAD, _EQUAL, _BITS, _RETURN = 0x20, 0x15, 0x45, 0x06  # linux/bpf_common.h


class _Program(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def scene(text: str, *, cwd: Path | None = None, **environment: str) -> Any:
    """What the scenario answers."""
    code = f"from kernel.lab import *\n{text}"
    paths = f"{Path(__file__).parent.parent}:{os.environ.get('PYTHONPATH', '')}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": paths, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def answer(value: object) -> None:
    """Give the scenario's answer."""
    print(json.dumps(value))


def answer_findings() -> None:
    """Give state, what was found and the cure of each finding, for the repository around the directory."""
    found = examine(find_repository(os.getcwd()))
    answer({one.name: [one.state.value, one.found, one.cure] for one in found})


def answer_ability(name: str) -> None:
    """Give state, what was found and the cure of one ability of the kernel."""
    check = next(check for check in KERNEL_CHECKS if check.ability == name)
    one = judge(check, Capabilities())
    answer([one.state.value, one.found, one.cure])


def answer_reason(state: str | None = None) -> None:
    """Give why a sandbox can't be made, and the cure."""
    answer(explain(None, state))


def enter(uid: int | None = None, flags: int = 0) -> None:
    """Go to a new user and mount namespace, as the user `uid` there, with all rights until the next exec."""
    inside, outside = (os.geteuid() if uid is None else uid), os.geteuid()
    group = os.getegid()
    syscalls.unshare(abi.CLONE_NEWUSER | abi.CLONE_NEWNS | flags)
    for name, line in (
        ("setgroups", "deny"),
        ("uid_map", f"{inside} {outside} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        Path(f"/proc/self/{name}").write_text(line)
    syscalls.mount("none", "/", None, abi.MS_REC | abi.MS_PRIVATE)


def mount(fstype: str, target: str, data: str | None = None) -> None:
    """Mount a file system without a device."""
    Path(target).mkdir(exist_ok=True)
    syscalls.mount(fstype, target, fstype, 0, data)


def set_switch(path: str, value: int) -> None:
    """Write a switch below /proc/sys that this kernel has."""
    Path(f"/proc/sys/{path}").write_text(str(value))


def show_kernel_switch(name: str, value: int) -> None:
    """Let /proc/sys/kernel show a switch that this kernel has not, and no other."""
    mount("tmpfs", "/proc/sys/kernel")
    Path(f"/proc/sys/kernel/{name}").write_text(f"{value}\n")


def forbid(number: int, error: int, value: int = 0, *, exactly: bool = False, second: bool = False) -> None:
    """Refuse a system call by a filter from now on; error KILL ends the process.

    value: only where the first argument has these bits, or is exactly this, or the second argument is.
    """
    verdict = (_RETURN, 0, 0, 0x80000000 if error == KILL else 0x00050000 | error)
    test = _EQUAL if exactly or second else _BITS
    check = ((_LOAD, 0, 0, 24 if second else 16), (test, 0, 1, value)) if value else ()
    skip = len(check) + 1
    rows = ((_LOAD, 0, 0, 0), (_EQUAL, 0, skip, number), *check, verdict, (_RETURN, 0, 0, 0x7FFF0000))
    code = b"".join(struct.pack("HBBI", *row) for row in rows)
    program = _Program(len(rows), code)
    syscalls.prctl(abi.PR_SET_NO_NEW_PRIVS, 1)
    syscalls.prctl(22, 2, ctypes.addressof(program))
