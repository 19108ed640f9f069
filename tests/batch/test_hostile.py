"""A batch whose agents, tasks, disk or reader wish it ill: reports stay whole, and nothing is followed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import PATIENCE
from junitparser import JUnitXml

from overlayrun.batch import journal
from overlayrun.batch.layout import BatchLayout
from overlayrun.batch.reports.files import copy_reports, expect_place
from overlayrun.batch.salvage import Salvor
from overlayrun.batch.task import Attempt, Task
from overlayrun.errors import HostError, UsageError
from overlayrun.store.location import find_repository
from overlayrun.workspace.layout import open_state

if TYPE_CHECKING:
    from conftest import UserRepo

pytestmark = pytest.mark.shared  # what is told of hostile work


def _reports(repo: UserRepo) -> Path:
    """Reports of the newest run."""
    runs = (repo.state / "batches").iterdir()
    return max(runs, key=lambda run: (run / "plan.json").stat().st_mtime_ns) / "report"


def _summary(directory: Path, code: int) -> dict[str, Any]:
    """What all reports say, which agrees with the exit code."""
    summary: dict[str, Any] = json.loads((directory / "summary.json").read_text())
    assert summary["status"] == code
    suites = JUnitXml.fromfile(str(directory / "junit.xml"))
    verdicts = summary["verdicts"]
    assert (suites.tests, suites.failures) == (summary["total"], verdicts["failed"])
    assert (suites.errors, suites.skipped) == (verdicts["error"], verdicts["skipped"])
    assert f"exit code {code}" in (directory / "summary.md").read_text()
    rows = (directory / "results.jsonl").read_text().splitlines()
    assert len(rows) == sum(len(task["attempts"]) for task in summary["tasks"])
    assert (directory / "report.html").stat().st_size > 1000
    return summary


def test_links_that_a_task_made_are_not_followed_by_its_report(repo: UserRepo) -> None:
    """What an agent printed would be written through its own symbolic link, wherever that points."""
    repo.commit("base", **{"f.txt": "1"})
    prey = repo.home / "prey"
    prey.mkdir()
    (prey / "bashrc").write_text("mine")
    links = f"ln -s {prey}/bashrc out/tasks/a/1/stdout.log; ln -s {prey} els"
    script = f"mkdir -p out/tasks/a/1; {links}; echo evil"
    done = repo.overlayrun(
        *("batch", "-", "--merge", "--yes-exec", "--report", "out", "--junit", "els/junit.xml"),
        data=json.dumps([{"id": "a", "command": script}]),
    )
    assert (repo.root / "out/tasks/a/1/stdout.log").read_text() == "evil\n", str(done)
    assert (prey / "bashrc").read_text() == "mine"
    assert os.listdir(prey) == ["bashrc"], "through the link on the way"
    assert done.code == 3, str(done)
    assert "symbolic link" in done.err
    assert "1 task in" in done.out, "the end is told all the same"
    _summary(_reports(repo), 3)


def test_a_report_that_cannot_be_copied_is_told_in_one_line(tmp_path: Path) -> None:
    reports = tmp_path / "report"
    (reports / "tasks/a/1").mkdir(parents=True)
    for name in ("summary.json", "junit.xml", "tasks/a/1/stdout.log"):
        (reports / name).write_text(name)
    copy_reports(str(reports), f"{tmp_path}/new/out", f"{tmp_path}/new/j/out.xml")
    assert (tmp_path / "new/out/tasks/a/1/stdout.log").read_text() == "tasks/a/1/stdout.log"
    assert (tmp_path / "new/j/out.xml").read_text() == "junit.xml"
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError) as caught:
        copy_reports(str(reports), f"{tmp_path}/file/out", None)
    assert caught.value.brief == f"the reports can't be copied: {tmp_path}/file/out: Not a directory"
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/tasks").symlink_to(tmp_path / "new")
    with pytest.raises(HostError, match="symbolic link"):
        copy_reports(str(reports), f"{tmp_path}/dir", None)
    assert sorted(os.listdir(tmp_path / "new")) == ["j", "out"]


def test_logs_that_could_not_be_masked_stay_at_home(repo: UserRepo, tmp_path: Path) -> None:
    """The disk was full when an attempt was lost: what it left is kept, its raw logs are not handed out."""
    repo.commit("base")
    place = BatchLayout(open_state(str(repo.root / ".git")), "run")
    task = Task(id="a", command=("true",), branch="b", group="a")
    attempt = Attempt(run="run", task=task, number=1, base=repo.git("rev-parse", "HEAD"))
    files = Path(place.attempt(attempt.key).root)
    (files / "stdout.log").mkdir(parents=True)  # nothing can be written there
    for name in ("output.raw", "errors.raw"):
        (files / name).write_text("secret")
    told: list[str] = []
    salvor = Salvor(find_repository(str(repo.root)), open_state(f"{repo.root}/.git"), place, (), told.append)
    assert salvor.salvage(attempt, 0.0) == (None, None)
    assert told == ["logs of attempt 1 of a are not shown: Is a directory"]
    copy_reports(place.reports, str(tmp_path / "out"), None)
    assert os.listdir(tmp_path / "out/tasks/a") == []


@pytest.mark.by_both
def test_places_that_take_no_report_are_refused_before_anything_runs(repo: UserRepo) -> None:
    repo.commit("base")
    repo.write("file", "")
    for place, said in (
        (".git/overlayrun/batches/x/report", "where overlayrun keeps its own"),
        ("file/out", "can't be written there"),
        ("/proc/nothing", "can't be written there") if os.geteuid() else ("file/x", "can't be written"),
    ):
        done = repo.overlayrun("batch", "-p", "x", "--report", place, "--", "true")
        assert done.code == 2, str(done)
        assert said in done.err
    assert not (repo.state / "batches").exists()
    state = str(repo.state)
    with pytest.raises(UsageError):
        expect_place(state, state)
    expect_place(f"{state}-beside", state)


def test_files_without_end_are_not_read_to_it(repo: UserRepo) -> None:
    for words, said in ((["/dev/zero"], "64 MiB"), (["-P", "/dev/zero", "--", "true"], "1 MiB")):
        done = repo.overlayrun("batch", *words)
        assert (done.code, said in done.err) == (2, True), str(done)


def test_branches_that_others_have_are_found_before_anything_runs(repo: UserRepo) -> None:
    repo.commit("base")
    repo.git("branch", "batch")
    repo.git("branch", "fix/a/b")
    tasks = [{"id": f"t{n}", "branch": name} for n, name in enumerate(("main", "batch/x", "fix/a", "good"))]
    repo.write("t.yaml", json.dumps([{**task, "command": "true"} for task in tasks]))
    done = repo.overlayrun("batch", "t.yaml")
    assert done.code == 2, str(done)
    assert "branches of 3 tasks can't be made" in done.err
    assert "t0: branch main exists already" in done.err
    assert "t1: branch batch/x can't be beside batch" in done.err
    assert "t2: branch fix/a can't be beside fix/a/b" in done.err
    assert not list((repo.state / "batches").iterdir())


def test_what_cannot_be_published_fails_the_batch_and_every_report_says_so(repo: UserRepo) -> None:
    repo.commit("base")
    remote = repo.home / "remote.git"
    repo.git("init", "--bare", "-q", str(remote))
    repo.git("push", "-q", str(remote), "main:agents")  # a branch where a directory is needed
    words = ("batch", "-p", "x", "--prefix", "agents", "--report", "out", "--publish")
    done = repo.overlayrun(*words, str(remote), "--", "sh", "-c", "echo y >y")
    assert done.code == 1, str(done)
    assert "refused" in done.out + done.err
    assert "1 task in" in done.out
    _summary(repo.root / "out", 1)


def _end_without_reader(repo: UserRepo, stdout: int | None, redirection: str) -> int:
    """Run the batch with a standard output that nobody reads, or none; its exit code."""
    process = subprocess.Popen(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", *repo.command("batch", "t.yaml")],
        cwd=repo.root,
        env=repo.env,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.DEVNULL,
    )
    return process.wait(PATIENCE)


def test_tries_of_which_the_judge_takes_none_fail_everywhere(repo: UserRepo) -> None:
    repo.commit("base")
    words = ("-n", "2", "-p", "x", "--judge", "exit 1", "--report", "out")
    done = repo.overlayrun("batch", *words, "--", "sh", "-c", "echo {n} > n")
    assert done.code == 1, str(done)
    summary = _summary(repo.root / "out", 1)
    assert (summary["succeeded"], summary["verdicts"]["failed"]) == (0, 2)
    assert "0 of 2 tasks succeeded" in (repo.root / "out/summary.md").read_text()
    assert done.out.count("ok: the judge took none of its tries") == 2
    assert "next: overlayrun diff" not in done.err


def test_a_batch_outlives_whoever_reads_its_lines(repo: UserRepo) -> None:
    repo.commit("base")
    repo.write("t.yaml", '[{id: a, command: "sleep 0.3; echo x > x"}]')
    reading, unread = os.pipe()
    os.close(reading)
    with open(unread, "wb") as pipe, open("/dev/full", "wb") as full:
        for stdout, redirection in ((pipe.fileno(), ""), (full.fileno(), ""), (None, ">&-")):
            code = _end_without_reader(repo, stdout, redirection)
            assert (code, _summary(_reports(repo), 0)["succeeded"]) == (0, 1)
    script = 'exec "$@" <&-'
    closed = subprocess.run(
        ["sh", "-c", script, "sh", *repo.command("batch", "-")],
        cwd=repo.root,
        env=repo.env,
        capture_output=True,
        check=False,
    )
    assert (closed.returncode, b"no tasks" in closed.stderr) == (2, True), closed.stderr


def test_a_terminal_that_hangs_up_ends_a_batch_in_good_order(repo: UserRepo) -> None:
    repo.commit("base")
    repo.write("t.yaml", '[{id: a, command: "echo x > x; echo ready; sleep 600"}]')
    master, slave = os.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *repo.command("batch", "t.yaml")],
        cwd=repo.root,
        env={**repo.env, "TERM": "xterm"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    outputs = "batches/*/report/tasks/a/1/output.raw"
    while not any("ready" in path.read_text() for path in repo.state.glob(outputs)):
        assert process.poll() is None
        time.sleep(0.02)
    os.close(master)
    assert process.wait(PATIENCE) == 130
    (task,) = _summary(_reports(repo), 130)["tasks"]
    assert (task["outcome"], repo.show(task["branch"], "x")) == ("cancelled", "x\n")


def test_what_ends_a_merge_leaves_reports(repo: UserRepo) -> None:
    repo.commit("base", **{"overlayrun.toml": '[reconcile]\ncheck = "sleep 600"\n'})
    repo.write("t.yaml", '[{id: a, command: "echo x > x"}]')
    words = ("batch", "t.yaml", "--merge", "--report", "out")
    with repo.started(*words) as running:
        running.expect("checking batch/")
        running.process.send_signal(signal.SIGTERM)
        assert running.end() == 130
    summary = _summary(repo.root / "out", 130)
    assert (summary["why"], summary["counts"]["ok"]) == ("interrupted while it was merged", 1)

    repo.git("worktree", "add", "-q", str(repo.home / "other"))
    elsewhere = repo.at(repo.home / "other").overlayrun("batch", "--resume", "latest")
    assert (elsewhere.code, "another working tree" in elsewhere.err) == (2, True)

    repo.write("overlayrun.toml", "[nonsense]\n")
    before = os.listdir(repo.state / "batches")
    done = repo.overlayrun(*words)
    assert (done.code, "nonsense" in done.err) == (2, True), str(done)
    assert os.listdir(repo.state / "batches") == before


def test_a_run_that_goes_on_is_left_as_it_was_planned(repo: UserRepo) -> None:
    repo.commit("base")
    repo.write("t.yaml", '[{id: a, command: "echo x > x; sleep 600"}]')
    with repo.started("batch", "t.yaml") as running:
        running.expect("a: started")
        plan = _reports(repo).parent / "plan.json"
        before = plan.read_bytes()
        words = ["overlayrun", "batch", "--resume", "latest", "-j", "7", "--report", "elsewhere"]
        script = f"import sys, {journal.__name__} as j; j._PATIENCE = 0; sys.argv = {words}; from overlayrun"
        done = subprocess.run(
            [sys.executable, "-c", f"{script}.launch import main; main()"],
            cwd=repo.root,
            env=repo.env,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 3, done.stderr
        assert b"is going on" in done.stderr
        assert plan.read_bytes() == before
        running.process.send_signal(signal.SIGTERM)
        assert running.end() == 130
