"""What this kernel lets us do, found out by doing it in a forked child. Nothing here is guessed from a version.

Lean, and free of every floor but this one: it is loaded when a sandbox could not be made.
"""

from __future__ import annotations

import ctypes  # noqa: TID251  kernel/ is where system calls live
import errno
import fcntl
import os
import select
import signal
import stat
import struct

from overlayrun.kernel import abi, namespaces, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Final, NoReturn

_PATIENCE: Final = 10_000  # milliseconds for one try; a hung network file system must not hang the doctor
_ATTRIBUTES: Final = abi.MS_NOSUID | abi.MS_NODEV
_IN_MOUNTS: Final = abi.CLONE_NEWUSER | abi.CLONE_NEWNS

# linux/prctl.h, linux/seccomp.h, linux/bpf_common.h
_PR_SET_SECCOMP: Final = 22
_SECCOMP_MODE_FILTER: Final = 2
_SECCOMP_RET_ERRNO: Final = 0x00050000
_SECCOMP_RET_ALLOW: Final = 0x7FFF0000
_BPF_LOAD_WORD: Final = 0x20
_BPF_JUMP_EQUAL: Final = 0x15
_BPF_RETURN: Final = 0x06

# linux/landlock.h; the numbers are the same on every machine
_NR_LANDLOCK_RESTRICT_SELF: Final = 446
_LANDLOCK_WRITE_FILE: Final = 0x2

# One more than a mount takes since 6.5 (OVL_MAX_STACK of fs/overlayfs/params.h).
_MOST_LAYERS: Final = 501


class Try:
    """What came of a try. errno: 0 where it works. text: what was found, or the kernel's words for the refusal."""

    __slots__ = ("errno", "text")

    def __init__(self, number: int, text: str) -> None:
        self.errno = number
        self.text = text

    @property
    def works(self) -> bool:
        """Whether the ability is there."""
        return not self.errno


class Capabilities:
    """Abilities by name, each tried when it is first asked for, and once.

    scratch: an empty directory of ours on the file system of the state; what is tried in it is the caller's to
    remove. Without one the abilities of `STORAGE` can't be asked for.
    """

    __slots__ = ("_scratch", "_tries")

    def __init__(self, scratch: str | None = None) -> None:
        self._scratch = scratch
        self._tries: dict[str, Try] = {}

    def __getitem__(self, name: str) -> Try:
        if name not in self._tries:
            self._tries[name] = self._try(name)
        return self._tries[name]

    def _try(self, name: str) -> Try:
        if name in KERNEL:
            flags, action = KERNEL[name]
            return attempt(action, flags)
        assert self._scratch is not None, f"{name} is tried on a file system"
        flags, on_disk = STORAGE[name]
        place = f"{self._scratch}/{name}"
        try:
            for directory in ("lower", "upper", "work", "mountpoint"):
                os.makedirs(f"{place}/{directory}")
        except OSError as err:
            return Try(err.errno or errno.EIO, _words(err))
        return attempt(lambda: on_disk(place), flags)


def attempt(action: Callable[[], str], flags: int = 0) -> Try:
    """Do `action` in a child with new namespaces `flags`; its mounts, limits and filters go with the child.

    action: gives what it found, raises OSError where it is refused. In a user namespace ids are mapped to
    themselves unless it is the only one.
    """
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        _be_child(write, action, flags)
    os.close(write)
    waiting = select.poll()
    waiting.register(read, select.POLLIN)
    try:
        hung = not waiting.poll(_PATIENCE)
        if hung:
            os.kill(pid, signal.SIGKILL)
        # A helper of a hung child may hold the pipe open for good: then nothing is read.
        answer = b"" if hung else os.read(read, 4096)
    finally:
        os.close(read)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if hung:
        return Try(errno.ETIMEDOUT, "no answer in 10 s")
    if not answer:
        number = -status if status < 0 else status - 128
        return Try(errno.EPERM, f"killed by {_signal_name(number)}" if number > 0 else "the try died")
    number_text, _, text = answer.decode("utf-8", "replace").partition(" ")
    return Try(int(number_text), text)


def _signal_name(number: int) -> str:
    return "a seccomp filter (SIGSYS)" if number == signal.SIGSYS else f"signal {number}"


