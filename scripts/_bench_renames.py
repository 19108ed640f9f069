"""Rows about directory renames: what one costs, and that every rename is looked at before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from _bench_measure import BenchError, Figure, Lane, Race, amount, more, note, times
from _bench_world import World

_WITHOUT: Final = ("--without", "renames")
_DIRECTORY: Final = """
import json, os, time
began = time.perf_counter_ns()
os.rename("part000", "renamed")
print(json.dumps([(time.perf_counter_ns() - began) / 1e6]))
"""


@contextmanager
def looked_at(world: World, size: int) -> Iterator[Race]:
    """Work that renames files, with each rename looked at and without."""
    loads = {
        "git rebase of 50 commits": (world.inside("rebase", "50"), 1.1),
        "compile-like load": (world.inside("compile", str(size)), None),
    }
    if shutil.which("npm"):
        loads["npm install of 40 tarballs"] = (world.inside("npm", "40"), 1.1)
    else:
        note("  no npm here: its row is left out")
    lanes: list[Lane] = []
    figures: list[Figure] = []
    for load, (program, limit) in loads.items():
        ours, peer = f"{load}, renames looked at", f"{load}, not looked at"
        lanes += [_lane(world, ours, (), program, size), _lane(world, peer, _WITHOUT, program, size)]
        figures.append(times(f"{load}, renames looked at", f"{size:,}", ours, peer, limit))
    one, plain, whole = "a file, looked at (µs)", "a file, not looked at (µs)", "a directory of the base"
    program = world.inside("rename", "2000")
    lanes += [_lane(world, one, (), program, size), _lane(world, plain, _WITHOUT, program, size)]
    figures.append(more("rename of a file, in µs instead of ms", f"{size:,}", one, plain))
    lanes.append(_lane(world, whole, (), ["python3", "-c", _DIRECTORY], size))
    figures.append(amount("rename of a base directory with up to 2,500 files", f"{size:,}", whole, "ms"))
    yield Race(lanes, figures, heavy=True)


def _lane(world: World, name: str, options: tuple[str, ...], program: list[str], size: int) -> Lane:
    """A lane whose program prints its own times; the smallest counts."""
    place = world.repository(size)
    command = world.ours("--rm", "--dirty", "ignore", *options, "--", *program)

    def lane(_: int) -> Mapping[str, float]:
        spans = json.loads(world.run(command, place).output)
        if not spans:
            raise BenchError(f"{name}: nothing was measured")
        return {name: min(spans)}

    return lane
