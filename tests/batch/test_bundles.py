"""Bundles from anybody: what is sound comes in, and of the rest nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from overlayrun.batch.bundles import take_bundle, write_bundle
from overlayrun.errors import StoreError
from overlayrun.store.repo import Repo

if TYPE_CHECKING:
    from conftest import UserRepo

pytestmark = pytest.mark.shared  # what git finds in a bundle

REF: Final = "refs/overlayrun/attempts/run/task/1"


class Handed:
    """A bundle that somebody made: of `tip`, on `base`, for `into`."""

    def __init__(self, repo: UserRepo, place: Path) -> None:
        self.repo = repo
        self.base = repo.git("rev-parse", "HEAD")
        self.into = repo.at(place / "into")
        repo.git("clone", "--quiet", "--bare", str(repo.root), str(self.into.root))
        self.path = str(place / "result.bundle")
        self.tip = ""

    def of(self, tip: str) -> Handed:
        self.tip = tip
        self.repo.git("update-ref", REF, tip)
        write_bundle(self.path, str(self.repo.root / ".git"), self.base, REF)
        return self

    def of_tree(self, tree: bytes) -> Handed:
        oid = self.repo.raw_git("hash-object", "-w", "--literally", "-t", "tree", "--stdin", data=tree)
        return self.of(self.repo.git("commit-tree", "-p", self.base, "-m", "made", oid.decode().strip()))

    def take(self, limit: int = 1 << 20) -> None:
        take_bundle(Repo(str(self.into.root)), self.path, self.tip, self.base, limit=limit)

    def is_refused(self, words: str, limit: int = 1 << 20) -> None:
        before = sorted(self.into.root.rglob("*"))
        with pytest.raises(StoreError, match=words):
            self.take(limit)
        assert sorted(self.into.root.rglob("*")) == before


@pytest.fixture
def handed(repo: UserRepo, tmp_path: Path) -> Handed:
    return Handed(repo, tmp_path)


def test_a_sound_one_comes_in_whole_without_its_refs(handed: Handed) -> None:
    one = handed.repo.commit("one", **{"src/app.py": "answer = 42\n"})
    handed.of(handed.repo.commit("two", new="new\n")).take()
    assert handed.into.show(handed.tip, "src/app.py") == "answer = 42\n"
    assert handed.into.git("rev-list", f"{handed.base}..{handed.tip}").split() == [handed.tip, one]
    handed.into.git("fsck", "--strict", "--no-dangling")
    assert list(handed.into.refs()) == ["refs/heads/main"]
    assert not list(handed.into.root.glob("objects/tmp_*"))
    handed.take()


@pytest.mark.parametrize("name", [b".git", b"..", b"a/b", b".GIT"])
def test_a_tree_that_git_must_not_have_is_refused(handed: Handed, name: bytes) -> None:
    blob = handed.repo.raw_git("hash-object", "-w", "--stdin", data=b"evil\n").decode().strip()
    handed.of_tree(b"100644 " + name + b"\0" + bytes.fromhex(blob)).is_refused("not sound|not whole")


def test_a_commit_that_is_not_on_the_base_is_refused(handed: Handed) -> None:
    handed.of(handed.repo.commit("one", new="new\n"))
    handed.tip, tip = handed.base, handed.tip
    handed.is_refused("does not name")  # the bundle names another
    handed.tip = tip
    other = handed.repo.git("commit-tree", "-m", "no parent", f"{handed.base}^{{tree}}")
    handed.of(other).is_refused("not sound|not whole")


def test_a_tip_that_is_no_commit_is_refused(handed: Handed) -> None:
    handed.of(handed.repo.git("rev-parse", f"{handed.repo.commit('one', new='new')}^{{tree}}"))
    handed.is_refused("not sound|not whole")


def test_one_that_lacks_objects_is_refused(handed: Handed) -> None:
    tip = handed.of(handed.repo.commit("one", new="new\n")).tip
    without = handed.repo.raw_git("pack-objects", "--stdout", "-q", data=f"{tip}\n".encode())
    Path(handed.path).write_bytes(f"# v2 git bundle\n{tip} {REF}\n\n".encode() + without)
    handed.is_refused("not sound|not whole")


def test_one_that_is_damaged_or_none_at_all_is_refused(handed: Handed) -> None:
    whole = Path(handed.of(handed.repo.commit("one", new="new\n")).path).read_bytes()
    header, pack = whole.split(b"\n\n", 1)
    tip = handed.tip.encode()
    bad = [
        (b"", "is none"),
        (whole[:30], "is none"),
        (header + b"\n\n", "no pack"),
        (whole[:-10], "not sound|not whole"),
        (header + b"\n\n" + pack[:40] + b"\xff" + pack[41:], "not sound|not whole"),
        (b"# v2 git bundle\n" + tip + b" \n\n" + pack, "is none"),
        (b"# v3 git bundle\n@filter=blob:none\n" + tip + b" x\n\n" + pack, "is none"),
        (b"# v2 git bundle\n" + (tip + b" x\n") * 2000 + b"\n" + pack, "is none"),
        (b"# v2 git bundle\n" + tip + b" " + b"x" * 5000 + b"\n\n" + pack, "is none"),
    ]
    for data, words in bad:
        Path(handed.path).write_bytes(data)
        handed.is_refused(words)


@pytest.mark.by_both
def test_one_that_is_too_large_or_no_file_is_refused(handed: Handed) -> None:
    handed.of(handed.repo.commit("one", new=os.urandom(5000).hex()))
    handed.is_refused("at most 1,000 bytes", 1000)
    real = f"{handed.path}.real"
    Path(handed.path).rename(real)
    handed.is_refused("can't be read")
    Path(handed.path).symlink_to(real)
    handed.is_refused("can't be read")
    Path(handed.path).unlink()
    os.mkfifo(handed.path)
    handed.is_refused("no file")


def test_one_that_can_not_be_written_leaves_nothing(handed: Handed, tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        write_bundle(handed.path, str(handed.repo.root / ".git"), handed.base, "refs/overlayrun/none")
    assert not list(tmp_path.glob("*.bundle*"))
