from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest
from conftest import UserRepo

from overlayrun.errors import HostError, StoreError, UsageError
from overlayrun.model import EMPTY_TREE, CommitId, TreeId
from overlayrun.store.repo import Repo

pytestmark = pytest.mark.shared  # objects of git


def _git(place: Path, *args: str, data: bytes = b"") -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@x"]
    return subprocess.check_output(["git", *identity, *args], cwd=place, input=data).decode().strip()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    _git(tmp_path, "init", "-q", "-b", "main")
    (tmp_path / "a").write_bytes(b"1\n2\n\xff\n")
    (tmp_path / "bin").write_bytes(b"\0\1")
    _git(tmp_path, "add", "-A")
    _git(tmp_path, "commit", "-qm", "first\n\nbody")
    (tmp_path / "a").write_bytes(b"1\n3\n\xff\n4\n")
    (tmp_path / "bin").unlink()
    _git(tmp_path, "commit", "-qam", "second")
    return tmp_path


def test_commits_trees_and_blobs(place: Path) -> None:
    repo = Repo(str(place / ".git"))
    head = repo.commit(repo.resolve("HEAD"))
    assert (head.subject, head.parents, head.tree) == (
        "second",
        (repo.resolve("main~1"),),
        _git(place, "rev-parse", "HEAD^{tree}"),
    )
    entries = repo.read_tree(bytes.fromhex(head.tree))
    assert {name: mode for name, (mode, _) in entries.items()} == {b"a": b"100644"}
    assert repo.read_blob(entries[b"a"][1].hex()) == b"1\n3\n\xff\n4\n"
    assert repo.has(entries[b"a"][1])
    assert not repo.has(b"\1" * 20)
    assert repo.tree_of(None) == EMPTY_TREE
    assert repo.ref("refs/heads/main") == head.id
    assert repo.ref("refs/heads/none") is None


def test_diffs_are_bytes_and_stats_count_lines(place: Path) -> None:
    repo = Repo(str(place / ".git"))
    old, new = (repo.tree_of(repo.resolve(name)) for name in ("main~1", "main"))
    patch = repo.diff(old, new)
    assert b"-2\n+3\n \xff\n+4\n" in patch
    stat = repo.diff_stat(old, new)
    assert (stat.files, stat.insertions, stat.deletions) == (2, 2, 1)
    assert repo.diff_stat(EMPTY_TREE, new).insertions == 4
    assert repo.diff_stat(new, EMPTY_TREE).deletions == 4
    assert repo.diff(new, new) == b""
    subprocess.run(["git", "apply", "--check", "-R", "--exclude=bin"], cwd=place, input=patch, check=True)


def test_what_is_missing_is_an_error_of_the_store(place: Path) -> None:
    repo = Repo(str(place / ".git"))
    with pytest.raises(StoreError):
        repo.read_tree(b"\1" * 20)
    with pytest.raises(StoreError):
        repo.read_blob(repo.tree_of(repo.resolve("main")))
    with pytest.raises(StoreError):
        repo.commit("1" * 40)
    with pytest.raises(StoreError):
        repo.diff(TreeId("1" * 40), EMPTY_TREE)
    for text in ("nothing", "", "main:a", "HEAD~9", "-x"):
        with pytest.raises(UsageError):
            repo.resolve(text)


def test_a_sha256_repository_is_refused_by_name(tmp_path: Path) -> None:
    _git(tmp_path, "init", "-q", "--object-format=sha256")
    with pytest.raises(HostError, match="sha256"):
        Repo(str(tmp_path / ".git"))


def test_extensions_that_change_no_storage_are_taken(place: Path) -> None:
    _git(place, "config", "core.repositoryFormatVersion", "1")
    _git(place, "config", "extensions.partialClone", "origin")
    assert Repo(str(place / ".git")).resolve("main")


def test_no_repository(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not a git repository"):
        Repo(str(tmp_path))


def test_ancestry_is_gits_whichever_way_it_is_asked(repo: UserRepo) -> None:
    """Of a history with side branches: by itself, and once first parents were walked."""
    chance = random.Random(3)
    commits = [repo.git("rev-parse", "HEAD")]
    tree = repo.git("rev-parse", "HEAD^{tree}")
    for number in range(24):
        parents = chance.sample(commits[-6:], min(len(commits[-6:]), chance.choice([1, 1, 2])))
        words = [word for parent in parents for word in ("-p", parent)]
        commits.append(repo.git("commit-tree", *words, "-m", str(number), tree))
    held = {one: set(repo.git("rev-list", one).split()) for one in commits}
    for tip in (commits[-1], commits[-4]):
        plain, walked = Repo(f"{repo.root}/.git"), Repo(f"{repo.root}/.git")
        for old in chance.sample(commits, len(commits)):
            assert walked.is_on_mainline(CommitId(old), CommitId(tip)) == (old in held[tip])
            for new in chance.sample(commits, 6):
                expected = old in held[new]
                assert plain.is_ancestor(CommitId(old), CommitId(new)) == expected
                assert walked.is_ancestor(CommitId(old), CommitId(new)) == expected
