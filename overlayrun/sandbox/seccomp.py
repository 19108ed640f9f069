"""The system calls that lead out of the sandbox, refused by a seccomp filter.

A deny-list: what runs inside is anybody's build and has to work, so only what no build needs is refused. The
program is classic BPF, made of rows (code, skip if true, skip if false, operand), each of which may jump
forwards alone. Numbers are found by a binary search. What a program calls all the time costs nothing: the
kernel marks the numbers that are allowed whatever the arguments and does not run the filter for them
(seccomp_cache_prepare of kernel/seccomp.c, since Linux 5.11).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct

from overlayrun.errors import HostError
from overlayrun.kernel import abi, btrfs, calls, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Final, TypeAlias

    Row: TypeAlias = tuple[int, int, int, int]
    Code: TypeAlias = list[Row]
    Span: TypeAlias = tuple[int, int, Code]

# EPERM, in every mode: other users' and the machine's matters, and what the sandbox has no use for but the
# kernel's bugs of the last years had. Memory policy (mbind, set_mempolicy, get_mempolicy) is not among them:
# databases, Java and BLAS set it for themselves, and a refusal is a warning or a failed test.
_REFUSED: Final = (
    "acct add_key adjtimex bpf clock_adjtime clock_settime delete_module fanotify_init finit_module "
    "init_module ioperm iopl kcmp kexec_file_load kexec_load keyctl lookup_dcookie migrate_pages modify_ldt "
    "move_pages name_to_handle_at open_by_handle_at perf_event_open pidfd_getfd quotactl quotactl_fd "
    "reboot request_key settimeofday swapoff swapon syslog userfaultfd uselib vhangup"
).split()
# ENOSYS, in every mode: their operations pass no filter, or their arguments lie in memory; libuv and others
# go on without them.
_MISSING: Final = ("io_uring_enter", "io_uring_register", "io_uring_setup", "openat2")
# EPERM, but for --allow-ptrace.
TRACING: Final = ("process_vm_readv", "process_vm_writev", "ptrace")
# Told to the one that `listen`s: see `renames`.
RENAMING: Final = ("rename", "renameat", "renameat2")
OURS: Final = 0x6F76_6572_6C61_7972
"""In the register that these calls ignore: done by one who helps to answer, and not to be told.

