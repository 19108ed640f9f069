from __future__ import annotations

from pathlib import Path

import pytest

from overlayrun.errors import RefMoved, UsageError
from overlayrun.model import BranchName, CommitId
from overlayrun.store.git import git
from overlayrun.store.refs import (
    RefUpdate,
    base_ref,
    branch_ref,
    dirty_ref,
    parse_branch_name,
    snapshots_ref,
    update_refs,
)
from overlayrun.store.repo import Repo

pytestmark = pytest.mark.shared  # names and values of refs


@pytest.fixture
def git_dir(tmp_path: Path) -> str:
    git(["init", "-q", str(tmp_path)])
    return str(tmp_path / ".git")


@pytest.fixture
def commits(git_dir: str) -> list[CommitId]:
    tree = git(["mktree"], git_dir=git_dir).decode().strip()
    who = b"author a <b> 1 +0000\ncommitter a <b> 1 +0000\n"
    return [
        CommitId(
            git(
                ["hash-object", "-t", "commit", "-w", "--stdin"],
                git_dir=git_dir,
                input=b"tree %b\n%b\n%d\n" % (tree.encode(), who, number),
            )
            .decode()
            .strip()
        )
        for number in range(3)
    ]


@pytest.mark.parametrize(
    "name", ["a", "agent/one", "fix-1.2_x/y", "0", "con", "é".encode("punycode").decode() or "e"]
)
def test_good_names(name: str) -> None:
    assert parse_branch_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            "-x",
            "../../x",
            "a..b",
            "HEAD",
            "refs/heads/main",
            "main.lock",
            "a b",
            "$(touch x)",
            "a\x1b[31m",
        ),
        *(
            "@{-1}",
            "a" * 300,
            "é",
            "/a",
            "a/",
            "a//b",
            ".a",
            "a/.b",
            "a/-b",
            "a.",
            "a.lock/b",
            "a~1",
            "a^",
            "a:b",
        ),
        *("a?", "a*", "a[", "a\\b", "a\n", "@", "FETCH_HEAD", "a\0b", "a\udcff"),
    ],
)
def test_bad_names_are_refused_in_one_line_without_controls(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_branch_name(name)
    assert caught.value.brief.isprintable()
    assert caught.value.hint


def test_every_name_that_is_accepted_is_a_name_to_git(git_dir: str) -> None:
    accepted = 0
    for text in (
        "a.b",
        "a_b",
        "A",
        "a/b/c",
        "a-",
        "a..",
        "a.lock",
        "a/b.lock",
        "x/HEAD",
        "9",
        "a/@",
        "a/b-c.d",
    ):
        try:
            name = parse_branch_name(text)
        except UsageError:
            continue
        accepted += 1
        git(["check-ref-format", "--branch", name], git_dir=git_dir)
    assert accepted == 8


def test_ref_names() -> None:
    assert branch_ref(BranchName("a/b")) == "refs/heads/a/b"
    assert [ref("id") for ref in (snapshots_ref, base_ref, dirty_ref)] == [
        "refs/overlayrun/snapshots/id",
        "refs/overlayrun/base/id",
        "refs/overlayrun/dirty/id",
    ]


def _refs(git_dir: str) -> dict[str, str]:
    listed = git(["for-each-ref", "--format=%(refname) %(objectname)"], git_dir=git_dir).decode().splitlines()
    return dict(line.split(" ") for line in listed)


def test_refs_are_made_moved_and_deleted_in_one_transaction(git_dir: str, commits: list[CommitId]) -> None:
    one, two, _ = commits
    update_refs(
        git_dir, [RefUpdate("refs/heads/a", one, None), RefUpdate("refs/overlayrun/base/x", two, None)]
    )
    assert _refs(git_dir) == {"refs/heads/a": one, "refs/overlayrun/base/x": two}
    update_refs(
        git_dir,
        [RefUpdate("refs/heads/a", two, one), RefUpdate("refs/overlayrun/base/x", None, two)],
        why="test",
    )
    assert _refs(git_dir) == {"refs/heads/a": two}
    assert git(["reflog", "show", "--format=%gs", "-1", "a"], git_dir=git_dir) == b"overlayrun: test\n"


@pytest.mark.parametrize("old", [None, 1])
def test_a_lost_swap_moves_nothing(git_dir: str, commits: list[CommitId], old: int | None) -> None:
    update_refs(git_dir, [RefUpdate("refs/heads/a", commits[0], None)])
    updates = [
        RefUpdate("refs/heads/b", commits[1], None),
        RefUpdate("refs/heads/a", commits[2], None if old is None else commits[old]),
    ]
    with pytest.raises(RefMoved):
        update_refs(git_dir, updates)
    with pytest.raises(RefMoved):
        Repo(git_dir).move_refs(updates, why="x")
    assert _refs(git_dir) == {"refs/heads/a": commits[0]}


@pytest.mark.parametrize(
    ("taken", "wanted"), [("a", "a/b"), ("a/b", "a"), ("a/b/c", "a/b"), ("x/y", "x/y/z/w")]
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_branch_in_the_way_is_named(
    git_dir: str, commits: list[CommitId], taken: str, wanted: str, *, packed: bool
) -> None:
    update_refs(git_dir, [RefUpdate(f"refs/heads/{taken}", commits[0], None)])
    if packed:
        git(["pack-refs", "--all"], git_dir=git_dir)
    with pytest.raises(UsageError, match=f"branch '{taken}' exists"):
        update_refs(git_dir, [RefUpdate(f"refs/heads/{wanted}", commits[1], None)])
    assert _refs(git_dir) == {f"refs/heads/{taken}": commits[0]}
