"""Rows about branches as folders: a walk of one beside a walk of the plain tree."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from _bench_measure import Lane, Race, times
from _bench_world import World

_BRANCH = "walked"
_COLD, _WARM, _PLAIN = "first walk of a branch folder", "next walk of it", "walk of the plain tree"


@contextmanager
def walk(world: World, size: int) -> Iterator[Race]:
    """Every file of a branch's folder looked at with lstat(2), by a file system that was opened just now."""
    place = world.repository(size)
    shown = f"{world.home}/folders"
    os.makedirs(shown, exist_ok=True)

    def opened() -> None:
        world.run(world.ours("open", shown), place)

    def closed() -> None:
        world.run(world.ours("open", "--stop"), place)

    def in_folder(_: int) -> dict[str, float]:
        closed()
        opened()
        os.listdir(f"{shown}/branches/{_BRANCH}")  # the tree is mounted; what is in it nobody saw
        return {_COLD: _walked(f"{shown}/branches/{_BRANCH}"), _WARM: _walked(f"{shown}/branches/{_BRANCH}")}

    lanes: list[Lane] = [in_folder, lambda _: {_PLAIN: _walked(place)}]
    opened()
    try:
        os.mkdir(f"{shown}/branches/{_BRANCH}")
        files = f"{size:,}"
        yield Race(
            lanes,
            [
                times("first walk and stat of a branch folder", files, _COLD, _PLAIN, 8),
                times("next walk and stat of a branch folder", files, _WARM, _PLAIN, 8),
            ],
            heavy=True,
        )
    finally:
        closed()
        world.drop(place, _BRANCH)


def _walked(top: str) -> float:
    """Milliseconds that a walk takes, less .git."""
    began = time.perf_counter()
    for directory, names, files in os.walk(top):
        if directory == top:
            names[:] = [name for name in names if name != ".git"]
        for name in [*names, *files]:
            os.lstat(f"{directory}/{name}")
    return (time.perf_counter() - began) * 1000
