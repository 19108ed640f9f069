"""What a power cut tears of files that nobody flushed is put aside, so that nothing builds on it."""

from __future__ import annotations

import json
import os

import pytest
from conftest import UserRepo, wait_until

from overlayrun.workspace.record import Record

pytestmark = pytest.mark.shared


def _boot_again(repo: UserRepo) -> None:
    """Let the next command find that the machine was started since."""
    (repo.state / "boot").write_text("another boot")


def test_a_torn_object_is_written_again(repo: UserRepo) -> None:
    """Git takes an object for written when there is a file of its name."""
    repo.inside("echo before >new")
    name = repo.raw_git("hash-object", "--stdin", data=b"same\n").decode().strip()
    path = repo.root / ".git/objects" / name[:2] / name[2:]
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    _boot_again(repo)
    repo.inside("echo same >new")
    assert repo.show("b", "new") == "same\n"
    assert (repo.state / "torn" / name).read_bytes() == b""
    repo.git("fsck", "--strict")


def test_a_torn_ref_stops_no_command(repo: UserRepo) -> None:
    repo.inside("echo x >new")
    heads = repo.root / ".git/refs/heads"
    (heads / "torn").write_bytes(b"\0" * 41)
    (heads / "b.lock").write_text("")
    os.utime(heads / "b.lock", (1, 1))
    _boot_again(repo)
    done = repo.overlayrun("ls")
    assert "a power cut tore 1 of git's files" in done.err, str(done)
    repo.git("fsck", "--strict")
    assert (repo.state / "torn/refs/heads/torn").exists()
    repo.git("branch", "--force", "b", "main")  # by git's own command, to which a dead lock is one


def test_a_record_that_was_not_flushed_does_not_take_the_flushed_one_along(repo: UserRepo) -> None:
    """As a batch leaves it, which flushes for many tasks at once."""
    repo.inside("echo x >new")
    wait_until((repo.workspace() / "synced").exists, "the run is flushed")
    path = str(repo.workspace() / "record.json")
    record = Record.load(path)
    record.prompt = "later"
    record.save(path, durable=False)
    assert Record.load(path).prompt == "later"
    os.truncate(path, 0)
    assert Record.load(path).prompt is None
    assert repo.inside("cat new") == "x\n"
    assert json.loads((repo.workspace() / "record.json").read_text())["branch"] == "b"
    record.save(path)
    assert [name for name in os.listdir(repo.workspace()) if name.startswith("record")] == ["record.json"]
