"""Attempts on a real Dask cluster: a scheduler and workers as processes on loopback, talking TLS."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import UserRepo, wait_until

from overlayrun.batch.attempt import Shared
from overlayrun.batch.engines.api import Ended, Event, Lost, Started
from overlayrun.batch.engines.cluster import Answered, Cluster
from overlayrun.batch.engines.dask import DaskEngine, DaskSettings
from overlayrun.batch.mirror import Mirror
from overlayrun.batch.parcel import version
from overlayrun.batch.task import Outcome
from overlayrun.errors import HostError

from .dask_cluster import (
    DaskCluster,
    WorkerProcess,
    attempt,
    engine,
    last_events,
    make_certificates,
    make_remote,
    share,
    submit_to,
    task,
    wait_for_hosts,
)

pytestmark = pytest.mark.shared(by="file")  # what coordinator and workers say to each other


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """One scheduler for the module."""
    place = tmp_path_factory.mktemp("cluster")
    made = DaskCluster(place, make_certificates(place / "tls"))
    try:
        made.start_scheduler()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def workers(cluster: DaskCluster) -> list[WorkerProcess]:
    """Two workers of two slots, which no test kills."""
    return [cluster.start_worker(name) for name in ("one", "two")]


@pytest.fixture
def spare(cluster: DaskCluster) -> WorkerProcess:
    """A worker of one slot that a test may do anything to."""
    if not cluster.spares:
        cluster.spares.append(cluster.start_worker(f"spare-{len(cluster.processes)}", slots=1))
    return cluster.spares.pop()


@pytest.fixture
def remote(repo: UserRepo) -> Path:
    return make_remote(repo.root)


@pytest.fixture
def shared(repo: UserRepo, monkeypatch: pytest.MonkeyPatch) -> Shared:
    """A run of a batch in the user's repository, in this process as that user."""
    for name, value in repo.env.items():
        if name != "PATH":
            monkeypatch.setenv(name, value)
    return share(repo.root, f"run-{repo.marker[:8]}")


def until_started(made: DaskEngine, count: int) -> list[Event]:
    found: list[Event] = []
    end = time.monotonic() + 60
    while sum(isinstance(event, Started) for event in found) < count:
        assert time.monotonic() < end, found
        found += made.poll(0.2)
    return found


def mine(repo: UserRepo, worker: WorkerProcess) -> set[int]:
    """Processes of this test's marker below a worker."""
    return set(repo.marked()) & set(worker.children())