def _be_child(write: int, action: Callable[[], str], flags: int) -> NoReturn:
    status = 1
    try:
        namespaces.die_with_parent()
        answer = _answer_of(action, flags)
        if isinstance(answer, int):
            status = answer
        else:
            os.write(write, answer[:4000].encode("utf-8", "surrogateescape"))
            status = 0
    finally:
        os._exit(status)


def _answer_of(action: Callable[[], str], flags: int) -> str | int:
    """The answer, or in the process between the exit status of the one that answers."""
    owner = os.geteuid(), os.getegid()
    try:
        if flags:
            # clone(2), as a run does it; a filter may treat unshare(2) otherwise. One thread is left after a fork.
            pid = syscalls.clone(flags)
            if pid:
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                return code if code >= 0 else 128 - code
            namespaces.die_with_parent()
        if flags & ~abi.CLONE_NEWUSER:
            namespaces.map_identity(*owner)
        if flags & abi.CLONE_NEWNS:
            syscalls.mount("none", "/", None, abi.MS_REC | abi.MS_PRIVATE)
        return f"0 {action()}"
    except OSError as err:
        return f"{err.errno or errno.EIO} {_words(err)}"


def _words(err: OSError) -> str:
    return f"{err.strerror or err}" + (f": {err.filename}" if err.filename else "")


def _nothing() -> str:
    return "works"


def _map(uid: int, gid: int) -> Callable[[], str]:
    def action() -> str:
        namespaces.map_identity(uid, gid)
        return "works"

    return action


def _tmpfs() -> str:
    syscalls.mount("tmpfs", "/tmp", "tmpfs", _ATTRIBUTES, "mode=755")
    os.chdir("/tmp")
    return "works"


def _read_only_disk() -> str:
    syscalls.mount_setattr("/", abi.MOUNT_ATTR_RDONLY | abi.MOUNT_ATTR_NOSUID, recursive=True)
    if not os.statvfs("/").f_flag & os.ST_RDONLY:
        raise OSError(errno.ENOTSUP, "the disk stayed writable")
    return "works"


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
    if os.readlink("/proc/self") != "1":
        raise OSError(errno.EIO, "/proc shows the host's processes")
    return "works"


