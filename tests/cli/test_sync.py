"""`sync`: what the command says, and its exit codes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import UserRepo

pytestmark = pytest.mark.shared  # words and commits of a merge into a branch


@pytest.fixture
def behind(repo: UserRepo) -> UserRepo:
    """Branch b changed README; main has two commits more."""
    repo.inside("echo agent >README")
    repo.commit("one", one="1\n")
    repo.commit("two", two="2\n")
    return repo


def _json(repo: UserRepo, *words: str) -> Any:
    data = json.loads(repo.overlayrun("sync", *words, "--json").out)
    assert data.pop("schema") == 1
    return data


def test_it_tells_how_much_came_and_the_second_time_that_all_is_there(behind: UserRepo) -> None:
    done = behind.overlayrun("sync", "b")
    assert (done.code, done.out, done.err) == (
        0,
        "branch b has main's 2 commits now (2 files): snapshot 2\n",
        "",
    )
    done = behind.overlayrun("sync", "b")
    assert (done.code, done.out) == (0, "branch b has all of main already\n")


def test_a_conflict_names_its_paths_and_what_to_type(behind: UserRepo) -> None:
    head = behind.commit("three", README="user\n")
    done = behind.overlayrun("sync", "b")
    assert done.code == 1
    assert done.out.splitlines() == [
        "branch b conflicts with main; nothing was changed",
        "conflict: README (contents)",
    ]
    assert done.ours == [f"hint: sync later, or inside: overlayrun shell b; git merge {head[:10]}"]


@pytest.mark.by_both
def test_the_commit_that_the_hint_names_can_be_merged_inside(behind: UserRepo) -> None:
    head = behind.git("rev-parse", "main")
    behind.inside(f"git add -A; git commit -qm mine; git merge -q {head[:10]}; cat one two")
    assert behind.overlayrun("sync", "b").out == "branch b has all of main already\n"


def test_json(behind: UserRepo) -> None:
    data = _json(behind, "b")
    assert data == {
        "branch": "b",
        "said": "branch b has main's 2 commits now (2 files): snapshot 2",
        "target": "main",
        "target_commit": behind.git("rev-parse", "main"),
        "number": 2,
        "commit": behind.snapshots()[0],
        "conflicts": [],
        "notes": [],
    }
    data = _json(behind, "b")
    assert (data["number"], data["commit"]) == (None, None)


def test_a_conflict_as_json(behind: UserRepo) -> None:
    behind.commit("three", README="user\n")
    data = _json(behind, "b")
    assert data["conflicts"] == [{"path": "README", "kind": "contents"}]
    assert data["number"] is None


def test_another_branch_than_the_target(behind: UserRepo) -> None:
    behind.git("branch", "release", "main~1")
    assert behind.overlayrun("sync", "b", "--into", "release").code == 0
    assert behind.git("rev-parse", "b^") == behind.git("rev-parse", "release")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["b", "--into", "nope"], "there is no branch nope"),
        (["b", "--into", "../x"], "not a usable branch name: '../x'"),
        (["nope"], "no workspace is called 'nope'"),
    ],
)
def test_it_says_what_it_needs(behind: UserRepo, words: list[str], line: str) -> None:
    done = behind.overlayrun("sync", *words)
    assert done.code == 3
    assert done.ours[0].startswith(line)


def test_a_branch_without_a_target_needs_one(repo: UserRepo) -> None:
    repo.git("checkout", "-q", "--detach")
    repo.inside("echo 1 >one")
    done = repo.overlayrun("sync", "b")
    assert done.ours[0] == "branch b has no target: it began on a detached HEAD"
    assert repo.overlayrun("sync", "b", "--into", "main").code == 0
