"""One flat wrapper a system call: kernel names, keyword flags, OSError on failure.

Paths are str in the file system's encoding, or descriptors where the call takes one. Every descriptor
that is returned is close-on-exec.
"""

from __future__ import annotations

import ctypes  # noqa: TID251  kernel/ is where system calls live
import os
import struct
import sys

from overlayrun.kernel import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.unshare.argtypes = (ctypes.c_int,)
_libc.setns.argtypes = (ctypes.c_int, ctypes.c_int)
_libc.syncfs.argtypes = (ctypes.c_int,)
_libc.signalfd.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int)
_libc.fallocate64.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.prlimit64.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


def _checked(result: int, call: str, subject: str | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}", subject)
    return result


def _long(value: int) -> ctypes.c_long:
    return ctypes.c_long(value)


def mount(source: str, target: str, fstype: str | None, flags: int, data: str | None = None) -> None:
    """mount(2)."""
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, fstype, data)]
    _checked(_libc.mount(encoded[0], encoded[1], encoded[2], flags, encoded[3]), "mount", target)


def umount2(target: str, flags: int) -> None:
    """umount2(2)."""
    _checked(_libc.umount2(os.fsencode(target), flags), "umount2", target)


def unshare(flags: int) -> None:
    """unshare(2)."""
    _checked(_libc.unshare(flags), "unshare")


def setns(fd: int, nstype: int) -> None:
    """setns(2)."""
    _checked(_libc.setns(fd, nstype), "setns")


def syncfs(fd: int) -> None:
    """syncfs(2): flush the whole file system that holds `fd`."""
    _checked(_libc.syncfs(fd), "syncfs")


def prctl(option: int, *arguments: int) -> int:
    """prctl(2); missing arguments are 0, as newer options demand."""
    padded = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    return _checked(_libc.prctl(ctypes.c_int(option), *padded), f"prctl {option}")


def fsopen(fstype: str) -> int:
    """fsopen(2), Linux 5.2: a file system context."""
    return _checked(
        _syscall(_long(abi.NR_FSOPEN), os.fsencode(fstype), _long(abi.FSOPEN_CLOEXEC)), "fsopen", fstype
    )


def fsconfig(fd: int, command: int, key: str | None = None, value: str | None = None, aux: int = 0) -> None:
    """fsconfig(2); the kernel's own words for a refusal become the error's text."""
    encoded = [None if text is None else os.fsencode(text) for text in (key, value)]
    if _syscall(_long(abi.NR_FSCONFIG), _long(fd), _long(command), encoded[0], encoded[1], _long(aux)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"fsconfig {key or 'create'}: {_context_log(fd) or os.strerror(number)}", value)


def _context_log(fd: int) -> str:
    lines = []
    try:
        while line := os.read(fd, 8192):
            lines.append(line.decode(errors="replace").strip())
    except OSError:  # ENODATA ends the log
        pass
    return "; ".join(lines)


def fsmount(fd: int, attributes: int) -> int:
    """fsmount(2): a detached mount of a created context."""
    return _checked(
        _syscall(_long(abi.NR_FSMOUNT), _long(fd), _long(abi.FSMOUNT_CLOEXEC), _long(attributes)), "fsmount"
    )


def open_tree(path: str, flags: int) -> int:
    """open_tree(2), with OPEN_TREE_CLONE a detached bind mount of `path`."""
    flags |= abi.OPEN_TREE_CLOEXEC
    return _checked(
        _syscall(_long(abi.NR_OPEN_TREE), _long(abi.AT_FDCWD), os.fsencode(path), _long(flags)),
        "open_tree",
        path,
    )


def move_mount(fd: int, target: str) -> None:
    """move_mount(2): attach the detached mount `fd` at the path `target`."""
    _checked(
        _syscall(
            _long(abi.NR_MOVE_MOUNT),
            _long(fd),
            b"",
            _long(abi.AT_FDCWD),
            os.fsencode(target),
            _long(abi.MOVE_MOUNT_F_EMPTY_PATH),
        ),
        "move_mount",
        target,
    )


