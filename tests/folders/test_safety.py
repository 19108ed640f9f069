"""Nobody loses work in a folder: other commands beside it, moves, full disks, logouts and long freezes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Mounter, UserRepo, copy_repo, wait_until
from test_full_disk import _filled

from overlayrun.workspace.lock import is_locked

pytestmark = pytest.mark.shared  # a disk that is full, a mount that is gone: for everybody the same


def branches(repo: UserRepo) -> Path:
    return repo.root / ".overlay/branches"


def must(repo: UserRepo, *args: str) -> str:
    done = repo.overlayrun(*args)
    assert done.code == 0, str(done)
    return done.out


def status(repo: UserRepo) -> Any:
    return json.loads(must(repo, "status", "--json"))["folders"]


def frozen_in(repo: UserRepo) -> set[str]:
    """Frozen trees, as `gc` finds them."""
    return {path.name for kind in ("bases", "layers") for path in (repo.state / kind).iterdir()}


def until_closed(repo: UserRepo) -> None:
    wait_until(lambda: not is_locked(f"{repo.state}/open/lock"), "the end of the daemon")


@contextlib.contextmanager
def started(argv: list[str]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def held_alone(repo: UserRepo) -> Iterator[None]:
    """Nobody can choose layers meanwhile: who freezes a tree waits in the middle."""
    with (repo.state / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def opened(repo: UserRepo) -> Iterator[UserRepo]:
    must(repo, "open")
    try:
        yield repo
    finally:
        repo.overlayrun("open", "--stop")


def test_other_commands_find_what_was_written_a_moment_ago(repo: UserRepo) -> None:
    repo.git("config", "filter.rot.clean", "tr a-z n-za-m")
    repo.git("config", "filter.rot.smudge", "tr a-z n-za-m")
    old = repo.commit("filtered", **{".gitattributes": "*.rot filter=rot\n", "word.rot": "hello\n"})
    repo.commit("newer", newer="1\n")
    with opened(repo):
        place = branches(repo) / "b"
        place.mkdir()
        (place / "first").write_text("1\n")
        must(repo, "merge", "b")
        assert repo.show("main", "first") == "1\n"
        (place / "word.rot").write_text("world\n")
        (place / "second").write_text("2\n")
        assert "+2" in must(repo, "diff", "b")
        assert repo.show("b", "word.rot") == "jbeyq\n"  # by the filter, which needs the sandbox
        repo.git("branch", "-D", "b")
        (place / "third").write_text("3\n")
        must(repo, "ls")
        assert "third" in repo.files(f"refs/overlayrun/snapshots/{repo.records()['b']['id']}")
        frozen = repo.root / f".overlay/commits/{old}"
        assert (frozen / "word.rot").read_text() == "hello\n"
        must(repo, "rm", "--force", "b")
        must(repo, "gc", "--max-age", "0s")
        assert (frozen / "README").read_text() == "read me\n"  # nobody has looked at it before
        repo.git("clean", "-fdxq")
        wait_until((frozen / "link").is_symlink, "the link, which is made again")
        with subprocess.Popen(["sleep", "60"], cwd=frozen) as user:
            said = must(repo, "open", "--stop")
            user.kill()
        assert f"sleep ({user.pid})" in said
    layers = frozen_in(repo)
    assert layers
    must(repo, "gc", "--max-age", "0s")
    assert frozen_in(repo) < layers


def test_folders_end_well_when_their_repository_or_their_mount_is_taken_away(
    repo: UserRepo, tmp_path: Path
) -> None:
    """A move, a copy in its place, a kill with a login between, and what a logout does."""
    must(repo, "open")
    (branches(repo) / "b").mkdir()
    (branches(repo) / "b/one").write_text("1\n")
    moved = repo.at(tmp_path / "moved")
    repo.root.rename(moved.root)
    (moved.root / ".overlay/branches/b/two").write_text("2\n")
    until_closed(moved)
    assert "b was interrupted" in moved.overlayrun("ls").err
    assert {"one", "two"} <= moved.files("b").keys()

    must(moved, "open")
    (moved.root / ".overlay/branches/b/three").write_text("3\n")
    os.kill(status(moved)["pid"], signal.SIGKILL)
    until_closed(moved)
    login = tmp_path / "login"
    login.mkdir(0o700)
    moved.env["XDG_RUNTIME_DIR"] = str(login)
    must(moved, "open")
    assert "three" in moved.files("b")
    (moved.root / ".overlay/branches/b/four").write_text("4\n")
    subprocess.run(["fusermount3", "-u", "-z", os.readlink(moved.root / ".overlay")], check=True)
    until_closed(moved)
    shutil.rmtree(login)
    assert "four" in moved.files("b")
    assert not os.path.lexists(moved.root / ".overlay")

    del moved.env["XDG_RUNTIME_DIR"]
    must(moved, "open")
    moved.root.rename(repo.root)
    shutil.copytree(repo.root, moved.root, symlinks=True, ignore=shutil.ignore_patterns("control"))
    try:
        must(moved, "open")  # where the other's folders still are, or are just ending
        until_closed(repo)
        assert (moved.root / ".overlay/branches/b/four").read_text() == "4\n"
    finally:
        moved.overlayrun("open", "--stop")


def test_two_repositories_have_folders_of_their_own(repo: UserRepo, tmp_path: Path) -> None:
    other = repo.at(tmp_path / "other")
    shutil.copytree(repo.root, other.root, symlinks=True)
    place = tmp_path / "both"
    must(repo, "open", str(place))
    try:
        refused = other.overlayrun("open", str(place))
        assert refused.code == 3, str(refused)
        assert "of another repository" in refused.ours[0]
        assert (place / "branches").is_dir()
        with opened(other):
            (branches(other) / "b").mkdir()
            (place / "branches/b").mkdir()
            (branches(other) / "b/file").write_text("other\n")
            (place / "branches/b/file").write_text("this\n")
    finally:
        must(repo, "open", "--stop")
    assert (repo.show("b", "file"), other.show("b", "file")) == ("this\n", "other\n")


def test_nobody_waits_until_a_commit_is_frozen_or_a_branch_made_for_another(repo: UserRepo) -> None:
    commit = repo.commit("to be frozen", new="1\n")
    repo.git("tag", "frozen")
    repo.git("reset", "-q", "--hard", "HEAD^")
    with opened(repo), contextlib.ExitStack() as stack:
        place = branches(repo) / "b"
        place.mkdir()
        # By two names: who looks one up that another is looking up waits in the kernel, and can't be killed.
        commits = repo.root / ".overlay/commits"
        with held_alone(repo), started(["ls", str(commits / "frozen")]) as second:
            first = stack.enter_context(started(["ls", str(commits / commit)]))
            maker = stack.enter_context(started(["mkdir", str(branches(repo) / "made")]))
            (place / "file").write_text("1\n")
            assert status(repo)["branches"][0]["branch"] == "b"
            assert repo.show("b", "file") == "1\n"
            assert (first.poll(), second.poll(), maker.poll()) == (None, None, None)
            second.send_signal(signal.SIGINT)
            assert second.wait(30) == -signal.SIGINT
        assert "new" in first.communicate()[0].split()
        assert maker.wait(60) == 0
        assert (branches(repo) / "made/README").read_text() == "read me\n"
        with pytest.raises(FileNotFoundError):
            os.listdir(f"{repo.root}/.overlay/commits/{'0' * 40}")


@pytest.mark.root
def test_a_full_disk_is_told_to_the_writer_and_keeps_what_was_written(
    repo: UserRepo, loop_disk: Mounter
) -> None:
    disk = loop_disk("ext4", 24)
    repo = copy_repo(repo.root, disk)
    with opened(repo):
        place = branches(repo) / "b"
        place.mkdir()
        (branches(repo) / "c").mkdir()
        (place / "early").write_text("early\n")
        with _filled(disk):
            with pytest.raises(OSError, match="No space"):
                (place / "big").write_bytes(b"x" * (32 << 20))
            told = status(repo)
            assert "No space left" in told["troubles"][0], told
            assert told["troubles"][0].endswith("overlayrun snapshot b")
            assert "b has no snapshot" in repo.overlayrun("doctor").out
            failed = repo.overlayrun("open", "--stop")
            assert failed.code == 3, str(failed)
            assert failed.ours[1].startswith("hint: nothing is lost"), str(failed)
            listed = repo.overlayrun("ls")
            assert listed.code == 0, str(listed)
        must(repo, "open")
        assert (place / "early").read_text() == "early\n"
        assert not status(repo)["troubles"]
        (place / "late").write_text("late\n")
        must(repo, "ls")
        assert {"early", "big", "late"} <= repo.files("b").keys()
        assert (place / "big").stat().st_size == int(repo.git("cat-file", "-s", "b:big"))
