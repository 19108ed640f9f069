"""A control group of a run's own: its processes are limited, counted, stopped and killed together.

Source: Documentation/admin-guide/cgroup-v2.rst; cgroup-v1/memory.rst, pids.rst, freezer-subsystem.rst.
"""

from __future__ import annotations

import errno
import os
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any, Final, NoReturn, Self, TypeAlias

    # Limits by name: "memory" in bytes, "pids" in tasks, "cpu" in processors' worth of time.
    Wanted: TypeAlias = Mapping[str, float]

UNIFIED: Final = ""  # name of the v2 tree among the controllers' names, as in /proc/PID/cgroup
_PERIOD: Final = 100_000  # microseconds, the kernel's own default
_LEAST_QUOTA: Final = 1_000  # microseconds; the kernel refuses less
_PATIENCE: Final = 2.0  # seconds until a stopped group has stopped, or a killed one is empty
_STEP: Final = 0.002
_SETTINGS_V2: Final = {
    # The second of memory's: else what is above the limit moves to the swap, and the machine with it.
    "memory": (("memory.max", "{0:.0f}"), ("memory.swap.max?", "0")),
    "pids": (("pids.max", "{0:.0f}"),),
    # A weight of 33 and shares of 335 are what nice 5 is to a single process.
    "cpu": (("cpu.max", "{1} 100000"), ("cpu.weight", "33")),
}
_SETTINGS_V1: Final = {
    "memory": (("memory.limit_in_bytes", "{0:.0f}"), ("memory.memsw.limit_in_bytes?", "{0:.0f}")),
    "pids": (("pids.max", "{0:.0f}"),),
    "cpu": (("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "{1}"), ("cpu.shares", "335")),
}


class Group:
    """One directory in each tree that the run needs; a context manager that removes them.

    places: directories by controller, `UNIFIED` for the v2 tree. held: names of the limits that it keeps.
    undo: (file, text) to write and directories to remove, in order, once it is gone.
    """

    __slots__ = ("_thawer", "held", "places", "undo")

    def __init__(self, places: Mapping[str, str], held: Sequence[str] = ()) -> None:
        self.places = dict(places)
        self.held = tuple(held)
        self.undo: list[tuple[str, str | None]] = []
        self._thawer: tuple[int, int] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def version(self) -> str:
        """The kind of tree that keeps the limits."""
        return "v1" if self.places.keys() - {UNIFIED} else "v2"

    def to_json(self) -> dict[str, Any]:
        """Plain values for another process of this user, which joins by `cgroups.enter_group_of`."""
        return {"places": self.places, "held": self.held}

    def add(self, pid: int) -> None:
        """Move a process in; raises OSError where it is not ours to move."""
        for place in self._directories():
            write(f"{place}/cgroup.procs", str(pid))

    def limit(self, wanted: Wanted) -> None:
        """Set limits; raises OSError where one can't be set."""
        for name, value in wanted.items():
            table, place = (
                (_SETTINGS_V1, self.places[name])
                if name in self.places
                else (_SETTINGS_V2, self.places[UNIFIED])
            )
            quota = max(_LEAST_QUOTA, round(value * _PERIOD))
            for setting, text in table[name]:
                _set(f"{place}/{setting}", text.format(value, quota))

    @property
    def can_freeze(self) -> bool:
        """Whether `freeze` has a tree to work with."""
        return UNIFIED in self.places or "freezer" in self.places

    def freeze(self, *, frozen: bool) -> None:
        """Stop every process, or let them go on, and wait until it is so, for two seconds at most.

        They go on as well when this process dies: what is frozen in the v2 tree can still be killed, and for
        the v1 tree, where it can't, a child stands by.
        """
        if UNIFIED in self.places:
            place = self.places[UNIFIED]
            write(f"{place}/cgroup.freeze", str(int(frozen)))
            _wait(lambda: row(f"{place}/cgroup.events", "frozen") == int(frozen))
            return
        state = f"{self.places['freezer']}/freezer.state"
        word = "FROZEN" if frozen else "THAWED"
        if frozen and self._thawer is None:
            self._thawer = _stand_by(state)
        write(state, word)
        _wait(lambda: read(state).strip() == word)
        if not frozen and self._thawer is not None:
            pid, alive = self._thawer
            self._thawer = None
            os.close(alive)
            os.waitpid(pid, 0)

    def kill(self) -> None:
        """Kill every process in it, stopped or not; raises OSError where it is gone."""
        killer = f"{self.places.get(UNIFIED, '')}/cgroup.kill"
        if os.path.exists(killer):  # since Linux 5.14
            return write(killer, "1")
        if self.can_freeze:
            self.freeze(frozen=False)
        for place in self._directories():
            for pid in read(f"{place}/cgroup.procs").split():
                _kill(int(pid))
        return None

    def events(self) -> tuple[int, int]:
        """How many processes were killed for memory, and how many could not be made for their number."""
        unified = self.places.get(UNIFIED, "")
        memory = self.places.get("memory")
        killed = f"{memory}/memory.oom_control" if memory else f"{unified}/memory.events"
        refused = f"{self.places.get('pids', unified)}/pids.events"
        return row(killed, "oom_kill"), row(refused, "max")

    def close(self) -> None:
        """Kill what is left and remove the group; one that will not empty is left to the next run."""
        _wait(self._is_removed)
        for path, text in self.undo:
            try:
                os.rmdir(path) if text is None else write(path, text)
            except OSError:  # another run's group lies beside ours and needs it
                pass

    def _is_removed(self) -> bool:
        try:
            self.kill()
        except OSError:  # one of its directories is gone already
            pass
        return all(_is_gone(place) for place in self._directories())

    def _directories(self) -> Iterator[str]:
        yield from dict.fromkeys(self.places.values())


def group_of(data: Mapping[str, Any]) -> Group:
    """The group of another process, from its `to_json`; for `add` alone."""
    return Group(data["places"], data["held"])


def read(path: str) -> str:
    """A file of a tree."""
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def write(path: str, text: str) -> None:
    """Write to a file of a tree in one piece; raises OSError with the path."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as err:
        raise OSError(err.errno, err.strerror, path) from err


def row(path: str, name: str) -> int:
    """The number in a line `name number` of a file; 0 without one."""
    try:
        words = [line.split(" ") for line in read(path).splitlines()]
    except OSError:
        return 0
    return next((int(line[1]) for line in words if line[0] == name), 0)


def _set(path: str, text: str) -> None:
    """Set a limit and see that it is set; a path that ends in `?` may be missing."""
    optional = path.endswith("?")
    path = path.rstrip("?")
    if optional and not os.path.exists(path):
        return
    write(path, text)


def _wait(is_true: Callable[[], bool]) -> bool:
    end = time.monotonic() + _PATIENCE
    while not is_true():
        if time.monotonic() > end:
            return False
        time.sleep(_STEP)
    return True


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _is_gone(place: str) -> bool:
    try:
        os.rmdir(place)
    except OSError as err:
        return err.errno == errno.ENOENT
    return True


def _stand_by(state: str) -> tuple[int, int]:
    """A child that thaws when this process dies; its pid, and the descriptor that keeps it waiting."""
    read_end, alive = os.pipe()
    pid = os.fork()
    if pid == 0:
        _thaw_after(read_end, alive, state)
    os.close(read_end)
    return pid, alive


def _thaw_after(read_end: int, alive: int, state: str) -> NoReturn:
    try:
        os.setsid()  # what ends the supervisor's process group does not end this
        os.close(alive)
        os.read(read_end, 1)
        write(state, "THAWED")
    finally:
        os._exit(0)