def test_eight_tasks_on_two_machines(
    repo: UserRepo, shared: Shared, remote: Path, cluster: DaskCluster, workers: list[WorkerProcess]
) -> None:
    run = shared.place.run
    base = repo.commit(local="never pushed by the user")
    shared = replace(shared, bundle=True)
    scripts = {
        "plain": "echo 1 >new; echo hello",
        "own": "echo 1 >f; git add f; git commit -qm 'By the agent'; echo 2 >left",
        "same": "echo nothing to do",
        "silent": "true",
        "fails": "echo 1 >new; echo no >&2; exit 3",
        "unchecked": "echo 1 >new",
        "slow": "sleep 30; echo 1 >new",
        "variables": 'printf %s "$WORD $OVERLAYRUN_TASK $OVERLAYRUN_ATTEMPT" >new',
    }
    more: dict[str, dict[str, object]] = {
        "unchecked": {"check": "echo looked; test -e missing"},
        "slow": {"timeout": 1.0},
        "variables": {"env": {"WORD": "word"}, "check": "grep -q word new", "judge": "wc -c <new"},
    }
    tasks = [task(name, script, run, **more.get(name, {})) for name, script in scripts.items()]
    todo = [attempt(shared, each, base) for each in tasks]
    ended: dict[str, Ended] = {}
    out: dict[str, int] = {}
    before = repo.picture()
    with engine(cluster, shared, remote, hosts=2) as made:
        assert {(host.name, host.slots) for host in made.hosts()} == {("one", 2), ("two", 2)}
        where: dict[object, str] = {}
        while len(ended) < 8:
            for host in made.hosts():
                while todo and out.get(host.name, 0) < host.slots:
                    next_one = todo.pop(0)
                    where[next_one.key] = host.name
                    out[host.name] = out.get(host.name, 0) + 1
                    made.submit(next_one, host.name)
            for event in made.poll(5):
                assert not isinstance(event, Lost)
                if isinstance(event, Ended):
                    ended[event.key[0]] = event
                    out[where[event.key]] -= 1
                    assert event.result.host == where[event.key]
        made.cancel(("plain", 1))  # over: nothing happens
        offers = subprocess.check_output(["git", f"--git-dir={remote}", "for-each-ref"], text=True)
        assert "refs/overlayrun/offers/" in offers

    results = {name: event.result for name, event in ended.items()}
    assert {name: result.outcome.value for name, result in results.items()} == {
        "plain": "ok",
        "own": "ok",
        "same": "no-change",
        "silent": "empty",
        "fails": "failed",
        "unchecked": "check-failed",
        "slow": "timeout",
        "variables": "ok",
    }
    assert repo.picture() == before
    refs = repo.refs()
    for name, result in results.items():
        place = shared.place.attempt((name, 1))
        assert json.loads(Path(place.result).read_text()) == result.to_json()
        assert refs[f"refs/heads/batch/{run}/{name}"] == (result.tip or base)
        assert refs.get(f"refs/overlayrun/attempts/{run}/{name}/1") == result.tip
    assert set(repo.records()) == {f"batch/{run}/{name}" for name in scripts}
    assert results["variables"].score == len("word variables 1")
    assert repo.git("log", "--format=%s", f"{base}..batch/{run}/own").splitlines()[-1] == "By the agent"
    assert set(repo.git("log", "--format=%cn", f"{base}..batch/{run}/own").splitlines()) == {"Test User"}
    assert Path(shared.place.attempt(("plain", 1)).stdout).read_text() == "hello\n"
    assert Path(shared.place.attempt(("fails", 1)).stderr).read_text() == "no\n"
    assert Path(shared.place.attempt(("unchecked", 1)).check).read_text() == "looked\n"
    assert "+word variables 1" in Path(shared.place.attempt(("variables", 1)).diff).read_text()
    for worker in workers:
        mirror = Path(Mirror(str(worker.cache), str(remote)).git_dir)
        assert list((mirror / "overlayrun/workspaces").iterdir()) == [], "a host keeps no workspace"
        assert not list(mirror.glob("refs/heads/**/*"))
    assert repo.git("bundle", "verify", "-q", shared.place.attempt(("own", 1)).bundle) == ""
    # The remote keeps each attempt, and nothing else of ours once the batch is over.
    theirs = subprocess.check_output(["git", f"--git-dir={remote}", "for-each-ref"], text=True)
    assert sorted(line.split()[2] for line in theirs.splitlines()) == sorted(
        f"refs/overlayrun/attempts/{run}/{name}/1" for name, result in results.items() if result.tip
    )


def test_a_cancelled_attempt_leaves_no_process_and_keeps_its_work(
    repo: UserRepo, shared: Shared, remote: Path, cluster: DaskCluster, workers: list[WorkerProcess]
) -> None:
    script = f"echo half >new; {repo.sleeper()}"
    one = attempt(shared, task("t", script, shared.place.run), repo.git("rev-parse", "HEAD"))
    with engine(cluster, shared, remote, hosts=2) as made:
        made.submit(one, "two")
        until_started(made, 1)
        wait_until(lambda: mine(repo, workers[1]), "the agent runs")

        made.cancel(one.key)
        (event,) = last_events(made, [one.key]).values()

    assert isinstance(event, Ended)
    assert event.result.outcome is Outcome.CANCELLED
    assert repo.show(f"batch/{shared.place.run}/t", "new") == "half\n"
    wait_until(lambda: not repo.marked(), "the agent is gone")


