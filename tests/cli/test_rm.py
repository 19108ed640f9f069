"""`rm` and `gc`: what goes, what is refused, and that nothing is lost without a word."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import UserRepo

pytestmark = pytest.mark.shared  # what is asked before work goes


def _refused(repo: UserRepo, *words: str) -> list[str]:
    """Details of a refused `rm`; nothing was removed."""
    refs, workspace = repo.refs(), repo.workspace()
    done = repo.overlayrun("rm", *words)
    assert done.code == 3, str(done)
    assert done.out == ""
    assert (repo.refs(), workspace.is_dir()) == (refs, True)
    assert done.ours[0].startswith("branch b holds what is nowhere else")
    assert done.ours[-1] == "hint: overlayrun merge b, or lose it: overlayrun rm --force b"
    return [line.strip() for line in done.ours[1:-1]]


def test_a_landed_branch_goes_with_all_its_refs(repo: UserRepo) -> None:
    repo.inside("echo 2 >two")
    repo.overlayrun("merge", "b")
    done = repo.overlayrun("rm", "b")
    assert (done.code, done.out, done.err) == (0, "removed b\n", "")
    assert list(repo.refs()) == ["refs/heads/main"]
    assert os.listdir(repo.state / "workspaces") == []


def test_a_branch_without_work_goes(repo: UserRepo) -> None:
    repo.inside("true")
    assert repo.overlayrun("rm", "b").code == 0
    assert list(repo.refs()) == ["refs/heads/main"]


def test_commits_that_are_nowhere_else_are_kept(repo: UserRepo) -> None:
    repo.inside("echo 2 >two; git add two; git commit -qm two; echo 3 >three")
    assert _refused(repo, "b") == ["2 commits not in main or in any other branch"]
    assert repo.overlayrun("rm", "--force", "b").code == 0
    assert list(repo.refs()) == ["refs/heads/main"]


def test_commits_that_another_branch_has_are_no_loss(repo: UserRepo) -> None:
    repo.inside("echo 2 >two")
    repo.git("branch", "copy", "b")
    assert repo.overlayrun("rm", "b").code == 0
    assert repo.show("copy", "two") == "2\n"


def test_keep_branch_removes_the_workspace_alone(repo: UserRepo) -> None:
    repo.inside("echo 2 >two")
    done = repo.overlayrun("rm", "--keep-branch", "b")
    assert (done.code, done.out) == (0, "removed the workspace of b\n")
    assert list(repo.refs()) == ["refs/heads/b", "refs/heads/main"]
    assert repo.show("b", "two") == "2\n"


def test_a_snapshot_that_the_branch_does_not_hold_is_kept(repo: UserRepo) -> None:
    repo.inside("echo 2 >two")
    repo.git("update-ref", "refs/heads/b", "main")
    assert _refused(repo, "--keep-branch", "b") == ["1 commit not in main or in any other branch"]


def test_a_deleted_branch_does_not_hide_its_work(repo: UserRepo) -> None:
    repo.inside("echo 2 >two")
    repo.git("branch", "-D", "b")
    assert _refused(repo, "b") == ["1 commit not in main or in any other branch"]
    assert repo.overlayrun("rm", "-f", "b").code == 0


def test_a_branch_that_is_checked_out_stays(repo: UserRepo) -> None:
    repo.inside("echo 2 >two")
    repo.git("checkout", "--quiet", "b")
    done = repo.overlayrun("rm", "b")
    assert done.code == 0
    assert done.ours == [f"branch b stays: it is checked out in {repo.root}"]
    assert repo.git("status", "--porcelain") == ""
    assert "refs/heads/b" in repo.refs()


def test_stashes_and_branches_made_inside_are_kept(repo: UserRepo) -> None:
    repo.inside("git branch side; echo 2 >README; git stash -q")
    assert sorted(_refused(repo, "b")) == [
        "refs/heads/side of its own .git, which no snapshot holds",
        "refs/stash of its own .git, which no snapshot holds",
    ]


def test_paths_that_no_snapshot_holds_are_kept(repo: UserRepo) -> None:
    repo.inside("git init -q clone; echo 1 >clone/file; mkfifo pipe")
    repo.overlayrun("merge", "b")
    details = _refused(repo, "b")
    assert details[0] == "1 path could not be put into a snapshot"
    assert details[1].startswith("clone/.git: ")


def test_a_fifo_is_no_work(repo: UserRepo) -> None:
    repo.inside("mkfifo pipe")
    assert repo.overlayrun("rm", "b").code == 0


def test_a_running_branch_is_never_removed(repo: UserRepo) -> None:
    with repo.started("-b", "b", "--", "sh", "-c", "echo ready; cat; echo end") as run:
        run.expect("ready")
        for words in (["b"], ["--force", "b"]):
            done = repo.overlayrun("rm", *words)
            assert (done.code, done.ours[0]) == (3, "branch b is running")
        run.end()
        run.expect("end")
    assert repo.overlayrun("rm", "b").code == 0


def test_several_at_once(repo: UserRepo) -> None:
    for branch in ("one", "two"):
        repo.inside("true", branch=branch)
    assert repo.overlayrun("rm", "one", "two").out == "removed one\nremoved two\n"


def test_the_users_tree_is_untouched(repo: UserRepo) -> None:
    before = repo.picture()
    repo.inside("echo 2 >two")
    repo.overlayrun("rm", "--force", "b")
    assert repo.picture() == before


def test_gc_tells_first_and_then_does(repo: UserRepo) -> None:
    repo.inside("echo 2 >two")
    repo.overlayrun("merge", "b")
    dry = repo.overlayrun("gc", "--dry-run", "--max-age", "0s")
    assert dry.code == 0
    assert "branch b has landed" in dry.out
    assert "would come free" in dry.out.splitlines()[-1]
    assert repo.workspace().is_dir()
    done = repo.overlayrun("gc", "--max-age", "0s")
    assert "came free" in done.out.splitlines()[-1]
    assert not repo.records()
    assert repo.show("b", "two") == "2\n"


def test_gc_leaves_work_that_is_nowhere_else(repo: UserRepo) -> None:
    repo.inside("echo 2 >two")
    assert repo.overlayrun("gc", "--max-age", "0s", "--max-size", "0").code == 0
    assert repo.inside("cat two") == "2\n"


def test_gc_json(repo: UserRepo) -> None:
    repo.inside("echo 2 >two")
    repo.overlayrun("merge", "b")
    data = json.loads(repo.overlayrun("gc", "-n", "--max-age=0s", "--json").out)
    assert set(data) == {"schema", "dry_run", "freed", "items"}
    assert (data["schema"], data["dry_run"]) == (1, True)
    assert data["freed"] == sum(item["bytes"] for item in data["items"]) > 0
    assert set(data["items"][0]) == {"path", "bytes", "why", "branch"}
    assert "b" in [item["branch"] for item in data["items"]]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--max-age", "soon"], "Invalid value for '--max-age': 'soon' is no span"),
        (["--max-age", "-1d"], "Invalid value for '--max-age': '-1d' is no span"),
        (["--max-size", "inf"], "Invalid value for '--max-size': 'inf' is no size"),
        (["--max-size", "1x"], "Invalid value for '--max-size': '1x' is no size"),
    ],
)
def test_gc_refuses_other_amounts(repo: UserRepo, words: list[str], line: str) -> None:
    done = repo.overlayrun("gc", *words)
    assert done.code == 2
    assert done.ours[0].startswith(line)
