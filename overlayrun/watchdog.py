"""An eye on what no control group holds: the disk, the size of a run's changes, its memory.

It looks from a process of its own, because the supervisor may be busy with a snapshot while a disk fills up.
"""

from __future__ import annotations

import os
import signal
import time

from overlayrun import keeper
from overlayrun.files import read_bytes
from overlayrun.kernel import abi, namespaces, syscalls
from overlayrun.sandbox.limits import LimitOptions, size_text
from overlayrun.workspace.layout import WorkspaceLayout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Final, NoReturn

    Numbers = tuple[float, ...]

_RESERVE: Final = 1 << 30  # bytes of the disk that stay free, or a twentieth of it
_RESERVE_FILES: Final = 100_000
_SHARE: Final = 20  # of the disk one part; of the time too: at most so much of it is spent on looking
_SPEED: Final = 2 << 30  # bytes a second that a run may write or take, in the worst case
SOONEST: Final = 0.05  # seconds
_LATEST: Final = 1.0
_FIRST_MEASURE: Final = 1.0  # seconds into the run: what a resumed workspace holds already
# What others free hides what the run takes, so it is measured again, in a hundredth of the time.
_AGAIN: Final = 100
_MEASURE_AGAIN: Final = 1.0  # seconds, at least
_MEASURE_LATEST: Final = 300.0
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Watchdog:
    """Looks at one run.

    keeper_pid: pid 1 of the sandbox, as seen from here. place: the workspace's directory.
    interval: seconds until the next look is worth while. again: seconds at least from one measurement to one
    that nothing calls for. measured, shared: `measure` and `share`, or what has them done elsewhere and gives
    None until that is over.
    """

    def __init__(self, keeper_pid: int, place: str, limits: LimitOptions) -> None:
        self.interval = SOONEST
        self.again = _MEASURE_AGAIN
        self._keeper = keeper_pid
        self._place = place
        self._limits = limits
        disk = os.statvfs(place)
        # Half of what is free now, at most: a run may start on a disk that is nearly full.
        self._reserve = min(_RESERVE, _blocks(disk.f_blocks, disk) // _SHARE, _free(disk) // 2)
        self._reserve_files = min(_RESERVE_FILES, disk.f_files // _SHARE, disk.f_favail // 2)
        # Known of the changes: their size, how full the disk was then, when to measure again.
        self._size = 0
        self._used = _used(disk)
        self._measure_at = time.monotonic() + _FIRST_MEASURE
        self._not_before = 0.0
        self.measured: Callable[[], Numbers | None] = self.measure
        self.shared: Callable[[], Numbers | None] = self.share

    def look(self) -> str | None:
        """Why the run must end, as a sentence; None while all is well. Raises OSError where it can't look."""
        began = time.monotonic()
        disk = os.statvfs(self._place)
        slack = [_free(disk) - self._reserve]
        reason = self._disk_text(disk, slack[0]) or self._size_text(disk)
        if reason is None and self._limits.memory is not None and "memory" not in self._limits.held:
            taken = self._memory(self._limits.memory)
            slack.append(self._limits.memory - taken)
            if taken > self._limits.memory:
                reason = f"ended: memory limit of {size_text(self._limits.memory)} reached (--memory)"
        cost = time.monotonic() - began
        self.interval = max(SOONEST, min(_LATEST, min(slack) / _SPEED), _SHARE * cost)
        return reason

    def _disk_text(self, disk: os.statvfs_result, slack: int) -> str | None:
        if slack < 0:
            return f"ended: the disk is nearly full ({size_text(_free(disk))} left)"
        if disk.f_files and disk.f_favail < self._reserve_files:  # btrfs counts no files
            return f"ended: the disk has nearly no room for more files ({disk.f_favail} left)"
        return None

    def _size_text(self, disk: os.statvfs_result) -> str | None:
        """Measure only when the changes may have grown over the limit, as far as the whole disk tells."""
        limit, now = self._limits.disk, time.monotonic()
        if limit is None or now < self._not_before:
            return None
        if self._size + max(0, _used(disk) - self._used) <= limit and now < self._measure_at:
            return None
        measured = self.measured()
        if measured is None:
            return None
        self._size, self._used, cost = int(measured[0]), int(measured[1]), measured[2]
        done = time.monotonic()
        self._not_before = done + _SHARE * cost
        self._measure_at = done + min(_MEASURE_LATEST, max(self.again, _AGAIN * cost))
        if self._size <= limit:
            return None
        return f"ended: its changes take more than {size_text(limit)} of disk (--disk)"

    def measure(self) -> Numbers:
        """Bytes of the changes, bytes taken of the disk just before, and the seconds that this took."""
        began, used = time.monotonic(), _used(os.statvfs(self._place))
        size = size_of_changes(self._place) + sum(map(_size_of_guest, self._guests()))
        return size, used, time.monotonic() - began

    def _guests(self) -> list[str]:
        """Directories of the workspaces that the run has opened beside its own."""
        place = WorkspaceLayout(self._place)
        try:
            ids = read_bytes(place.guests).decode().split()
        except FileNotFoundError:
            return []
        return [f"{os.path.dirname(place.root)}/{one}" for one in ids]

    def _memory(self, limit: int) -> int:
        """Memory of all processes; of what they share each one's part, where that makes a difference."""
        resident = sum(map(_resident, _tree(self._keeper)))
        shared = self.shared() if resident > limit else (resident,)
        return 0 if shared is None else int(shared[0])

    def share(self) -> Numbers:
        """Bytes of memory of all processes; of what they share each one's part."""
        return (sum(map(_proportional, _tree(self._keeper))),)


def _blocks(count: int, disk: os.statvfs_result) -> int:
    return count * disk.f_frsize


def _free(disk: os.statvfs_result) -> int:
    return _blocks(disk.f_bavail, disk)


def _used(disk: os.statvfs_result) -> int:
    return _blocks(disk.f_blocks - disk.f_bfree, disk)


def _size_of_guest(place: str) -> int:
    try:
        return size_of_changes(place)
    except FileNotFoundError:  # the user removed it
        return 0


def size_of_changes(place: str) -> int:
    """Bytes of a workspace's directory, less those of a whole tree as it was made. Raises OSError."""
    try:
        made = int(read_bytes(f"{WorkspaceLayout(place).whole}/size"))
    except (FileNotFoundError, ValueError):
        made = 0
    return max(0, size_on_disk(place) - made)


def size_on_disk(place: str) -> int:
    """Bytes that the files below a directory take; a file with many names counts once.

    Goes by descriptors and follows no link: a run may be swapping directories meanwhile. Where it moves one
    away under the walk the count ends early; the next one begins anew. Raises OSError for `place` alone.
    """
    fd = os.open(place, _DIRECTORY)
    total = 0
    levels: list[tuple[tuple[int, int], list[str]]] = []
    while fd >= 0:
        size, below = _listed(fd)
        total += size
        levels.append((_identity(fd), below))
        fd = _next(fd, levels)
    return total


def _next(fd: int, levels: list[tuple[tuple[int, int], list[str]]]) -> int:
    """The next directory that is not listed yet, with `fd` closed; -1 after the last, or if one was moved."""
    while levels and levels[-1][0] == _identity(fd):
        below = levels[-1][1]
        found = _opened(below.pop(), fd) if below else None
        if found is not None:
            os.close(fd)
            return found
        if not below:
            levels.pop()
            above = _opened("..", fd)
            if above is None:
                break
            os.close(fd)
            fd = above
    os.close(fd)
    return -1


def _listed(fd: int) -> tuple[int, list[str]]:
    """Size of what lies in a directory, and names of the directories in it."""
    total, below = 0, []
    for entry in _entries(fd):
        total += _size_of(entry)
        if entry.is_dir(follow_symlinks=False):
            below.append(entry.name)
    return total, below


def _entries(fd: int) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(fd) as entries:
            yield from entries
    except OSError:  # not to be read, or gone at this moment
        pass


def _size_of(entry: os.DirEntry[str]) -> int:
    try:
        info = entry.stat(follow_symlinks=False)
    except OSError:  # gone since it was listed
        return 0
    # All names of a file lie in one upper: link(2) makes none across mounts.
    names = 1 if entry.is_dir(follow_symlinks=False) else max(1, info.st_nlink)
    return info.st_blocks * 512 // names


def _opened(name: str, fd: int) -> int | None:
    try:
        return os.open(name, _DIRECTORY, dir_fd=fd)
    except OSError:  # gone, or no directory any more
        return None


def _identity(fd: int) -> tuple[int, int]:
    info = os.fstat(fd)
    return info.st_dev, info.st_ino


def _tree(root: int) -> Iterator[int]:
    """Processes below `root`; orphans of the sandbox are children of its pid 1 (pid_namespaces(7))."""
    listed = os.path.exists("/proc/thread-self/children")
    children = _children if listed else _by_parent()
    waiting = [root]
    while waiting:
        below = children(waiting.pop())
        waiting += below
        yield from below


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            found += map(int, _read(f"/proc/{pid}/task/{thread}/children").split())
    except OSError:  # it ended meanwhile
        pass
    return found


def _by_parent() -> Callable[[int], list[int]]:
    """The same where the kernel lists no children (CONFIG_PROC_CHILDREN): every process names its parent."""
    found: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            parent = int(_read(f"/proc/{name}/stat").rpartition(b")")[2].split()[1])
        except (OSError, IndexError):  # it ended meanwhile
            continue
        found.setdefault(parent, []).append(int(name))
    return lambda pid: found.get(pid, [])


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 1 << 16)
    finally:
        os.close(fd)


def _resident(pid: int) -> int:
    try:
        return int(_read(f"/proc/{pid}/statm").split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def _proportional(pid: int) -> int:
    try:
        lines = _read(f"/proc/{pid}/smaps_rollup").splitlines()
    except OSError:  # it ended, or hides what it has
        return _resident(pid)
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(b"Pss:")), 0)


