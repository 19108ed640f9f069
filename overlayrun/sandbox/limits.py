"""How much of the machine a run may take: by a control group, by limits of each process, by size of tmpfs.

In a group's place a watchdog looks at memory, and the number of processes is limited for the sandbox's user
namespace; what neither of them can hold is refused.
"""

from __future__ import annotations

import os

from overlayrun.errors import HostError
from overlayrun.kernel import abi, syscalls
from overlayrun.kernel.groups import Group

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from typing import Any, Final, Self

_KIB: Final = 1 << 10
_GIB: Final = 1 << 30
_FILE: Final = 10 * _GIB
_PROCESSES: Final = 4096
# The keeper and the watchdog stand in the sandbox's user namespace as well; a group counts the keeper alone.
_OURS: Final = 2
# Node and others raise their limit to the hard one; some daemons close every descriptor up to it.
_DESCRIPTORS: Final = 1 << 16
# Timers and queued signals are counted for the host's user too (fork.c, ucounts): he keeps the most of them.
_SIGNALS: Final = 1 << 13
# Over --memory: reserved stacks and arenas are data that no memory stands behind yet.
_RESERVED: Final = 2 * _GIB
_NICE: Final = 5
_FIRST_TO_GO: Final = 100  # of 1000: as if a tenth of the memory more were theirs (proc_pid_oom_score_adj(5))
_SCOPE: Final = "systemd-run --user --scope -p Delegate=yes -- overlayrun -- COMMAND"


class LimitOptions:
    """What all processes of a run together may take; None for what was not asked for.

    memory, disk: bytes. pids: processes and threads. cpus: processors' worth of time.
    held: names of the control group's limits, of "memory", "pids", "cpu".
    """

    __slots__ = ("cpus", "disk", "held", "memory", "pids")

    def __init__(
        self,
        memory: int | None = None,
        pids: int | None = None,
        cpus: float | None = None,
        disk: int | None = None,
    ) -> None:
        self.memory = memory
        self.pids = pids
        self.cpus = cpus
        self.disk = disk
        self.held: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        made = cls()
        for name in cls.__slots__:
            setattr(made, name, data[name])
        return made

    @property
    def for_group(self) -> dict[str, float]:
        """What a control group is asked for, by the names of its controllers."""
        pids = None if self.pids is None else self.pids + 1
        asked = {"memory": self.memory, "pids": pids, "cpu": self.cpus}
        return {name: value for name, value in asked.items() if value is not None}


def hold_by_group(
    limits: LimitOptions, label: str, *, freeze: bool, root_uid: bool, without: Collection[str]
) -> Group:
    """A control group for the run where one is wanted and ours, and note in `limits` what it holds.

    Without one it is an empty group, which does nothing. To be closed when every process is dead.
    label: the workspace's id. root_uid: the command runs as the host's root. without: layers switched off.
    Raises HostError where a limit was asked for that nothing else can hold.
    """
    group = Group({})
    refusal: str | None = "it is switched off (--without cgroup)"
    if "cgroup" not in without and (limits.for_group or freeze):
        from overlayrun.kernel.cgroups import make_group

        try:
            group = make_group(label, limits.for_group, freeze=freeze)
            limits.held = group.held
        except OSError as err:
            refusal = err.strerror
    lost = [name for name in limits.for_group if not _is_held(name, limits, without, root_uid=root_uid)]
    if lost:
        options = " and ".join(f"--{'cpus' if name == 'cpu' else name}" for name in lost)
        raise HostError(
            f"{options} can't be held: no control group is ours: {refusal}", hint=f"start it as: {_SCOPE}"
        )
    return group


def _is_held(name: str, limits: LimitOptions, without: Collection[str], *, root_uid: bool) -> bool:
    if name in limits.held:
        return True
    # The kernel does not count processes of the host's root (fork.c, copy_process).
    other = {"memory": "watchdog" not in without, "pids": "rlimits" not in without and not root_uid}
    return other.get(name, False)


def words(limits: LimitOptions, group: Group) -> str:
    """Which limits are in force, and by what: a part of the run's header; empty where none was asked for."""
    asked = [
        *([f"memory {size_text(limits.memory)}"] if limits.memory is not None else []),
        *([f"{limits.pids} processes"] if limits.pids is not None else []),
        *([f"{limits.cpus:g} cpus"] if limits.cpus is not None else []),
    ]
    if not asked:
        return ""
    by = (
        f"by control group {group.version}"
        if group.held
        else "of each process and by a watchdog: no control group is ours"
    )
    return f"limits {by}: {', '.join(asked)}"