Whoever else puts it there gets the kernel's plain answer.
"""
# EPERM, but for --allow-userns.
_NAMESPACES: Final = "chroot mount pivot_root setdomainname sethostname setns umount2".split()
# ENOSYS, but for --allow-userns: programs then fall back to mount(2); and to clone(2), whose flags a filter
# can read, while those of clone3 lie in memory.
_NEW_WAYS: Final = (
    "clone3 fsconfig fsmount fsopen fspick mount_setattr move_mount open_tree open_tree_attr".split()
)
_CLONE_FLAGS: Final = (
    abi.CLONE_NEWNS
    | abi.CLONE_NEWCGROUP
    | abi.CLONE_NEWUTS
    | abi.CLONE_NEWIPC
    | abi.CLONE_NEWUSER
    | abi.CLONE_NEWPID
    | abi.CLONE_NEWNET
)
# To unshare(2) alone: for clone(2) the lowest byte is a signal.
_UNSHARE_FLAGS: Final = _CLONE_FLAGS | abi.CLONE_NEWTIME
# Input into the user's terminal in his name, its line discipline, the keyboard of a virtual console.
_TERMINAL_REQUESTS: Final = (
    abi.TIOCSTI,
    abi.TIOCLINUX,
    abi.TIOCSETD,
    abi.KDSKBENT,
    abi.KDSKBSENT,
    abi.KDSKBDIACR,
    abi.KDSKBDIACRUC,
)
# setarch(8) for 32-bit builds, and gdb, Emacs and the sanitizers, which switch off address randomisation.
# Other values make bugs easier to use and were bugs themselves.
_PERSONALITIES: Final = abi.PER_LINUX32 | abi.ADDR_NO_RANDOMIZE
_ASK_PERSONALITY: Final = 0xFFFFFFFF
_FAMILIES: Final = (abi.AF_UNSPEC, abi.AF_UNIX, abi.AF_INET, abi.AF_INET6)

_NUMBER: Final = 0  # offsets in struct seccomp_data of linux/seccomp.h
_ARCHITECTURE: Final = 4
_ARGUMENTS: Final = 16
_X32: Final = 0x40000000  # __X32_SYSCALL_BIT of asm/unistd.h
_NO_CALL: Final = 0xFFFFFFFF

_ALLOW: Final[Row] = (abi.BPF_RETURN, 0, 0, abi.SECCOMP_RET_ALLOW)


def _refuse(number: int) -> Code:
    return [(abi.BPF_RETURN, 0, 0, abi.SECCOMP_RET_ERRNO | number)]


_EPERM: Final = _refuse(errno.EPERM)
_ENOSYS: Final = _refuse(errno.ENOSYS)


_ASK: Final[Code] = [(abi.BPF_RETURN, 0, 0, abi.SECCOMP_RET_USER_NOTIF)]
_KILL: Final[Code] = [(abi.BPF_RETURN, 0, 0, abi.SECCOMP_RET_KILL_PROCESS)]

# By machine: numbers, name of the architecture, numbers that no call has. Calls that are newer than the table
# may be new ways to what is refused; ENOSYS is what an older kernel says, and every C library has an answer
# to it. With the bit of x32 all calls come under a second number. -1 is no call: a tracer leaves one out by
# it.
_MACHINES: Final[Mapping[str, tuple[Mapping[str, int], int, list[Span]]]] = {
    "x86_64": (
        calls.X86_64,
        abi.AUDIT_ARCH_X86_64,
        [
            (*calls.X86_64_HOLE, _ENOSYS),
            (calls.LAST + 1, _X32 - 1, _ENOSYS),
            (_X32, _NO_CALL - 1, _KILL),
        ],
    ),
    "aarch64": (
        calls.AARCH64,
        abi.AUDIT_ARCH_AARCH64,
        [(*calls.AARCH64_HOLE, _ENOSYS), (calls.LAST + 1, _NO_CALL - 1, _ENOSYS)],
    ),
}


def assemble(
    machine: str, *, ptrace: bool, userns: bool, heard: bool = False, renames: bool = False
) -> bytes:
    """The filter as rows of struct sock_filter; raises HostError for a machine without a table.

    machine: as in os.uname(). ptrace: processes may look into each other. userns: namespaces may be made, and
    mounts in them. heard: whoever tries either waits for an answer of the one that `listen`s, so that the
    user can be told which program needs which of the two. renames: and so does whoever renames.
    """
    if machine not in _MACHINES:
        raise HostError(
            f"no table of system calls for a machine of kind {machine}",
            hint="--without seccomp leaves the filter out",
        )
    numbers, architecture, unknown = _MACHINES[machine]
    refusal = _ASK if heard else _EPERM
    rename = _ask_of_others() if renames else [_ALLOW]
    spans = [*_spans(numbers, refusal, rename, ptrace=ptrace, userns=userns), *unknown]
    # Another architecture (int 0x80 for one) has other numbers.
    code = [_load(_ARCHITECTURE), (abi.BPF_IF_EQUAL, 1, 0, architecture), *_KILL, _load(_NUMBER)]
    code += _search(_allow_between(spans))
    return b"".join(struct.pack(abi.SOCK_FILTER, *row) for row in code)


def install(program: bytes) -> None:
    """Lay the filter on this thread and all that it starts; no_new_privs is set. Raises OSError."""
    # The kernel before 5.16 slows every filtered process down, against side channels between code of one
    # process; the flag makes it as later kernels are. Not TSYNC: there is one thread.
    syscalls.seccomp(program, abi.SECCOMP_FILTER_FLAG_SPEC_ALLOW)


def listen(program: bytes) -> int:
    """As `install`, for a `heard` program; gives the descriptor on which `asking.Asked` hears."""
    flags = abi.SECCOMP_FILTER_FLAG_SPEC_ALLOW | abi.SECCOMP_FILTER_FLAG_NEW_LISTENER
    try:
        # Who waits for an answer is not to be woken by signals: the call would be made again and again.
        fd = syscalls.seccomp(program, flags | abi.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV)
    except OSError as err:
        if err.errno != errno.EINVAL:  # before Linux 5.19
            raise
        fd = syscalls.seccomp(program, flags)
    try:
        # One waits for the other: on one processor they need not wake a second.
        fcntl.ioctl(fd, abi.SECCOMP_IOCTL_NOTIF_SET_FLAGS, abi.SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP)
    except OSError:  # before Linux 6.6
        pass
    return fd


def _spans(
    numbers: Mapping[str, int], refusal: Code, rename: Code, *, ptrace: bool, userns: bool
) -> list[Span]:
    """What is not simply allowed: first number, last number, code."""
    chosen = dict.fromkeys(_REFUSED, _EPERM) | dict.fromkeys(_MISSING, _ENOSYS)
    chosen |= {"ioctl": _ioctl(), "personality": _personality()}
    chosen |= {"socket": _socket(), "socketpair": _socket()}
    # No set-uid file: in a directory that is shared with the host another user could run it. Set-gid is let
    # through: Debian's own directories have it, and who copies them wants to keep it.
    chosen |= {name: _when_bits(1, stat.S_ISUID, _EPERM) for name in ("chmod", "fchmod", "creat")}
    chosen |= {name: _when_bits(2, stat.S_ISUID, _EPERM) for name in ("fchmodat", "fchmodat2")}
    chosen |= {"open": _when_made(1), "openat": _when_made(2)}
    chosen |= dict.fromkeys(RENAMING, rename)
    chosen |= {"mknod": _when_bits(1, stat.S_ISUID, _EPERM), "mknodat": _when_bits(2, stat.S_ISUID, _EPERM)}
    if not ptrace:
        chosen |= dict.fromkeys(TRACING, refusal)
    if not userns:
        chosen |= dict.fromkeys(_NAMESPACES, _EPERM) | dict.fromkeys(_NEW_WAYS, _ENOSYS)
        chosen["clone"] = _when_bits(0, _CLONE_FLAGS, refusal)
        chosen["unshare"] = _when_bits(0, _UNSHARE_FLAGS, refusal)
        # Overlayfs takes a whiteout for a deleted name, and anybody may make one (since Linux 5.8).
        # Containers inside need them. EINVAL is what a file system says that has none.
        whiteout = _refuse(errno.EINVAL)
        chosen["renameat2"] = [
            _argument(4),
            (abi.BPF_IF_BITS, 0, len(whiteout), abi.RENAME_WHITEOUT),
            *whiteout,
            *rename,
        ]
        chosen |= {"mknod": _device(1), "mknodat": _device(2)}
    return [(numbers[name], numbers[name], code) for name, code in chosen.items() if name in numbers]


def _allow_between(spans: Iterable[Span]) -> list[tuple[int, Code]]:
    """First number and code of neighbouring spans that cover every number."""
    starts: list[tuple[int, Code]] = []
    reached = 0
    for first, last, code in sorted(spans, key=lambda span: span[0]):
        if reached < first:
            starts.append((reached, [_ALLOW]))
        if not starts or starts[-1][1] is not code:
            starts.append((first, code))
        reached = last + 1
    starts.append((reached, [_ALLOW]))
    return starts


def _search(starts: Sequence[tuple[int, Code]]) -> Code:
    """Binary search for the last start that the number reaches, then its code."""
    if len(starts) == 1:
        return starts[0][1]
    middle = len(starts) // 2
    below, above = _search(starts[:middle]), _search(starts[middle:])
    return [(abi.BPF_IF_REACHES, len(below), 0, starts[middle][0]), *below, *above]


def _load(offset: int) -> Row:
    return (abi.BPF_LOAD, 0, 0, offset)


def _argument(index: int) -> Row:
    """Load the low half of an argument: these are ints, of which the kernel ignores the other half."""
    return _load(_ARGUMENTS + 8 * index)


def _when_bits(index: int, bits: int, verdict: Code) -> Code:
    return [_argument(index), (abi.BPF_IF_BITS, 0, 1, bits), *verdict, _ALLOW]


def _equal_to_one_of(values: Sequence[int], then: Code, otherwise: Code) -> Code:
    """Compare what is loaded; both ways end the program."""
    skips = range(len(values) - 1 + len(otherwise), -1, -1)
    tests = [(abi.BPF_IF_EQUAL, skip, 0, value) for skip, value in zip(skips, values, strict=False)]
    return [*tests, *otherwise, *then]


def _ask_of_others() -> Code:
    """Ask, but not where the mark lies in the last register, of which both halves count."""
    high = (_load(_ARGUMENTS + 8 * 5 + 4), (abi.BPF_IF_EQUAL, 1, 0, OURS >> 32))
    return [_argument(5), (abi.BPF_IF_EQUAL, 0, 2, OURS & 0xFFFFFFFF), *high, *_ASK, _ALLOW]


def _ioctl() -> Code:
    """Neither the user's terminal nor his subvolumes; ENOTTY is what other file systems than btrfs say."""
    group = (abi.BPF_AND, 0, 0, 0xFF00)  # _IOC_TYPEMASK of asm-generic/ioctl.h: most are of another
    subvolumes = [_argument(1), *_equal_to_one_of(btrfs.CHANGING, _refuse(errno.ENOTTY), [_ALLOW])]
    others = [_argument(1), *_equal_to_one_of(_TERMINAL_REQUESTS, _EPERM, [_ALLOW])]
    return [_argument(1), group, *_equal_to_one_of([btrfs.CHANGING[0] & 0xFF00], subvolumes, others)]


