"""`restore`: a workspace goes back to one of its snapshots; what was there is put aside and stays in the chain."""

from __future__ import annotations

import pytest
from conftest import UserRepo

pytestmark = pytest.mark.shared  # what a snapshot brings back


@pytest.fixture
def grown(repo: UserRepo) -> UserRepo:
    """A branch with three snapshots: `one`, then `two` in its place, then also an ignored file and an agent's commit."""
    repo.commit("start", keep="k\n", old="o\n", **{".gitignore": "cache\n"})
    repo.inside("echo 1 >one; rm old")
    repo.inside("rm one; echo 2 >two; mkdir -p deep/er; echo x >deep/er/f")
    repo.inside("git add -A; git commit -qm agent; echo hot >cache; echo 3 >three")
    return repo


def test_the_workspace_shows_the_snapshots_files_again(grown: UserRepo) -> None:
    done = grown.overlayrun("restore", "b", "@{2}")
    assert done.code == 0, str(done)
    assert grown.inside("ls one two three deep old 2>/dev/null || true").split() == ["one"]
    assert {"keep", "one", "two", "old"} & grown.files("b").keys() == {"keep", "one"}


def test_the_chain_only_grows(grown: UserRepo) -> None:
    before = grown.snapshots()
    grown.overlayrun("restore", "b", "@{2}")
    after = grown.snapshots()
    assert after[-len(before) :] == before
    assert len(after) > len(before)


def test_a_restore_can_be_undone(grown: UserRepo) -> None:
    tree = grown.git("rev-parse", "b^{tree}")
    grown.overlayrun("restore", "b", "@{2}")
    assert grown.git("rev-parse", "b^{tree}") != tree
    done = grown.overlayrun("restore", "b", "@{1}")
    assert done.code == 0, str(done)
    assert grown.git("rev-parse", "b^{tree}") == tree
    assert grown.inside("git log --format=%s -1; git status --short").splitlines() == ["agent", "?? three"]


def test_the_old_upper_is_put_aside(grown: UserRepo) -> None:
    grown.overlayrun("restore", "b", "@{2}")
    kept = list(grown.workspace().glob("kept/*/upper/cache"))
    assert [path.read_text() for path in kept] == ["hot\n"]


def test_carried_files_stay_as_the_branch_left_them(repo: UserRepo) -> None:
    repo.commit("start", **{".gitignore": ".env\n"})
    repo.write(".env", "host\n")
    repo.inside("echo 1 >one")
    repo.inside("echo branch >.env; echo 2 >two")
    repo.overlayrun("restore", "b", "@{1}")
    assert repo.inside("cat .env; ls one two 2>/dev/null || true").split() == ["branch", "one"]


def test_a_running_workspace_is_not_restored(grown: UserRepo) -> None:
    with grown.started("-b", "b", "--", "sh", "-c", "echo ready; read line") as run:
        run.expect("ready")
        done = grown.overlayrun("restore", "b", "@{2}")
        assert done.code == 3, str(done)
        run.end()


def test_a_snapshot_that_is_not_there_is_refused(grown: UserRepo) -> None:
    refs = grown.refs()
    done = grown.overlayrun("restore", "b", "@{99}")
    assert done.code in (2, 3), str(done)
    assert grown.refs() == refs
