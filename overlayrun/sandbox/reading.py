"""Confine a process of ours that only reads: one directory, no network, the system calls of a short list.

What it reads was written by somebody else; whatever that did to it, it could answer wrongly and no more.
"""

from __future__ import annotations

import errno
import os
import resource
import struct
from collections.abc import Sequence
from typing import Final

from overlayrun.kernel import abi, namespaces, syscalls
from overlayrun.sandbox import landlock

_NAMESPACES: Final = abi.CLONE_NEWUSER | abi.CLONE_NEWIPC
_MEMORY: Final = 512 << 20  # bytes beyond what the process has already
_DESCRIPTORS: Final = 1024
_LAST: Final = 0x7FFFFFFF

# What Python needs to read, list, compute and end: x86_64 (arch/x86/entry/syscalls/syscall_64.tbl), aarch64
# (include/uapi/asm-generic/unistd.h). The most frequent first, though the kernel keeps a list of its own of
# those that are always allowed.
_CALLS: Final = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "fstat": (5, 80),
    "newfstatat": (262, 79),
    "fgetxattr": (193, 10),
    "getdents64": (217, 61),
    "readlinkat": (267, 78),
    "lseek": (8, 62),
    "statx": (332, 291),
    "brk": (12, 214),
    "mmap": (9, 222),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "mprotect": (10, 226),
    "madvise": (28, 233),
    "futex": (202, 98),
    "clock_gettime": (228, 113),
    "getrandom": (318, 278),
    "rt_sigreturn": (15, 139),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
_OPENAT: Final = (257, 56)
# O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_APPEND, __O_TMPFILE; asm-generic/fcntl.h, the same on both machines.
_WRITES: Final = 0o1 | 0o2 | 0o100 | 0o1000 | 0o2000 | 0o20000000
_FCNTL: Final = (72, 25)
# Listing a directory copies its descriptor and looks at its flags. F_SETOWN and F_SETSIG would send signals.
_REQUESTS: Final = (1, 2, 3, 1030)  # F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC of linux/fcntl.h
_ARCHITECTURE: Final = 4  # offsets in struct seccomp_data of linux/seccomp.h
_ARGUMENTS: Final = 16

Row = tuple[int, int, int, int]


def confine_to(directory: str, keep: Sequence[int]) -> int:
    """Confine this process, which is single-threaded and ends with its parent, and give `directory` open.

    keep: descriptors that stay open, all others are closed. Its root is the directory, files there that are
    closed to their own owner are open to it. Raises OSError where a layer that this machine has refuses.
    """
    parent, ids = os.getppid(), (os.geteuid(), os.getegid())
    _close_all_but(keep)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    root = -1
    if ids[0] == 0 and os.lstat(directory).st_uid == namespaces.NOBODY:
        root = os.open(directory, flags)  # nobody would not get there
        ids = _become_nobody()  # and root's rights about his files end with the namespace
    # A network of its own costs 0.6 ms, and the filter lets no socket be made.
    syscalls.unshare(_NAMESPACES | (0 if _FILTER else abi.CLONE_NEWNET))
    namespaces.map_identity(*ids)
    if root < 0:
        root = os.open(directory, flags)
    _limit()
    os.chdir(root)
    os.chroot(".")
    syscalls.capset(1 << abi.CAP_DAC_READ_SEARCH)
    syscalls.prctl(abi.PR_SET_NO_NEW_PRIVS, 1)
    syscalls.prctl(abi.PR_SET_DUMPABLE, 0)
    namespaces.die_with_parent()
    if os.getppid() != parent:
        raise ProcessLookupError(errno.ESRCH, "the parent has ended")
    landlock.read_only(root)
    if _FILTER:
        syscalls.seccomp(_FILTER)
    return root


def _become_nobody() -> tuple[int, int]:
    nobody = namespaces.NOBODY
    os.setgroups([])
    os.setresgid(nobody, nobody, nobody)
    os.setresuid(nobody, nobody, nobody)
    syscalls.prctl(abi.PR_SET_DUMPABLE, 1)  # or /proc/self/uid_map would be root's
    return nobody, nobody


def assemble(machine: str) -> bytes:
    """The filter as rows of struct sock_filter: what is not listed gets EPERM; nothing for other machines."""
    # The other barriers hold there all the same, and a filter with a wrong number would be none.
    if machine not in ("x86_64", "aarch64"):
        return b""
    column = int(machine == "aarch64")
    architecture = (abi.AUDIT_ARCH_X86_64, abi.AUDIT_ARCH_AARCH64)[column]
    allow: Row = (abi.BPF_RETURN, 0, 0, abi.SECCOMP_RET_ALLOW)
    refuse: Row = (abi.BPF_RETURN, 0, 0, abi.SECCOMP_RET_ERRNO | errno.EPERM)
    rows: list[Row] = [
        (abi.BPF_LOAD, 0, 0, _ARCHITECTURE),
        (abi.BPF_IF_EQUAL, 1, 0, architecture),
        (abi.BPF_RETURN, 0, 0, abi.SECCOMP_RET_KILL_PROCESS),
        (abi.BPF_LOAD, 0, 0, 0),
    ]
    for numbers in _CALLS.values():
        rows += [(abi.BPF_IF_EQUAL, 0, 1, numbers[column]), allow]
    rows += [
        (abi.BPF_IF_EQUAL, 0, 4, _OPENAT[column]),
        (abi.BPF_LOAD, 0, 0, _ARGUMENTS + 8 * 2),
        (abi.BPF_IF_BITS, 0, 1, _WRITES),
        refuse,
        allow,
        (abi.BPF_IF_EQUAL, 0, 1 + 2 * len(_REQUESTS), _FCNTL[column]),
        (abi.BPF_LOAD, 0, 0, _ARGUMENTS + 8),
    ]
    for request in _REQUESTS:
        rows += [(abi.BPF_IF_EQUAL, 0, 1, request), allow]
    return b"".join(struct.pack(abi.SOCK_FILTER, *row) for row in [*rows, refuse])


_FILTER: Final = assemble(os.uname().machine)  # once, and not in each child


def _close_all_but(keep: Sequence[int]) -> None:
    start = 0
    for fd in sorted(keep):
        os.closerange(start, fd)
        start = fd + 1
    os.closerange(start, _LAST)


def _limit() -> None:
    """No file grows, no process starts, memory and descriptors have an end."""
    with open("/proc/self/statm", "rb") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    for kind, wanted in (
        (resource.RLIMIT_AS, now + _MEMORY),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, _DESCRIPTORS),
    ):
        hard = resource.getrlimit(kind)[1]
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(kind, (value, value))
