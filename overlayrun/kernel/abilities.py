"""The tries that ask the kernel: namespaces, mounts in them, filters. Each is an action for `attempt`."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from overlayrun.kernel import abi, namespaces, syscalls
from overlayrun.kernel.attempt import confirm
from overlayrun.kernel.cgroups import try_control_groups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Final, TypeAlias

    Ability: TypeAlias = tuple[int, Callable[[], str]]

_ATTRIBUTES: Final = abi.MS_NOSUID | abi.MS_NODEV
_IN_MOUNTS: Final = abi.CLONE_NEWUSER | abi.CLONE_NEWNS

# One more than a mount takes (OVL_MAX_STACK of fs/overlayfs/params.h).
_TOO_MANY_LAYERS: Final = 501


def _nothing() -> str:
    """Being there is all: `attempt` has made the namespaces and the map."""
    return "works"


def _tmpfs() -> str:
    syscalls.mount("tmpfs", "/tmp", "tmpfs", _ATTRIBUTES, "mode=755")
    os.chdir("/tmp")
    return "works"


def _read_only_disk() -> str:
    syscalls.mount_setattr("/", abi.MOUNT_ATTR_RDONLY | abi.MOUNT_ATTR_NOSUID, recursive=True)
    return confirm(os.statvfs("/").f_flag & os.ST_RDONLY, "the disk stayed writable")


def _mount_api() -> str:
    _tmpfs()
    context = syscalls.fsopen("tmpfs")
    syscalls.fsconfig(context, abi.FSCONFIG_CMD_CREATE)
    os.mkdir("place")
    syscalls.move_mount(syscalls.fsmount(context, abi.MOUNT_ATTR_NOSUID), "/tmp/place")
    os.close(os.open("null", os.O_CREAT | os.O_CLOEXEC))
    syscalls.move_mount(syscalls.open_tree("/dev/null", abi.OPEN_TREE_CLONE), "/tmp/null")
    return "works"


def _processes() -> str:
    syscalls.mount("proc", "/proc", "proc", _ATTRIBUTES | abi.MS_NOEXEC)
    return confirm(os.readlink("/proc/self") == "1", "/proc shows the host's processes")


def _terminals() -> str:
    _tmpfs()
    os.mkdir("pts")
    flags = abi.MS_NOSUID | abi.MS_NOEXEC
    syscalls.mount("devpts", "pts", "devpts", flags, "newinstance,ptmxmode=0666,mode=620")
    os.close(os.open("pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    return "works"


def _overlay() -> str:
    """Lower layers alone: this asks the kernel, not the state's file system."""
    _tmpfs()
    for directory in ("top", "bottom/below", "mountpoint"):
        os.makedirs(directory)
    syscalls.mount("overlay", "mountpoint", "overlay", _ATTRIBUTES, "lowerdir=top:bottom,userxattr")
    return confirm(os.listdir("mountpoint") == ["below"], "the layers are not joined")


def _layers_by_descriptor() -> str:
    """As many layers as one mount takes, named by descriptors (Linux 6.13)."""
    _tmpfs()
    context = syscalls.fsopen("overlay")
    count = 0
    try:
        while count < _TOO_MANY_LAYERS:
            os.mkdir(str(count))
            fd = os.open(str(count), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            syscalls.fsconfig(context, abi.FSCONFIG_SET_FD, "lowerdir+", aux=fd)
            os.close(fd)
            count += 1
    except OSError:
        if count < 2:
            raise
    syscalls.fsconfig(context, abi.FSCONFIG_SET_FLAG, "userxattr")
    syscalls.fsconfig(context, abi.FSCONFIG_CMD_CREATE)
    syscalls.fsmount(context, abi.MOUNT_ATTR_NOSUID)
    return f"{count} layers a mount"


def _no_new_privileges() -> str:
    syscalls.prctl(abi.PR_SET_NO_NEW_PRIVS, 1)
    return "works"


def _seccomp() -> str:
    """Refuse one system call by a filter, with an errno that it never has by itself."""
    rows = (
        (abi.BPF_LOAD, 0, 0, 0),
        (abi.BPF_IF_EQUAL, 0, 1, abi.NR_RENAMEAT2),
        (abi.BPF_RETURN, 0, 0, abi.SECCOMP_RET_ERRNO | errno.EXFULL),
        (abi.BPF_RETURN, 0, 0, abi.SECCOMP_RET_ALLOW),
    )
    syscalls.prctl(abi.PR_SET_NO_NEW_PRIVS, 1)
    syscalls.seccomp(b"".join(struct.pack(abi.SOCK_FILTER, *row) for row in rows))
    try:
        syscalls.renameat2("", "", 0)
    except OSError as err:
        return confirm(err.errno == errno.EXFULL, "the filter has no effect")
    return "works"


def _landlock() -> str:
    """Forbid this process to write to any file, and try to; gives the version of the interface."""
    version = syscalls.landlock_abi()
    rules = syscalls.landlock_create_ruleset(abi.LANDLOCK_ACCESS_FS_WRITE_FILE)
    syscalls.prctl(abi.PR_SET_NO_NEW_PRIVS, 1)
    syscalls.landlock_restrict_self(rules)
    try:
        os.close(os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC))
    except PermissionError:
        return (
            confirm(version > 1, "version 1 would forbid renames between directories")
            and f"version {version}"
        )
    raise OSError(errno.EIO, "its rules have no effect")


def _close_range() -> str:
    fd = fcntl.fcntl(os.open("/", os.O_RDONLY | os.O_CLOEXEC), fcntl.F_DUPFD, 10)
    syscalls.close_range(3)
    return confirm(not os.get_inheritable(fd), "descriptors stay open")


def _pidfd() -> str:
    os.close(os.pidfd_open(os.getpid()))
    return "works"


# Namespaces to make, and what to do in them. A user namespace alone gets no map, so that a refusal of the map
# (one of AppArmor's ways) is told from one of the namespace.
KERNEL: Final[Mapping[str, Ability]] = {
    "user": (abi.CLONE_NEWUSER, _nothing),
    "mnt": (_IN_MOUNTS, _nothing),
    "pid": (abi.CLONE_NEWUSER | abi.CLONE_NEWPID, _nothing),
    "ipc": (abi.CLONE_NEWUSER | abi.CLONE_NEWIPC, _nothing),
    "cgroup_ns": (abi.CLONE_NEWUSER | abi.CLONE_NEWCGROUP, _nothing),
    "uts": (abi.CLONE_NEWUSER | abi.CLONE_NEWUTS, _nothing),
    "tmpfs": (_IN_MOUNTS, _tmpfs),
    "mount_api": (_IN_MOUNTS, _mount_api),
    "mount_setattr": (_IN_MOUNTS, _read_only_disk),
    "devpts": (_IN_MOUNTS, _terminals),
    "proc": (namespaces.SANDBOX_NAMESPACES, _processes),
    "overlay": (_IN_MOUNTS, _overlay),
    "descriptors": (_IN_MOUNTS, _layers_by_descriptor),
    "no_new_privs": (0, _no_new_privileges),
    "seccomp": (0, _seccomp),
    "close_range": (0, _close_range),
    "pidfd": (0, _pidfd),
    "landlock": (0, _landlock),
    "cgroup": (0, try_control_groups),
}
