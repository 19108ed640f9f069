"""Numbers and structures of the kernel's interface; each with its origin."""

from __future__ import annotations

import ctypes  # noqa: TID251  kernel/ is where system calls live
import os

from overlayrun.kernel import calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

# linux/sched.h
CLONE_NEWTIME: Final = 0x00000080
CLONE_PARENT: Final = 0x00008000
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

# linux/mount.h: flags for mount(2)
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x40000
UMOUNT_NOFOLLOW: Final = 0x8
MNT_DETACH: Final = 0x2

# linux/mount.h, the mount API of 5.2; mount_setattr since 5.12
OPEN_TREE_CLONE: Final = 0x1
OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC
AT_RECURSIVE: Final = 0x8000
AT_NO_AUTOMOUNT: Final = 0x800
AT_EMPTY_PATH: Final = 0x1000
AT_FDCWD: Final = -100
MOVE_MOUNT_F_EMPTY_PATH: Final = 0x4
FSOPEN_CLOEXEC: Final = 0x1
FSMOUNT_CLOEXEC: Final = 0x1
FSCONFIG_SET_FLAG: Final = 0
FSCONFIG_SET_STRING: Final = 1
FSCONFIG_SET_FD: Final = 5
FSCONFIG_CMD_CREATE: Final = 6
MOUNT_ATTR_RDONLY: Final = 0x1
MOUNT_ATTR_NOSUID: Final = 0x2
MOUNT_ATTR_NODEV: Final = 0x4
MOUNT_ATTR_IDMAP: Final = 0x00100000

# linux/prctl.h
PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_CAPBSET_DROP: Final = 24
PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_SECUREBITS: Final = 28
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_RAISE: Final = 2
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

# linux/securebits.h: NOROOT, NO_SETUID_FIXUP, KEEP_CAPS off, each with its lock
SECBIT_NO_ROOT_LOCKED: Final = 0x1 | 0x2 | 0x4 | 0x8 | 0x20

# linux/keyctl.h
KEYCTL_JOIN_SESSION_KEYRING: Final = 1

# linux/capability.h
LINUX_CAPABILITY_VERSION_3: Final = 0x20080522
CAP_SETFCAP: Final = 31
CAP_DAC_READ_SEARCH: Final = 2

# linux/stat.h, linux/fcntl.h: statx(2)
AT_SYMLINK_NOFOLLOW: Final = 0x100
STATX_BTIME: Final = 0x800
STATX_MNT_ID: Final = 0x1000  # 5.8
STATX_SIZE: Final = 256  # of struct statx
# Of struct statx: what is known and links; by offset birth (s, ns) and number of the mount
STATX_HEAD: Final = "I12xI"
STATX_BIRTH: Final = (80, "qI")
STATX_MOUNT: Final = (144, "Q")

# linux/fs.h: ioctl FICLONE, flags of renameat2(2)
FICLONE: Final = 0x40049409
RENAME_NOREPLACE: Final = 0x1
RENAME_EXCHANGE: Final = 0x2
RENAME_WHITEOUT: Final = 0x4

# asm-generic/resource.h: limits of a process
RLIMIT_FSIZE: Final = 1
RLIMIT_DATA: Final = 2
RLIMIT_CORE: Final = 4
RLIMIT_NPROC: Final = 6
RLIMIT_NOFILE: Final = 7
RLIMIT_SIGPENDING: Final = 11
RLIMIT_NICE: Final = 13
RLIMIT_RTPRIO: Final = 14

# linux/signalfd.h, linux/fcntl.h
SFD_CLOEXEC: Final = os.O_CLOEXEC
SFD_NONBLOCK: Final = os.O_NONBLOCK
SIGNALFD_SIGINFO_SIZE: Final = 128
SI_USER: Final = 0

# bits/socket.h, bits/socket_type.h, asm-generic/socket.h; netdevice(7): linux/sockios.h, linux/if.h
AF_UNSPEC: Final = 0
AF_UNIX: Final = 1
AF_INET: Final = 2
AF_INET6: Final = 10
AF_NETLINK: Final = 16
NETLINK_ROUTE: Final = 0  # linux/netlink.h
SOCK_STREAM: Final = 1
SOCK_DGRAM: Final = 2
SOCK_CLOEXEC: Final = os.O_CLOEXEC
SOL_SOCKET: Final = 1
SO_REUSEADDR: Final = 2
SIOCGIFFLAGS: Final = 0x8913
SIOCSIFFLAGS: Final = 0x8914
IFF_UP: Final = 0x1

# linux/close_range.h
CLOSE_RANGE_CLOEXEC: Final = 0x4

# Numbers of the calls that the C library has no function for
_CALLS: Final = calls.AARCH64 if os.uname().machine == "aarch64" else calls.X86_64
NR_CLONE: Final = _CALLS["clone"]
NR_SECCOMP: Final = _CALLS["seccomp"]
NR_KEYCTL: Final = _CALLS["keyctl"]
NR_RENAMEAT2: Final = _CALLS["renameat2"]
NR_STATX: Final = _CALLS["statx"]
NR_OPEN_TREE: Final = _CALLS["open_tree"]
NR_MOVE_MOUNT: Final = _CALLS["move_mount"]
NR_FSOPEN: Final = _CALLS["fsopen"]
NR_FSCONFIG: Final = _CALLS["fsconfig"]
NR_FSMOUNT: Final = _CALLS["fsmount"]
NR_CLOSE_RANGE: Final = _CALLS["close_range"]
NR_MOUNT_SETATTR: Final = _CALLS["mount_setattr"]
NR_LANDLOCK_CREATE_RULESET: Final = _CALLS["landlock_create_ruleset"]
NR_LANDLOCK_ADD_RULE: Final = _CALLS["landlock_add_rule"]
NR_LANDLOCK_RESTRICT_SELF: Final = _CALLS["landlock_restrict_self"]