def test_results_that_can_not_be_pushed_come_as_bundles(
    repo: UserRepo, shared: Shared, remote: Path, cluster: DaskCluster, workers: list[WorkerProcess]
) -> None:
    hook = remote / "hooks/pre-receive"
    hook.write_text(
        "#!/bin/sh\nwhile read _ _ ref; do case $ref in */attempts/*) echo not you >&2; exit 1; esac; done\n"
    )
    hook.chmod(0o755)
    base = repo.git("rev-parse", "HEAD")
    small = attempt(shared, task("small", "echo 1 >new", shared.place.run), base)
    large = attempt(shared, task("large", "head -c 12000000 /dev/urandom >new", shared.place.run), base)
    with engine(cluster, shared, remote, hosts=2) as made:
        made.submit(small, "one")
        made.submit(large, "one")
        events = last_events(made, [small.key, large.key])

    (came, stayed) = (events[small.key], events[large.key])
    assert isinstance(came, Ended)
    assert isinstance(stayed, Ended)
    assert came.result.outcome is Outcome.OK
    assert repo.show(f"batch/{shared.place.run}/small", "new") == "1\n"
    assert stayed.result.outcome is Outcome.INFRA
    assert "not you" in (stayed.result.detail or "")
    mirror = Mirror(str(workers[0].cache), str(remote)).git_dir
    assert f"{large.ref} of {mirror} on one" in (stayed.result.detail or "")
    assert subprocess.check_output(["git", f"--git-dir={mirror}", "rev-parse", large.ref])


@pytest.mark.usefixtures("workers")
def test_a_killed_worker_is_noticed_and_its_attempt_runs_elsewhere(
    repo: UserRepo, shared: Shared, remote: Path, cluster: DaskCluster, spare: WorkerProcess
) -> None:
    once = attempt(
        shared,
        task("t", f"echo 1 >new; test $OVERLAYRUN_ATTEMPT = 2 || {repo.sleeper()}", shared.place.run),
        repo.git("rev-parse", "HEAD"),
    )
    again = replace(once, number=2)
    with engine(cluster, shared, remote, hosts=3) as made:
        submit_to(made, once, spare.name)
        until_started(made, 1)
        wait_until(lambda: mine(repo, spare), "the agent runs")

        spare.kill()
        (lost,) = last_events(made, [once.key]).values()
        assert lost == Lost(once.key, spare.name, "the connection to its worker is closed")
        wait_until(lambda: not repo.marked(), "the agent is gone with its worker")
        assert {host.name for host in made.hosts()} == {"one", "two"}
        with pytest.raises(HostError):
            made.submit(replace(once, number=3), spare.name)
        made.submit(again, "one")
        (event,) = last_events(made, [again.key]).values()

    assert isinstance(event, Ended)
    assert event.result.outcome is Outcome.OK
    assert once.ref not in repo.refs()


@pytest.mark.usefixtures("workers")
def test_what_runs_on_a_worker_that_dies_alone_is_ended_and_kept_there(
    repo: UserRepo, shared: Shared, remote: Path, cluster: DaskCluster, spare: WorkerProcess
) -> None:
    script = f"echo half >new; {repo.sleeper()}"
    one = attempt(shared, task("t", script, shared.place.run), repo.git("rev-parse", "HEAD"))
    with engine(cluster, shared, remote, hosts=3) as made:
        submit_to(made, one, spare.name)
        until_started(made, 1)
        wait_until(lambda: mine(repo, spare), "the agent runs")
        spare.process.kill()
        last_events(made, [one.key])

    wait_until(lambda: not repo.marked(), "the agent is gone")
    mirror = Mirror(str(spare.cache), str(remote)).git_dir
    shown = ["git", f"--git-dir={mirror}", "show", f"{one.ref}:new"]
    wait_until(
        lambda: subprocess.run(shown, capture_output=True, check=False).stdout == b"half\n", "it is kept"
    )


