"""Rows about a run that is on its way or ends: snapshots, memory, work inside, the way back to the prompt."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Final

from _bench_inside import edit
from _bench_live import Live
from _bench_measure import Figure, Lane, Race, amount, faster, more, times
from _bench_peers import LARGE, branch_of, commit_all, floor_command
from _bench_world import World

_SNAPSHOT_BOUNDS: Final[Mapping[tuple[int, int], float]] = {
    (10_000, 10): 6,
    (100_000, 10): 30,
    (100_000, 1000): 3,
}


@contextmanager
def snapshot(world: World, size: int) -> Iterator[Race]:
    """Snapshots of a running workspace beside `git add -A && git commit` in a checkout; memory after them."""
    place, peer_place = world.repository(size), world.checkout(size)
    lanes: list[Lane] = []
    figures: list[Figure] = []
    with ExitStack() as stack:
        for count in (10, 1000) if size >= LARGE else (10,):
            names = (
                f"asked by socket, {count:,}",
                f"overlayrun snapshot, {count:,}",
                f"git add + commit, {count:,}",
            )
            # A workspace each: the one would walk what the other changed.
            live = stack.enter_context(Live(world, size, f"bench-{count}"))
            lanes += _snapshot_lanes(world, live, (size, count), names, peer_place)
            asked, command, peer = names
            what = f"snapshot of {count:,} changed files"
            limit = _SNAPSHOT_BOUNDS.get((size, count))
            figures.append(faster(f"{what}, by the supervisor", f"{size:,}", asked, peer, limit))
            limit = 4 if (size, count) == (LARGE, 10) else None
            figures.append(faster(f"{what}, overlayrun snapshot", f"{size:,}", command, peer, limit))
        lanes.append(lambda _: {"memory after snapshots": live.memory()})
        figures.append(
            amount("supervisor's memory, after snapshots", f"{size:,}", "memory after snapshots", "MB", 60)
        )
        yield Race(lanes, figures)
    world.reset_checkout(peer_place)
    world.tidy(place)


def _snapshot_lanes(
    world: World, live: Live, amounts: tuple[int, int], names: tuple[str, str, str], checkout: str
) -> list[Lane]:
    size, count = amounts

    def asked(_: int) -> Mapping[str, float]:
        live.edit(count)
        return {names[0]: live.snapshot()}

    def command(_: int) -> Mapping[str, float]:
        live.edit(count)
        return world.run(world.ours("snapshot", live.branch, "-m", "bench"), live.place).named(names[1])

    def peer(_: int) -> Mapping[str, float]:
        _edit_in(checkout, size, count)
        return commit_all(world, checkout).named(names[2])

    return [asked, command, peer]


def _edit_in(place: str, size: int, count: int) -> None:
    os.chdir(place)
    edit(size, count, str(time.time_ns()))


@contextmanager
def memory(world: World, size: int) -> Iterator[Race]:
    """What the supervisor holds while its command does nothing."""
    with Live(world, size, branch_of(0)) as live:
        time.sleep(0.5)
        lanes: list[Lane] = [lambda _: {"supervisor": live.memory()}]
        yield Race(lanes, [amount("supervisor's memory, idle", f"{size:,}", "supervisor", "MB", 60)])


def _reported(world: World, name: str, argv: list[str], cwd: str) -> Lane:
    """A lane whose program prints its own milliseconds: the first, and the minimum of the later ones."""

    def lane(_: int) -> Mapping[str, float]:
        began, *later = json.loads(world.run(argv, cwd).output)
        return {f"{name}, first": began, f"{name}, warm": min(later, default=began)}

    return lane


@contextmanager
def status(world: World, size: int) -> Iterator[Race]:
    """`git status` inside a fresh workspace beside the same in the user's tree."""
    place = world.repository(size)
    program = world.inside("repeat", "4", "git", "status", "--porcelain")
    lanes = [
        _reported(world, "inside", world.ours("--rm", "--dirty", "ignore", "--", *program), place),
        _reported(world, "native", program, place),
    ]
    limit = 1.5 if size == 10_000 else None
    figures = [
        times(f"git status inside, {turn}", f"{size:,}", f"inside, {turn}", f"native, {turn}", limit)
        for turn in ("first", "warm")
    ]
    yield Race(lanes, figures)


@contextmanager
def build(world: World, size: int) -> Iterator[Race]:
    """A compile-like load: read up to 2,000 files, write an output for each, rename it."""
    place, plain = world.repository(size), world.checkout(size)
    program = world.inside("compile", str(size))
    lanes = [
        _reported(world, "inside", world.ours("--rm", "--dirty", "ignore", "--", *program), place),
        _reported(world, "native", program, plain),
    ]
    yield Race(lanes, [times("compile-like load inside", f"{size:,}", "inside, first", "native, first")])


@contextmanager
def ending(world: World, size: int) -> Iterator[Race]:
    """From the command's last instant to the user's prompt."""
    place = world.repository(size)
    idle, changed, floor = "--rm, nothing changed", "-b, 10 files changed", "floor"

    def since(argv: list[str]) -> float:
        spent = world.run(argv, place)
        return (spent.ended - int(spent.output)) / 1e6

    def in_branch(number: int) -> Mapping[str, float]:
        program = world.inside("end", str(size), "10")
        taken = since(world.ours("-b", branch_of(number), "--dirty", "ignore", "--", *program))
        world.drop(place, branch_of(number))
        return {changed: taken}

    nothing = world.inside("end", str(size), "0")
    lanes: list[Lane] = [
        lambda _: {idle: since(world.ours("--rm", "--dirty", "ignore", "--", *nothing))},
        in_branch,
        lambda _: {floor: since(floor_command(world, size, *nothing))},
    ]
    figures = [
        more("exit to prompt, nothing changed", f"{size:,}", idle, floor),
        more("exit to prompt, 10 files changed", f"{size:,}", changed, floor),
    ]
    yield Race(lanes, figures)
    world.tidy(place)