def _terminals() -> str:
    _tmpfs()
    os.mkdir("pts")
    syscalls.mount(
        "devpts", "pts", "devpts", abi.MS_NOSUID | abi.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620"
    )
    os.close(os.open("pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    return "works"


def _overlay() -> str:
    """Lower layers alone: this asks the kernel, not the state's file system."""
    _tmpfs()
    for directory in ("top", "bottom/file", "mountpoint"):
        os.makedirs(directory)
    syscalls.mount("overlay", "mountpoint", "overlay", _ATTRIBUTES, "lowerdir=top:bottom,userxattr")
    return _confirm(os.listdir("mountpoint") == ["file"], "the layers are not joined")


def _layers_by_descriptor() -> str:
    """As many layers as one mount takes, named by descriptors (Linux 6.13)."""
    _tmpfs()
    context = syscalls.fsopen("overlay")
    count = 0
    try:
        for number in range(_MOST_LAYERS):
            os.mkdir(str(number))
            fd = os.open(str(number), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            syscalls.fsconfig(context, abi.FSCONFIG_SET_FD, "lowerdir+", aux=fd)
            os.close(fd)
            count += 1
    except OSError:
        if count < 2:
            raise
    syscalls.fsconfig(context, abi.FSCONFIG_SET_FLAG, "userxattr")
    syscalls.fsconfig(context, abi.FSCONFIG_CMD_CREATE)
    syscalls.fsmount(context, abi.MOUNT_ATTR_NOSUID)
    return str(count)


def _no_new_privileges() -> str:
    syscalls.prctl(abi.PR_SET_NO_NEW_PRIVS, 1)
    return "works"


class _Program(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _seccomp() -> str:
    """Refuse one system call by a filter, with an errno that it never has by itself."""
    rows = (
        (_BPF_LOAD_WORD, 0, 0, 0),
        (_BPF_JUMP_EQUAL, 0, 1, abi.NR_RENAMEAT2),
        (_BPF_RETURN, 0, 0, _SECCOMP_RET_ERRNO | errno.EXFULL),
        (_BPF_RETURN, 0, 0, _SECCOMP_RET_ALLOW),
    )
    code = b"".join(struct.pack("HBBI", *row) for row in rows)
    program = _Program(len(rows), code)
    syscalls.prctl(abi.PR_SET_NO_NEW_PRIVS, 1)
    syscalls.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(program))
    try:
        syscalls.renameat2("", "", 0)
    except OSError as err:
        return _confirm(err.errno == errno.EXFULL, "the filter has no effect")
    return "works"


def _landlock() -> str:
    """Forbid this process to write anywhere, and try to; the version of the interface."""
    version = syscalls.landlock_abi()
    call = ctypes.CDLL(None, use_errno=True).syscall
    handled = ctypes.c_uint64(_LANDLOCK_WRITE_FILE)
    rules = call(abi.NR_LANDLOCK_CREATE_RULESET, ctypes.byref(handled), ctypes.c_size_t(8), ctypes.c_uint(0))
    syscalls.prctl(abi.PR_SET_NO_NEW_PRIVS, 1)
    if rules < 0 or call(_NR_LANDLOCK_RESTRICT_SELF, ctypes.c_long(rules), ctypes.c_uint(0)) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        os.close(os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC))
    except PermissionError:
        return str(version)
    raise OSError(errno.EIO, "its rules have no effect")


def _close_range() -> str:
    fd = os.dup(0) if _is_open(0) else os.open("/", os.O_RDONLY)
    os.set_inheritable(fd, True)  # noqa: FBT003  its only form
    syscalls.close_range(3)
    return _confirm(fd < 3 or not os.get_inheritable(fd), "descriptors stay open")


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _pidfd() -> str:
    os.close(os.pidfd_open(os.getpid()))
    return "works"


def mounts() -> Iterator[tuple[str, str, str, str]]:
    """(root, mountpoint, type, superblock options) of every mount that can be seen, the topmost last.

    Source: proc_pid_mountinfo(5). A blank or backslash stands there as an octal escape.
    """
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            place, _, kind = line.partition(" - ")
            root, point = place.split(" ")[3:5]
            fstype, _, options = kind.rstrip("\n").split(" ", 2)
            yield _unescape(root), _unescape(point), fstype, options


def _unescape(text: str) -> str:
    first, *rest = text.split("\\")
    return first + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)


def _control_groups() -> str:
    """Make a group, move a process into it, remove it: in the v2 tree, else in v1's memory and pids trees."""
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        own = dict(line.rstrip("\n").split(":", 2)[1:] for line in file)
    trees = {}
    for root, point, fstype, options in mounts():
        if fstype.startswith("cgroup"):
            names = [""] if fstype == "cgroup2" else options.split(",")
            trees.update({name: (root, point) for name in names})
    refusal: OSError = OSError(errno.ENODEV, "no tree of control groups is mounted")
    for label, needed in (("v2", ("",)), ("v1", ("memory", "pids"))):
        try:
            places = [_group_place(own, trees, name) for name in needed]
            limits = _limits_of(places[0]) if label == "v2" else list(needed)
            for place in places:
                _try_group(place)
        except OSError as err:
            refusal = err
            continue
        return f"{label}: {' '.join(limits)}"
    raise refusal


def _group_place(own: Mapping[str, str], trees: Mapping[str, tuple[str, str]], name: str) -> str:
    line = next((key for key in own if name in key.split(",")), None)
    if line is None or name not in trees:
        raise OSError(errno.ENODEV, "no tree of control groups is mounted")
    root, point = trees[name]
    return f"{point}/{own[line].removeprefix(root).lstrip('/')}".rstrip("/")


def _limits_of(place: str) -> list[str]:
    with open(f"{place}/cgroup.controllers", encoding="utf-8") as file:
        limits = sorted({"cpu", "memory", "pids"} & set(file.read().split()))
    if not {"memory", "pids"} <= set(limits):
        raise OSError(errno.ENODEV, "the control group has no memory and pids limits to give", place)
    return limits


def _try_group(place: str) -> None:
    group = f"{place}/overlayrun-probe-{os.getpid()}"
    os.mkdir(group)
    try:
        pid = os.fork()
        if pid == 0:
            try:
                os.write(os.open(f"{group}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC), b"0")
                os._exit(0)
            finally:
                os._exit(1)
        if os.waitpid(pid, 0)[1]:
            raise PermissionError(errno.EPERM, "no process can be moved into a group of our own", place)
    finally:
        os.rmdir(group)
