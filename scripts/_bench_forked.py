"""Rows about `overlayrun fork`: one and five new branches from a workspace with a hundred changed files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from _bench_inside import path_of
from _bench_live import Live
from _bench_measure import Lane, Race, amount, faster
from _bench_peers import LARGE
from _bench_world import World

_CHANGED: Final = 100
_BOUND: Final = 150  # milliseconds, at the largest size
_SOURCE: Final = "bench-source"


@contextmanager
def fork(world: World, size: int) -> Iterator[Race]:
    """Forks of an idle and of a running branch, beside a worktree to which the changed files are copied."""
    place = world.repository(size)
    # In one directory each would be a better case than there is: every fiftieth file.
    step = max(1, size // _CHANGED // 20)
    changed = [path_of(number * step) for number in range(_CHANGED)]
    edit = " ".join(changed)
    script = f"for path in {edit}; do echo changed >>$path; done"
    world.run(world.ours("-q", "-b", _SOURCE, "--dirty", "ignore", "--", "sh", "-c", script), place)
    idle, five, running, peer = "fork, idle", "fork -n 5, idle", "fork, running", "git worktree add + cp"
    with Live(world, size, "bench-running") as live:
        live.edit(_CHANGED)
        lanes = [
            _lane(world, place, (idle, _SOURCE), 1),
            _lane(world, place, (five, _SOURCE), 5),
            _lane(world, place, (running, live.branch), 1),
            _worktree(world, place, peer, changed),
        ]
        files = f"{size:,}"
        bound = _BOUND if size >= LARGE else None
        what = f"fork of {_CHANGED} changed files"
        figures = [
            amount(what, files, idle, "ms", bound),
            amount(f"{what}, running", files, running, "ms", bound),
            amount("five forks of the same", files, five, "ms"),
            faster(f"{what}, beside a worktree", files, idle, peer),
        ]
        yield Race(lanes, figures)
    world.drop(place, _SOURCE)
    world.tidy(place)


def _lane(world: World, place: str, names: tuple[str, str], count: int) -> Lane:
    lane, source = names

    def make(turn: int) -> Mapping[str, float]:
        stem = f"bench-fork-{turn}-{lane.replace(' ', '-').replace(',', '')}"
        spent = world.run(world.ours("fork", source, "-n", str(count), "-b", stem), place)
        for branch in [stem] if count == 1 else [f"{stem}-{number}" for number in range(1, count + 1)]:
            world.drop(place, branch)
        return spent.named(lane)

    return make


def _worktree(world: World, place: str, lane: str, changed: list[str]) -> Lane:
    def make(turn: int) -> Mapping[str, float]:
        tree, branch = f"{world.scrap}/tree-{turn}", f"bench-tree-{turn}"
        script = 'git worktree add -q -b "$1" "$2" && shift 2 && cp --parents "$@" "$0"'
        spent = world.run(["/bin/sh", "-c", script, tree, branch, tree, *changed], place)
        world.git(place, "worktree", "remove", "--force", tree)
        world.git(place, "branch", "-q", "-D", branch)
        assert not os.path.lexists(tree)
        return spent.named(lane)

    return make
