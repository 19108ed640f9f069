"""The rows: what is measured beside what, and the bounds. Each function gives one race."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Final

from _bench_inside import edit, path_of, text_of
from _bench_measure import Figure, Lane, Race, amount, faster, times
from _bench_world import Live, World, commit_all, disk_usage

Opened = AbstractContextManager[Race]
_WARM: Final = ("--rm", "--dirty", "ignore", "--", "true")
_SNAPSHOT_BOUNDS: Final[Mapping[tuple[int, int], float]] = {
    (10_000, 10): 6,
    (100_000, 10): 30,
    (100_000, 1000): 3,
}
_LARGE: Final = 100_000
_numbers = itertools.count()
_FAR: Final = "refs/bench/far"


def _timed(world: World, name: str, argv: list[str], cwd: str) -> Lane:
    return lambda _: world.run(argv, cwd).named(name)


def _branch(number: int) -> str:
    return f"bench-{number + 1}"


def _floor(world: World, size: int, *command: str) -> list[str]:
    """The floor's command line, for one use: a volatile overlay takes no work directory twice."""
    upper, work = f"{world.scrap}/upper", f"{world.scrap}/work-{next(_numbers)}"
    os.makedirs(upper, exist_ok=True)
    os.mkdir(work)
    program = [world.python, "-I", "-S", "-E", f"{world.root}/_bench_floor.py"]
    return [*program, world.repository(size), upper, work, *command]


def _floor_lane(world: World, name: str, size: int) -> Lane:
    return lambda _: world.run(_floor(world, size, "true"), world.root).named(name)


def _bwrap(world: World, size: int) -> tuple[str, list[str]] | None:
    """Bwrap's nearest to a copy-on-write workspace: its overlay (0.11 and newer), else namespaces alone."""
    if shutil.which("bwrap") is None:
        return None
    place = world.repository(size)
    common = ["bwrap", "--dev-bind", "/", "/", "--unshare-pid", "--unshare-ipc", "--proc", "/proc"]
    if b"--tmp-overlay" in world.run(["bwrap", "--help"], place).output:
        return f"bwrap overlay {size:,}", [*common, "--overlay-src", place, "--tmp-overlay", place, "true"]
    return f"bwrap, no overlay {size:,}", [*common, "true"]


@contextmanager
def start(world: World, sizes: Sequence[int]) -> Iterator[Race]:
    """Warm start beside the floor, at all sizes in the same rounds."""
    lanes: list[Lane] = []
    figures: list[Figure] = []
    for size in sizes:
        place = world.repository(size)
        ours, floor = f"overlayrun --rm {size:,}", f"floor {size:,}"
        lanes.append(_timed(world, ours, world.ours(*_WARM), place))
        lanes.append(_floor_lane(world, floor, size))
        figures.append(times("warm start, --dirty ignore", f"{size:,}", ours, floor, 4))
        if peer := _bwrap(world, size):
            lanes.append(_timed(world, peer[0], peer[1], place))
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

    def more(medians: Mapping[str, float]) -> float:
        return (medians[ours] - medians[ignore]) / medians[peer]

    lanes = [
        _timed(world, ours, world.ours("--rm", "--", "true"), place),
        _timed(world, ignore, world.ours(*_WARM), place),
        _timed(world, peer, ["git", "status", "--porcelain"], place),
    ]
    what = "--dirty include, more than ignore"
    yield Race(lanes, [Figure(what, f"{size:,}", ours, peer, more, form="{:.2f} git status", limit=1.2)])


