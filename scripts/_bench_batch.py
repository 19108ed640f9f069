"""Rows about batches; run as a program by the installed Python, it is also what is measured in them.

`python _bench_batch.py start SCRATCH COUNT` prints milliseconds as JSON: from an attempt's submission to its
command, and two floors beside that, one in this process and one in a bare Python. `… sleep COUNT` prints what
so many sleeping attempts take.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import _bench_forks
from _bench_forks import NOW, floor
from _bench_measure import AbsentError, Figure, Lane, Race, amount, faster, times
from _bench_world import World, disk_usage

_TASKS: Final = 200
_PEERS: Final = 10  # worktrees made in a round
_JOBS: Final = 8  # they wait for the disk more than for a processor
_STARTS: Final = 12
_SLEEPERS: Final = 50
_NEW: Final = "new.txt"


@contextmanager
def throughput(world: World, size: int) -> Iterator[Race]:
    """A whole `overlayrun batch` of tasks that make a file, beside a git worktree for each."""
    place = world.repository(size)
    tasks = f"{world.scrap}/tasks.jsonl"
    with open(tasks, "w", encoding="ascii") as file:
        for number in range(_TASKS):
            task = {"id": f"t{number}", "command": ["/bin/sh", "-c", f"echo {number} > {_NEW}"]}
            file.write(json.dumps(task) + "\n")
    ours, peer, rate = "overlayrun batch, a task", "git worktree, a task", "tasks a second"
    world.run(world.ours("--rm", "--dirty", "ignore", "--", "true"), place)  # the base is frozen once

    def batch(_: int) -> Mapping[str, float]:
        spent = world.run(world.ours("batch", tasks, "-j", str(_JOBS)), place)
        _clear(world, place)
        return {
            ours: spent.wall / _TASKS,
            f"{ours}, CPU": spent.cpu / _TASKS,
            rate: _TASKS * 1e3 / spent.wall,
        }

    def worktrees(_: int) -> Mapping[str, float]:
        wall = sum(_worktree(world, place, number) for number in range(_PEERS)) / _PEERS
        _clear(world, place)
        return {peer: wall}

    figures = [
        faster(f"batch of {_TASKS} tasks, one file each", f"{size:,}", ours, peer, 10),
        Figure(
            f"the same, -j {_JOBS}",
            f"{size:,}",
            rate,
            None,
            lambda medians: medians[rate],
            form="{:.1f} tasks/s",
            limit=15,
            at_least=True,
            unit="tasks/s",
        ),
    ]
    yield Race([batch, worktrees], figures, heavy=True)


def _worktree(world: World, place: str, number: int) -> float:
    """Milliseconds of a task in a worktree of its own: add, write, commit, remove."""
    tree = f"{world.scrap}/tree-{number}"
    wall = world.run(["git", "worktree", "add", "-q", "-b", f"bench-{number}", tree, "HEAD"], place).wall
    with open(f"{tree}/{_NEW}", "w", encoding="ascii") as file:
        file.write(f"{number}\n")
    wall += world.run(["git", "add", "-A"], tree).wall
    wall += world.run(["git", "commit", "-q", "-m", "Task"], tree).wall
    return wall + world.run(["git", "worktree", "remove", "--force", tree], place).wall


def _clear(world: World, place: str) -> None:
    """Take away what a round has made; the frozen base stays."""
    for name in ("workspaces", "batches"):
        world.remove(f"{place}/.git/overlayrun/{name}")
    refs = world.git(place, "for-each-ref", "--format=%(refname)").split("\n")
    lines = [f"delete {ref}\n" for ref in refs if ref not in ("", "refs/heads/main")]
    world.git(place, "update-ref", "--stdin", data="".join(lines))
    world.tidy(place)


def _lane(world: World, place: str, *words: str) -> Lane:
    """A lane that this file is, run by the installed Python in a repository."""
    program = [f"{world.home}/venv/bin/python", os.path.realpath(__file__), *words]

    def lane(_: int) -> Mapping[str, float]:
        samples: dict[str, float] = json.loads(world.run(program, place).output)
        _clear(world, place)
        return samples

    return lane


@contextmanager
def start(world: World, size: int) -> Iterator[Race]:
    """From an attempt's submission to its command, beside the floor: namespaces and one overlay alone."""
    place = world.repository(size)
    figures = [
        times("start in a batch, floor in a bare Python", f"{size:,}", "engine", "bare floor", 3),
        times("start in a batch, floor in the same process", f"{size:,}", "engine", "own floor"),
    ]
    yield Race([_lane(world, place, "start", world.scrap, str(_STARTS))], figures)