def mount_setattr(
    path: str | int, attributes: int, *, recursive: bool, propagation: int = 0, id_map: int | None = None
) -> None:
    """mount_setattr(2), Linux 5.12: set attributes of the mount at a path, or of a mount descriptor.

    id_map: descriptor of a user namespace, for MOUNT_ATTR_IDMAP.
    """
    attr = abi.MountAttr(attr_set=attributes, propagation=propagation)
    if id_map is not None:
        attr.attr_set |= abi.MOUNT_ATTR_IDMAP
        attr.userns_fd = id_map
    where, name = (path, b"") if isinstance(path, int) else (abi.AT_FDCWD, os.fsencode(path))
    flags = (abi.AT_RECURSIVE if recursive else 0) | (abi.AT_EMPTY_PATH if isinstance(path, int) else 0)
    _checked(
        _syscall(
            _long(abi.NR_MOUNT_SETATTR),
            _long(where),
            name,
            _long(flags),
            ctypes.byref(attr),
            _long(ctypes.sizeof(attr)),
        ),
        "mount_setattr",
        str(path),
    )


def clone(flags: int) -> int:
    """clone(2) as fork with namespaces: 0 in the child, else its pid. With flags, the caller has one thread.

    Unlike os.fork it makes the child pid 1 of a new pid namespace in one step. What Python itself does around
    a fork costs half a megabyte, and is needed beside other threads alone: one that holds the interpreter's
    lock at that moment holds the child's copy of it for ever.
    """
    if not flags and len(sys._current_frames()) > 1:  # threading knows only those that it started
        return os.fork()
    return _checked(
        _syscall(_long(abi.NR_CLONE), _long(flags | 17), _long(0), _long(0), _long(0), _long(0)), "clone"
    )


def close_range(first: int, last: int = 0x7FFFFFFF) -> None:
    """close_range(2) with CLOSE_RANGE_CLOEXEC, Linux 5.11: close at the next exec."""
    arguments = (first, last, abi.CLOSE_RANGE_CLOEXEC)
    _checked(_syscall(_long(abi.NR_CLOSE_RANGE), *map(_long, arguments)), "close_range")


def capset(capabilities: int = 0) -> None:
    """capset(2): have these capabilities and no other; a mask, for all three sets."""
    header = abi.CapHeader(version=abi.LINUX_CAPABILITY_VERSION_3, pid=0)
    halves = (capabilities & 0xFFFFFFFF, capabilities >> 32)
    data = (abi.CapData * 2)(*(abi.CapData(half, half, half) for half in halves))
    _checked(_libc.capset(ctypes.byref(header), ctypes.byref(data)), "capset")


def join_session_keyring() -> None:
    """keyctl(2), KEYCTL_JOIN_SESSION_KEYRING: a new session keyring, empty and nobody else's."""
    _checked(
        _syscall(_long(abi.NR_KEYCTL), _long(abi.KEYCTL_JOIN_SESSION_KEYRING), ctypes.c_void_p(None)),
        "keyctl",
    )


def socket(family: int, kind: int) -> int:
    """socket(2); Python's own module costs the launch path 2 ms."""
    return _checked(_libc.socket(family, kind | abi.SOCK_CLOEXEC, 0), "socket")


def bind_loopback(fd: int, port: int) -> None:
    """bind(2) of an IPv4 socket to a port of 127.0.0.1, with SO_REUSEADDR as servers do (ip(7))."""
    one = ctypes.c_int(1)
    arguments = (abi.SOL_SOCKET, abi.SO_REUSEADDR, ctypes.byref(one), ctypes.sizeof(one))
    _checked(_libc.setsockopt(fd, *arguments), "setsockopt")
    address = (
        abi.AF_INET.to_bytes(2, sys.byteorder) + port.to_bytes(2, "big") + bytes((127, 0, 0, 1)) + bytes(8)
    )
    _checked(_libc.bind(fd, address, len(address)), "bind")


def prlimit(resource: int, limits: tuple[int, int] | None = None) -> tuple[int, int]:
    """prlimit(2) of this process: its limits (soft, hard) as they were; no limit is 2^64 - 1."""
    new = None if limits is None else (ctypes.c_uint64 * 2)(*limits)
    old = (ctypes.c_uint64 * 2)()
    _checked(_libc.prlimit64(0, resource, new, old), f"prlimit {resource}")
    return old[0], old[1]


def signalfd(signals: Iterable[int]) -> int:
    """signalfd(2): non-blocking, reads as struct signalfd_siginfo; the caller blocks the signals."""
    mask = sum(1 << (number - 1) for number in signals)
    # sigset_t is 128 bytes in glibc; signalfd reads its first eight.
    return _checked(
        _libc.signalfd(-1, mask.to_bytes(128, "little"), abi.SFD_CLOEXEC | abi.SFD_NONBLOCK), "signalfd"
    )


