"""Rows about the reconciler: landing, the gate, the forecast, the start of a check's workspace."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

from _bench_inside import path_of, text_of
from _bench_measure import Figure, Lane, Race, amount, faster, times
from _bench_world import World

_LANDED: Final = 100
_FILES: Final = 10
_FASTER: Final = 1.6
_GATED: Final = 60
_BAD: Final = (11, 29, 47)
_CHECK: Final = "sleep 2; ! ls bad-* 2>/dev/null"
_CLASHING: Final = 50
_CLASHES: Final = 20
_CAREFUL: Final = 10  # seconds that a forecast may take
_ROUNDS: Final = 20  # of checks


@contextmanager
def _branches(world: World, size: int, count: int, change: Callable[[int], str]) -> Iterator[str]:
    """A repository with idle branches b0, b1, …, each with what a shell command did; HEAD is detached."""
    place = world.repository(size)
    for number in range(count):
        words = ("-q", "-b", f"b{number}", "--dirty", "ignore", "--into", "main")
        world.run(world.ours(*words, "--", "sh", "-c", change(number)), place)
    world.git(place, "checkout", "-q", "--detach", "main")
    try:
        yield place
    finally:
        world.git(place, "checkout", "-q", "main")
        for number in range(count):
            world.drop(place, f"b{number}")
        world.remove(f"{place}/.git/overlayrun/checks")
        world.tidy(place)


def _edit(number: int, files: int, size: int) -> str:
    """A shell command that writes `files` files of its own."""
    first = number * files
    paths = " ".join(path_of((first + each) % size) for each in range(files))
    return f"for path in {paths}; do echo {number} >> $path; done"


class _Start:
    """Where the target stood, to go back there."""

    def __init__(self, world: World, place: str) -> None:
        self._world, self._place = world, place
        self.main = world.git(place, "rev-parse", "main")

    def again(self) -> None:
        listed = self._world.git(self._place, "for-each-ref", "--format=%(refname)", "refs/overlayrun/queue")
        lines = [f"delete {ref}\n" for ref in listed.split("\n") if ref]
        data = "".join([*lines, f"update refs/heads/main {self.main}\n"])
        self._world.git(self._place, "update-ref", "--stdin", data=data)
        for name in ("checks", "forecast.json"):
            self._world.remove(f"{self._place}/.git/overlayrun/{name}")


@contextmanager
def landing(world: World, sizes: Sequence[int]) -> Iterator[Race]:
    """A hundred clean branches, beside three git processes for each, at all sizes in the same rounds."""
    lanes: list[Lane] = []
    figures: list[Figure] = []
    with ExitStack() as stack:
        for size in sizes:
            change = functools.partial(_edit, files=_FILES, size=size)
            place = stack.enter_context(_branches(world, size, _LANDED, change))
            ours, peer = f"overlayrun reconcile {size:,}", f"three git processes a branch {size:,}"
            lanes += _landing_lanes(world, place, ours, peer)
            what = f"{_LANDED} branches of {_FILES} files landed"
            figures.append(faster(what, f"{size:,}", ours, peer, _FASTER if size == sizes[0] else None))
        if len(sizes) > 1:
            names = [f"overlayrun reconcile {size:,}" for size in (sizes[-1], sizes[0])]
            figures.append(times("the same, flat", f"{sizes[0]:,} to {sizes[-1]:,}", *names, 1.3))
        yield Race(lanes, figures, heavy=True)


def _landing_lanes(world: World, place: str, ours: str, peer: str) -> list[Lane]:
    start = _Start(world, place)

    def reconcile(_: int) -> Mapping[str, float]:
        spent = world.run(world.ours("reconcile", "--into", "main"), place)
        assert spent.output.count(b" is merged") == _LANDED, spent.output[-500:]
        start.again()
        return spent.named(ours)

    def by_git(_: int) -> Mapping[str, float]:
        spent = world.run(["/bin/sh", "-c", _script(start.main)], place)
        start.again()
        return spent.named(peer)

    return [reconcile, by_git]


def _script(main: str) -> str:
    """The same merges by git alone: merge-tree, commit-tree, update-ref."""
    return f"""
        set -e
        at={main}
        for number in $(seq 0 {_LANDED - 1}); do
            tree=$(git merge-tree --write-tree $at b$number)
            new=$(git commit-tree -p $at -p b$number -m "Merge branch 'b$number'" $tree)
            git update-ref refs/heads/main $new $at
            at=$new
        done"""


@contextmanager
def gate(world: World, size: int) -> Iterator[Race]:
    """Sixty branches of which one in twenty fails, two checks at a time."""

    def change(number: int) -> str:
        return f"touch bad-{number}" if number in _BAD else _edit(number, 1, size)

    with _branches(world, size, _GATED, change) as place:
        start = _Start(world, place)
        ours = "overlayrun reconcile --check"

        def reconcile(_: int) -> Mapping[str, float]:
            words = ("reconcile", "--into", "main", "--slots", "2", "--check", _CHECK)
            argv = ["/bin/sh", "-c", '"$@"; test $? = 1', "sh", *world.ours(*words)]  # some stay behind
            spent = world.run(argv, place)
            landed, failed = spent.output.count(b" is merged"), spent.output.count(b" goes back")
            assert (landed, failed) == (_GATED - len(_BAD), len(_BAD)), spent.output[-500:]
            start.again()
            return {ours: spent.wall / 2000}

        what = f"{_GATED} branches, {len(_BAD)} bad, check of 2 s, 2 slots"
        yield Race([reconcile], [amount(what, f"{size:,}", ours, "checks' time", _ROUNDS)], heavy=True)


@contextmanager
def foreseen(world: World, size: int) -> Iterator[Race]:
    """Fifty branches that all change the same twenty files, against main and each other."""
    paths = " ".join(path_of(number) for number in range(_CLASHES))

    def change(number: int) -> str:
        return f"for path in {paths}; do echo {number} >> $path; done"

    with _branches(world, size, _CLASHING, change) as place:
        start = _Start(world, place)
        ours = "overlayrun conflicts"

        def conflicts(_: int) -> Mapping[str, float]:
            argv = ["/bin/sh", "-c", '"$@"; test $? = 1', "sh", *world.ours("conflicts", "--into", "main")]
            spent = world.run(argv, place)
            pairs = _CLASHING * (_CLASHING - 1) // 2
            assert len(spent.output.splitlines()) == pairs + 1, spent.output[-500:]
            start.again()
            return {ours: spent.wall / 1000}

        what = f"forecast of {_CLASHING} branches, {_CLASHES} common files"
        figure = amount(what, f"{size:,}", ours, "s", _CAREFUL)
        yield Race([conflicts], [figure], heavy=True)


@contextmanager
def check(world: World, size: int) -> Iterator[Race]:
    """From a candidate that nobody has seen before to its check's first instruction, and out again."""
    place = world.repository(size)
    ours = f"workspace of a check {size:,}"

    def lane(number: int) -> Mapping[str, float]:
        content = text_of(number) + f"{os.getpid()} {number}\n"
        blob = world.git(place, "hash-object", "-w", "--stdin", data=content)
        index = f"{world.root}/index"
        update = f"GIT_INDEX_FILE={index} git read-tree main && GIT_INDEX_FILE={index} git update-index"
        script = f"{update} --cacheinfo 100644,{blob},{path_of(0)} && GIT_INDEX_FILE={index} git write-tree"
        tree = world.run(["/bin/sh", "-c", script], place).output.decode().strip()
        commit = world.git(place, "commit-tree", "-p", "main", "-m", "Candidate", tree)
        words = ("--rm", "-q", "--base", commit, "--dirty", "ignore", "--", "true")
        return world.run(world.ours(*words), place).named(ours)

    yield Race([lane], [_start_figure(size, ours)])


def _start_figure(size: int, ours: str) -> Figure:
    return amount("start of a check's workspace", f"{size:,}", ours, "ms", 100)