def _personality() -> Code:
    harmless = (abi.BPF_AND, 0, 0, _ASK_PERSONALITY & ~_PERSONALITIES)
    asks = [_argument(0), *_equal_to_one_of([_ASK_PERSONALITY], [_ALLOW], _EPERM)]
    return [_argument(0), harmless, *_equal_to_one_of([0], [_ALLOW], asks)]


def _socket() -> Code:
    """Local and internet sockets, and of netlink what getaddrinfo(3) and ip(8) ask for addresses and routes.

    The refusals are those of a kernel without the family or the protocol, which programs have an answer to:
    PAM and D-Bus take EPROTONOSUPPORT for a kernel without auditing and go on, and die of EPERM.
    """
    protocol = [
        _argument(2),
        *_equal_to_one_of([abi.NETLINK_ROUTE], [_ALLOW], _refuse(errno.EPROTONOSUPPORT)),
    ]
    other = _equal_to_one_of([abi.AF_NETLINK], protocol, _refuse(errno.EAFNOSUPPORT))
    return [_argument(0), *_equal_to_one_of(_FAMILIES, [_ALLOW], other)]


def _when_made(index: int) -> Code:
    """The mode that follows the flags of open(2) counts where a file is made."""
    made = os.O_CREAT | os.O_TMPFILE & ~os.O_DIRECTORY
    code = _when_bits(index + 1, stat.S_ISUID, _EPERM)
    return [_argument(index), (abi.BPF_IF_BITS, 1, 0, made), _ALLOW, *code]


def _device(index: int) -> Code:
    """No device files: without rights the kernel lets one alone be made, the whiteout of overlayfs."""
    kind = (abi.BPF_AND, 0, 0, 0o170000)  # S_IFMT
    devices = _equal_to_one_of((stat.S_IFCHR, stat.S_IFBLK), _EPERM, [_ALLOW])
    return [_argument(index), (abi.BPF_IF_BITS, 0, 1, stat.S_ISUID), *_EPERM, kind, *devices]
