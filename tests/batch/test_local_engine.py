"""Attempts on this machine: real runs by the engine, driven from a process of its own as a batch is."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from overlayrun.batch.engines.lookout import Entrusted
from overlayrun.batch.task import Attempt, Task

if TYPE_CHECKING:
    from conftest import UserRepo

RUN: Final = "run1"
# The engine forks and wants one thread; a worker of pytest-xdist has more.
DRIVER: Final = """
import json, os, signal, sys, time
from overlayrun.batch.attempt import Shared, keep_left
from overlayrun.batch.engines.api import Ended, Lost, Started
from overlayrun.batch.engines.local import LocalEngine
from overlayrun.batch.layout import BatchLayout
from overlayrun.batch.task import Attempt
from overlayrun.cli.options import run_options
from overlayrun.model import DirtyPolicy
from overlayrun.store.location import find_repository
from overlayrun.workspace.layout import open_state

repository = find_repository(os.getcwd())
layout = open_state(repository.common_dir)
place = BatchLayout(layout, "run1")
os.makedirs(place.root, exist_ok=True)
options = run_options({"dirty": DirtyPolicy.IGNORE})
engine = LocalEngine(Shared(repository, layout, options, place), 4)
told = []

def tell(event):
    kind = type(event).__name__
    rest = event.result.to_json() if kind == "Ended" else getattr(event, "why", None)
    told.append([kind, *event.key, rest])
    print(json.dumps(told[-1]), flush=True)

def submit(text):
    attempt = Attempt.from_json(json.loads(text))
    engine.submit(attempt, "local")
    return attempt

def until(kind, attempt):
    end = time.monotonic() + 60
    while not any(row[0] == kind and row[1:3] == list(attempt.key) for row in told):
        assert time.monotonic() < end, (kind, attempt.key)
        for event in engine.poll(1.0):
            tell(event)

def until_it_prints(attempt):
    end = time.monotonic() + 60
    while not os.path.getsize(place.attempt(attempt.key).output):
        assert time.monotonic() < end
        time.sleep(0.02)

def through(texts):
    waiting, running = list(texts), []
    while waiting or running:
        while waiting and len(running) < 4:
            running.append(submit(waiting.pop(0)))
        for event in engine.poll(5.0):
            tell(event)
            if not isinstance(event, Started):
                running = [attempt for attempt in running if attempt.key != event.key]
"""


def attempt(base: str, name: str, script: str, number: int = 1, **more: Any) -> str:
    """An attempt that runs a shell script, as JSON."""
    given = {"command": ("sh", "-c", script), "branch": f"batch/{RUN}/{name}", "group": name, **more}
    return json.dumps(Attempt(run=RUN, task=Task(id=name, **given), number=number, base=base).to_json())


@dataclass
class Story:
    """What a driver's script has printed."""

    repo: UserRepo
    rows: list[list[Any]]

    def result(self, name: str, number: int = 1) -> dict[str, Any]:
        (found,) = [row[3] for row in self.rows if row[:3] == ["Ended", name, number]]
        assert isinstance(found, dict)
        return found

    def file(self, name: str, path: str, number: int = 1) -> str:
        place = self.repo.state / f"batches/{RUN}/report/tasks/{name}/{number}"
        return (place / path).read_text()


