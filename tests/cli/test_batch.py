"""`overlayrun batch` as it is typed: files and flags in, branches, reports and exit codes out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from junitparser import JUnitXml

if TYPE_CHECKING:
    from conftest import Done, UserRepo

pytestmark = pytest.mark.shared  # what is typed and told

TASKS = """\
defaults:
  timeout: 60s
tasks:
  - id: one
    command: echo a > a.txt
  - id: two
    command: [sh, -c, 'echo two; echo b >> f.txt']
    check: grep -q b f.txt
  - id: nothing
    command: echo looked
  - id: silent
    command: "true"
  - id: bad
    command: echo oops >&2; exit 3
  - id: unchecked
    command: echo x > x
    check: exit 7
  - id: after
    base: task:one
    command: cat a.txt >> c.txt
  - id: never
    needs: [bad]
    command: echo never > never
  - id: clash
    command: echo c >> f.txt
"""


def _run_name(done: Done) -> str:
    (line,) = [line for line in done.ours if line.startswith("batch ")]
    return line.split()[1].rstrip(":")


def _outcomes(directory: Path) -> dict[str, str]:
    summary = json.loads((directory / "summary.json").read_text())
    return {task["id"]: task["outcome"] for task in summary["tasks"]}


def test_a_file_of_tasks(repo: UserRepo) -> None:
    """One run for many questions."""
    repo.commit("tasks", **{"tasks.yaml": TASKS, "f.txt": "base\n"})
    repo.write("mine.txt", "not committed")
    before = repo.picture()

    plan = repo.overlayrun("batch", "tasks.yaml", "--dry-run")
    assert plan.code == 0, str(plan)
    assert "task:one" in plan.out
    assert "nothing was started" in plan.err
    assert not repo.state.exists()

    done = repo.overlayrun(
        "batch", "tasks.yaml", "-j", "4", "--merge", "--report", "out", "--junit", "j/out.xml"
    )
    assert done.code == 1, str(done)
    assert _outcomes(repo.root / "out") == {
        "one": "ok",
        "two": "ok",
        "nothing": "no-change",
        "silent": "empty",
        "bad": "failed",
        "unchecked": "check-failed",
        "after": "ok",
        "never": "skipped",
        "clash": "ok",
    }
    assert any("1 uncommitted change left out" in line for line in done.ours)
    assert "oops" in (repo.root / "out/tasks/bad/1/stderr.log").read_text()
    assert repo.show("main", "a.txt") == repo.show("main", "c.txt") == "a\n"
    assert repo.show("main", "f.txt") == "base\nb\n"
    (clash,) = [line for line in done.out.splitlines() if line.startswith("clash: conflict")]
    assert "f.txt" in clash
    suites = JUnitXml.fromfile(str(repo.root / "j/out.xml"))
    assert (suites.tests, suites.errors) == (9, 0)
    for name in ("out", "j"):
        subprocess.run(["rm", "-r", name], cwd=repo.root, check=True)
    after = repo.picture()
    assert {path: after[path] for path in before if "f.txt" not in path and not path.endswith("/index")}

    # It is told again, in a table and for programs; and gone on with.
    run = _run_name(done)
    listed = repo.overlayrun("batch", "--list")
    assert f"{run}  exit 1" in listed.out
    again = repo.overlayrun("batch", "--resume", run[:6], "--rerun", "failed", "--json")
    assert again.code == 1, str(again)
    shown: dict[str, Any] = json.loads(again.out)
    attempts = {task["id"]: len(task["attempts"]) for task in shown["tasks"]}
    assert attempts == {
        "one": 1,
        "two": 1,
        "nothing": 1,
        "silent": 2,
        "bad": 2,
        "unchecked": 2,
        "after": 1,
        "never": 0,
        "clash": 1,
    }
    refs = repo.refs()
    assert {f"refs/overlayrun/attempts/{run}/unchecked/{n}" for n in (1, 2)} <= refs.keys()


def test_the_best_of_several(repo: UserRepo) -> None:
    repo.commit("base", **{"f.txt": "base\n"})
    words = ["-n", "3", "-p", "grow", "--judge", "wc -l <f.txt", "--base", "HEAD", "--report", "out"]
    done = repo.overlayrun(
        "batch", *words, "--", "sh", "-c", "for i in $(seq {n}); do echo {prompt} >>f.txt; done"
    )
    assert done.code == 0, str(done)
    summary = json.loads((repo.root / "out/summary.json").read_text())
    winners = {task["id"]: task["winner"] for task in summary["tasks"]}
    assert list(winners.values()) == [False, False, True], winners
    assert {task["attempts"][0]["score"] for task in summary["tasks"]} == {2.0, 3.0, 4.0}
    assert f"next: overlayrun diff {summary['tasks'][2]['branch']} " in done.err
    for number, task in enumerate(summary["tasks"], 1):  # the others' branches are kept
        assert repo.show(task["branch"], "f.txt") == "base\n" + "grow\n" * number


def test_a_task_for_each_file(repo: UserRepo) -> None:
    repo.commit("base", **{"pkg/a b.py": "1", "pkg/c.py": "2", "other.py": "3"})
    done = repo.overlayrun(
        "batch", "--foreach", "pkg/*.py", "-p", "Look at {path}", "--branch", "files/{id}",
        "--", "sh", "-c", 'printf "%s" "$1" >>"$2"', "sh", "{prompt}", "{path}",
    )  # fmt: skip
    assert done.code == 0, str(done)
    branches = [name for name in repo.records() if name.startswith("files/")]
    assert len(branches) == 2
    (spaced,) = [name for name in branches if "a" in name.removeprefix("files/pkg-")[:1]]
    assert repo.show(spaced, "pkg/a b.py") == "1Look at pkg/a b.py"
    assert repo.git("log", "-1", "--format=%s", spaced) == "Look at pkg/a b.py"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["batch"], "there are no tasks"),
        (["batch", "missing.yaml"], "can't be read"),
        (["batch", "bad.yaml"], "line 2: "),
        (["batch", "ok.yaml", "--publish", "origin"], "--prefix agents"),
        (["batch", "ok.yaml", "--prefix", "x"], "--prefix belongs to --publish"),
        (["batch", "ok.yaml", "--timeout", "soon"], "--timeout"),
        (["batch", "--resume", "nothing"], "nothing"),
        (["batch", "--resume", "latest", "ok.yaml"], "leave the tasks out"),
        (["batch", "ok.yaml", "--engine", "dask://example.com:1"], "TLS"),
        (["batch", "--from", "."], "--publish"),
        (["worker", "--scheduler", "tcp://example.com:1"], "TCP"),
    ],
)
def test_what_cannot_be_meant(repo: UserRepo, words: list[str], said: str) -> None:
    repo.write("ok.yaml", "- {id: a, command: 'true'}\n")
    repo.write("bad.yaml", "- id: a\n  tiemout: 3\n  command: 'true'\n- {id: a, command: 'true'}\n")
    done = repo.overlayrun(*words)
    assert done.code == 2, str(done)
    assert said in done.err
    assert not list((repo.state / "batches").glob("*")) if (repo.state / "batches").exists() else True


def test_a_signal_ends_it_and_keeps_everything(repo: UserRepo) -> None:
    repo.commit("base")
    repo.write(
        "t.jsonl",
        '{"id": "a", "command": "echo begun > begun; echo ready; sleep 600"}\n'
        '{"id": "b", "command": "true", "needs": ["a"]}\n',
    )
    with repo.started("batch", "t.jsonl", "--report", "out") as running:
        running.expect("a: started")
        place = repo.state / "batches"
        while not any("ready" in path.read_text() for path in place.glob("*/report/tasks/a/1/output.raw")):
            assert running.process.poll() is None, running.text()
        os.kill(running.process.pid, signal.SIGTERM)
        assert running.end() == 130, running.text()
    assert _outcomes(repo.root / "out") == {"a": "cancelled", "b": "cancelled"} or _outcomes(
        repo.root / "out"
    ) == {"a": "cancelled", "b": "skipped"}
    (branch,) = [name for name in repo.records() if name.endswith("/a")]
    assert repo.show(branch, "begun") == "begun\n"


def test_results_go_to_a_remote_from_here_or_from_another_job(repo: UserRepo, tmp_path: Path) -> None:
    repo.commit("base", **{"f.txt": "base\n"})
    remote = tmp_path / "remote.git"
    repo.git("init", "--bare", "-q", str(remote))
    repo.git("push", "-q", str(remote), "main")
    repo.write("t.yaml", "- {id: good, command: 'echo g > g'}\n- {id: bad, command: 'echo b > b; exit 1'}\n")
    early = repo.overlayrun("batch", "t.yaml", "--publish", "origin", "--prefix", "agents")
    assert (early.code, early.ours[0]) == (3, "the remote 'origin' can't be asked")  # and nothing ran
    repo.git("remote", "add", "origin", str(remote))
    done = repo.overlayrun(
        "batch", "t.yaml", "--publish", "origin", "--prefix", "agents", "--bundle", "--report", "out"
    )
    assert done.code == 1, str(done)
    assert "good: published: agents/good" in done.out
    heads = repo.git("ls-remote", str(remote))
    assert "refs/heads/agents/good" in heads
    assert "agents/bad" not in heads

    # A job that may publish has nothing but the folder.
    publisher = repo.at(repo.home / "publisher")
    repo.git("clone", "-q", str(remote), str(publisher.root))
    taken = publisher.overlayrun(
        "batch", "--from", str(repo.root / "out"), "--publish", "origin", "--prefix", "second", "--json"
    )
    assert taken.code == 0, str(taken)
    (row,) = json.loads(taken.out)["published"]
    assert row["branch"] == "second/good"
    assert repo.git("ls-remote", str(remote), "second/good").split()[0] == row["tip"]
