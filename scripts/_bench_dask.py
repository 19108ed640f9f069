"""Rows about batches on many machines; run as a program by the installed Python, it is also what is measured.

`python _bench_dask.py local COUNT` and `… dask SCRATCH COUNT` print the milliseconds of a task as JSON, from
its submission to its result in the user's repository. `… lost SCRATCH COUNT` kills a worker in a batch.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

from _bench_measure import AbsentError, Figure, Lane, Race, amount, more
from _bench_world import World

_TASKS: Final = 20
_LOST: Final = 40
_WORKERS: Final = 2
_SLOTS: Final = 4
_PATIENCE: Final = 60.0
_FILE: Final = ("/bin/sh", "-c", "echo new > new.txt")
_QUIET: Final = {
    "DASK_DISTRIBUTED__SCHEDULER__WORK_STEALING": "False",
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0",
    "DASK_LOGGING__DISTRIBUTED": "error",
}


@contextmanager
def overhead(world: World, size: int) -> Iterator[Race]:
    """A task on a worker of a cluster on loopback, beside the same on the local engine."""
    place = world.repository(size)
    _need_dask(world)
    ours, peer = "a task by Dask", "a task, local"
    figures = [more("one task by Dask, more than local", f"{size:,}", ours, peer, 150)]
    lanes = [
        _lane(world, place, "local", str(_TASKS)),
        _lane(world, place, "dask", world.scrap, str(_TASKS)),
    ]
    yield Race(lanes, figures, heavy=True)


@contextmanager
def lost(world: World, size: int) -> Iterator[Race]:
    """A batch of which one of two workers is killed."""
    place = world.repository(size)
    _need_dask(world)
    what = f"a worker killed in a batch of {_LOST}"
    results = Figure(
        f"{what}: results",
        f"{size:,}",
        "results",
        None,
        lambda medians: medians["results"],
        form="{:.0f}",
        limit=_LOST,
        at_least=True,
        unit="",
    )
    figures = [amount(f"{what}: until its task runs elsewhere", f"{size:,}", "again", "s", 10), results]
    yield Race([_lane(world, place, "lost", world.scrap, str(_LOST))], figures, heavy=True)


def _need_dask(world: World) -> None:
    python = f"{world.home}/venv/bin/python"
    for command in (
        [python, "-c", "import distributed"],
        [python, "-m", "pip", "install", "-q", "distributed"],
    ):
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            return
    raise AbsentError("Dask is not here and can't be installed")


def _lane(world: World, place: str, *words: str) -> Lane:
    """A lane that this file is, run by the installed Python in a repository."""
    program = [f"{world.home}/venv/bin/python", os.path.realpath(__file__), *words]

    def lane(_: int) -> Mapping[str, float]:
        samples: dict[str, float] = json.loads(world.run(program, place).output)
        for name in ("workspaces", "batches"):
            world.remove(f"{place}/.git/overlayrun/{name}")
        refs = world.git(place, "for-each-ref", "--format=%(refname)").split("\n")
        lines = [f"delete {ref}\n" for ref in refs if ref not in ("", "refs/heads/main")]
        world.git(place, "update-ref", "--stdin", data="".join(lines))
        world.tidy(place)
        return samples

    return lane


class _Batch:
    """What attempts in the repository around the current directory have in common, and an engine for them."""

    def __init__(self) -> None:
        # Only the installed Python has the package: the rows above run without it.
        from overlayrun.batch.attempt import Shared
        from overlayrun.batch.layout import BatchLayout
        from overlayrun.cli.options import run_options
        from overlayrun.model import DirtyPolicy
        from overlayrun.store.location import find_repository
        from overlayrun.workspace.layout import open_state

        repository = find_repository(os.getcwd())
        layout = open_state(repository.common_dir)
        place = BatchLayout(layout, f"bench-{os.getpid()}")
        os.makedirs(place.root)
        options = run_options({"dirty": DirtyPolicy.IGNORE})
        self.shared = Shared(repository, layout, options, place)
        self.engine: Any = None
        self._number = 0

    def run(self, host: str) -> float:
        """One task from submission to result, in milliseconds."""
        from overlayrun.batch.task import Attempt, Task

        self._number += 1
        name = f"t{self._number}"
        task = Task(id=name, command=_FILE, branch=f"bench/{name}", group=name)
        run, base = self.shared.place.run, str(self.shared.repository.head)
        began = time.monotonic()
        self.engine.submit(Attempt(run=run, task=task, number=1, base=base), host)
        while not any(type(event).__name__ == "Ended" for event in self.engine.poll(10.0)):
            pass
        return (time.monotonic() - began) * 1e3

    def measure(self, count: int) -> float:
        """Median of so many tasks, one after another; the first ones fetch, freeze and fill caches."""
        hosts = [host.name for host in self.engine.hosts()]
        try:
            taken = [self.run(hosts[turn % len(hosts)]) for turn in range(count + 2 * len(hosts))]
        finally:
            self.engine.close()
        return statistics.median(taken[-count:])


class _Cluster:
    """A scheduler and workers on loopback, and a remote of the repository around the current directory."""

    def __init__(self, scratch: str) -> None:
        self.place = f"{scratch}/cluster-{time.time_ns()}"
        os.makedirs(self.place)
        self.remote = f"{self.place}/remote.git"
        subprocess.run(["git", "clone", "-q", "--bare", "--shared", ".", self.remote], check=True)
        self._processes: list[subprocess.Popen[bytes]] = []
        found = f"{self.place}/scheduler.json"
        self._start("-m", "distributed.cli.dask_scheduler", "--host", "tcp://127.0.0.1:0", "--no-dashboard",
                    "--scheduler-file", found)  # fmt: skip
        _until(lambda: os.path.exists(found) and os.path.getsize(found) > 0)
        with open(found, encoding="utf-8") as file:
            self.address = json.load(file)["address"]
        self.workers = {
            name: self._start(
                *("-c", "from overlayrun.launch import main; main()", "worker", "--scheduler", self.address),
                *("--slots", str(_SLOTS), "--repo-cache", f"{self.place}/{name}", "--name", name),
            )
            for name in (f"worker-{number}" for number in range(_WORKERS))
        }

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        with open(f"{self.place}/log", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, *words],
                env={**os.environ, **_QUIET},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._processes.append(process)
        return process

    def engine(self, batch: _Batch) -> Any:
        """Dask's engine in the place of a batch's own, once its workers are there."""
        from overlayrun.batch.engines.dask import DaskEngine, DaskSettings

        settings = DaskSettings(scheduler=self.address, remote=self.remote)
        made = DaskEngine(batch.shared, settings, lambda _: None)
        _until(lambda: (made.poll(0.05), len(made.hosts()) == _WORKERS)[1])
        return made

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            process.wait()


def _until(is_true: Callable[[], object]) -> None:
    end = time.monotonic() + _PATIENCE
    while not is_true():
        if time.monotonic() > end:
            raise TimeoutError("the cluster does not come up")
        time.sleep(0.02)


def _measure_local(count: int) -> dict[str, float]:
    from overlayrun.batch.engines.local import LocalEngine

    batch = _Batch()
    batch.engine = LocalEngine(batch.shared, 1)
    return {"a task, local": batch.measure(count)}


def _measure_dask(scratch: str, count: int) -> dict[str, float]:
    cluster, batch = _Cluster(scratch), _Batch()
    try:
        batch.engine = cluster.engine(batch)
        return {"a task by Dask": batch.measure(count)}
    finally:
        cluster.stop()


def _measure_lost(scratch: str, count: int) -> dict[str, float]:
    cluster = _Cluster(scratch)
    try:
        return _lose_one(cluster, _Batch(), count)
    finally:
        cluster.stop()


def _lose_one(cluster: _Cluster, batch: _Batch, count: int) -> dict[str, float]:
    from overlayrun.batch.coordinator import Site, plan_batch, run_batch
    from overlayrun.batch.progress import News, NewsKind
    from overlayrun.batch.settings import Settings
    from overlayrun.batch.task import Task

    command = ("/bin/sh", "-c", "sleep 1; echo new > new.txt")
    tasks = [Task(id=f"t{n}", command=command, branch=f"bench/t{n}", group=f"t{n}") for n in range(count)]
    times: dict[str, float] = {}
    ended = 0

    class Watcher:
        def hear(self, news: News) -> None:
            nonlocal ended
            ended += news.kind is NewsKind.ENDED
            if ended == count // 4 and "killed" not in times:
                times["killed"] = time.monotonic()
                cluster.workers["worker-0"].kill()
            if news.kind is NewsKind.STARTED and news.attempt == 2:
                times.setdefault("again", time.monotonic())

        def tick(self, _: object) -> None:
            pass

    shared = batch.shared
    settings = Settings(jobs=_WORKERS * _SLOTS)
    planned = plan_batch(shared.repository, shared.place, tasks, settings, engine="dask", given={})
    site = Site(repository=shared.repository, layout=shared.layout, watcher=Watcher())
    report = run_batch(cluster.engine(batch), planned, shared.place, site)
    good = sum(task.outcome.value == "ok" for task in report.tasks)
    return {"again": times["again"] - times["killed"], "results": float(good)}


def _main(mode: str, *words: str) -> None:
    if mode == "local":
        found = _measure_local(int(words[0]))
    else:
        found = (_measure_dask if mode == "dask" else _measure_lost)(words[0], int(words[1]))
    with suppress(BrokenPipeError):
        sys.stdout.write(json.dumps(found))
        sys.stdout.flush()


if __name__ == "__main__":
    _main(*sys.argv[1:])
