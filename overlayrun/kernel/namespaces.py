"""User namespaces: the identity map, joining, and giving privileges up."""

from __future__ import annotations

import os
import signal

from overlayrun.kernel import abi, syscalls

SANDBOX_NAMESPACES = (
    abi.CLONE_NEWUSER | abi.CLONE_NEWNS | abi.CLONE_NEWPID | abi.CLONE_NEWIPC | abi.CLONE_NEWUTS
)
_JOINED = (
    ("user", abi.CLONE_NEWUSER),
    ("mnt", abi.CLONE_NEWNS),
    ("pid", abi.CLONE_NEWPID),
    ("ipc", abi.CLONE_NEWIPC),
    ("uts", abi.CLONE_NEWUTS),
)


def map_identity(uid: int, gid: int) -> None:
    """Map `uid` and `gid` to themselves in the calling process's new user namespace.

    The identity, because git's index stores uid and gid: mapped to 0, `git status` rereads every file.
    Raises OSError (EPERM where AppArmor or a sysctl forbids it). Source: user_namespaces(7).
    """
    for name, line in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        fd = os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, line.encode())
        finally:
            os.close(fd)


def open_namespaces(pid: int) -> list[int]:
    """Descriptors of the namespaces of `pid`, in the order in which `join` enters them."""
    return [os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name, _ in _JOINED]


def join(fds: list[int]) -> None:
    """Enter the namespaces of `open_namespaces`; the pid namespace holds for children only (setns(2))."""
    syscalls.prctl(abi.PR_SET_DUMPABLE, 0)
    for fd, (_, flag) in zip(fds, _JOINED, strict=True):
        syscalls.setns(fd, flag)


def give_up_privileges() -> None:
    """Leave the process that runs the command no capability, now or after any exec, and no set-uid gain.

    Source: capabilities(7), "The securebits flags"; prctl(2), PR_SET_NO_NEW_PRIVS.
    """
    syscalls.prctl(abi.PR_SET_SECUREBITS, abi.SECBIT_NO_ROOT_LOCKED)
    for capability in range(64):
        try:
            syscalls.prctl(abi.PR_CAPBSET_DROP, capability)
        except OSError:  # EINVAL: one past the last capability this kernel knows
            break
    syscalls.prctl(abi.PR_CAP_AMBIENT, abi.PR_CAP_AMBIENT_CLEAR_ALL)
    syscalls.capset_none()
    syscalls.prctl(abi.PR_SET_NO_NEW_PRIVS, 1)


def die_with_parent() -> None:
    """Be killed when the parent ends; the caller checks afterwards that it has not ended already."""
    syscalls.prctl(abi.PR_SET_PDEATHSIG, signal.SIGKILL)