@contextmanager
def sleeping(world: World, size: int) -> Iterator[Race]:
    """What attempts take that do nothing; for root, who alone may read what a keeper holds."""
    if os.geteuid() != 0:
        raise AbsentError("root alone may see how much memory a keeper takes")
    place = world.repository(size)
    what = f"{_SLEEPERS} sleeping tasks, a task"
    figures = [
        amount(f"{what}: our memory (PSS)", f"{size:,}", "memory", "MB", 8),
        amount(f"{what}: disk", f"{size:,}", "disk", "KB", 200),
    ]
    yield Race([_lane(world, place, "sleep", str(_SLEEPERS))], figures, heavy=True)


class _Batch:
    """A local engine in the repository around the current directory."""

    def __init__(self, slots: int) -> None:
        # Only the installed Python has the package: the rows above run without it.
        from overlayrun.batch.attempt import Shared
        from overlayrun.batch.engines.local import LocalEngine
        from overlayrun.batch.layout import BatchLayout
        from overlayrun.cli.options import run_options
        from overlayrun.model import DirtyPolicy
        from overlayrun.store.location import find_repository
        from overlayrun.workspace.layout import open_state

        repository = find_repository(os.getcwd())
        layout = open_state(repository.common_dir)
        self.git_dir = repository.common_dir
        self.head = str(repository.head)
        self.place = BatchLayout(layout, "bench")
        os.makedirs(self.place.root)
        options = run_options({"dirty": DirtyPolicy.IGNORE})
        self.engine = LocalEngine(Shared(repository, layout, options, self.place), slots)
        self._number = 0

    def submit(self, *command: str) -> str:
        """Start an attempt; the id of its task."""
        from overlayrun.batch.task import Attempt, Task

        self._number += 1
        name = f"t{self._number}"
        task = Task(id=name, command=command, branch=f"bench/{name}", group=name)
        self.engine.submit(Attempt(run="bench", task=task, number=1, base=self.head), "local")
        return name

    def until(self, kind: str, count: int) -> None:
        while count > 0:
            count -= sum(type(event).__name__ == kind for event in self.engine.poll(10.0))


def _measure_start(scratch: str, count: int) -> dict[str, float]:
    batch = _Batch(2)
    program = os.path.realpath(_bench_forks.__file__)
    bare = subprocess.Popen(
        [os.path.realpath(sys.executable), "-I", "-S", program, scratch],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert bare.stdin is not None
    assert bare.stdout is not None
    samples: dict[str, list[float]] = {"engine": [], "bare floor": [], "own floor": []}
    for turn in range(count + 2):  # the first two fill caches
        began = time.time_ns()
        name = batch.submit(*NOW)
        batch.until("Ended", 1)
        with open(batch.place.attempt((name, 1)).stdout, encoding="ascii") as file:
            taken = (int(file.read()) - began) / 1e6
        bare.stdin.write("\n")
        bare.stdin.flush()
        found = {
            "engine": taken,
            "bare floor": float(bare.stdout.readline()),
            "own floor": floor(f"{scratch}/own-{turn}"),
        }
        for lane, value in found.items() if turn > 1 else ():
            samples[lane].append(value)
    bare.stdin.close()
    bare.wait()
    batch.engine.close()
    return {lane: statistics.median(values) for lane, values in samples.items()}


def _measure_sleep(count: int) -> dict[str, float]:
    batch = _Batch(count)
    disk = disk_usage(batch.git_dir)
    for _ in range(count):
        batch.submit("sleep", "1000")
    batch.until("Started", count)
    time.sleep(3.0)  # until each has its watchdog
    ours = [pid for pid in _below(os.getpid()) if _name_of(pid) == _name_of(os.getpid())]
    memory = sum(map(_proportional, ours))
    disk = disk_usage(batch.git_dir) - disk
    batch.engine.close()
    return {"memory": memory / count / 1024, "disk": disk / count / 1024}


def _below(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        children = [int(word) for word in file.read().split()]
    return [one for child in children for one in (child, *_below(child))]


def _name_of(pid: int) -> str:
    with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
        return file.read()


def _proportional(pid: int) -> int:
    """KiB of a process, of what is shared its part."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pss:"))


def _main(mode: str, *words: str) -> None:
    found = _measure_start(words[0], int(words[1])) if mode == "start" else _measure_sleep(int(words[0]))
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    _main(*sys.argv[1:])