def driven(repo: UserRepo, script: str) -> subprocess.Popen[str]:
    """Start a script after DRIVER in the user's repository."""
    return subprocess.Popen(
        [sys.executable, "-P", "-c", DRIVER + script],
        cwd=repo.root,
        env={**repo.env, "A_TOKEN": "hush-hush-hush"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )


def played(repo: UserRepo, script: str) -> Story:
    process = driven(repo, script)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return Story(repo, [json.loads(line) for line in said.splitlines() if line.startswith("[")])


@pytest.fixture(scope="module")
def shared_repo(tmp_path_factory: pytest.TempPathFactory, _repo_to_copy: Path) -> UserRepo:
    from conftest import _user

    repo = _user(tmp_path_factory.mktemp("engine"))
    shutil.copytree(_repo_to_copy.parent / "home", repo.home)
    shutil.copytree(_repo_to_copy, repo.root, symlinks=True)
    repo.git("update-index", "-q", "--refresh")
    repo.write("src/app.py", "answer = 42\n")  # uncommitted: batches leave it out
    return repo


SLOW: Final = "trap 'exit 9' TERM; echo x > new; echo up; while :; do sleep 0.05; done"


@pytest.fixture(scope="module")
def story(shared_repo: UserRepo) -> Story:
    """One batch of many kinds of attempts; what the tests of this file look at."""
    repo = shared_repo
    base, older = repo.git("rev-parse", "HEAD"), repo.git("rev-parse", "HEAD~1")
    repo.git("branch", "taken")
    show = "echo said; echo bad >&2; cat; tty; env > variables; cat src/app.py > seen"
    commit = (
        "git config user.name A; git config user.email a@b; echo 1 > own; git add own; git commit -qm own"
    )
    texts = [
        attempt(base, "shows", show, env={"ITS": "own"}),
        attempt(base, "nothing", "echo only words"),
        attempt(base, "fails", "echo x > half; exit 3"),
        attempt(base, "late", "sleep 60", timeout=0.4),
        attempt(base, "by-itself", "echo x > new; exit 124"),
        attempt(base, "silent", "sleep 60", idle_timeout=0.5),
        attempt(base, "absent", "", command=("no-such-program",)),
        attempt(base, "checked", "echo x > f", check="cat f; echo y > g; exit 4"),
        attempt(base, "slow-check", "echo x > f", check="sleep 60", check_timeout=0.4),
        attempt(
            base, "judged", "echo x > f", check="test -f f", judge="echo 1; cat f; echo 2.5; echo no >&2"
        ),
        attempt(base, "no-score", "echo x > f", judge="echo 3; exit 1"),
        attempt(base, "own-commit", commit),
        attempt(older, "older", "ls > listed"),
        attempt(base, "taken", "echo x > f", branch="taken"),
        attempt(base, "bad-option", "true", options={"home": "nowhere"}),
        attempt(base, "private", "ls -A $HOME; echo x > f", options={"home": "private"}),
        attempt(base, "again", "echo first > f; exit 1"),
    ]
    script = f"""
through({texts!r})
through([{attempt(base, "again", "echo second > f; ls", 2)!r}])
one = submit({attempt(base, "ended", SLOW)!r})
until("Started", one)
until_it_prints(one)
engine.cancel(one.key)
until("Ended", one)
waiting = engine._spare.pid  # the process that will make the next attempt
os.kill(waiting, signal.SIGSTOP)
one = submit({attempt(base, "never-began", SLOW)!r})
engine.cancel(one.key)
os.kill(waiting, signal.SIGCONT)
until("Ended", one)
engine.cancel(one.key)  # over already
one = submit({attempt(base, "unrecorded", SLOW)!r})
until("Started", one)
until_it_prints(one)
for name in os.listdir(layout.workspaces):  # git never removes a lock that a killed process left
    os.makedirs(f"{{repository.common_dir}}/refs/overlayrun/snapshots", exist_ok=True)
    open(f"{{repository.common_dir}}/refs/overlayrun/snapshots/{{name}}.lock", "w").close()
engine.cancel(one.key)
until("Ended", one)
for name in os.listdir(layout.workspaces):
    os.unlink(f"{{repository.common_dir}}/refs/overlayrun/snapshots/{{name}}.lock")
left = [submit({attempt(base, "left", SLOW)!r}), submit({attempt(base, "left-too", SLOW)!r})]
for one in left:
    until("Started", one)
    until_it_prints(one)
engine.close()
assert not engine._children
"""
    before = repo.picture()
    found = played(repo, script)
    assert repo.picture() == before
    return found


@pytest.mark.parametrize(
    ("name", "outcome", "status"),
    [
        ("shows", "ok", 0),
        ("nothing", "no-change", 0),
        ("fails", "failed", 3),
        ("late", "timeout", 124),
        ("by-itself", "failed", 124),
        ("silent", "timeout", 124),
        ("absent", "failed", 127),
        ("checked", "check-failed", 0),
        ("slow-check", "timeout", 0),
        ("judged", "ok", 0),
        ("no-score", "ok", 0),
        ("own-commit", "ok", 0),
        ("older", "ok", 0),
        ("taken", "infra", None),
        ("bad-option", "infra", None),
        ("private", "ok", 0),
        ("again", "failed", 1),
        ("ended", "cancelled", 9),
        ("never-began", "cancelled", None),
        ("unrecorded", "infra", 9),
    ],
)
def test_every_end_has_its_outcome(story: Story, name: str, outcome: str, status: int | None) -> None:
    result = story.result(name)
    assert (result["outcome"], result["status"]) == (outcome, status), result
    assert result["host"] == "local"
    assert result["started"] <= result["ended"]


def test_each_attempt_ends_once_and_begins_before_that(story: Story) -> None:
    ended = [tuple(row[1:3]) for row in story.rows if row[0] != "Started"]
    began = [tuple(row[1:3]) for row in story.rows if row[0] == "Started"]
    assert len(ended) == len(set(ended))
    assert set(began) <= {*ended, ("left", 1), ("left-too", 1)}
    assert not {("taken", 1), ("never-began", 1)} & set(began)
    kinds = [row[0] for row in story.rows if row[1] == "shows"]
    assert kinds == ["Started", "Ended"]


def test_a_command_knows_its_batch_and_has_neither_terminal_nor_input(story: Story) -> None:
    assert story.file("shows", "stdout.log") == "said\nnot a tty\n"
    lines = story.repo.show(story.result("shows")["tip"], "variables").splitlines()
    for line in (f"OVERLAYRUN_BATCH={RUN}", "OVERLAYRUN_TASK=shows", "OVERLAYRUN_ATTEMPT=1", "ITS=own"):
        assert line in lines
    assert not any("hush" in line for line in lines)  # the user's token stays out
    assert story.file("shows", "stderr.log") == "bad\n"
    assert f"branch batch/{RUN}/shows (new)" in story.file("shows", "overlayrun.log")


def test_what_was_made_is_on_the_branch_and_on_the_attempts_own_ref(story: Story) -> None:
    refs = story.repo.refs()
    for name in ("shows", "fails", "judged", "own-commit", "ended"):
        tip = story.result(name)["tip"]
        assert refs[f"refs/heads/batch/{RUN}/{name}"] == tip
        assert refs[f"refs/overlayrun/attempts/{RUN}/{name}/1"] == tip
    assert f"refs/overlayrun/attempts/{RUN}/nothing/1" not in refs
    result = story.result("shows")
    assert (result["files"], result["deletions"]) == (2, 0)
    assert story.repo.show(result["tip"], "seen") == "answer = 41\n"


def test_an_agents_own_commit_comes_along(story: Story) -> None:
    tip = story.result("own-commit")["tip"]
    assert story.repo.git("log", "-1", "--format=%s %an", tip) == "own A"


def test_a_base_may_be_any_commit(story: Story) -> None:
    result = story.result("older")
    assert result["base"] == story.repo.git("rev-parse", "HEAD~1")
    assert story.repo.show(result["tip"], "listed") == "README\nlisted\n"


def test_a_check_sees_what_was_made_and_leaves_nothing(story: Story) -> None:
    result = story.result("checked")
    assert result["check"]["status"] == 4
    assert story.file("checked", "check.log") == "x\n"
    assert "g" not in story.repo.files(result["tip"])
    assert story.result("slow-check")["check"]["status"] == 124


def test_a_judges_score_is_the_last_number_that_it_prints(story: Story) -> None:
    assert story.result("judged")["score"] == 2.5
    assert sorted(story.file("judged", "judge.log").split()) == ["1", "2.5", "no", "x"]
    assert story.result("no-score")["score"] is None
    assert any("status 1" in note for note in story.result("no-score")["notes"])


def test_a_later_attempt_takes_the_name_and_the_earlier_ones_work_is_kept(story: Story) -> None:
    first, second = story.result("again", 1), story.result("again", 2)
    assert second["outcome"] == "ok"
    refs = story.repo.refs()
    assert refs[f"refs/heads/batch/{RUN}/again"] == second["tip"]
    assert refs[f"refs/overlayrun/attempts/{RUN}/again/1"] == first["tip"]
    assert refs[f"refs/overlayrun/attempts/{RUN}/again/2"] == second["tip"]
    assert story.repo.show(first["tip"], "f") == "first\n"
    assert "f\n" in story.file("again", "stdout.log", 2)
    assert story.file("again", "stdout.log", 1) == ""
    assert [branch for branch in story.repo.records() if branch.endswith("again")] == [f"batch/{RUN}/again"]


def test_a_branch_of_the_users_is_not_taken(story: Story) -> None:
    result = story.result("taken")
    assert "taken" in result["detail"]
    assert story.repo.refs()["refs/heads/taken"] == story.repo.git("rev-parse", "HEAD")
    assert "taken" not in story.repo.records()


def test_run_options_of_a_task_hold(story: Story) -> None:
    assert story.file("private", "stdout.log") == ""
    assert "nowhere" in story.result("bad-option")["detail"]


def test_what_could_not_be_recorded_is_kept_and_can_be_taken_later(story: Story) -> None:
    branch = f"batch/{RUN}/unrecorded"
    assert (story.repo.workspace(branch) / "upper/new").read_text() == "x\n"
    assert story.result("unrecorded")["tip"] is None
    assert story.repo.overlayrun("snapshot", branch).code == 0
    assert story.repo.show(branch, "new") == "x\n"


def test_closing_ends_what_runs_and_takes_its_last_snapshot(story: Story) -> None:
    for name in ("left", "left-too"):
        assert story.repo.show(f"batch/{RUN}/{name}", "new") == "x\n"
        result = json.loads(story.file(name, "result.json"))
        assert result["outcome"] == "cancelled"


def test_a_branch_of_a_batch_is_as_any_other(story: Story) -> None:
    done = story.repo.overlayrun("-b", f"batch/{RUN}/shows", "--", "cat", "seen")
    assert (done.code, done.out) == (0, "answer = 41\n")
    assert story.repo.git("fsck", "--strict", "--no-dangling") == ""


@pytest.fixture
def started(repo: UserRepo) -> Iterator[subprocess.Popen[str]]:
    """A driver whose attempt has written a file and goes on."""
    text = attempt(repo.git("rev-parse", "HEAD"), "one", f"echo x > new; echo up; sleep 60; : {repo.marker}")
    script = f"""
one = submit({text!r})
until("Started", one)
until_it_prints(one)
print(engine._children[one.key].pid, flush=True)
until("Lost", one)
print(keep_left(repository, layout, one, print))
print(keep_left(repository, layout, one, print))
"""
    with driven(repo, script) as process:
        yield process
        process.kill()


def test_a_killed_attempt_is_lost_and_what_it_left_can_be_kept(
    repo: UserRepo, started: subprocess.Popen[str]
) -> None:
    assert started.stdout is not None
    began = json.loads(started.stdout.readline())
    os.kill(int(started.stdout.readline()), signal.SIGKILL)
    said, _ = started.communicate(timeout=60)
    lost, *_, first, second = said.splitlines()
    assert json.loads(lost)[0] == "Lost"
    assert "signal 9" in json.loads(lost)[3]
    assert began[:3] == ["Started", "one", 1]
    assert first == second == repo.refs()[f"refs/overlayrun/attempts/{RUN}/one/1"]
    assert repo.show(first, "new") == "x\n"


def test_all_dies_with_the_process_that_submitted_it(
    repo: UserRepo, started: subprocess.Popen[str], until: Any
) -> None:
    assert started.stdout is not None
    started.stdout.readline(), started.stdout.readline()
    assert repo.marked()
    started.kill()
    started.wait()
    until(lambda: not repo.marked(), "the end of what ran")


@pytest.fixture(scope="module")
def watched(shared_repo: UserRepo) -> Story:
    """Attempts that take more of the disk than they may: looked after by one process, and after its death."""
    base = shared_repo.git("rev-parse", "HEAD")
    fill = "ls /proc/self/fd; mkdir hidden; head -c 30M /dev/urandom > hidden/f; chmod 0 hidden; sleep 60"
    script = f"""
through([{attempt(base, "greedy", fill, disk=4 << 20)!r}])
orphan = submit({attempt(base, "orphan", f"echo up; sleep 2; {fill}", disk=4 << 20)!r})
until("Started", orphan)
until_it_prints(orphan)
time.sleep(0.5)  # now it is entrusted
nursery = engine._nursery._pid
lookout = int(open(f"/proc/{{nursery}}/task/{{nursery}}/children").read())
os.kill(lookout, signal.SIGKILL)
late = submit({attempt(base, "late-comer", fill, disk=4 << 20)!r})
until("Ended", orphan)
until("Ended", late)
engine.close()
"""
    return played(shared_repo, script)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("greedy", ""),
        ("orphan", "the batch's watchdog is lost: this run has one of its own"),
        ("late-comer", "this run has a watchdog of its own: Broken pipe"),
    ],
)
def test_one_watchdog_ends_what_is_over_its_limit_and_its_death_is_noticed(
    watched: Story, name: str, told: str
) -> None:
    found = watched.result(name)
    assert found["status"] == 137
    assert "its changes take more than 4M of disk (--disk)" in found["detail"]
    assert watched.file(name, "stdout.log").split()[-4:] == ["0", "1", "2", "3"]  # nothing of ours is lent
    log = watched.file(name, "overlayrun.log")
    assert told in log
    assert ("watchdog" in log) == bool(told)


def test_a_watchdog_that_is_stuck_is_as_good_as_none() -> None:
    pulse = mmap.mmap(-1, 8)
    reports, said = os.pipe()
    os.set_blocking(reports, False)
    run = Entrusted(reports, pulse)
    for age, lost in ((0, False), (60, True)):
        pulse[:] = struct.pack("=d", time.monotonic() - age)
        assert run.is_lost() is lost
    os.write(said, b"ended: so it is")
    os.close(said)
    pulse[:] = struct.pack("=d", time.monotonic())
    assert not run.is_lost()
    assert run.end() == "ended: so it is"
