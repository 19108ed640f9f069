"""What overlayrun is measured beside, as command lines and lanes."""

from __future__ import annotations

import itertools
import os
import shutil
from typing import Final

from _bench_measure import Lane, Spent
from _bench_world import World

WARM: Final = ("--rm", "--dirty", "ignore", "--", "true")
LARGE: Final = 100_000  # files: the size that most bounds are set for
_numbers = itertools.count()


def timed(world: World, name: str, argv: list[str], cwd: str) -> Lane:
    return lambda _: world.run(argv, cwd).named(name)


def branch_of(number: int) -> str:
    return f"bench-{number + 1}"


def floor_command(world: World, size: int, *command: str) -> list[str]:
    """The floor's command line, for one use: a volatile overlay takes no work directory twice."""
    upper, work = f"{world.scrap}/upper", f"{world.scrap}/work-{next(_numbers)}"
    os.makedirs(upper, exist_ok=True)
    os.mkdir(work)
    program = [world.python, "-I", "-S", "-E", f"{world.root}/_bench_floor.py"]
    return [*program, world.repository(size), upper, work, *command]


def floor_lane(world: World, name: str, size: int) -> Lane:
    return lambda _: world.run(floor_command(world, size, "true"), world.root).named(name)


def bwrap_command(world: World, size: int) -> tuple[str, list[str]] | None:
    """Bwrap's nearest to a copy-on-write workspace: its overlay (0.11 and newer), else namespaces alone."""
    if shutil.which("bwrap") is None:
        return None
    place = world.repository(size)
    common = ["bwrap", "--dev-bind", "/", "/", "--unshare-pid", "--unshare-ipc", "--proc", "/proc"]
    if b"--tmp-overlay" in world.run(["bwrap", "--help"], place).output:
        return f"bwrap overlay {size:,}", [*common, "--overlay-src", place, "--tmp-overlay", place, "true"]
    return f"bwrap, no overlay {size:,}", [*common, "true"]


def commit_all(world: World, place: str) -> Spent:
    """What `git add -A && git commit` costs in a checkout."""
    added = world.run(["git", "add", "-A"], place)
    committed = world.run(["git", "commit", "-q", "-m", "Change"], place)
    return Spent(added.wall + committed.wall, added.cpu + committed.cpu, b"", committed.ended)
