"""`gc`: what nobody needs goes, what holds work stays."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from conftest import UserRepo

pytestmark = pytest.mark.shared  # what is garbage

LONG_AGO = time.time() - 90 * 86400


def _age(path: Path) -> None:
    os.utime(path, (LONG_AGO, LONG_AGO))


def _layers(repo: UserRepo) -> set[str]:
    return {f"{kind}/{name}" for kind in ("bases", "layers") for name in os.listdir(repo.state / kind)}


def test_an_old_base_goes_when_no_workspace_stands_on_it(repo: UserRepo) -> None:
    repo.inside("true", "--rm", branch=None)
    (base,) = (repo.state / "bases").iterdir()
    assert repo.overlayrun("gc").code == 0
    assert base.exists()
    _age(base)
    assert repo.overlayrun("gc").code == 0
    assert not base.exists()


def test_a_base_that_a_workspace_or_a_delta_stands_on_stays(repo: UserRepo) -> None:
    repo.inside("echo x >new")
    repo.commit("more", more="m\n")
    repo.inside("echo y >new", branch="c")
    layers = _layers(repo)
    assert len(layers) == 2
    for layer in layers:
        _age(repo.state / layer)
    assert repo.overlayrun("gc", "--max-age", "0s").code == 0
    assert _layers(repo) == layers
    assert repo.inside("cat new") == "x\n"


def test_a_dry_run_removes_nothing(repo: UserRepo) -> None:
    repo.inside("true", "--rm", branch=None)
    (base,) = (repo.state / "bases").iterdir()
    _age(base)
    done = repo.overlayrun("gc", "--dry-run")
    assert done.code == 0, str(done)
    assert base.name[:8] in done.out + done.err
    assert base.exists()


def test_work_that_has_not_landed_is_never_garbage(repo: UserRepo) -> None:
    repo.inside("echo x >new")
    assert repo.overlayrun("gc", "--max-age", "0s", "--max-size", "0").code == 0
    assert repo.inside("cat new") == "x\n"


@pytest.mark.by_both
def test_a_landed_workspace_goes_and_its_branch_stays(repo: UserRepo) -> None:
    repo.inside("echo x >new")
    repo.overlayrun("merge", "b")
    tip = repo.git("rev-parse", "b")
    assert repo.overlayrun("gc", "--max-age", "0s").code == 0
    assert repo.records() == {}
    assert repo.git("rev-parse", "b") == tip


@pytest.mark.by_both
def test_a_killed_throwaway_goes(repo: UserRepo) -> None:
    with repo.started("--rm", "--", "sh", "-c", "echo ready; read line") as run:
        run.expect("ready")
        assert repo.overlayrun("gc").code == 0
        assert len(list((repo.state / "workspaces").iterdir())) == 1
        run.process.kill()
        run.process.wait()
    for _ in range(100):
        repo.overlayrun("gc")
        if not list((repo.state / "workspaces").iterdir()):
            break
        time.sleep(0.05)
    assert list((repo.state / "workspaces").iterdir()) == []


def test_a_running_workspace_is_left_alone(repo: UserRepo) -> None:
    with repo.started("-b", "b", "--", "sh", "-c", "echo ready; read line; cat a.txt; echo x >new") as run:
        run.expect("ready")
        assert repo.overlayrun("gc", "--max-age", "0s", "--max-size", "0").code == 0
        run.type("go")
        assert run.end() == 0
    assert repo.show("b", "new") == "x\n"


def test_reports_of_an_old_batch_go_and_its_work_stays(repo: UserRepo) -> None:
    for _ in range(2):
        assert repo.overlayrun("batch", "-p", "x", "--", "sh", "-c", "echo x >new").code == 0
    old, new = sorted((repo.state / "batches").iterdir())
    kept = [ref for ref in repo.refs() if ref.startswith("refs/overlayrun/attempts/")]
    assert len(kept) == 2
    _age(old)
    assert repo.overlayrun("gc").code == 0
    assert new.exists()
    assert not old.exists()
    assert [ref for ref in repo.refs() if ref.startswith("refs/overlayrun/attempts/")] == kept
    assert repo.show(f"batch/{old.name}/x", "new") == "x\n"


@pytest.mark.by_both
def test_torn_objects_and_abandoned_scratch_go_in_time(repo: UserRepo, tmp_path: Path) -> None:
    """A directory's time tells of what was put there last, whatever the files' own times are."""
    repo.inside("true")
    torn, scratch = repo.state / "torn", tmp_path / "tmp/overlayrun-scratch-x"
    for place in (torn / "refs/heads", scratch / "tree"):
        place.mkdir(parents=True)
    for name in ("0123", "refs/heads/gone"):
        (torn / name).touch()
        _age(torn / name)
    env = {"TMPDIR": str(scratch.parent)}
    _age(torn)
    assert repo.overlayrun("gc", env=env).code == 0
    assert (torn / "0123").exists()
    assert scratch.exists()
    for place in (torn, torn / "refs", torn / "refs/heads", scratch):
        _age(place)
    assert "torn" in repo.overlayrun("gc", "--dry-run", env=env).out
    assert (torn / "0123").exists()
    assert scratch.exists()
    assert repo.overlayrun("gc", env=env).code == 0
    assert not torn.exists()
    assert not scratch.exists()