# asm-generic/ioctls.h, linux/kd.h: requests of ioctl(2)
TIOCSTI: Final = 0x5412
TIOCLINUX: Final = 0x541C
TIOCSETD: Final = 0x5423
KDSKBENT: Final = 0x4B47
KDSKBSENT: Final = 0x4B49
KDSKBDIACR: Final = 0x4B4B
KDSKBDIACRUC: Final = 0x4BFB

# linux/personality.h
PER_LINUX32: Final = 0x8
ADDR_NO_RANDOMIZE: Final = 0x0040000

# linux/bpf_common.h, linux/filter.h: classic BPF, the code of one row
BPF_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
BPF_AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
BPF_IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
BPF_IF_REACHES: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
BPF_IF_BITS: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
BPF_RETURN: Final = 0x06  # BPF_RET | BPF_K
SOCK_FILTER: Final = "HBBI"  # struct sock_filter: code, skip if true, skip if false, operand

# linux/seccomp.h
SECCOMP_SET_MODE_FILTER: Final = 1
SECCOMP_FILTER_FLAG_SPEC_ALLOW: Final = 0x4
SECCOMP_FILTER_FLAG_NEW_LISTENER: Final = 0x8
SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV: Final = 0x20  # 5.19
SECCOMP_RET_KILL_PROCESS: Final = 0x80000000
SECCOMP_RET_ERRNO: Final = 0x00050000  # with the errno in the low 16 bits
SECCOMP_RET_USER_NOTIF: Final = 0x7FC00000
SECCOMP_RET_ALLOW: Final = 0x7FFF0000
SECCOMP_IOCTL_NOTIF_RECV: Final = 0xC0502100
SECCOMP_IOCTL_NOTIF_SEND: Final = 0xC0182101
SECCOMP_IOCTL_NOTIF_ID_VALID: Final = 0x40082102
SECCOMP_IOCTL_NOTIF_SET_FLAGS: Final = 0x40082104  # 6.6
SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP: Final = 0x1
SECCOMP_USER_NOTIF_FLAG_CONTINUE: Final = 0x1
# struct seccomp_notif: id, pid, flags; of the call its number, architecture, address and arguments
SECCOMP_NOTIF: Final = "=QIIiIQ6Q"
SECCOMP_NOTIF_RESP: Final = "=QqiI"  # struct seccomp_notif_resp: id, value, error, flags

# linux/audit.h
AUDIT_ARCH_X86_64: Final = 0xC000003E
AUDIT_ARCH_AARCH64: Final = 0xC00000B7

# linux/landlock.h; the version of the interface that brought each is at its side, 1 where none is
LANDLOCK_CREATE_RULESET_VERSION: Final = 0x1
LANDLOCK_RULE_PATH_BENEATH: Final = 1
LANDLOCK_ACCESS_FS_EXECUTE: Final = 1 << 0
LANDLOCK_ACCESS_FS_WRITE_FILE: Final = 1 << 1
LANDLOCK_ACCESS_FS_READ_FILE: Final = 1 << 2
LANDLOCK_ACCESS_FS_READ_DIR: Final = 1 << 3
LANDLOCK_ACCESS_FS_REMOVE_DIR: Final = 1 << 4
LANDLOCK_ACCESS_FS_REMOVE_FILE: Final = 1 << 5
LANDLOCK_ACCESS_FS_MAKE_CHAR: Final = 1 << 6
LANDLOCK_ACCESS_FS_MAKE_DIR: Final = 1 << 7
LANDLOCK_ACCESS_FS_MAKE_REG: Final = 1 << 8
LANDLOCK_ACCESS_FS_MAKE_SOCK: Final = 1 << 9
LANDLOCK_ACCESS_FS_MAKE_FIFO: Final = 1 << 10
LANDLOCK_ACCESS_FS_MAKE_BLOCK: Final = 1 << 11
LANDLOCK_ACCESS_FS_MAKE_SYM: Final = 1 << 12
LANDLOCK_ACCESS_FS_REFER: Final = 1 << 13  # 2
LANDLOCK_ACCESS_FS_TRUNCATE: Final = 1 << 14  # 3
LANDLOCK_ACCESS_FS_IOCTL_DEV: Final = 1 << 15  # 5
LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET: Final = 1 << 0  # 6
LANDLOCK_SCOPE_SIGNAL: Final = 1 << 1  # 6


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


class SockFprog(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


class LandlockRulesetAttr(ctypes.Structure):
    """struct landlock_ruleset_attr of linux/landlock.h; an older kernel takes it if what it lacks is 0."""

    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class LandlockPathBeneathAttr(ctypes.Structure):
    """struct landlock_path_beneath_attr of linux/landlock.h, which is packed."""

    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))
