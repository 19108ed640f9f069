"""User namespaces: the identity map, joining, and giving privileges up."""

from __future__ import annotations

import errno
import os
import signal

from overlayrun.kernel import abi, syscalls

# What a workspace can't do without; the others can be left out one by one.
REQUIRED = abi.CLONE_NEWUSER | abi.CLONE_NEWNS | abi.CLONE_NEWPID
SANDBOX_NAMESPACES = REQUIRED | abi.CLONE_NEWIPC | abi.CLONE_NEWUTS | abi.CLONE_NEWCGROUP
# The user namespace first: it gives the right to enter the others.
_JOINED = ("user", "mnt", "pid", "ipc", "uts", "cgroup", "net")
NOBODY = 65534
"""The host's user that the command of a run by root is: it owns nothing, and no other is meant by it."""


def map_identity(uid: int, gid: int) -> None:
    """Map `uid` and `gid` to themselves in the calling process's new user namespace.

    The identity, because git's index stores uid and gid: mapped to 0, `git status` rereads every file.
    Raises OSError (EPERM where AppArmor or a sysctl forbids it). Source: user_namespaces(7).
    """
    for name, line in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        _write(f"/proc/self/{name}", line)


def map_root_to_nobody(pid: int) -> None:
    """Let root of the user namespace of `pid` be nobody on the host; for root alone."""
    for name in ("uid_map", "gid_map"):
        _write(f"/proc/{pid}/{name}", f"0 {NOBODY} 1")


def become_root_inside() -> None:
    """Take the ids that this process's user namespace maps; no group of the host's is left."""
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def id_map_namespace() -> int:
    """Descriptor of a user namespace for id-mapped mounts: root's files on disk are nobody's in the mount.

    And nobody's are root's: overlayfs makes files of its own as the one who mounts it, and would without a
    word be read-only if root had no id there. For root alone. Source: mount_setattr(2), "ID-mapped mounts".
    """
    read, write = os.pipe()
    pid = syscalls.clone(abi.CLONE_NEWUSER)
    if pid == 0:
        try:
            os.close(write)
            os.read(read, 1)
        finally:
            os._exit(0)
    try:
        for name in ("uid_map", "gid_map"):
            _write(f"/proc/{pid}/{name}", f"0 {NOBODY} 1\n{NOBODY} 0 1\n")
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(read)
        os.close(write)
        os.waitpid(pid, 0)


def is_root_of_host() -> bool:
    """Whether this process is root, and not only of a user namespace that maps root to somebody else."""
    if os.geteuid() != 0:
        return False
    with open("/proc/self/uid_map", encoding="ascii") as file:
        rows = [[int(field) for field in line.split()] for line in file]
    return any(inside == outside == 0 for inside, outside, _ in rows)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def open_namespaces(pid: int) -> list[int]:
    """Descriptors of those namespaces of `pid` that are not ours, in the order in which `join` enters them.

    The user's comes first, the network's last.
    """
    return [
        os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
        for name in _JOINED
        if os.stat(f"/proc/{pid}/ns/{name}").st_ino != os.stat(f"/proc/self/ns/{name}").st_ino
    ]


def join(fds: list[int]) -> None:
    """Enter the namespaces of `open_namespaces`; the pid namespace holds for children only (setns(2))."""
    uid = os.geteuid()
    syscalls.prctl(abi.PR_SET_DUMPABLE, 0)
    for fd in fds:
        syscalls.setns(fd, 0)
    if os.geteuid() != uid:  # the host's root has no id there
        become_root_inside()
        syscalls.prctl(abi.PR_SET_DUMPABLE, 0)


def drop_capabilities(*, but: int | None = None) -> None:
    """Leave this process no capability, now or after any exec, but for one at most.

    Source: capabilities(7), "The securebits flags", "Ambient".
    """
    syscalls.prctl(abi.PR_SET_SECUREBITS, abi.SECBIT_NO_ROOT_LOCKED)
    for capability in range(64):
        if capability == but:
            continue
        try:
            syscalls.prctl(abi.PR_CAPBSET_DROP, capability)
        except OSError as err:
            if err.errno != errno.EINVAL:
                raise
            break  # one past the last capability this kernel knows
    syscalls.prctl(abi.PR_CAP_AMBIENT, abi.PR_CAP_AMBIENT_CLEAR_ALL)
    syscalls.capset(0 if but is None else 1 << but)
    if but is not None:
        syscalls.prctl(abi.PR_CAP_AMBIENT, abi.PR_CAP_AMBIENT_RAISE, but)


def die_with_parent(parent: int | None = None, number: int = signal.SIGKILL) -> None:
    """Get a signal when the parent ends. After new credentials, which clear it (prctl(2), PR_SET_PDEATHSIG).

    parent: its process id, 0 for one outside of our pid namespace: end at once where it has ended already.
    Without, the caller finds that out by himself.
    """
    syscalls.prctl(abi.PR_SET_PDEATHSIG, number)
    if parent is not None and os.getppid() != parent:
        os._exit(1)
