"""A batch that is killed at any moment, and taken up again, comes to what it would have come to."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from conftest import SHARE, UserRepo

from overlayrun.batch.journal import create_run, read_journal
from overlayrun.batch.layout import BatchLayout
from overlayrun.batch.task import Task
from overlayrun.store.location import find_repository
from overlayrun.workspace.layout import open_state

TRIES: Final = range(SHARE, 20, 2)
# Imports once, then a fork a line: {"run": ..., "tasks": [...] or null to resume}; answers pid, then status.
DRIVER: Final = """
import json, os, sys
from overlayrun.batch.attempt import Shared
from overlayrun.batch.coordinator import Site, plan_batch, run_batch
from overlayrun.batch.engines.local import LocalEngine
from overlayrun.batch.journal import read_plan
from overlayrun.batch.layout import BatchLayout
from overlayrun.batch.settings import Settings
from overlayrun.batch.task import Task
from overlayrun.cli.options import run_options
from overlayrun.store.location import find_repository
from overlayrun.workspace.layout import open_state

class Watcher:
    def hear(self, news):
        print(news.kind.value, news.task and news.task.id, news.attempt, news.text, file=sys.stderr)

    def tick(self, board):
        pass

def run(run, tasks):
    repository = find_repository(os.getcwd())
    layout = open_state(repository.common_dir)
    place = BatchLayout(layout, run)
    if tasks is not None:
        settings = Settings(jobs=3, backoff=0.01)
        tasks = [Task.from_json(task) for task in tasks]
        plan_batch(repository, place, tasks, settings, engine="local", given={})
    engine = LocalEngine(Shared(repository, layout, run_options({"dirty": "ignore"}), place), 3)
    report = run_batch(engine, read_plan(place), place, Site(repository=repository, layout=layout, watcher=Watcher()))
    rows = {one.task.id: [one.outcome.value, [r.to_json() for r in one.results]] for one in report.tasks}
    with open(f"{place.root}/outcomes.json", "w") as file:
        json.dump({"status": report.status, "tasks": rows}, file)

for line in sys.stdin:
    pid = os.fork()
    if not pid:
        status = 70
        try:
            run(**json.loads(line))
            status = 0
        finally:
            if status:
                sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
            os._exit(status)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
SCRIPTS: Final = {
    "plain": "echo plain > plain",
    "agent": "echo one > one; git add one; git commit -qm One; echo two > two",
    "slow": "echo 1 > 1; sleep 0.2; echo 2 > 2; rm README",
    "nothing": "echo said",
    "bad": "echo half > half; exit 3",
    "on-top": "test -e plain && echo top > top",
}
OUTCOMES: Final = {
    "plain": "ok",
    "agent": "ok",
    "slow": "ok",
    "nothing": "no-change",
    "bad": "failed",
    "on-top": "ok",
}


