"""The recipes of the README: their own lines, with the variables that the services set."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import yaml
from conftest import PATIENCE
from junitparser import JUnitXml

if TYPE_CHECKING:
    from conftest import UserRepo

pytestmark = pytest.mark.shared  # what is typed and told

README: Final = Path(__file__).parents[2] / "README.md"
TASKS: Final = "".join(f"- {{id: task-{n}, command: 'echo {n} >{n}.txt'}}\n" for n in range(6))
TASKS_OF_FORKS: Final = {"repository": {"id": 1}, "pull_request": {"head": {"repo": {"id": 2}}}}


def _recipe(title: str) -> dict[str, Any]:
    (block,) = re.findall(rf"```yaml\n(# {title}: .*?)```", README.read_text(), re.DOTALL)
    loaded: dict[str, Any] = yaml.safe_load(block)
    return loaded


def _ours(lines: list[str]) -> list[str]:
    (line,) = [line for line in lines if line.startswith("overlayrun ")]
    return shlex.split(line)[1:]


@pytest.fixture
def origin(repo: UserRepo, tmp_path: Path) -> str:
    """Where the jobs' clones come from and publish to."""
    repo.commit("tasks", **{"tasks.yaml": TASKS})
    place = str(tmp_path / "origin.git")
    repo.git("clone", "--quiet", "--bare", str(repo.root), place)
    return place


def _job(repo: UserRepo, origin: str, name: str) -> UserRepo:
    """A fresh clone, and variables of a runner."""
    job = repo.at(repo.home / name)
    repo.git("clone", "--quiet", origin, str(job.root))
    job.env.update(CI="true")
    return job


def test_github_actions(repo: UserRepo, origin: str, tmp_path: Path) -> None:
    jobs = _recipe("GitHub Actions")["jobs"]
    line = _ours([step.get("run", "") for step in jobs["agents"]["steps"]])
    results = repo.home / "publish/results"
    told = set()
    for shard in jobs["agents"]["strategy"]["matrix"]["shard"]:
        words = shlex.split(" ".join(line).replace("${{ matrix.shard }}", str(shard)))
        job = _job(repo, origin, f"agents-{shard}")
        files = {name: str(tmp_path / f"{name}-{shard}") for name in ("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT")}
        done = job.overlayrun(*words, env={"GITHUB_ACTIONS": "true", **files})
        assert done.code == 0, str(done)
        assert "task-" in Path(files["GITHUB_STEP_SUMMARY"]).read_text()
        assert "succeeded" in Path(files["GITHUB_OUTPUT"]).read_text()
        told |= {task["id"] for task in json.loads((job.root / "out/summary.json").read_text())["tasks"]}
        job.git("status", "--porcelain")
    assert told == {f"task-{n}" for n in range(6)}

    publisher = _job(repo, origin, "publish")
    for shard in jobs["agents"]["strategy"]["matrix"]["shard"]:
        results.mkdir(exist_ok=True)
        (repo.home / f"agents-{shard}/out").rename(results / f"agents-{shard}")
    stand_in = tmp_path / "bin/gh"
    stand_in.parent.mkdir()
    stand_in.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/asked\necho https://github.com/o/r/pull/1\n')
    stand_in.chmod(0o755)
    words = _ours([step.get("run", "") for step in jobs["publish"]["steps"]])
    env = {"PATH": f"{stand_in.parent}:{publisher.env['PATH']}", "GITHUB_ACTIONS": "true"}
    event = tmp_path / "event.json"
    event.write_text(json.dumps(TASKS_OF_FORKS))
    fork = {**env, "GITHUB_EVENT_NAME": "pull_request", "GITHUB_EVENT_PATH": str(event)}
    refused = publisher.overlayrun(*words, env=fork)
    assert refused.code == 2, str(refused)
    assert "fork" in refused.err
    done = publisher.overlayrun(*words, env=env)
    assert done.code == 0, str(done)
    heads = repo.git("ls-remote", "--heads", origin)
    assert {f"refs/heads/agents/task-{n}" for n in range(6)} <= {row.split()[1] for row in heads.splitlines()}
    assert len((tmp_path / "asked").read_text().splitlines()) == 6


def test_gitlab(repo: UserRepo, origin: str) -> None:
    recipe = _recipe("GitLab")["agents"]
    words = _ours(recipe["script"])
    seen = 0
    for index in range(1, recipe["parallel"] + 1):
        text = " ".join(words).replace("$CI_NODE_INDEX", str(index))
        text = text.replace("$CI_NODE_TOTAL", str(recipe["parallel"]))
        job = _job(repo, origin, f"node-{index}")
        done = job.overlayrun(*shlex.split(text))
        assert done.code == 0, str(done)
        seen += JUnitXml.fromfile(str(job.root / recipe["artifacts"]["reports"]["junit"])).tests
    assert seen == 6


def test_a_container_whose_user_namespaces_are_closed(repo: UserRepo) -> None:
    """It falls back to nothing: what to type is told, no agent starts, and the exit code is the machine's."""
    script = 'echo 0 >/proc/sys/user/max_user_namespaces; exec "$@"'
    words = repo.command(
        "batch", "-n", "9", "-p", "x", "--report", "out", "--", "touch", str(repo.home / "ran")
    )
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh", *words],
        cwd=repo.root,
        env=repo.env,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 3, done.stdout + done.stderr
    assert "stopped: no attempt could be made here" in done.stdout
    assert "sysctl user.max_user_namespaces" in done.stdout
    summary = json.loads((repo.root / "out/summary.json").read_text())
    assert summary["status"] == 3
    assert not (repo.home / "ran").exists()
