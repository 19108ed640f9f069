"""What another host made comes in checked, and becomes a branch like one that was made here."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from conftest import UserRepo

from overlayrun.batch.arrival import take_pushed, take_sent
from overlayrun.batch.promote import promote
from overlayrun.batch.task import Attempt, Task
from overlayrun.cli.options import run_options
from overlayrun.errors import StoreError, UsageError
from overlayrun.model import CommitId, DirtyPolicy, RunOptions
from overlayrun.store.location import find_repository
from overlayrun.store.repo import Repo
from overlayrun.workspace.layout import open_state

pytestmark = pytest.mark.shared  # what comes in

SNAPSHOT = "What it left\n\nOverlayrun-Branch: batch/r/t\nOverlayrun-Snapshot: 1\n"


class Elsewhere:
    """Another host's repository, and the remote between it and the user's."""

    def __init__(self, repo: UserRepo) -> None:
        self.remote = repo.root.parent / "remote.git"
        subprocess.run(["git", "init", "--quiet", "--bare", str(self.remote)], check=True)
        repo.git("push", "--quiet", str(self.remote), "main")
        self.root = repo.root.parent / "elsewhere"
        subprocess.run(
            ["git", "clone", "--quiet", "--branch", "main", str(self.remote), str(self.root)], check=True
        )
        self._there = repo.at(self.root)
        self.base = repo.git("rev-parse", "HEAD")

    def make(self, *steps: tuple[str, str]) -> str:
        """A commit for each message and file, from the base; the last."""
        self._there.git("checkout", "--quiet", "--detach", self.base)
        for message, name in steps:
            self._there.write(name, f"{name}: {message[:8].strip()}\n")
            self._there.git("add", "--all")
            self._there.git("commit", "--quiet", "-m", message)
        return self._there.git("rev-parse", "HEAD")

    def push(self, attempt: Attempt, tip: str) -> None:
        self._there.git("push", "--quiet", "origin", f"{tip}:{attempt.ref}")

    def bundle(self, attempt: Attempt, tip: str) -> bytes:
        self._there.git("update-ref", attempt.ref, tip)
        return self._there.raw_git("bundle", "create", "-q", "-", attempt.ref, f"^{attempt.base}")


@pytest.fixture
def elsewhere(repo: UserRepo) -> Elsewhere:
    return Elsewhere(repo)


@pytest.fixture(autouse=True)
def _user(repo: UserRepo, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is called in this process runs as the repository's user."""
    for name, value in repo.env.items():
        if name != "PATH":
            monkeypatch.setenv(name, value)


def an_attempt(base: str, number: int = 1) -> Attempt:
    task = Task(id="t", command=("agent", "go"), branch="batch/r/t", group="t", prompt="Do it")
    return Attempt(run="r", task=task, number=number, base=base)


def options() -> RunOptions:
    return RunOptions(**{**vars(run_options({})), "dirty": DirtyPolicy.IGNORE})


def promote_in(repo: UserRepo, attempt: Attempt, tip: str | None) -> None:
    repository = find_repository(str(repo.root))
    layout = open_state(repository.common_dir)
    promote(repository, layout, options(), attempt, CommitId(tip) if tip else None, lambda _: None)


def store(repo: UserRepo) -> Repo:
    return Repo(str(repo.root / ".git"))


@pytest.mark.by_both
def test_a_pushed_attempt_becomes_a_branch_like_any_other(repo: UserRepo, elsewhere: Elsewhere) -> None:
    own = elsewhere.make(("The agent's own", "own"))
    tip = elsewhere.make(("The agent's own", "own"), (SNAPSHOT, "left"))
    attempt = an_attempt(elsewhere.base)
    elsewhere.push(attempt, tip)
    before = repo.picture()

    take_pushed(store(repo), str(elsewhere.remote), attempt, tip)
    promote_in(repo, attempt, tip)

    assert repo.picture() == before
    refs = repo.refs()
    assert refs["refs/heads/batch/r/t"] == refs[attempt.ref] == tip
    (listed,) = json.loads(repo.overlayrun("ls", "--json").out)["workspaces"]
    assert (listed["branch"], listed["target"]) == ("batch/r/t", "main")
    assert "+left: What it" in repo.overlayrun("diff", "batch/r/t").out
    assert "attempt 1 of t" in repo.overlayrun("log", "batch/r/t").out
    seen = repo.inside(
        "cat own left; git rev-parse HEAD~0; git status --short; echo 1 >more", branch="batch/r/t"
    )
    assert seen.split("\n") == ["own: The agen", "left: What it", own, "?? left", ""]
    assert repo.git("log", "--format=%s", f"{own}..batch/r/t").count("\n") == 0, (
        "one commit on top of its own"
    )
    assert repo.show("batch/r/t", "more") == "1\n"
    done = repo.overlayrun("merge", "batch/r/t")
    assert done.code == 0, str(done)
    assert repo.show("main", "own") == "own: The agen\n"


