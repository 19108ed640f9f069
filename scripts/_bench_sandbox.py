"""Rows about what the sandbox's layers cost: at the start, and while a compiler works behind them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from _bench_measure import BenchError, Figure, Lane, Race, more, note, times
from _bench_peers import WARM, timed
from _bench_world import World

_UNITS: Final = 150  # C files
_FILTERS: Final = ("seccomp", "landlock")  # what stands in the way of each system call


def without(*layers: str) -> list[str]:
    """Run options that switch layers off."""
    return [word for layer in layers for word in ("--without", layer)]


@contextmanager
def layers(world: World, size: int) -> Iterator[Race]:
    """Warm start with every layer beside the same without all that can be switched off."""
    place = world.repository(size)
    program = "from overlayrun.sandbox.switches import LAYERS; print(*LAYERS)"
    names = world.run([f"{world.home}/venv/bin/python", "-c", program], place).output.decode().split()
    ours, peer = "all layers", "without those that can go"
    lanes = [
        timed(world, ours, world.ours(*WARM), place),
        timed(world, peer, world.ours(*without(*names), *WARM), place),
    ]
    yield Race(lanes, [more("warm start, the layers' share", f"{size:,}", ours, peer, 15)])


@contextmanager
def compiling(world: World, size: int) -> Iterator[Race]:
    """Work behind the system call filter and Landlock beside the same overlay without these two."""
    loads = {"compile-like load": world.inside("compile", str(size))}
    if shutil.which("gcc") and shutil.which("make"):
        loads[f"gcc of {_UNITS} files, make -j2"] = world.inside("make", str(_UNITS))
    else:
        note("  no gcc and make here: the compile-like load alone is measured")
    lanes: list[Lane] = []
    figures: list[Figure] = []
    for load, program in loads.items():
        ours, peer = f"{load}, all layers", f"{load}, without filters"
        lanes.append(_reported(world, ours, (), program, size))
        lanes.append(_reported(world, peer, _FILTERS, program, size))
        figures.append(times(f"{load}, filters on", f"{size:,}", ours, peer, 1.3))
    yield Race(lanes, figures)


def _reported(world: World, name: str, off: tuple[str, ...], program: list[str], size: int) -> Lane:
    """A lane whose program prints its own milliseconds."""
    place = world.repository(size)
    command = world.ours("--rm", "--dirty", "ignore", *without(*off), "--", *program)

    def lane(_: int) -> Mapping[str, float]:
        spans = json.loads(world.run(command, place).output)
        if not spans:
            raise BenchError(f"{name}: nothing was measured")
        return {name: min(spans)}

    return lane
