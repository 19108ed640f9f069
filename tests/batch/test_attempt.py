"""What an attempt's run is asked for, and what becomes of the branch that it takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from overlayrun.batch.attempt import last_number, options_of, streams
from overlayrun.batch.leavings import free_branch, keep, keep_left
from overlayrun.batch.task import Attempt, Task
from overlayrun.cli.options import run_options
from overlayrun.errors import RefMoved, UsageError
from overlayrun.model import CommitId, DirtyPolicy, HomePolicy, TreeId
from overlayrun.relay import Relay
from overlayrun.store.location import find_repository
from overlayrun.store.repo import Repo
from overlayrun.workspace.layout import open_state

if TYPE_CHECKING:
    from conftest import UserRepo

pytestmark = pytest.mark.shared  # options and refs of an attempt

BRANCH = "batch/r/t"


def attempt_of(number: int = 1, base: str = "b" * 40, **more: Any) -> Attempt:
    task = Task(id="t", command=("true",), branch=BRANCH, group="t", **more)
    return Attempt(run="r", task=task, number=number, base=base)


def test_a_task_says_more_than_the_batch_and_the_batch_more_than_nothing() -> None:
    base = run_options({"timeout": 9.0, "net": "none", "env": ["GIVEN=1"], "memory": 5})
    task: dict[str, Any] = {
        "timeout": 3.0,
        "options": {"home": "private", "net": "host", "env": ["NAMED"]},
        "env": {"A": "b=c"},
    }
    options = options_of(base, attempt_of(prompt="do it", **task))
    assert (options.timeout, options.net, options.memory, options.message) == (3.0, "host", 5, "do it")
    assert options.home is HomePolicy.PRIVATE
    assert options.dirty is base.dirty
    assert (options.branch, options.base) == (BRANCH, "b" * 40)
    assert list(options.env) == [
        *("GIVEN=1", "NAMED", "A=b=c", "OVERLAYRUN_BATCH=r", "OVERLAYRUN_TASK=t", "OVERLAYRUN_ATTEMPT=1")
    ]


def test_an_attempt_always_has_a_branch_and_tells_of_itself() -> None:
    options = options_of(run_options({"rm": True, "apply": True, "quiet": True}), attempt_of())
    assert not any((options.rm, options.keep, options.apply, options.quiet))


def test_a_bad_choice_is_told_by_its_name() -> None:
    with pytest.raises(UsageError, match="dirty can't be 'maybe'"):
        options_of(run_options({}), attempt_of(options={"dirty": "maybe"}))
    kept = options_of(run_options({}), attempt_of(options={"dirty": "ignore", "carry": None}))
    assert (kept.dirty, kept.carry) == (DirtyPolicy.IGNORE, None)


@pytest.mark.parametrize(
    ("said", "number"),
    [
        (b"1\n2.5\n", 2.5),
        (b"7\n\n  \n", 7.0),
        (b"score: 7", None),
        (b"7 of 9", None),
        (b"", None),
        (b"\n", None),
        (b"nan", None),
        (b"inf", None),
        (b"-3e2", -300.0),
        (b"\xff\n4\r\n", 4.0),
    ],
)
def test_the_last_line_that_is_not_blank_is_a_score_or_none(said: bytes, number: float | None) -> None:
    assert last_number(said) == number


def test_streams_go_to_files_for_a_while(tmp_path: Path) -> None:
    output, both = tmp_path / "output", tmp_path / "both"
    both.write_text("before ")
    was = os.fstat(1).st_ino, os.fstat(2).st_ino
    with streams(str(output), str(both)):
        os.write(1, b"out")
        os.write(2, b"err")
    with streams(str(both), str(both)):
        os.write(1, b" one")
        os.write(2, b" two")
    assert (output.read_text(), both.read_text()) == ("out", "before err one two")
    assert (os.fstat(1).st_ino, os.fstat(2).st_ino) == was


def test_of_an_endless_output_the_beginning_is_passed_on(tmp_path: Path) -> None:
    output, errors = tmp_path / "output", tmp_path / "errors"
    with streams(str(output), str(errors)):
        relay = Relay(files=True, timed=False)
        relay.largest = 10
        for data in (b"123456", b"789012", b"345678"):
            os.write(relay.streams[1], data)
            relay.drain()
        os.write(relay.streams[2], b"short")
        relay.drain()
    assert (output.read_text(), errors.read_text()) == ("1234567890", "short")


def test_lines_of_files_that_came_or_went_are_counted_as_git_does(repo: UserRepo) -> None:
    kinds = {
        "empty": b"",
        "ended": b"a\nb\n",
        "open": b"a\nb",
        "blank": b"\n\n",
        "returns": b"a\r\nb\rc",
        "binary": b"a\n\0b\n",
        "late-nul": b"a\n" * 4001 + b"\0",
    }
    for name, data in kinds.items():
        repo.write(f"kinds/{name}", data)
    with_them = repo.commit("with")
    for old, new in ((f"{with_them}~", with_them), (with_them, f"{with_them}~")):
        listed = [line.split()[:2] for line in repo.git("diff", "--numstat", old, new).splitlines()]
        counts = [sum(int(row[side].replace("-", "0")) for row in listed) for side in (0, 1)]
        trees = [TreeId(repo.git("rev-parse", f"{name}^{{tree}}")) for name in (old, new)]
        found = Repo(str(repo.root / ".git")).diff_stat(*trees)
        assert [found.files, found.insertions, found.deletions] == [len(kinds), *counts]


@pytest.fixture
def made(repo: UserRepo) -> UserRepo:
    """A repository with the workspace of a first attempt, which has not been kept by its ref."""
    repo.inside("echo one > f", branch=BRANCH)
    (repo.workspace(BRANCH) / "attempt").write_text("refs/overlayrun/attempts/r/t/1")
    return repo


def freed(repo: UserRepo, number: int) -> None:
    repository = find_repository(str(repo.root))
    attempt = attempt_of(number, repo.git("rev-parse", "HEAD"))
    free_branch(repository, open_state(repository.common_dir), attempt, lambda _: None)


@pytest.mark.by_both
def test_what_an_earlier_attempt_made_is_kept_before_its_workspace_goes(made: UserRepo) -> None:
    tip = made.refs()[f"refs/heads/{BRANCH}"]
    freed(made, 2)
    refs = made.refs()
    assert refs["refs/overlayrun/attempts/r/t/1"] == tip
    assert f"refs/heads/{BRANCH}" not in refs
    assert made.records() == {}
    freed(made, 3)  # nothing is there any more


def test_work_that_came_after_an_attempt_is_not_dropped(made: UserRepo) -> None:
    repository = find_repository(str(made.root))
    keep(
        repository.common_dir, "refs/overlayrun/attempts/r/t/1", CommitId(made.refs()[f"refs/heads/{BRANCH}"])
    )
    made.inside("echo mine > g", branch=BRANCH)
    with pytest.raises(UsageError, match="came after its attempt"):
        freed(made, 2)
    assert made.show(BRANCH, "g") == "mine\n"
    assert BRANCH in made.records()


@pytest.mark.parametrize(
    "mark", [None, "refs/overlayrun/attempts/other/t/1", "refs/overlayrun/attempts/r/t2/1"]
)
def test_the_workspace_of_somebody_else_is_left_alone(made: UserRepo, mark: str | None) -> None:
    place = made.workspace(BRANCH) / "attempt"
    place.write_text(mark) if mark else place.unlink()
    before = made.refs()
    with pytest.raises(UsageError, match="no attempt's of this task"):
        freed(made, 2)
    assert made.refs() == before
    assert BRANCH in made.records()


def test_an_attempts_ref_is_made_once(made: UserRepo) -> None:
    git_dir, tips = str(made.root / ".git"), made.refs()
    ref = "refs/overlayrun/attempts/r/t/1"
    keep(git_dir, ref, CommitId(tips["refs/heads/main"]))
    with pytest.raises(RefMoved):
        keep(git_dir, ref, CommitId(tips[f"refs/heads/{BRANCH}"]))
    assert made.refs()[ref] == tips["refs/heads/main"]


def test_nothing_is_kept_of_an_attempt_that_made_nothing_or_is_not_there(repo: UserRepo) -> None:
    repository = find_repository(str(repo.root))
    layout = open_state(repository.common_dir)
    attempt = attempt_of(1, repo.git("rev-parse", "HEAD"))
    assert keep_left(repository, layout, attempt, lambda _: None) is None
    repo.inside("true", branch=BRANCH)
    (repo.workspace(BRANCH) / "attempt").write_text(attempt.ref)
    assert keep_left(repository, layout, attempt, lambda _: None) is None
    assert attempt.ref not in repo.refs()
    freed(repo, 2)
    assert repo.records() == {}
