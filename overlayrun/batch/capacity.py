"""How many attempts this machine can take now, by memory and disk."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from overlayrun.batch.task import Task
from overlayrun.batch.window import Room, claim_of
from overlayrun.errors import HostError
from overlayrun.kernel.mountinfo import mounts
from overlayrun.process import memory_available

RESERVE: Final = 256 << 20
"""Bytes of memory, and of disk, that are left to others."""
_LIMITS: Final = (
    # Files of limit and use, and the row of memory.stat with what can be dropped at once: v2, v1.
    # Source: Documentation/admin-guide/cgroup-v2.rst, "Memory Interface Files"; cgroup-v1/memory.rst, 5.2.
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


class Capacity:
    """What is left of this machine for attempts whose files lie in `directory`.

    Made while nothing of the batch runs: what there is then is shared out, because an agent that began a
    moment ago has not yet taken what it asked for.
    """

    def __init__(self, directory: str, reserve: int = RESERVE) -> None:
        self._directory = directory
        self._reserve = reserve
        self._memory = free_memory() - reserve

    def room(self, running: Sequence[Task]) -> Room:
        """What attempts to come may take. running: what goes on now.

        Raises HostError where the disk is below the reserve and nothing runs whose end could change that.
        """
        disk = self._disk()
        if disk < 0 and not running:
            raise HostError(
                f"less than {self._reserve >> 20} MiB of disk are left for a batch: {self._directory}",
                hint="make room: overlayrun gc; or: export OVERLAYRUN_STATE_DIR=DIRECTORY-ON-ANOTHER-DISK",
            )
        claims = [claim_of(task) for task in running]
        shared = self._memory - sum(claim.memory or 0 for claim in claims)
        memory = min(shared, free_memory() - self._reserve)
        return Room(memory, disk - sum(claim.disk or 0 for claim in claims))

    def _disk(self) -> int:
        info = os.statvfs(self._directory)
        return info.f_bavail * info.f_frsize - self._reserve


def free_memory() -> int:
    """Bytes that this machine, or the container around us, has left, whichever is less."""
    return min([memory_available(), *map(_left, _groups())], default=0)


def _groups() -> Iterator[Path]:
    """Directories of our control group and of those above it, as far as they can be seen."""
    rows = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    own = {name: path for _, names, path in rows for name in names.split(",")}
    for mount in mounts():
        name = "" if mount.fstype == "cgroup2" else "memory"
        is_ours = name in own and (not name or name in mount.options.split(","))
        if not mount.fstype.startswith("cgroup") or not is_ours:
            continue
        top = Path(mount.place)
        place = top / own[name].removeprefix(mount.root).lstrip("/")
        yield from (each for each in (place, *place.parents) if each.is_relative_to(top))


def _left(group: Path) -> int:
    """Bytes below the limit of a group; no limit is as much as there can be."""
    for limit, use, dropped in _LIMITS:
        try:
            most = (group / limit).read_text().strip()
            if most == "max":
                break
            rows = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            return int(most) - int((group / use).read_text()) + int(rows.get(dropped, 0))
        except (OSError, ValueError):
            continue
    return 1 << 62