@pytest.mark.usefixtures("workers")
def test_a_late_result_of_a_worker_that_was_given_up_lands_nowhere(
    repo: UserRepo, shared: Shared, remote: Path, cluster: DaskCluster, spare: WorkerProcess
) -> None:
    script = "echo $OVERLAYRUN_ATTEMPT >new; test $OVERLAYRUN_ATTEMPT = 2 || sleep 600"
    first = attempt(shared, task("t", script, shared.place.run), repo.git("rev-parse", "HEAD"))
    second = replace(first, number=2)
    with engine(cluster, shared, remote, hosts=3, lost_after=2.0) as made:
        submit_to(made, first, spare.name)
        until_started(made, 1)
        os.kill(spare.process.pid, signal.SIGSTOP)
        (lost,) = last_events(made, [first.key]).values()
        assert isinstance(lost, Lost)
        assert spare.name not in {host.name for host in made.hosts()}
        made.submit(second, "one")
        last_events(made, [second.key])

        os.kill(spare.process.pid, signal.SIGCONT)
        pushed = ["git", f"--git-dir={remote}", "rev-parse", "--verify", "--quiet", first.ref]
        wait_until(
            lambda: subprocess.run(pushed, capture_output=True, check=False).returncode == 0, "it is pushed"
        )
        wait_for_hosts(made, 3)
        assert made.poll(1.0) == []

    assert repo.show(f"batch/{shared.place.run}/t", "new") == "2\n"
    assert first.ref not in repo.refs()
    assert second.ref in repo.refs()
    cluster.spares.append(spare)


def test_an_agent_ends_when_its_coordinator_is_gone(
    repo: UserRepo, shared: Shared, remote: Path, cluster: DaskCluster, workers: list[WorkerProcess]
) -> None:
    one = attempt(
        shared,
        task("t", f"echo half >new; {repo.sleeper()}", shared.place.run),
        repo.git("rev-parse", "HEAD"),
    )
    with engine(cluster, shared, remote, hosts=2) as made:
        made.submit(one, "one")
        until_started(made, 1)
        wait_until(lambda: mine(repo, workers[0]), "the agent runs")
        made._cluster.close()  # as if it had been killed: nothing is cancelled by it
        made._flights.clear()

        wait_until(lambda: not repo.marked(), "the agent is gone")
        pushed = ["git", f"--git-dir={remote}", "show", f"{one.ref}:new"]
        wait_until(
            lambda: subprocess.run(pushed, capture_output=True, check=False).stdout == b"half\n", "it is kept"
        )


def test_another_version_is_refused_by_both_sides(
    repo: UserRepo, shared: Shared, remote: Path, cluster: DaskCluster, workers: list[WorkerProcess]
) -> None:
    old = cluster.start_worker("old", version="0.0.9")
    told: list[str] = []
    settings = DaskSettings(scheduler=cluster.address, remote=str(remote), tls=cluster.tls)
    made = DaskEngine(shared, settings, told.append)
    wait_until(lambda: (made.hosts(), told)[1], "it is told of")
    assert told == [f"worker old has overlayrun 0.0.9, this is {version()}: it gets no tasks"]
    assert "old" not in {host.name for host in made.hosts()}
    made.close()

    talk = Cluster(cluster.address, cluster.tls, "topic", 25.0)
    talk.submit("r/t/1", {"version": version()}, talk.members()["old"].address)
    answers: list[object] = []
    while not answers:
        answers += talk.news(5)
    talk.close()
    old.kill()
    assert answers == [
        Answered("r/t/1", {"refused": f"worker old has overlayrun 0.0.9, the coordinator {version()}"})
    ]


@pytest.mark.usefixtures("workers")
def test_a_worker_that_is_told_to_stop_ends_its_agents_and_pushes_their_work(
    repo: UserRepo, shared: Shared, remote: Path, cluster: DaskCluster, spare: WorkerProcess
) -> None:
    one = attempt(
        shared,
        task("t", f"echo half >new; {repo.sleeper()}", shared.place.run),
        repo.git("rev-parse", "HEAD"),
    )
    with engine(cluster, shared, remote, hosts=3) as made:
        submit_to(made, one, spare.name)
        until_started(made, 1)
        wait_until(lambda: mine(repo, spare), "the agent runs")

        spare.process.terminate()
        (event,) = last_events(made, [one.key]).values()
        assert spare.process.wait(60) == 0

    assert isinstance(event, Lost)
    assert not repo.marked()
    shown = subprocess.check_output(["git", f"--git-dir={remote}", "show", f"{one.ref}:new"])
    assert shown == b"half\n"


