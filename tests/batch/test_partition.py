"""A network that is cut while attempts run: no task is lost, none lands twice."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import UserRepo, wait_until

from overlayrun.batch.coordinator import Site, plan_batch, run_batch
from overlayrun.batch.engines.dask import DaskEngine, DaskSettings
from overlayrun.batch.progress import Board, News, NewsKind
from overlayrun.batch.settings import Settings
from overlayrun.batch.task import Outcome

from .dask_cluster import DaskCluster, make_certificates, make_remote, share, task, wait_for_hosts


class Link:
    """A network namespace, and the one link that leads to it."""

    def __init__(self) -> None:
        number = os.getpid() % 250
        self._name, self._near, self._far = (
            f"overlayrun-{os.getpid()}",
            f"near{os.getpid()}",
            f"far{os.getpid()}",
        )
        self.host, far = f"10.213.{number}.1", f"10.213.{number}.2"
        self.via = ["ip", "netns", "exec", self._name]
        _ip("netns", "add", self._name)
        _ip("link", "add", self._near, "type", "veth", "peer", "name", self._far, "netns", self._name)
        _ip("addr", "add", f"{self.host}/30", "dev", self._near)
        _ip("link", "set", self._near, "up")
        _ip("-n", self._name, "addr", "add", f"{far}/30", "dev", self._far)
        _ip("-n", self._name, "link", "set", self._far, "up")
        _ip("-n", self._name, "link", "set", "lo", "up")

    def cut(self) -> None:
        """As if the cable were pulled: nobody is told."""
        _ip("-n", self._name, "link", "set", self._far, "down")

    def remove(self) -> None:
        _ip("netns", "del", self._name)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def link() -> Iterator[Link]:
    made = Link()
    yield made
    made.remove()


@pytest.fixture
def cluster(tmp_path: Path, link: Link) -> Iterator[DaskCluster]:
    """A scheduler on the near side, a worker on each side, two slots each."""
    place = tmp_path / "cluster"
    place.mkdir()
    made = DaskCluster(place, make_certificates(place / "tls"))
    try:
        made.start_scheduler(link.host)
        made.start_worker("near")
        made.start_worker("far", via=link.via)
        yield made
    finally:
        made.stop()


@dataclass(slots=True)
class Watching:
    """Pulls the cable once four attempts run."""

    cut: Callable[[], None]
    heard: list[News] = field(default_factory=list)

    def hear(self, news: News) -> None:
        self.heard.append(news)
        if self._count(NewsKind.STARTED) == 4 and news.kind is NewsKind.STARTED:
            self.cut()

    def tick(self, _: Callable[[], Board]) -> None:
        pass

    def _count(self, kind: NewsKind) -> int:
        return sum(news.kind is kind for news in self.heard)


@pytest.mark.root
def test_cut_off_attempts_run_again_and_what_they_make_lands_nowhere(
    repo: UserRepo, cluster: DaskCluster, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in repo.env.items():
        if name != "PATH":
            monkeypatch.setenv(name, value)
    remote = make_remote(repo.root)  # a path: both sides reach it, whatever happens to the network
    shared = share(repo.root, "cut")
    made_by = "echo $OVERLAYRUN_TASK-$OVERLAYRUN_ATTEMPT >new"
    # The first four run when the cable is pulled; what they say when they end does not get through.
    waits = "test $OVERLAYRUN_ATTEMPT = 2 || sleep 6"
    tasks = [
        task(f"t{number}", made_by if number > 3 else f"{waits}; {made_by}", "cut") for number in range(6)
    ]
    planned = plan_batch(
        shared.repository,
        shared.place,
        tasks,
        Settings(jobs=4, backoff=0.1, deadline=120.0),
        engine="dask",
        given={},
    )
    settings = DaskSettings(scheduler=cluster.address, remote=str(remote), tls=cluster.tls, lost_after=3.0)
    made = DaskEngine(shared, settings, lambda _: None)
    wait_for_hosts(made, 2)
    watching = Watching(link.cut)

    report = run_batch(
        made,
        planned,
        shared.place,
        Site(repository=shared.repository, layout=shared.layout, watcher=watching),
    )

    assert report.status == 0, report
    assert [each.outcome for each in report.tasks] == [Outcome.OK] * 6
    winners = {each.task.id: each.results[-1] for each in report.tasks}
    assert {result.host for result in winners.values()} == {"near"}
    again = {name for name, result in winners.items() if result.attempt == 2}
    assert len(again) == 2
    for name, result in winners.items():
        assert repo.show(f"batch/cut/{name}", "new") == f"{name}-{result.attempt}\n"
    refs = [ref for ref in repo.refs() if ref.startswith("refs/overlayrun/attempts/")]
    assert sorted(refs) == sorted(result.ref for result in winners.values())

    def pushed() -> set[str]:
        listed = subprocess.check_output(
            ["git", f"--git-dir={remote}", "for-each-ref", "--format=%(refname)"]
        )
        return set(listed.decode().split())

    # The cut-off ones went on, and their work is kept: eight refs for six tasks.
    late = {f"refs/overlayrun/attempts/cut/{name}/1" for name in again}
    wait_until(lambda: late <= pushed(), "what was cut off is pushed")
    assert len(pushed()) == 8
    assert not late & set(repo.refs())
