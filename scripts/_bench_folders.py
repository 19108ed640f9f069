"""Rows about branches as folders: made, walked, and written until a snapshot has it all."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from _bench_measure import BenchError, Lane, Race, amount, times
from _bench_world import World

_BRANCH: Final = "walked"
_COLD, _WARM, _PLAIN = "first walk of a branch folder", "next walk of it", "walk of the plain tree"
_MADE, _WRITTEN = "mkdir of a branch folder until it is listed", "1,000 files until a snapshot has them"
_FILES: Final = 1000
_LONGEST: Final = 60  # seconds


class _Folders:
    """The folders of a repository, open or not."""

    def __init__(self, world: World, size: int) -> None:
        self.world = world
        self.place = world.repository(size)
        self.shown = f"{world.home}/folders"
        os.makedirs(self.shown, exist_ok=True)

    def open(self) -> None:
        self.world.run(self.world.ours("open", self.shown), self.place)

    def close(self) -> None:
        self.world.run(self.world.ours("open", "--stop"), self.place)

    def branch(self, name: str) -> str:
        return f"{self.shown}/branches/{name}"


@contextmanager
def walk(world: World, size: int) -> Iterator[Race]:
    """Every file of a branch's folder looked at with lstat(2), by a file system that was opened just now."""
    folders = _Folders(world, size)

    def in_folder(_: int) -> dict[str, float]:
        folders.close()
        folders.open()
        os.listdir(folders.branch(_BRANCH))  # the tree is mounted; what is in it nobody saw
        return {_COLD: _walked(folders.branch(_BRANCH)), _WARM: _walked(folders.branch(_BRANCH))}

    lanes: list[Lane] = [in_folder, lambda _: {_PLAIN: _walked(folders.place)}]
    folders.open()
    try:
        os.mkdir(folders.branch(_BRANCH))
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
        folders.close()
        world.drop(folders.place, _BRANCH)


@contextmanager
def write(world: World, size: int) -> Iterator[Race]:
    """mkdir(2) of a branch until its files are listed; then files written until git's branch has them all."""
    folders = _Folders(world, size)

    def lane(turn: int) -> dict[str, float]:
        name = f"written-{turn}"
        place = folders.branch(name)
        began = time.perf_counter()
        os.mkdir(place)
        os.listdir(place)
        made = time.perf_counter()
        os.mkdir(f"{place}/new")
        for number in range(_FILES):
            with open(f"{place}/new/{number}", "w", encoding="ascii") as file:
                file.write(f"{number}\n")
        while _count(world, folders.place, name) < _FILES:
            if time.perf_counter() - made > _LONGEST:
                raise BenchError("what was written did not come into a snapshot")
        spent = {_MADE: (made - began) * 1000, _WRITTEN: (time.perf_counter() - made) * 1000}
        world.drop(folders.place, name)
        return spent

    folders.open()
    try:
        files = f"{size:,}"
        yield Race(
            [lane],
            [amount(_MADE, files, _MADE, "ms", 100), amount(_WRITTEN, files, _WRITTEN, "ms", 3000)],
            heavy=True,
        )
    finally:
        folders.close()


def _count(world: World, place: str, branch: str) -> int:
    listed = world.git(place, "ls-tree", "-r", "--name-only", branch, "new/")
    return len(listed.splitlines())


def _walked(top: str) -> float:
    """Milliseconds that a walk takes, less .git."""
    began = time.perf_counter()
    for directory, names, files in os.walk(top):
        if directory == top:
            names[:] = [name for name in names if name != ".git"]
        for name in [*names, *files]:
            os.lstat(f"{directory}/{name}")
    return (time.perf_counter() - began) * 1000
