"""Numbers and structures of the kernel's interface; each with its origin."""

from __future__ import annotations

import ctypes  # noqa: TID251  kernel/ is where system calls live
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

# linux/sched.h
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000

# linux/mount.h: flags for mount(2)
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x40000
MNT_DETACH: Final = 0x2

# linux/mount.h, the mount API of 5.2; mount_setattr since 5.12
OPEN_TREE_CLONE: Final = 0x1
OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC
AT_RECURSIVE: Final = 0x8000
AT_EMPTY_PATH: Final = 0x1000
AT_FDCWD: Final = -100
MOVE_MOUNT_F_EMPTY_PATH: Final = 0x4
FSOPEN_CLOEXEC: Final = 0x1
FSMOUNT_CLOEXEC: Final = 0x1
FSCONFIG_SET_FLAG: Final = 0
FSCONFIG_SET_FD: Final = 5
FSCONFIG_CMD_CREATE: Final = 6
MOUNT_ATTR_RDONLY: Final = 0x1
MOUNT_ATTR_NOSUID: Final = 0x2
MOUNT_ATTR_NODEV: Final = 0x4

# linux/prctl.h
PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_CAPBSET_DROP: Final = 24
PR_SET_SECUREBITS: Final = 28
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

# linux/securebits.h: NOROOT, NO_SETUID_FIXUP, KEEP_CAPS off, each with its lock
SECBIT_NO_ROOT_LOCKED: Final = 0x1 | 0x2 | 0x4 | 0x8 | 0x20

# linux/capability.h
LINUX_CAPABILITY_VERSION_3: Final = 0x20080522

# linux/fs.h: ioctl FICLONE, RENAME_EXCHANGE of renameat2(2)
FICLONE: Final = 0x40049409
RENAME_EXCHANGE: Final = 0x2

# linux/signalfd.h, linux/fcntl.h
SFD_CLOEXEC: Final = os.O_CLOEXEC
SFD_NONBLOCK: Final = os.O_NONBLOCK
SIGNALFD_SIGINFO_SIZE: Final = 128
SI_USER: Final = 0

# linux/close_range.h
CLOSE_RANGE_CLOEXEC: Final = 0x4

# asm/unistd_64.h and asm-generic/unistd.h; from 424 on the numbers are the same everywhere
_MACHINE: Final = os.uname().machine
NR_CLONE: Final = 220 if _MACHINE == "aarch64" else 56
NR_SECCOMP: Final = 277 if _MACHINE == "aarch64" else 317
NR_RENAMEAT2: Final = 276 if _MACHINE == "aarch64" else 316
NR_OPEN_TREE: Final = 428
NR_MOVE_MOUNT: Final = 429
NR_FSOPEN: Final = 430
NR_FSCONFIG: Final = 431
NR_FSMOUNT: Final = 432
NR_CLOSE_RANGE: Final = 436
NR_MOUNT_SETATTR: Final = 442
NR_LANDLOCK_CREATE_RULESET: Final = 444


class MountAttr(ctypes.Structure):
    """struct mount_attr of linux/mount.h."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class CapHeader(ctypes.Structure):
    """struct __user_cap_header_struct of linux/capability.h."""

    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class CapData(ctypes.Structure):
    """struct __user_cap_data_struct of linux/capability.h; version 3 takes two."""

    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )
