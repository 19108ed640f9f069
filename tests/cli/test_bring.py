"""`apply`, `merge`, `restore`: what the commands say, and their exit codes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import UserRepo

pytestmark = pytest.mark.shared  # what comes home, and what is asked before


@pytest.fixture
def clash(repo: UserRepo) -> UserRepo:
    """Branch b and main changed the same line; b's name for the odd file can't write to a terminal."""
    repo.inside("echo agent >README; echo 2 >two")
    repo.commit("mine", README="mine\n")
    return repo


def _json(repo: UserRepo, *words: str) -> Any:
    data = json.loads(repo.overlayrun(*words, "--json").out)
    assert data.pop("schema") == 1
    return data


def test_merge_moves_the_target(repo: UserRepo) -> None:
    repo.inside("echo 2 >two")
    done = repo.overlayrun("merge", "b")
    head = repo.git("rev-parse", "main")
    assert (done.code, done.out) == (0, f"branch b is merged: main is at {head[:10]} (1 file)\n")
    assert head == repo.git("rev-parse", "b")
    assert (repo.root / "two").read_text() == "2\n"
    assert repo.overlayrun("merge", "b").out == "branch b is in main already\n"


def test_merge_into_another_branch(repo: UserRepo) -> None:
    repo.git("branch", "release")
    repo.inside("echo 2 >two")
    assert repo.overlayrun("merge", "b", "--into", "release").code == 0
    assert repo.show("release", "two") == "2\n"
    assert not (repo.root / "two").exists()


@pytest.mark.parametrize("name", ["merge", "apply"])
def test_a_conflict_changes_nothing_and_ends_with_1(clash: UserRepo, name: str) -> None:
    before, refs = clash.picture(), clash.refs()
    done = clash.overlayrun(name, "b")
    assert done.code == 1
    lines = done.out.splitlines()
    assert "nothing was changed" in lines[0]
    assert lines[1:] == ["conflict: README (contents)"]
    after = {ref: at for ref, at in clash.refs().items() if not ref.startswith("refs/overlayrun/queue/")}
    assert (clash.picture(), after) == (before, refs)


def test_a_conflict_of_apply_as_json(clash: UserRepo) -> None:
    data = _json(clash, "apply", "b")
    assert set(data) == {"branch", "said", "conflicts", "withheld"}
    assert data["conflicts"] == [{"path": "README", "kind": "contents"}]


def test_a_conflict_of_merge_as_json(clash: UserRepo) -> None:
    (data,) = _json(clash, "merge", "b")["targets"]
    assert (data["target"], data["landed"], data["status"]) == ("main", [], 1)
    assert data["conflicts"] == [{"branch": "b", "paths": [{"path": "README", "kind": "contents"}]}]


def test_apply_brings_the_change_uncommitted(repo: UserRepo) -> None:
    repo.inside("echo 2 >two; git add two; git commit -qm two; echo 3 >three")
    head = repo.git("rev-parse", "HEAD")
    done = repo.overlayrun("apply", "b")
    assert (done.code, done.out) == (0, "branch b is in your working tree, uncommitted: git status\n")
    assert repo.git("rev-parse", "HEAD") == head
    assert repo.git("status", "--porcelain") == "?? three\n?? two"


@pytest.mark.parametrize("name", ["merge", "apply"])
def test_of_a_running_branch_the_newest_snapshot_is_taken(repo: UserRepo, name: str) -> None:
    with repo.started("-b", "b", "--", "sh", "-c", "echo 1 >one; echo ready; cat") as run:
        run.expect("ready")
        repo.overlayrun("snapshot", "b")
        done = repo.overlayrun(name, "b")
    assert done.ours == ["branch b is running: what its newest snapshot holds is taken"]
    assert (done.code, (repo.root / "one").read_text()) == (0, "1\n")


def test_a_running_branch_without_a_snapshot_has_nothing_to_merge(repo: UserRepo) -> None:
    with repo.started("-b", "b", "--", "sh", "-c", "echo 1 >one; echo ready; cat") as run:
        run.expect("ready")
        done = repo.overlayrun("merge", "b")
    assert (done.code, done.out) == (0, "branch b has no snapshot yet\n")


def test_a_bad_target_is_refused(repo: UserRepo) -> None:
    repo.inside("echo 2 >two")
    done = repo.overlayrun("merge", "b", "--into", "../x")
    assert done.code == 3
    assert done.ours[0].startswith("not a usable branch name: '../x'")


@pytest.mark.parametrize("words", [["b", "@{1}"], ["b@{1}"]])
def test_restore_goes_back_and_loses_nothing(repo: UserRepo, words: list[str]) -> None:
    repo.inside("echo 1 >file")
    repo.inside("echo 2 >file; echo more >more")
    done = repo.overlayrun("restore", *words)
    assert (done.code, done.out) == (0, "branch b is as in snapshot 1 again; this is snapshot 3\n")
    assert repo.inside("cat file; ls more 2>/dev/null || echo none") == "1\nnone\n"
    back = [each["number"] for each in _json(repo, "log", "b")["snapshots"]].index(2)
    assert repo.overlayrun("restore", f"b@{{{back}}}").code == 0
    assert repo.inside("cat file more") == "2\nmore\n"


def test_restore_json(repo: UserRepo) -> None:
    repo.inside("echo 1 >file")
    repo.inside("echo 2 >file")
    data = _json(repo, "restore", "b@{1}")
    assert data == {"branch": "b", "restored": 1, "number": 3, "commit": repo.snapshots()[0]}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["b"], "back to which snapshot of b?"),
        (["b", "@{4}"], "branch b has no @{4}: it has 1 snapshot"),
        (["b", "2"], "not a branch or a snapshot: 'b2'"),
        (["nope", "@{0}"], "no workspace is called 'nope'"),
    ],
)
def test_restore_says_what_it_needs(repo: UserRepo, words: list[str], line: str) -> None:
    repo.inside("echo 1 >file")
    done = repo.overlayrun("restore", *words)
    assert done.code == 3
    assert done.ours[0] == line or line.startswith("not a branch")
    assert len(repo.snapshots()) == 1


def test_a_running_branch_is_not_restored(repo: UserRepo) -> None:
    repo.inside("echo 1 >file")
    with repo.started("-b", "b", "--", "sh", "-c", "echo ready; cat") as run:
        run.expect("ready")
        done = repo.overlayrun("restore", "b@{0}")
    assert (done.code, done.ours[0]) == (3, "branch b is running")
    assert len(repo.snapshots()) == 1