def test_a_scheduler_that_is_started_again_gets_its_workers_back(
    repo: UserRepo, shared: Shared, remote: Path, tmp_path: Path
) -> None:
    place = tmp_path / "cluster"
    place.mkdir()
    cluster = DaskCluster(place, None)
    first = attempt(
        shared,
        task("t", f"echo half >new; {repo.sleeper()}", shared.place.run),
        repo.git("rev-parse", "HEAD"),
    )
    try:
        cluster.start_scheduler()
        cluster.start_worker("only", slots=1)
        with engine(cluster, shared, remote, hosts=1) as made:
            made.submit(first, "only")
            until_started(made, 1)
            assert cluster.scheduler is not None
            cluster.scheduler.kill()
            (lost,) = last_events(made, [first.key]).values()
            assert isinstance(lost, Lost)
            assert made.hosts() == []
            assert repo.marked(), "it goes on"

            cluster.start_scheduler(port=int(cluster.address.rpartition(":")[2]))
            wait_until(lambda: not repo.marked(), "nobody waits for it any more")
            wait_for_hosts(made, 1)
            second = attempt(shared, task("u", "echo 1 >new", shared.place.run), first.base)
            made.submit(second, "only")
            (event,) = last_events(made, [second.key]).values()
    finally:
        cluster.stop()

    assert isinstance(event, Ended)
    assert event.result.outcome is Outcome.OK
    shown = subprocess.check_output(["git", f"--git-dir={remote}", "show", f"{first.ref}:new"])
    assert shown == b"half\n"


def test_a_scheduler_that_is_not_there_is_an_error(
    shared: Shared, remote: Path, cluster: DaskCluster
) -> None:
    settings = DaskSettings(
        scheduler="tls://127.0.0.1:1", remote=str(remote), tls=cluster.tls, lost_after=1.0
    )

    with pytest.raises(HostError, match=r"no Dask scheduler answers at tls://127\.0\.0\.1:1"):
        DaskEngine(shared, settings, lambda _: None)


def test_who_has_no_certificate_is_not_let_in(
    shared: Shared, remote: Path, cluster: DaskCluster, tmp_path: Path
) -> None:
    stranger = make_certificates(tmp_path / "other")
    settings = DaskSettings(scheduler=cluster.address, remote=str(remote), tls=stranger, lost_after=1.0)

    with pytest.raises(HostError):
        DaskEngine(shared, settings, lambda _: None)


@pytest.mark.usefixtures("workers")
def test_a_killed_coordinator_that_is_resumed_loses_no_task_and_lands_none_twice(
    repo: UserRepo, remote: Path, cluster: DaskCluster
) -> None:
    """Through the command line, TLS and all."""
    repo.commit("base")
    repo.git("remote", "add", "origin", str(remote))
    names = "abcdef"
    lines = [json.dumps({"id": name, "command": f"echo {name} >{name}; sleep 1"}) for name in names]
    repo.write("t.jsonl", "\n".join(lines))
    engine_words = ["--engine", cluster.address.replace("tls://", "dask://"), *cluster.tls_options]
    with repo.started("batch", "t.jsonl", "-j", "3", "--merge", *engine_words) as running:
        running.expect("ok after")
        wait_until(lambda: running.text().count(": started") > 3, "others run")
        running.process.kill()
        running.process.wait()

    done = repo.overlayrun("batch", "--resume", "latest", "--report", str(repo.home / "out"))
    assert done.code == 0, str(done)
    summary = json.loads((repo.home / "out/summary.json").read_text())
    assert {task["id"]: task["landing"] for task in summary["tasks"]} == dict.fromkeys(names, "landed")
    assert [repo.show("main", name) for name in names] == [f"{name}\n" for name in names]
    landed = repo.git("log", "--format=%s", "main", "--", *names).splitlines()
    assert len([line for line in landed if not line.startswith("Merge")]) == len(names)
