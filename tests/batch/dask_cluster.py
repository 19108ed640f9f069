"""A scheduler of Dask's and workers of overlayrun's, as processes that talk TLS, for the tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from overlayrun.batch.address import Tls
from overlayrun.batch.attempt import Shared
from overlayrun.batch.engines.api import Ended, Event, Lost
from overlayrun.batch.engines.dask import DaskEngine, DaskSettings
from overlayrun.batch.layout import BatchLayout
from overlayrun.batch.task import Attempt, AttemptKey, Task
from overlayrun.cli.options import run_options
from overlayrun.model import DirtyPolicy, RunOptions
from overlayrun.store.location import find_repository
from overlayrun.workspace.layout import open_state

_CONFIG = "[user]\n\tname = Worker\n\temail = worker@example.invalid\n[safe]\n\tdirectory = *\n"
# The command line, in another version than ours where a test says so.
_OVERLAYRUN = """
import os
from overlayrun.batch import parcel
from overlayrun.launch import main
if os.environ["TEST_VERSION"]:
    parcel.version = lambda: os.environ["TEST_VERSION"]
main()
"""


def make_certificates(place: Path) -> Tls:
    """A certificate authority, and one certificate that all sides use."""
    place.mkdir()
    config = place / "openssl.cnf"
    config.write_text("[req]\ndistinguished_name=dn\n[dn]\n[ca]\nbasicConstraints=critical,CA:TRUE\n")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-config", str(config)]
    for words in (
        [
            *["req", "-x509", *key, "-extensions", "ca", "-days", "2", "-subj", "/CN=Test CA"],
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
        ],
        ["req", *key, "-subj", "/CN=overlayrun test", "-keyout", "key.pem", "-out", "request.pem"],
        [
            "x509",
            "-req",
            "-in",
            "request.pem",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "2",
            "-out",
            "cert.pem",
        ],
    ):
        subprocess.run(["openssl", *words], cwd=place, check=True, capture_output=True)
    return Tls(*(str(place / f"{name}.pem") for name in ("ca", "cert", "key")))


@dataclass(slots=True)
class WorkerProcess:
    """A worker, and where its launcher and attempts are found."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    cache: Path

    def children(self) -> list[int]:
        """The launcher, and all below it."""
        return _below(self.process.pid)

    def kill(self) -> None:
        """At once, with its launcher."""
        for pid in [*self.children()[:1], self.process.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def _below(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True)
    parents = [tuple(map(int, line.split())) for line in listed.stdout.splitlines()]
    found, todo = [], [pid]
    while todo:
        parent = todo.pop(0)
        children = [child for child, of in parents if of == parent]
        found += children
        todo += children
    return found


@dataclass(slots=True)
class DaskCluster:
    """One scheduler, any number of workers. via: words before each command, to run it elsewhere."""

    place: Path
    tls: Tls | None
    address: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    spares: list[WorkerProcess] = field(default_factory=list)
    scheduler: subprocess.Popen[bytes] | None = None

    def start_scheduler(self, host: str = "127.0.0.1", via: Sequence[str] = (), port: int = 0) -> None:
        """Start the scheduler on a port of its own choice, and wait for its address."""
        found = self.place / "scheduler.json"
        found.unlink(missing_ok=True)
        protocol = "tcp" if self.tls is None else "tls"
        tls = (
            []
            if self.tls is None
            else ["--tls-ca-file", self.tls.ca, "--tls-cert", self.tls.cert, "--tls-key", self.tls.key]
        )
        command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--no-show", "--no-dashboard"]
        command += ["--host", f"{protocol}://{host}:{port}", "--scheduler-file", str(found), *tls]
        self.scheduler = self.spawn([*via, *command], self.place / "scheduler.log")
        end = time.monotonic() + 60
        while not (found.exists() and found.stat().st_size):
            assert self.scheduler.poll() is None, (self.place / "scheduler.log").read_text()
            assert time.monotonic() < end, "no scheduler"
            time.sleep(0.05)
        import json

        self.address = json.loads(found.read_text())["address"]

    def start_worker(
        self, name: str, slots: int = 2, via: Sequence[str] = (), version: str = ""
    ) -> WorkerProcess:
        """Start a worker with a cache and a home of its own. version: that it says it has."""
        cache, home, log = self.place / name / "cache", self.place / name / "home", self.place / f"{name}.log"
        home.mkdir(parents=True, exist_ok=True)
        (home / ".gitconfig").write_text(_CONFIG)
        words = [
            "--scheduler",
            self.address,
            "--slots",
            str(slots),
            "--repo-cache",
            str(cache),
            "--name",
            name,
        ]
        command = [sys.executable, "-P", "-c", _OVERLAYRUN, "worker", *words, *self.tls_options]
        process = self.spawn([*via, *command], log, {"HOME": str(home), "TEST_VERSION": version})
        return WorkerProcess(name, process, log, cache)

    @property
    def tls_options(self) -> list[str]:
        """As the command line takes them."""
        if self.tls is None:
            return []
        return ["--tls-ca", self.tls.ca, "--tls-cert", self.tls.cert, "--tls-key", self.tls.key]

    def spawn(
        self, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        quiet = {
            "DASK_DISTRIBUTED__SCHEDULER__WORK_STEALING": "False",
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0",
            "PYTHONWARNINGS": "default",
        }
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                env={**os.environ, **quiet, **self.environment, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def stop(self) -> None:
        for process in reversed(self.processes):
            for pid in [process.pid, *_below(process.pid)]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


def make_remote(repository: Path) -> Path:
    """A bare repository beside the user's, which has what is pushed there."""
    remote = repository.parent / "remote.git"
    subprocess.run(["git", "init", "--quiet", "--bare", str(remote)], check=True)
    return remote


def options() -> RunOptions:
    """Of every run of a batch."""
    return RunOptions(**{**vars(run_options({})), "dirty": DirtyPolicy.IGNORE, "quiet": True})


def share(repository: Path, run: str) -> Shared:
    """What the attempts of a run have in common."""
    found = find_repository(str(repository))
    layout = open_state(found.common_dir)
    place = BatchLayout(layout, run)
    os.makedirs(place.reports, mode=0o700)
    return Shared(found, layout, options(), place)


@contextmanager
def engine(
    cluster: DaskCluster, shared: Shared, remote: Path, *, hosts: int, lost_after: float = 25.0
) -> Iterator[DaskEngine]:
    """An engine whose workers are there."""
    settings = DaskSettings(
        scheduler=cluster.address, remote=str(remote), tls=cluster.tls, lost_after=lost_after
    )
    told: list[str] = []
    made = DaskEngine(shared, settings, told.append)
    try:
        wait_for_hosts(made, hosts)
        yield made
    finally:
        made.close()


def wait_for_hosts(made: DaskEngine, count: int) -> None:
    end = time.monotonic() + 60
    while len(made.hosts()) < count:
        assert time.monotonic() < end, f"only {made.hosts()}"
        made.poll(0.1)


def submit_to(made: DaskEngine, what: Attempt, host: str) -> None:
    """Submit an attempt to a worker once that one is there, whatever others are."""
    end = time.monotonic() + 60
    while host not in {each.name for each in made.hosts()}:
        assert time.monotonic() < end, f"only {made.hosts()}"
        made.poll(0.1)
    made.submit(what, host)


def task(name: str, script: str, run: str, **more: Any) -> Task:
    """A task that is a shell script."""
    return Task(id=name, command=("sh", "-c", script), branch=f"batch/{run}/{name}", group=name, **more)


def last_events(made: DaskEngine, keys: Sequence[AttemptKey]) -> dict[AttemptKey, Event]:
    """Poll until each of some attempts has ended or is lost."""
    found: dict[AttemptKey, Event] = {}
    end = time.monotonic() + 120
    while set(keys) - set(found):
        assert time.monotonic() < end, f"still out: {set(keys) - set(found)}"
        for event in made.poll(0.5):
            if isinstance(event, Ended | Lost):
                assert event.key not in found
                found[event.key] = event
    return found


def attempt(shared: Shared, what: Task, base: str, number: int = 1) -> Attempt:
    """One try."""
    return Attempt(run=shared.place.run, task=what, number=number, base=base)