def renameat2(
    old: str,
    new: str,
    flags: int,
    *,
    directories: tuple[int, int] = (abi.AT_FDCWD, abi.AT_FDCWD),
    mark: int = 0,
) -> None:
    """renameat2(2). directories: descriptors that the paths start at. mark: see `sandbox.seccomp`.

    It lies in the register that the call ignores.
    """
    from_there, to_there = directories
    arguments = _long(from_there), os.fsencode(old), _long(to_there), os.fsencode(new), _long(flags)
    _checked(_syscall(_long(abi.NR_RENAMEAT2), *arguments, ctypes.c_ulong(mark)), "renameat2", old)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2); Python has only the mode 0."""
    _checked(_libc.fallocate64(fd, mode, offset, length), "fallocate")


def statx(fd: int) -> tuple[int, int, int]:
    """statx(2) of a descriptor: its mount, links, birth in ns since the epoch; what is unknown is 0."""
    found = ctypes.create_string_buffer(abi.STATX_SIZE)
    mask = abi.STATX_BTIME | abi.STATX_MNT_ID
    arguments = _long(fd), b"", _long(abi.AT_EMPTY_PATH), _long(mask), found
    _checked(_syscall(_long(abi.NR_STATX), *arguments), "statx")
    known, links = struct.unpack_from(abi.STATX_HEAD, found)
    seconds, rest = struct.unpack_from(abi.STATX_BIRTH[1], found, abi.STATX_BIRTH[0])
    (mount_id,) = struct.unpack_from(abi.STATX_MOUNT[1], found, abi.STATX_MOUNT[0])
    birth = seconds * 10**9 + rest if known & abi.STATX_BTIME else 0
    return (mount_id if known & abi.STATX_MNT_ID else 0), links, birth


def seccomp(program: bytes, flags: int = 0) -> int:
    """seccomp(2), SECCOMP_SET_MODE_FILTER: lay a filter of rows of struct sock_filter on this thread.

    Gives a descriptor with SECCOMP_FILTER_FLAG_NEW_LISTENER, else 0.
    """
    described = abi.SockFprog(len(program) // struct.calcsize(abi.SOCK_FILTER), program)
    arguments = _long(abi.SECCOMP_SET_MODE_FILTER), _long(flags), ctypes.byref(described)
    return _checked(_syscall(_long(abi.NR_SECCOMP), *arguments), "seccomp")


def landlock_abi() -> int:
    """Version of Landlock's interface; OSError where the kernel has none (landlock_create_ruleset(2))."""
    arguments = _long(0), _long(0), _long(abi.LANDLOCK_CREATE_RULESET_VERSION)
    return _checked(_syscall(_long(abi.NR_LANDLOCK_CREATE_RULESET), *arguments), "landlock_create_ruleset")


def landlock_create_ruleset(handled_access_fs: int, scoped: int = 0) -> int:
    """landlock_create_ruleset(2): a ruleset that forbids these rights wherever no rule gives them."""
    attr = abi.LandlockRulesetAttr(handled_access_fs, 0, scoped)
    arguments = ctypes.byref(attr), _long(ctypes.sizeof(attr)), _long(0)
    return _checked(_syscall(_long(abi.NR_LANDLOCK_CREATE_RULESET), *arguments), "landlock_create_ruleset")


def landlock_add_rule(ruleset: int, parent: int, allowed_access: int) -> None:
    """landlock_add_rule(2), LANDLOCK_RULE_PATH_BENEATH: give rights at and below what `parent` is open on."""
    attr = abi.LandlockPathBeneathAttr(allowed_access, parent)
    arguments = _long(ruleset), _long(abi.LANDLOCK_RULE_PATH_BENEATH), ctypes.byref(attr), _long(0)
    _checked(_syscall(_long(abi.NR_LANDLOCK_ADD_RULE), *arguments), "landlock_add_rule")


def landlock_restrict_self(ruleset: int) -> None:
    """landlock_restrict_self(2): from now on this thread and its children are under the ruleset."""
    _checked(
        _syscall(_long(abi.NR_LANDLOCK_RESTRICT_SELF), _long(ruleset), _long(0)), "landlock_restrict_self"
    )
