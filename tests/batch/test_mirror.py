"""A host's mirror of a remote: fetches what is missing, checks it, pushes results and never moves them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import UserRepo

from overlayrun.batch.mirror import Mirror, check_remote, offer_ref
from overlayrun.batch.task import Attempt, Task
from overlayrun.errors import StoreError, UsageError

pytestmark = pytest.mark.shared  # what a remote gives

WHO = {"user.name": "Ada", "user.email": "ada@example.invalid"}


@pytest.fixture
def remote(repo: UserRepo) -> Path:
    """A bare repository that has the user's main."""
    place = repo.root.parent / "remote.git"
    subprocess.run(["git", "init", "--quiet", "--bare", str(place)], check=True)
    repo.git("push", "--quiet", str(place), "main")
    return place


@pytest.fixture
def mirror(tmp_path: Path, remote: Path) -> Mirror:
    return Mirror(str(tmp_path / "cache"), str(remote))


def git_in(place: str | Path, *args: str, data: bytes = b"") -> str:
    done = subprocess.run(["git", f"--git-dir={place}", *args], input=data, capture_output=True, check=True)
    return done.stdout.decode().strip()


def an_attempt(base: str, number: int = 1) -> Attempt:
    task = Task(id="t", command=("true",), branch="batch/r/t", group="t")
    return Attempt(run="r", task=task, number=number, base=base)


def test_a_base_is_fetched_once_and_needs_no_remote_after_that(
    repo: UserRepo, remote: Path, mirror: Mirror
) -> None:
    first = repo.git("rev-parse", "HEAD")

    work = mirror.hold("r", first, WHO)
    second = repo.commit(more="1")
    repo.git("push", "--quiet", str(remote), "main")
    before = int(git_in(mirror.git_dir, "rev-list", "--all", "--objects", "--count"))
    mirror.hold("r", second, WHO)
    shutil.rmtree(remote)

    assert mirror.hold("r", first, WHO) == mirror.hold("r", second, WHO) == work
    assert os.listdir(work) == [".git"], "nothing is checked out"
    assert int(git_in(mirror.git_dir, "rev-list", "--all", "--objects", "--count")) == before + 3
    assert git_in(mirror.git_dir, "config", "user.email") == "ada@example.invalid"
    with pytest.raises(StoreError):
        mirror.hold("r", repo.commit(more="2"), WHO)


def test_a_base_that_is_on_no_branch_comes_by_its_offer(repo: UserRepo, remote: Path, mirror: Mirror) -> None:
    base = repo.commit(local="only here")
    with pytest.raises(StoreError):
        mirror.hold("r", base, WHO)

    repo.git("push", "--quiet", str(remote), f"{base}:{offer_ref('r', base)}")
    mirror.hold("r", base, WHO)

    assert mirror.has(base)


def test_an_offer_of_another_commit_is_refused(repo: UserRepo, remote: Path, mirror: Mirror) -> None:
    other, base = repo.git("rev-parse", "HEAD"), repo.commit(local="only here")
    repo.git("push", "--quiet", str(remote), f"{other}:{offer_ref('r', base)}")

    with pytest.raises(StoreError, match="another commit"):
        mirror.hold("r", base, WHO)


def test_objects_that_git_finds_fault_with_do_not_come_in(remote: Path, mirror: Mirror) -> None:
    blob = git_in(remote, "hash-object", "-w", "--stdin", data=b"[alias] x = !sh\n")
    entries = f"100644 blob {blob}\t.git\n".encode()
    tree = git_in(remote, "mktree", data=entries)
    identity = b"author a <a@b> 0 +0000\ncommitter a <a@b> 0 +0000\n\nm\n"
    commit = git_in(
        remote,
        "hash-object",
        "-t",
        "commit",
        "-w",
        "--stdin",
        data=b"tree %b\n%b" % (tree.encode(), identity),
    )
    git_in(remote, "update-ref", offer_ref("r", commit), commit)

    with pytest.raises(StoreError) as failed:
        mirror.hold("r", commit, WHO)

    assert "hasDotgit" in (failed.value.details or "")
    assert not mirror.has(commit)


def test_a_result_is_pushed_once_and_never_moved(repo: UserRepo, remote: Path, mirror: Mirror) -> None:
    base = repo.git("rev-parse", "HEAD")
    mirror.hold("r", base, WHO)
    tree = f"{base}^{{tree}}"
    tip, other = (git_in(mirror.git_dir, "commit-tree", tree, "-p", base, "-m", text) for text in "ab")
    attempt = an_attempt(base)

    mirror.push(attempt, tip)
    mirror.push(attempt, tip)  # the answer to the first may have been lost
    with pytest.raises(StoreError):
        mirror.push(attempt, other)

    assert git_in(remote, "rev-parse", attempt.ref) == tip
    assert git_in(remote, "for-each-ref", "--format=%(refname)").split() == ["refs/heads/main", attempt.ref]


def test_a_bundle_holds_what_the_attempt_made_and_no_more(
    repo: UserRepo, tmp_path: Path, mirror: Mirror
) -> None:
    base = repo.git("rev-parse", "HEAD")
    mirror.hold("r", base, WHO)
    tip = git_in(mirror.git_dir, "commit-tree", f"{base}^{{tree}}", "-p", base, "-m", "made")
    attempt = an_attempt(base)

    git_in(mirror.git_dir, "update-ref", attempt.ref, tip)
    data = mirror.bundle(attempt, str(tmp_path / "b"), 1000)

    assert mirror.bundle(attempt, str(tmp_path / "b"), 100) is None
    assert not (tmp_path / "b").exists()
    (tmp_path / "b").write_bytes(data or b"")
    assert repo.git("bundle", "list-heads", str(tmp_path / "b")) == f"{tip} {attempt.ref}"


@pytest.mark.parametrize("url", ["", "--upload-pack=sh", "ext::sh -c true", "a\nb"])
def test_what_git_would_run_is_no_remote(url: str) -> None:
    with pytest.raises(UsageError):
        check_remote(url)


@pytest.mark.parametrize("url", ["https://host/../..", "ssh://git@host/a b/r.git", "/", "host:", "x/\udcff"])
def test_the_cache_of_any_remote_lies_in_the_cache(tmp_path: Path, url: str) -> None:
    assert Path(Mirror(str(tmp_path), url).root).parent == tmp_path


def test_only_an_id_is_a_base(mirror: Mirror) -> None:
    with pytest.raises(StoreError, match="not a commit's id"):
        mirror.hold("r", "--upload-pack=sh", WHO)
