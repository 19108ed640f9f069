"""Throwaway runs: what would have changed is told, nothing is kept, unless one changes one's mind."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import UserRepo

Until = Callable[..., None]


def test_rm_tells_and_keeps_nothing(repo: UserRepo) -> None:
    before, refs, state = repo.picture(), repo.refs(), sorted(os.listdir(repo.home))
    done = repo.overlayrun("--rm", "--", "sh", "-c", "echo x >new; rm README; echo y >>tool.sh; exit 3")
    assert done.code == 3
    assert "1 added, 1 modified, 1 deleted" in "\n".join(done.ours)
    assert (repo.refs(), repo.picture()) == (refs, before)
    assert os.listdir(repo.state / "workspaces") == []
    assert not state or not (repo.home / "cache").exists()


def test_rm_without_changes_keeps_nothing_either(repo: UserRepo) -> None:
    refs = repo.refs()
    assert repo.overlayrun("--rm", "--", "true").code == 0
    assert (repo.refs(), os.listdir(repo.state / "workspaces")) == (refs, [])


def test_rm_that_is_killed_keeps_no_ref(repo: UserRepo, until: Until) -> None:
    refs = repo.refs()
    with repo.started("--rm", "--", "sh", "-c", "echo x >new; echo ready; read line") as run:
        run.expect("ready")
        run.process.kill()
        run.end()
    repo.inside("true", branch="other")
    assert set(repo.refs()) - set(refs) <= {
        "refs/heads/other",
        f"refs/overlayrun/base/{repo.records()['other']['id']}",
    }


def test_keep_makes_a_branch_of_a_throwaway(repo: UserRepo) -> None:
    done = repo.overlayrun("--rm", "--keep", "--", "sh", "-c", "echo x >new")
    assert done.code == 0, str(done)
    (branch,) = repo.records()
    assert repo.show(branch, "new") == "x\n"


def test_apply_brings_a_throwaway_into_the_users_tree(repo: UserRepo) -> None:
    head = repo.refs()
    done = repo.overlayrun("--rm", "--apply", "--", "sh", "-c", "echo x >new; echo 42 >README")
    assert done.code == 0, str(done)
    assert (repo.root / "new").read_text() == "x\n"
    assert (repo.root / "README").read_text() == "42\n"
    assert repo.git("rev-parse", "HEAD") == head["refs/heads/main"]
    assert os.listdir(repo.state / "workspaces") == []
