"""Rows about backends: start, snapshot, fork and disk of each, on file systems in loop images; for root."""

from __future__ import annotations

import glob
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Final

from _bench_measure import AbsentError, Figure, Lane, Race, amount, times
from _bench_peers import WARM, branch_of
from _bench_world import World

_MEGABYTES: Final = 2048
_MANY: Final = 10_000  # files; with fewer, a start is what the sandbox costs
# Backend, and the file system that it is measured on.
_LANES: Final = (
    ("overlay", "ext4"),
    ("overlay", "btrfs"),
    ("btrfs", "btrfs"),
    ("reflink", "xfs"),
    ("copy", "ext4"),
)
# What a start is measured beside, and the bound.
_PEERS: Final[Mapping[tuple[str, str], tuple[str, float | None]]] = {
    ("btrfs", "btrfs"): ("overlay on btrfs", 2),
    ("reflink", "xfs"): ("cp -a --reflink on xfs", 1.2),
    ("copy", "ext4"): ("cp -a on ext4", None),
}


@contextmanager
def backends(world: World, size: int) -> Iterator[Race]:
    """A new branch up to its command's first instant; ten changed files to the prompt; a fork; the disk."""
    if os.geteuid():
        raise AbsentError("loop images are made by root")
    with ExitStack() as stack:
        places = {kind: stack.enter_context(_disk(world, kind, size)) for kind in ("ext4", "btrfs", "xfs")}
        lanes: list[Lane] = []
        figures: list[Figure] = []
        for backend, kind in _LANES:
            lanes.append(_branch(world, backend, places[kind], size))
            figures += _figures(backend, kind, size)
        lanes.append(_copy(world, "cp -a on ext4", places["ext4"], "never"))
        lanes.append(_copy(world, "cp -a --reflink on xfs", places["xfs"], "always"))
        yield Race(lanes, figures)


def _figures(backend: str, kind: str, size: int) -> list[Figure]:
    name, files = f"{backend} on {kind}", f"{size:,}"
    made = [
        amount(f"disk of a new branch, {name}", files, f"{name}, disk", "KB"),
        amount(f"fork of ten changed files, {name}", files, f"{name}, fork", "ms"),
    ]
    if (backend, kind) not in _PEERS:
        return made
    peer, limit = _PEERS[backend, kind]
    beside = "overlay on btrfs" if kind == "btrfs" else "overlay on ext4"
    return [
        times(f"start, {name}", files, name, peer, limit if size >= _MANY else None),
        times(f"ten changed files to the prompt, {name}", files, f"{name}, end", f"{beside}, end"),
        *made,
    ]


@contextmanager
def _disk(world: World, kind: str, size: int) -> Iterator[str]:
    """A repository on a file system of its own."""
    place = f"{world.home}/disks/{kind}"
    image = f"{place}.img"
    os.makedirs(place, exist_ok=True)
    with open(image, "wb") as file:
        file.truncate(_MEGABYTES << 20)
    _do(f"mkfs.{kind}", "-q", image)
    _do("mount", "-o", "loop", image, place)
    try:
        world.git(world.root, "clone", "-q", "--no-hardlinks", world.repository(size), f"{place}/repository")
        world.run(world.ours(*WARM), f"{place}/repository")  # the base is made
        yield f"{place}/repository"
    finally:
        _do("umount", "--lazy", place)
        os.unlink(image)


def _do(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError as err:
        raise AbsentError(f"no {command[0]} here") from err


def _branch(world: World, backend: str, place: str, size: int) -> Lane:
    name = f"{backend} on {os.path.basename(os.path.dirname(place))}"

    def lane(number: int) -> Mapping[str, float]:
        branch = branch_of(number)
        options = ["--backend", backend, "--dirty", "ignore", "-b", branch]
        os.sync()
        before = _used(place)
        spent = world.run(world.ours(*options, "--", *world.inside("end", str(size), "0")), place)
        os.sync()
        taken = _used(place) - before
        more = world.run(world.ours("-b", branch, "--", *world.inside("end", str(size), "10")), place)
        fork = world.run(world.ours("fork", branch, "-b", f"{branch}-fork"), place)
        for made in (f"{branch}-fork", branch):
            world.drop(place, made)
        return {
            name: (int(spent.output) - spent.ended) / 1e6 + spent.wall,
            f"{name}, end": (more.ended - int(more.output)) / 1e6,
            f"{name}, disk": taken / 1024,
            f"{name}, fork": fork.wall,
        }

    return lane


def _used(place: str) -> int:
    disk = os.statvfs(place)
    return (disk.f_blocks - disk.f_bfree) * disk.f_frsize


def _copy(world: World, name: str, place: str, share: str) -> Lane:
    def lane(_: int) -> Mapping[str, float]:
        (tree,) = glob.glob(f"{place}/.git/overlayrun/bases/*/tree")
        os.sync()
        spent = world.run(["cp", "-a", f"--reflink={share}", tree, f"{place}/../copy"], world.root)
        world.remove(f"{place}/../copy")
        return {name: spent.wall}

    return lane