class Watcher:
    """The process that looks. It orders the keeper to kill every process, and then says why.

    orders: descriptor of the keeper's orders. userns: of the sandbox's user namespace, in which no mode keeps
    it out of a directory. The caller has a single thread.
    """

    __slots__ = ("_pid", "_reports")

    def __init__(self, watchdog: Watchdog, orders: int, userns: int) -> None:
        self._reports, write = os.pipe()
        supervisor = os.getpid()  # the child may begin after its death
        self._pid = syscalls.clone(0)  # half a megabyte less than by os.fork
        if self._pid == 0:
            _watch(watchdog, supervisor, orders, userns, write)
        os.close(write)

    def end(self) -> str | None:
        """Stop looking; why the run was ended, None if it was not."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        text = os.read(self._reports, 1 << 12)  # the other end died with it
        os.close(self._reports)
        return text.decode("utf-8", "replace") or None


def _watch(watchdog: Watchdog, supervisor: int, orders: int, userns: int, report: int) -> NoReturn:
    try:
        close_all_but({0, 1, 2, orders, userns, report})
        syscalls.prctl(abi.PR_SET_DUMPABLE, 0)
        if os.geteuid():  # root reads every directory as it is
            syscalls.setns(userns, abi.CLONE_NEWUSER)
        # After the join: new credentials clear the signal (prctl(2), PR_SET_PDEATHSIG).
        namespaces.die_with_parent()
        while os.getppid() == supervisor:
            reason = reason_to_end(watchdog)
            if reason is not None:
                os.write(report, reason.encode("utf-8", "surrogateescape"))
                os.write(orders, b"%s0\n" % keeper.KILL)
                break
            time.sleep(watchdog.interval)
    finally:
        os._exit(0)


def reason_to_end(watchdog: Watchdog) -> str | None:
    """What a look finds; a watchdog that can't look is a reason too."""
    try:
        return watchdog.look()
    except OSError as err:
        return f"ended: nobody can look after the disk: {err}"


def close_all_but(kept: Iterable[int]) -> None:
    """Of what the supervisor holds (locks, sockets, other ends of pipes) nothing may live on here."""
    last = 2
    for fd in sorted(kept):
        if fd > last + 1:  # Python 3.11 takes an empty range at 0 for all there are
            os.closerange(last + 1, fd)
        last = max(last, fd)
    os.closerange(last + 1, os.sysconf("SC_OPEN_MAX"))