def test_a_second_attempt_takes_the_branch_and_the_first_stays_on_its_ref(
    repo: UserRepo, elsewhere: Elsewhere
) -> None:
    first, second = an_attempt(elsewhere.base), an_attempt(elsewhere.base, 2)
    tips = [elsewhere.make((SNAPSHOT, name)) for name in ("one", "two")]
    for attempt, tip in zip((first, second), tips, strict=True):
        take_sent(store(repo), elsewhere.bundle(attempt, tip), attempt, tip)
        promote_in(repo, attempt, tip)

    assert repo.git("rev-parse", "batch/r/t", first.ref, second.ref).split() == [tips[1], *tips]
    assert list(repo.records()) == ["batch/r/t"]
    assert set(repo.files("batch/r/t")) - set(repo.files("main")) == {"two"}


def test_an_attempt_that_changed_nothing_leaves_a_branch_at_its_base(
    repo: UserRepo, elsewhere: Elsewhere
) -> None:
    promote_in(repo, an_attempt(elsewhere.base), None)

    assert repo.git("rev-parse", "batch/r/t") == elsewhere.base
    assert repo.inside("cat README", branch="batch/r/t") == "read me\n"


def test_a_branch_of_the_users_is_never_taken(repo: UserRepo, elsewhere: Elsewhere) -> None:
    tip, attempt = elsewhere.make((SNAPSHOT, "f")), an_attempt(elsewhere.base)
    take_sent(store(repo), elsewhere.bundle(attempt, tip), attempt, tip)
    repo.git("branch", "batch/r/t", "main~1")

    with pytest.raises(UsageError):
        promote_in(repo, attempt, tip)

    assert repo.git("rev-parse", "batch/r/t", attempt.ref).split() == [repo.git("rev-parse", "main~1"), tip]
    assert repo.records() == {}


def test_what_is_not_made_from_the_base_does_not_come_in(repo: UserRepo, elsewhere: Elsewhere) -> None:
    tip = elsewhere.make(("Other", "f"))
    attempt = an_attempt(repo.commit(newer="the base"))
    elsewhere.push(attempt, tip)

    with pytest.raises(StoreError, match="not made from"):
        take_pushed(store(repo), str(elsewhere.remote), attempt, tip)

    assert_nothing_came(repo, tip)


def test_a_tip_that_the_ref_does_not_hold_does_not_come_in(repo: UserRepo, elsewhere: Elsewhere) -> None:
    tip, other = elsewhere.make(("One", "f")), elsewhere.make(("Two", "g"))
    attempt = an_attempt(elsewhere.base)
    elsewhere.push(attempt, tip)

    with pytest.raises(StoreError, match="is missing"):
        take_pushed(store(repo), str(elsewhere.remote), attempt, other)
    with pytest.raises(StoreError):
        take_sent(store(repo), b"no bundle", attempt, tip)
    with pytest.raises(StoreError):
        take_sent(store(repo), elsewhere.bundle(attempt, other), attempt, tip)

    assert_nothing_came(repo, tip)


def test_objects_that_git_finds_fault_with_do_not_come_in(repo: UserRepo, elsewhere: Elsewhere) -> None:
    there = repo.at(elsewhere.root)
    blob = there.raw_git("hash-object", "-w", "--stdin", data=b"[core]\n").decode().strip()
    tree = there.raw_git("mktree", data=f"100644 blob {blob}\t.git\n".encode()).decode().strip()
    tip = there.git("commit-tree", tree, "-p", elsewhere.base, "-m", "evil")
    attempt = an_attempt(elsewhere.base)
    elsewhere.push(attempt, tip)

    with pytest.raises(StoreError) as pushed:
        take_pushed(store(repo), str(elsewhere.remote), attempt, tip)
    with pytest.raises(StoreError) as bundled:
        take_sent(store(repo), elsewhere.bundle(attempt, tip), attempt, tip)

    for failed in (pushed, bundled):
        assert "hasDotgit" in (failed.value.details or "")
    assert_nothing_came(repo, tip)


def test_an_attempts_ref_never_moves(repo: UserRepo, elsewhere: Elsewhere) -> None:
    first, other = elsewhere.make(("One", "f")), elsewhere.make(("Two", "g"))
    attempt = an_attempt(elsewhere.base)
    elsewhere.push(attempt, first)
    for _ in range(2):
        take_pushed(store(repo), str(elsewhere.remote), attempt, first)

    with pytest.raises(StoreError, match="holds another commit"):
        take_sent(store(repo), elsewhere.bundle(attempt, other), attempt, other)

    assert repo.git("rev-parse", attempt.ref) == first


def assert_nothing_came(repo: UserRepo, tip: str) -> None:
    found = subprocess.run(["git", "cat-file", "-e", tip], cwd=repo.root, capture_output=True, check=False)
    assert found.returncode != 0
    assert not any(name.startswith("refs/overlayrun/") for name in repo.refs())
    assert not list(Path(repo.root / ".git/objects").glob("tmp_objdir*"))
    assert not os.path.exists(repo.root / ".git/FETCH_HEAD")
