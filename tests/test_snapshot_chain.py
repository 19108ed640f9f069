"""The snapshot chain, the branch, and whose they are."""

from __future__ import annotations

import os
import pwd
from dataclasses import replace
from pathlib import Path

import pytest
from snapshot_world import World

from overlayrun.errors import RefMoved
from overlayrun.model import BranchName, CommitId, SnapshotReason
from overlayrun.store.refs import RefUpdate
from overlayrun.store.repo import Repo

pytestmark = pytest.mark.shared

BRANCH = "refs/heads/agent/one"
CHAIN = "refs/overlayrun/snapshots/w1"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.make(tmp_path, {"a": "1\n", "b": "1\n"})


@pytest.mark.by_both
def test_a_chain_of_snapshots_keeps_every_state_and_the_branch_has_one_commit(world: World) -> None:
    world.sh("echo 2 > a")
    first = world.snapshot(SnapshotReason.REQUEST, "one")
    world.sh("echo 3 > a")
    second = world.snapshot(SnapshotReason.EXIT, "two")
    assert world.git("rev-parse", BRANCH) == second.tip
    assert world.git("rev-list", "--count", f"{world.job.base}..{BRANCH}") == "1"
    listed = list(Repo(world.job.git_dir).snapshots("w1"))
    assert [(one.commit, one.tree, one.number, one.reason, one.subject, one.tip) for one in listed] == [
        (second.commit, second.tree, 2, "exit", "two", second.tip),
        (first.commit, first.tree, 1, "request", "one", first.tip),
    ]
    chain = world.git("rev-list", "--first-parent", CHAIN).split()
    assert chain == [second.commit, first.commit, first.tip, world.job.base]
    world.git("gc", "--prune=now", "-q")
    assert world.content(first.tree, "a") == b"2\n"
    world.fsck()


def test_the_message_names_command_branch_and_exit_and_escapes_what_an_agent_wrote(world: World) -> None:
    world.job = replace(world.job, command="sh -c 'x\x1b[31m\nOverlayrun-Number: 99'", exit_status=3)
    world.sh("echo 2 > a; rm b; echo 1 > c")
    taken = world.snapshot(SnapshotReason.EXIT, "Fix it\x07\n\nOverlayrun-Number: 99\nOverlayrun-Head: 0")
    assert taken.tip
    text = world.git("log", "-1", "--format=%B", taken.tip)
    assert text.splitlines()[0] == r"Fix it\x07"
    assert "Files: 1 added, 1 modified, 1 deleted." in text
    assert text.split("\n\n")[-1].splitlines() == [
        "Overlayrun-Branch: agent/one",
        r"Overlayrun-Command: sh -c 'x\x1b[31m\nOverlayrun-Number: 99'",
        "Overlayrun-Exit: 3",
        f"Overlayrun-Base: {world.job.base}",
        "Overlayrun-Snapshot: 1",
    ]
    info = next(Repo(world.job.git_dir).snapshots("w1"))
    assert (info.number, info.head) == (1, None)


def test_author_and_committer_are_the_user_at_the_hosts_clock(world: World) -> None:
    world.sh("echo 2 > a")
    taken = world.snapshot()
    assert taken.tip
    who = "Test User <user@example.invalid>"
    assert world.git("log", "-1", "--format=%an <%ae>|%cn <%ce>", taken.tip) == f"{who}|{who}"


@pytest.mark.by_both
def test_without_a_configured_identity_the_login_stands_in(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(world.root))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    world.git("config", "--remove-section", "user")
    world.sh("echo 2 > a")
    taken = world.snapshot()
    assert taken.tip
    login = pwd.getpwuid(os.geteuid()).pw_name
    assert (
        world.git("log", "-1", "--format=%an <%ae>", taken.tip) == f"{login} <{login}@{os.uname().nodename}>"
    )
    world.fsck()


def test_dates_never_go_back_on_a_chain(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.sh("echo 2 > a")
    first = world.snapshot()
    monkeypatch.setattr("overlayrun.chain.time.time", lambda: 1e9)
    world.sh("echo 3 > a")
    second = world.snapshot()
    dates = [int(world.git("log", "-1", "--format=%ct", str(one.commit))) for one in (first, second)]
    assert dates[0] == dates[1] > 1e9


@pytest.mark.parametrize("reason", [SnapshotReason.INTERVAL, SnapshotReason.REQUEST])
def test_nothing_new_makes_no_snapshot(world: World, reason: SnapshotReason) -> None:
    world.sh("echo 2 > a")
    first = world.snapshot(reason)
    second = world.snapshot(reason)
    assert (first.unchanged, second.unchanged) == (False, True)
    assert (second.commit, second.tip, second.number) == (first.commit, first.tip, 1)
    assert world.snapshot(SnapshotReason.EXIT).unchanged
    assert not world.snapshot(SnapshotReason.EXIT, "words of its own").unchanged
    assert not world.snapshot(SnapshotReason.RECOVERY).unchanged


def test_a_run_that_changed_nothing_leaves_the_branch_at_the_base(world: World) -> None:
    taken = world.snapshot()
    assert taken.tip == world.job.base == world.git("rev-parse", BRANCH)


def test_undoing_every_change_brings_the_branch_back_to_the_base(world: World) -> None:
    world.sh("echo 2 > a")
    world.snapshot()
    world.sh("echo 1 > a")
    assert world.snapshot().tip == world.job.base == world.git("rev-parse", BRANCH)


def test_an_unborn_head_starts_from_nothing(world: World) -> None:
    world.job = replace(world.job, base=None)
    assert world.snapshot().tip is None
    assert world.git("for-each-ref", BRANCH) == ""
    world.sh("echo 1 > c")
    taken = world.snapshot()
    assert taken.tip
    assert world.names(taken.tree) == {"c"}
    assert world.git("rev-list", "--parents", taken.tip) == taken.tip
    world.sh("rm c")
    assert world.snapshot().tip is None
    world.fsck()


def test_deleting_everything_gives_the_empty_tree(world: World) -> None:
    world.sh("rm a b")
    taken = world.snapshot()
    assert world.names(taken.tree) == set()
    assert taken.changes.deleted == 2
    world.fsck()


def test_uncommitted_changes_of_the_user_are_the_parent(world: World) -> None:
    (world.repo / "a").write_text("dirty\n")
    world.git("commit", "-qam", "dirty")
    dirty = CommitId(world.git("rev-parse", "HEAD"))
    world.job = replace(world.job, dirty=dirty)
    assert world.snapshot().tip == world.job.base
    world.sh("echo 2 > b")
    taken = world.snapshot()
    assert world.git("rev-parse", f"{taken.tip}^") == dirty
    assert world.content(taken.tree, "a") == b"dirty\n"


@pytest.mark.parametrize("move", ["moved", "deleted"])
def test_a_branch_that_the_user_took_over_is_left_alone_for_good(world: World, move: str) -> None:
    world.sh("echo 2 > a")
    world.snapshot()
    if move == "moved":
        world.git("update-ref", BRANCH, str(world.job.base))
    else:
        world.git("update-ref", "-d", BRANCH)
    for content in ("3", "4"):
        world.sh(f"echo {content} > a")
        taken = world.snapshot()
        assert f"you {move} it meanwhile" in taken.notes[0]
        assert world.git("for-each-ref", "--format=%(objectname)", BRANCH) == (
            str(world.job.base) if move == "moved" else ""
        )
    assert world.git("rev-parse", CHAIN) == taken.commit
    assert world.git("rev-parse", f"{CHAIN}^2") == taken.tip


def test_a_branch_that_existed_elsewhere_before_is_not_taken(world: World) -> None:
    other = world.git("commit-tree", f"{world.job.base}^{{tree}}", "-m", "other")
    world.git("update-ref", BRANCH, other)
    world.sh("echo 2 > a")
    assert world.snapshot().notes
    assert world.git("rev-parse", BRANCH) == other


@pytest.mark.parametrize("where", ["main", "linked"])
def test_a_branch_that_is_checked_out_waits_and_moves_later(world: World, where: str) -> None:
    world.sh("echo 2 > a")
    first = world.snapshot()
    if where == "main":
        world.git("checkout", "-q", "agent/one")
    else:
        world.git("worktree", "add", "-q", str(world.root / "linked"), "agent/one")
    world.sh("echo 3 > a")
    assert "checked out" in world.snapshot().notes[0]
    assert world.git("rev-parse", BRANCH) == first.tip
    if where == "main":
        world.git("checkout", "-q", "main")
    else:
        world.git("worktree", "remove", str(world.root / "linked"))
    world.sh("echo 4 > a")
    last = world.snapshot()
    assert (last.notes, world.git("rev-parse", BRANCH)) == ((), last.tip)


def test_a_branch_name_that_another_branch_blocks_does_not_stop_the_snapshot(world: World) -> None:
    world.git("branch", "agent")
    world.sh("echo 2 > a")
    taken = world.snapshot()
    assert world.git("rev-parse", CHAIN) == taken.commit
    assert "was left where it is" in taken.notes[0]
    world.git("branch", "-D", "agent")
    assert world.snapshot().notes == ()
    assert world.git("rev-parse", f"{BRANCH}^{{tree}}") == taken.tree


def test_a_lock_that_another_git_holds_for_a_moment_is_waited_for(world: World) -> None:
    lock = world.repo / ".git/refs/heads/agent/one.lock"
    lock.parent.mkdir()
    lock.touch()
    if (pid := os.fork()) == 0:
        os.system(f"sleep 0.1; rm {lock}")
        os._exit(0)
    world.sh("echo 2 > a")
    taken = world.snapshot()
    os.waitpid(pid, 0)
    assert (taken.notes, world.git("rev-parse", BRANCH)) == ((), taken.tip)


def test_a_chain_that_another_snapshot_moved_is_not_overwritten(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.sh("echo 2 > a")
    honest = Repo.move_refs

    def overtaken(self: Repo, updates: list[RefUpdate], *, why: str) -> None:
        world.git("update-ref", CHAIN, str(world.job.base))
        honest(self, updates, why=why)

    monkeypatch.setattr(Repo, "move_refs", overtaken)
    with pytest.raises(RefMoved):
        world.snapshot()
    assert world.git("rev-parse", CHAIN) == world.job.base


def test_nothing_of_the_users_is_touched(world: World) -> None:
    (world.repo / "a").write_text("edited\n")
    status = world.git("status", "--porcelain=v2")
    before = {
        path: path.read_bytes()
        for path in world.repo.rglob("*")
        if path.is_file() and not {"objects", "agent", "overlayrun"} & set(path.parts)
    }
    world.sh("echo 2 > a; echo 1 > n")
    world.snapshot()
    assert before == {
        path: path.read_bytes()
        for path in world.repo.rglob("*")
        if path.is_file() and not {"objects", "agent", "overlayrun"} & set(path.parts)
    }
    assert world.git("status", "--porcelain=v2") == status


def test_the_users_hooks_are_not_run(world: World) -> None:
    hook = world.repo / ".git/hooks/reference-transaction"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {world.root}/ran\n")
    hook.chmod(0o755)
    world.sh("echo 2 > a")
    world.snapshot()
    assert not (world.root / "ran").exists()


def test_the_reflog_says_who_moved_the_branch(world: World) -> None:
    world.sh("echo 2 > a")
    world.snapshot()
    assert world.git("reflog", "show", "--format=%gs", "agent/one") == "overlayrun: snapshot (exit)"


def test_two_workspaces_do_not_meet(world: World) -> None:
    world.sh("echo 2 > a")
    one = world.snapshot()
    world.job = replace(world.job, workspace_id="w2", branch=BranchName("agent/two"))
    two = world.snapshot()
    assert (two.number, two.notes, two.tree) == (1, (), one.tree)


def test_a_snapshot_that_was_killed_between_two_refs_does_not_look_like_the_user(world: World) -> None:
    world.sh("echo 2 > a")
    first = world.snapshot()
    lost = world.git(
        "commit-tree", f"{first.tree}", "-p", str(world.job.base), "-m", "of the killed snapshot"
    )
    Path(f"{world.job.hashes}.moving").write_text(f"{first.tip}\n{lost}\n")
    world.git("update-ref", BRANCH, lost)
    world.sh("echo 3 > a")
    taken = world.snapshot()
    assert (taken.notes, world.git("rev-parse", BRANCH)) == ((), taken.tip)
    assert not Path(f"{world.job.hashes}.moving").exists()