@contextmanager
def branch(world: World, size: int) -> Iterator[Race]:
    """A whole run on a new branch: nothing changed, or one file; and the disk that a fresh branch takes."""
    place = world.repository(size)
    shared = tuple(f"{place}/.git/overlayrun/{name}" for name in ("bases", "layers", "carried"))

    def ours(name: str, *command: str) -> Lane:
        def lane(number: int) -> Mapping[str, float]:
            before = disk_usage(f"{place}/.git", without=shared)
            spent = world.run(world.ours("-b", _branch(number), "--dirty", "ignore", "--", *command), place)
            grown = (disk_usage(f"{place}/.git", without=shared) - before) / 1024
            world.drop(place, _branch(number))
            return {**spent.named(name), f"{name}, disk": grown}

        return lane

    nothing, one = "overlayrun -b, nothing changed", "overlayrun -b, one file changed"
    lanes = [
        ours(nothing, "true"),
        ours(one, "cp", ".gitignore", path_of(0)),
        _floor_lane(world, "floor", size),
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
    start_ours = _timed(world, ours, world.ours(*_WARM), place)
    start_ours(-1)  # the base is made
    lanes = [start_ours, worktree, *(copy(name, *options) for name, options in kinds.items())]
    limit = 30 if size >= _LARGE else None
    figures = [faster("warm start", f"{size:,}", ours, "git worktree add + remove", limit)]
    figures += [faster("warm start", f"{size:,}", ours, name) for name in kinds]
    yield Race(
        lanes, [*figures, amount("disk, a git worktree", f"{size:,}", "git worktree, disk", "KB")], heavy=True
    )


@contextmanager
def other_commit(world: World, size: int) -> Iterator[Race]:
    """Start at a commit 100 files away from the base at hand, a new one each round."""
    place, target = world.repository(size), f"{world.scrap}/copy"
    world.run(world.ours(*_WARM), place)
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

    limit = 0.2 if size >= _LARGE else None
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

    limit = 1.5 if size >= _LARGE else None
    yield Race([run, worktree], [times("first start ever", f"{size:,}", ours, peer, limit)], heavy=True)


@contextmanager
def snapshot(world: World, size: int) -> Iterator[Race]:
    """Snapshots of a running workspace beside `git add -A && git commit` in a checkout; memory after them."""
    place, peer_place = world.repository(size), world.checkout(size)
    lanes: list[Lane] = []
    figures: list[Figure] = []
    with ExitStack() as stack:
        for count in (10, 1000) if size >= _LARGE else (10,):
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
            limit = 4 if (size, count) == (_LARGE, 10) else None
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
    with Live(world, size, _branch(0)) as live:
        time.sleep(0.5)
        lanes: list[Lane] = [lambda _: {"supervisor": live.memory()}]
        yield Race(lanes, [amount("supervisor's memory, idle", f"{size:,}", "supervisor", "MB", 60)])


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
    more = Figure(
        "warm start with node_modules, more",
        files,
        ours,
        without,
        lambda medians: medians[ours] - medians[without],
        form="{:.0f} ms",
        limit=150,
    )
    lanes = [once, links, _timed(world, ours, command, place), _timed(world, without, command, plain)]
    figures = [more, times("first start with node_modules", files, first_ours, peer, 1.5)]
    yield Race(lanes, figures, heavy=True)


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
        taken = since(world.ours("-b", _branch(number), "--dirty", "ignore", "--", *program))
        world.drop(place, _branch(number))
        return {changed: taken}

    nothing = world.inside("end", str(size), "0")
    lanes: list[Lane] = [
        lambda _: {idle: since(world.ours("--rm", "--dirty", "ignore", "--", *nothing))},
        in_branch,
        lambda _: {floor: since(_floor(world, size, *nothing))},
    ]
    figures = [
        times("exit to prompt, nothing changed", f"{size:,}", idle, floor),
        times("exit to prompt, 10 files changed", f"{size:,}", changed, floor),
    ]
    yield Race(lanes, figures)
    world.tidy(place)


EACH_SIZE: Final[Mapping[str, Callable[[World, int], Opened]]] = {
    "dirty": dirty,
    "branch": branch,
    "ending": ending,
    "status": status,
    "build": build,
    "snapshot": snapshot,
    "copies": copies,
    "other-commit": other_commit,
    "first": first,
}
SMALLEST_SIZE: Final[Mapping[str, Callable[[World, int], Opened]]] = {"memory": memory, "carried": carried}