def events_text(limits: LimitOptions, group: Group) -> str | None:
    """What the group's limits did to the run, as a sentence; None for nothing."""
    killed, refused = group.events()
    said = []
    if killed and limits.memory is not None:
        processes = "a process was" if killed == 1 else f"{killed} processes were"
        said.append(f"memory limit of {size_text(limits.memory)} reached: {processes} killed (--memory)")
    if refused and limits.pids is not None:
        said.append(f"limit of {limits.pids} processes reached (--pids)")
    return "; ".join(said) or None


def size_text(size: int) -> str:
    """A size as `--memory` takes it, rounded: `512M`, `1.5G`."""
    for power, unit in ((40, "T"), (30, "G"), (20, "M"), (10, "K")):
        if size >= 1 << power:
            return f"{size / (1 << power):.4g}{unit}"
    return str(size)


def rlimits(limits: LimitOptions) -> dict[int, int]:
    """Hard limits of each process, by resource.

    Never RLIMIT_AS: node does not start under it. RLIMIT_DATA is a second net only: it stops one process that
    takes memory faster than the watchdog looks, shared memory does not count for it, and it is wide, because
    it counts reserved stacks.
    """
    found = {
        abi.RLIMIT_CORE: 0,
        abi.RLIMIT_FSIZE: min(_FILE, limits.disk or _FILE),
        abi.RLIMIT_NPROC: (limits.pids or _PROCESSES) + _OURS,
        abi.RLIMIT_NOFILE: _DESCRIPTORS,
        abi.RLIMIT_SIGPENDING: _SIGNALS,
        abi.RLIMIT_NICE: 0,
        abi.RLIMIT_RTPRIO: 0,
    }
    if limits.memory is not None and "memory" not in limits.held:
        found[abi.RLIMIT_DATA] = limits.memory + _RESERVED
    return found


def apply_rlimits(limits: LimitOptions) -> None:
    """Limit this process and what it will start; never raises a limit. Raises OSError.

    It also stands behind the user's own work: nice 5.
    """
    for resource, most in rlimits(limits).items():
        soft, hard = syscalls.prlimit(resource)
        syscalls.prlimit(resource, (min(soft, most), min(hard, most)))
    os.nice(_NICE)


def spare_host() -> None:
    """Be the first to go when memory runs out, and leave the host's user half of his inotify objects.

    Called by pid 1 first of all in its new user namespace, before it takes other ids: then it has the
    capabilities, and its files in /proc are its own (proc(5), "dumpable"). Source: inotify(7); what one user
    namespace counts, those above it count too (ucount.c).
    """
    halves = (("instances", "max_user_instances"), ("watches", "max_user_watches"))
    for name, host in halves:
        _adjust(f"/proc/sys/fs/inotify/{host}", f"/proc/sys/user/max_inotify_{name}", lambda most: most // 2)
    score = "/proc/self/oom_score_adj"
    _adjust(score, score, lambda now: max(now, _FIRST_TO_GO))


def _adjust(source: str, target: str, change: Callable[[int], int]) -> None:
    try:
        value = int(_read(source))
        _write(target, str(change(value)).encode())
    except OSError:  # read-only in some containers: a courtesy to the host, not a wall
        pass


def _read(path: str) -> bytes:
    # Not open(): in a process that was just forked its buffers cost half a megabyte of copied pages.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 64)
    finally:
        os.close(fd)


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


# Parts of the memory that private file systems may fill: together about half of it, because nothing but the
# run's end frees what lies there, and the kernel's out-of-memory killer can't.
_PARTS: Final = {"tmp": 4, "home": 4, "shm": 8, "var-tmp": 16, "run": 64}
_SMALL: Final = 1 << 20  # bytes; for what holds mountpoints alone: /dev, masks
_FILE_SIZE: Final = 16 * _KIB
_LEAST_FILES: Final = 4096


def tmpfs_data(mode: int, kind: str, memory: int | None = None) -> str:
    """Mount data of a tmpfs: mode, size and number of inodes.

    kind: "tmp" (a quarter of the memory: builds unpack there), "home" (a quarter: package managers' caches),
    "shm" (an eighth: browsers), "var-tmp" (a sixteenth), "run" (a 64th); any other gets 1 MiB.
    memory: bytes, from --memory; without, or where it is more, the machine's. An inode for each 16 KiB: each
    takes 1 KiB of memory that size= does not count.
    """
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    part = _PARTS.get(kind)
    size = min(most, memory or most) // part if part else _SMALL
    size = max(size, _SMALL)
    inodes = max(size // _FILE_SIZE, _LEAST_FILES)
    return f"mode={mode:o},size={size},nr_inodes={inodes}"