@dataclass
class Driver:
    """A process that runs batches of one repository in children of its own."""

    repo: UserRepo
    process: subprocess.Popen[str]
    log: Path

    def __post_init__(self) -> None:
        repository = find_repository(str(self.repo.root))
        self.layout = open_state(repository.common_dir)

    def begin(self, place: BatchLayout, tasks: list[Task] | None) -> int:
        plain = None if tasks is None else [task.to_json() for task in tasks]
        wanted = {"run": place.run, "tasks": plain}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(wanted) + "\n")
        self.process.stdin.flush()
        return int(self.read())

    def read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        return line

    def killed(self, place: BatchLayout, tasks: list[Task] | None, after: float) -> bool:
        """Run and kill; whether it was still running."""
        pid = self.begin(place, tasks)
        time.sleep(after)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return int(self.read()) == -signal.SIGKILL

    def through(self, place: BatchLayout, tasks: list[Task] | None) -> dict[str, Any]:
        self.begin(place, tasks)
        assert int(self.read()) == 0, self.log.read_text()
        found: dict[str, Any] = json.loads(Path(f"{place.root}/outcomes.json").read_text())
        return found

    def left(self) -> list[str]:
        """Processes of batches that still live."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                is_ours = self.repo.marker.encode() in (entry / "environ").read_bytes()
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if is_ours and int(entry.name) != self.process.pid:
                found.append(f"{entry.name}: {words!r}")
        return found


@contextmanager
def driven(repo: UserRepo) -> Iterator[Driver]:
    log = repo.home.parent / "driver.log"
    env = {**repo.env, "MARKER": repo.marker}
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-c", DRIVER],
            cwd=repo.root,
            env=env,
            stdin=-1,
            stdout=-1,
            stderr=errors,
            text=True,
        ) as process,
    ):
        yield Driver(repo, process, log)


def tasks_of(run: str) -> list[Task]:
    more: dict[str, dict[str, Any]] = {"on-top": {"needs": ("plain",), "base": "task:plain"}}
    return [
        Task(
            id=name,
            command=("sh", "-c", script),
            branch=f"batch/{run}/{name}",
            group=name,
            attempts=1,
            **more.get(name, {}),
        )
        for name, script in SCRIPTS.items()
    ]


def trees(repo: UserRepo, run: str) -> dict[str, str]:
    refs = repo.refs()
    prefix = f"refs/heads/batch/{run}/"
    found = {ref.removeprefix(prefix): oid for ref, oid in refs.items() if ref.startswith(prefix)}
    return {name: repo.git("rev-parse", f"{oid}^{{tree}}") for name, oid in found.items()}


def check_accounts(repo: UserRepo, place: BatchLayout, ended: dict[str, Any]) -> None:
    """Every attempt has one end, what it made has its ref, and nothing raw lies about."""
    rows = read_journal(place.journal)[0]
    submitted = [(row["task"], row["attempt"]) for row in rows if row["event"] == "submitted"]
    results = {(row["task"], row["attempt"]): row["result"] for row in rows if row["event"] == "ended"}
    assert len(submitted) == len(set(submitted))
    assert sorted(submitted) == sorted(results)
    reported = [(name, each["attempt"]) for name, (_, made) in ended["tasks"].items() for each in made]
    assert sorted(reported) == sorted(submitted)
    refs = repo.refs()
    for (name, number), result in results.items():
        assert refs.get(f"refs/overlayrun/attempts/{place.run}/{name}/{number}") == result["tip"]
    assert [str(path) for path in Path(place.reports).rglob("*.raw")] == []


def test_killed_at_any_moment_it_comes_to_the_same(repo: UserRepo, until: Callable[..., None]) -> None:
    with driven(repo) as driver:
        for _ in range(2):  # the first freezes the base
            place = create_run(driver.layout)
            began = time.monotonic()
            undisturbed = driver.through(place, tasks_of(place.run))
            took = time.monotonic() - began
        assert {name: outcome for name, (outcome, _) in undisturbed["tasks"].items()} == OUTCOMES
        assert undisturbed["status"] == 1
        check_accounts(repo, place, undisturbed)
        expected = trees(repo, place.run)
        assert {"plain", "agent", "slow", "bad", "on-top"} <= expected.keys()

        kills = 0
        for number in TRIES:
            chance = random.Random(number)
            place = create_run(driver.layout)
            kills += driver.killed(place, tasks_of(place.run), chance.uniform(0.05, 1.1) * took)
            if not Path(place.plan).exists():
                continue  # it was killed before it was one
            if number % 4 < 2:
                kills += driver.killed(place, None, chance.uniform(0, 0.8) * took)

            ended = driver.through(place, None)

            assert {name: outcome for name, (outcome, _) in ended["tasks"].items()} == OUTCOMES, ended
            assert ended["status"] == 1
            assert trees(repo, place.run) == expected
            check_accounts(repo, place, ended)
        assert kills > len(TRIES) / 3
        until(lambda: driver.left() == [], "nothing is left running")
