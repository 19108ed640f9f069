"""Rows about starting: warm, first, at another commit, with a large ignored directory; and the disk taken."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from _bench_inside import path_of, text_of
from _bench_measure import Figure, Lane, Race, amount, faster, more, times
from _bench_peers import LARGE, WARM, branch_of, bwrap_command, floor_lane, timed
from _bench_world import World, disk_usage

_FAR: Final = "refs/bench/far"


@contextmanager
def start(world: World, sizes: Sequence[int]) -> Iterator[Race]:
    """Warm start beside the floor, at all sizes in the same rounds."""
    lanes: list[Lane] = []
    figures: list[Figure] = []
    for size in sizes:
        place = world.repository(size)
        ours, floor = f"overlayrun --rm {size:,}", f"floor {size:,}"
        lanes.append(timed(world, ours, world.ours(*WARM), place))
        lanes.append(floor_lane(world, floor, size))
        figures.append(times("warm start, --dirty ignore", f"{size:,}", ours, floor, 4))
        if peer := bwrap_command(world, size):
            lanes.append(timed(world, peer[0], peer[1], place))
            figures.append(times("warm start, --dirty ignore", f"{size:,}", ours, peer[0]))
    if len(sizes) > 1:
        figures.append(_flat(sizes))
    yield Race(lanes, figures)


def _flat(sizes: Sequence[int]) -> Figure:
    names = [f"overlayrun --rm {size:,}" for size in sizes]

    def spread(medians: Mapping[str, float]) -> float:
        return max(medians[name] for name in names) / min(medians[name] for name in names)

    return Figure(
        "warm start, flat", f"{sizes[0]:,} to {sizes[-1]:,}", names[-1], names[0], spread, limit=1.3
    )


@contextmanager
def dirty(world: World, size: int) -> Iterator[Race]:
    """What looking for uncommitted changes costs, in units of one `git status`."""
    place = world.repository(size)
    ours, ignore, peer = "overlayrun --rm --dirty include", "overlayrun --rm --dirty ignore", "git status"

    def extra(medians: Mapping[str, float]) -> float:
        return (medians[ours] - medians[ignore]) / medians[peer]

    lanes = [
        timed(world, ours, world.ours("--rm", "--", "true"), place),
        timed(world, ignore, world.ours(*WARM), place),
        timed(world, peer, ["git", "status", "--porcelain"], place),
    ]
    what = "--dirty include, more than ignore"
    yield Race(lanes, [Figure(what, f"{size:,}", ours, peer, extra, form="{:.2f} git status", limit=1.2)])


@contextmanager
def branch(world: World, size: int) -> Iterator[Race]:
    """A whole run on a new branch: nothing changed, or one file; and the disk that a fresh branch takes."""
    place = world.repository(size)
    shared = tuple(f"{place}/.git/overlayrun/{name}" for name in ("bases", "layers", "carried"))

    def ours(name: str, *command: str) -> Lane:
        def lane(number: int) -> Mapping[str, float]:
            before = disk_usage(f"{place}/.git", without=shared)
            spent = world.run(world.ours("-b", branch_of(number), "--dirty", "ignore", "--", *command), place)
            grown = (disk_usage(f"{place}/.git", without=shared) - before) / 1024
            world.drop(place, branch_of(number))
            return {**spent.named(name), f"{name}, disk": grown}

        return lane

    nothing, one = "overlayrun -b, nothing changed", "overlayrun -b, one file changed"
    lanes = [
        ours(nothing, "true"),
        ours(one, "cp", ".gitignore", path_of(0)),
        floor_lane(world, "floor", size),
    ]
    yield Race(
        lanes,
        [
            times("new branch, nothing changed", f"{size:,}", nothing, "floor", 7),
            times("new branch, one file changed", f"{size:,}", one, "floor", 14),
            amount("disk, a fresh branch", f"{size:,}", f"{nothing}, disk", "KB", 200),
        ],
    )
    world.tidy(place)


@contextmanager
def copies(world: World, size: int) -> Iterator[Race]:
    """A warm start beside other ways to a private tree."""
    place, target = world.repository(size), f"{world.scrap}/copy"
    source = world.checkout(size)

    def worktree(_: int) -> Mapping[str, float]:
        os.sync()
        added = world.run(["git", "worktree", "add", "-q", "--detach", target], place)
        taken = disk_usage(target) / 1024
        removed = world.run(["git", "worktree", "remove", target], place)
        return {
            "git worktree add": added.wall,
            "git worktree add + remove": added.wall + removed.wall,
            "git worktree, disk": taken,
        }

    def copy(name: str, *options: str) -> Lane:
        def lane(_: int) -> Mapping[str, float]:
            os.sync()
            spent = world.run(["cp", *options, source, target], world.root)
            world.remove(target)
            return spent.named(name)

        return lane

    kinds = {"cp -a": ("-a", "--reflink=never")}
    if world.can_reflink():
        kinds["cp -a --reflink"] = ("-a", "--reflink=always")
    ours = "overlayrun --rm"
    start_ours = timed(world, ours, world.ours(*WARM), place)
    start_ours(-1)  # the base is made
    lanes = [start_ours, worktree, *(copy(name, *options) for name, options in kinds.items())]
    limit = 30 if size >= LARGE else None
    figures = [faster("warm start", f"{size:,}", ours, "git worktree add + remove", limit)]
    figures += [faster("warm start", f"{size:,}", ours, name) for name in kinds]
    yield Race(
        lanes, [*figures, amount("disk, a git worktree", f"{size:,}", "git worktree, disk", "KB")], heavy=True
    )


@contextmanager
def other_commit(world: World, size: int) -> Iterator[Race]:
    """Start at a commit 100 files away from the base at hand, a new one each round."""
    place, target = world.repository(size), f"{world.scrap}/copy"
    world.run(world.ours(*WARM), place)
    ours, peer = "overlayrun --rm --base", "git worktree add"

    def run(number: int) -> Mapping[str, float]:
        _commit_far(world, place, size)
        os.sync()
        spent = world.run(world.ours("--rm", "--dirty", "ignore", "--base", _FAR, "--", "true"), place)
        for name in os.listdir(f"{place}/.git/overlayrun/layers"):
            world.remove(f"{place}/.git/overlayrun/layers/{name}")
        return spent.named(ours)

    def worktree(number: int) -> Mapping[str, float]:
        _commit_far(world, place, size)
        os.sync()
        spent = world.run(["git", "worktree", "add", "-q", "--detach", target, _FAR], place)
        world.git(place, "worktree", "remove", target)
        return spent.named(peer)

    limit = 0.2 if size >= LARGE else None
    yield Race([run, worktree], [times("start, 100 files away", f"{size:,}", ours, peer, limit)], heavy=True)
    world.git(place, "update-ref", "-d", _FAR)
    world.tidy(place)


def _commit_far(world: World, place: str, size: int) -> None:
    """Point `_FAR` at a new commit that changes 100 files of main."""
    lines = [f"commit {_FAR}", f"committer Bench <bench@example.invalid> {time.time_ns() // 10**9} +0000"]
    lines += ["data 3", "Far", "from refs/heads/main^0"]
    for turn in range(min(100, size)):
        number = turn * size // min(100, size)
        text = text_of(number, str(time.time_ns()))
        lines += [f"M 100644 inline {path_of(number)}", f"data {len(text)}", text]
    world.git(place, "fast-import", "--quiet", "--force", data="\n".join([*lines, ""]))


@contextmanager
def first(world: World, size: int) -> Iterator[Race]:
    """The first start ever in a repository, with every default."""
    place, target = world.repository(size), f"{world.scrap}/copy"
    ours, peer = "overlayrun --rm, first", "git worktree add"

    def run(_: int) -> Mapping[str, float]:
        world.remove_state(place)
        os.sync()
        return world.run(world.ours("--rm", "--", "true"), place).named(ours)

    def worktree(_: int) -> Mapping[str, float]:
        os.sync()
        spent = world.run(["git", "worktree", "add", "-q", "--detach", target], place)
        world.git(place, "worktree", "remove", target)
        return spent.named(peer)

    limit = 1.5 if size >= LARGE else None
    yield Race([run, worktree], [times("first start ever", f"{size:,}", ours, peer, limit)], heavy=True)


@contextmanager
def carried(world: World, size: int) -> Iterator[Race]:
    """A repository with a large ignored directory: each warm start, and the first."""
    place, plain = world.repository(size, world.carried), world.repository(size)
    copy = f"{world.scrap}/node_modules"
    ours, without = "overlayrun --rm, node_modules", "overlayrun --rm, none"
    first_ours, peer = "overlayrun --rm, first with node_modules", "cp -al node_modules"
    command = world.ours("--rm", "--", "true")
    world.run(command, place)
    world.run(command, plain)

    def once(_: int) -> Mapping[str, float]:
        world.remove(f"{place}/.git/overlayrun/carried")
        os.mkdir(f"{place}/.git/overlayrun/carried", 0o700)
        os.sync()
        return world.run(command, place).named(first_ours)

    def links(_: int) -> Mapping[str, float]:
        os.sync()
        spent = world.run(["cp", "-al", f"{place}/node_modules", copy], world.root)
        world.remove(copy)
        return spent.named(peer)

    files = f"{size:,} + {world.carried:,}"
    lanes = [once, links, timed(world, ours, command, place), timed(world, without, command, plain)]
    figures = [
        more("warm start with node_modules, more", files, ours, without, 150),
        times("first start with node_modules", files, first_ours, peer, 1.5),
    ]
    yield Race(lanes, figures, heavy=True)
