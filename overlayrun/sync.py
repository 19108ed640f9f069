"""`sync`: the target comes into a branch whose workspace is idle, under its uncommitted work.

The same as `git stash; git merge TARGET; git stash pop` in the agent's tree, all or nothing. Afterwards the
workspace stands on the target's commit, so that the branch differs from its base by its own change alone.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from overlayrun.adopt import Adoption, Trees
from overlayrun.capture import capture
from overlayrun.errors import StoreError, UsageError, WorkspaceError
from overlayrun.files import remove_tree
from overlayrun.forward import Forward, Merger, Present
from overlayrun.idle import idle_sandbox
from overlayrun.live import LiveSandbox
from overlayrun.model import EMPTY_TREE, BranchName, CommitId, SnapshotReason, TreeId
from overlayrun.snapshot import Snapshot
from overlayrun.store.git import git
from overlayrun.store.location import Repository
from overlayrun.store.merger import Conflict, MergeEngine
from overlayrun.store.refs import branch_ref
from overlayrun.store.repo import Repo
from overlayrun.store.trees import count_changes
from overlayrun.swap import (
    Fresh,
    complete_git,
    copy_git,
    installed,
    layers_kept,
    make_fresh,
    open_fresh,
    run_git,
    stand_on,
)
from overlayrun.workspace.layout import Layout, WorkspaceLayout
from overlayrun.workspace.record import Record

# Names in a `.git` while git waits for the agent (git's wt-status.c, wt_status_get_state).
_UNFINISHED: Final = {
    "MERGE_HEAD": "merge",
    "CHERRY_PICK_HEAD": "cherry-pick",
    "REVERT_HEAD": "revert",
    "rebase-merge": "rebase",
    "rebase-apply": "rebase",
    "sequencer": "cherry-pick",
    "BISECT_START": "bisect",
}
_IN_THE_WAY: Final = "ignored file in the way"


@dataclass(frozen=True, slots=True)
class Synced:
    """What came of it. said: one sentence for the user. conflicts: if any, nothing was changed.

    goal: the target's commit. snapshot: of the result; None where there was nothing to do. notes: for the
    user.
    """

    said: str
    target: BranchName
    goal: CommitId
    conflicts: tuple[Conflict, ...] = ()
    snapshot: Snapshot | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Start:
    """Trees that the workspace stood on before. files: with the user's uncommitted changes."""

    base: TreeId
    files: TreeId


def sync(repository: Repository, layout: Layout, record: Record, into: BranchName | None = None) -> Synced:
    """Merge the target, or the branch `into`, into a workspace whose lock the caller holds.

    What is there is snapshotted first. Conflicts change nothing more. The agent's HEAD becomes the target's
    commit where it has none of its own that the target lacks, else a merge commit of both. Raises UsageError,
    WorkspaceError, StoreError.
    """
    repo = Repo(record.common_dir)
    target = _target(record, into)
    goal = repo.ref(branch_ref(target))
    if goal is None:
        raise UsageError(f"there is no branch {target}", hint="name another: --into BRANCH")
    latest = next(repo.snapshots(record.id), None)
    head = (latest.head if latest else None) or record.base
    if head and repo.is_ancestor(goal, head):
        return _nothing_to_do(record, target, goal)
    present = _take_present(repository, layout, record, repo, f"Before the sync with {target}")
    if present.head and repo.is_ancestor(goal, present.head):
        return _nothing_to_do(record, target, goal)
    with MergeEngine(record.common_dir, goal, alone=True) as engine:
        merge = Merger(repo, engine, record, target, goal).merge(present)
    if merge.conflicts:
        return _refused(record, target, goal, merge.conflicts)
    return _carry_out(repository, layout, record, target, goal, (present, merge))


def _target(record: Record, into: BranchName | None) -> BranchName:
    target = into or record.target
    if target is None:
        raise UsageError(
            f"branch {record.branch} has no target: it began on a detached HEAD",
            hint="name one: --into BRANCH",
        )
    return target


def _nothing_to_do(record: Record, target: BranchName, goal: CommitId) -> Synced:
    return Synced(f"branch {record.branch} has all of {target} already", target, goal)


def _refused(record: Record, target: BranchName, goal: CommitId, conflicts: tuple[Conflict, ...]) -> Synced:
    said = f"branch {record.branch} conflicts with {target}; nothing was changed"
    return Synced(said, target, goal, conflicts)


def _take_present(
    repository: Repository, layout: Layout, record: Record, repo: Repo, message: str
) -> Present:
    """Snapshot what is there, and see that the store knows the agent's HEAD."""
    if record.last_run is None:  # nobody would finish for us after a kill
        raise WorkspaceError(
            f"branch {record.branch} never ran", hint=f"start it: overlayrun -b {record.branch} -- COMMAND"
        )
    for name, what in _UNFINISHED.items():
        if os.path.lexists(f"{layout.workspace(record.id).git_upper}/{name}"):
            raise WorkspaceError(
                f"branch {record.branch} is in the middle of a {what}",
                hint=f"finish it inside: overlayrun shell {record.branch}",
            )
    is_first = next(repo.snapshots(record.id), None) is None  # so that there is always one to go back to
    with idle_sandbox(repository, layout, record) as live:
        taken = capture(layout, record, SnapshotReason.REQUEST, message if is_first else None, live)
        status, answer = live.run_inside(["git", "rev-parse", "--verify", "-q", "HEAD^{commit}"], b"")
    snapshot = next(repo.snapshots(record.id))
    head = snapshot.head or record.base
    if (answer.decode("ascii", "replace").strip() or None) != head or (head and status):
        raise StoreError(
            f"branch {record.branch} has commits that can't be taken over",
            details="\n".join(taken.notes) or None,
            hint=f"look at them inside: overlayrun shell {record.branch}",
        )
    return Present(snapshot, frozenset(item.path for item in taken.left_out), head, snapshot.head)


def _carry_out(
    repository: Repository,
    layout: Layout,
    record: Record,
    target: BranchName,
    goal: CommitId,
    states: tuple[Present, Forward],
) -> Synced:
    """Make the next state aside, put it in place, snapshot it."""
    present, merge = states
    repo = Repo(record.common_dir)
    start = _Start(record.tree, repo.tree_of(record.dirty or record.base))
    with layers_kept(layout):
        stand_on(repository, layout, record, goal, merge.dirty)
        fresh = make_fresh(repository, layout, record, merge.tree)
        try:
            in_the_way = _fill(layout.workspace(record.id), fresh, record, start, states)
        except OSError as err:
            remove_tree(fresh.root)
            raise WorkspaceError(f"the branch's files can't be taken along: {err}") from err
        if in_the_way:
            remove_tree(fresh.root)
            return _refused(record, target, goal, in_the_way)
        with open_fresh(repository, layout, record, fresh) as live:
            _move_head(live, record, target, present.head, merge.head)
        with installed(layout, record, fresh), idle_sandbox(repository, layout, record) as live:
            taken = capture(layout, record, SnapshotReason.REQUEST, f"Sync with {target}", live)
    known = ["--not", present.head] if present.head else []
    commits = int(git(["rev-list", "--count", goal, *known], git_dir=repo.git_dir))
    files = _count_files(repo, present.snapshot.tree, merge.tree)
    said = (
        f"branch {record.branch} has {target}'s {commits} commit{'s' * (commits != 1)} now"
        f" ({files} file{'s' * (files != 1)}): snapshot {taken.number}"
    )
    return Synced(said, target, goal, (), taken, (*merge.notes, *taken.notes))


def _fill(
    place: WorkspaceLayout, fresh: Fresh, record: Record, start: _Start, states: tuple[Present, Forward]
) -> tuple[Conflict, ...]:
    """Take along what git does not hold, and times; what the target has at such a path is a conflict."""
    present, merge = states
    repo = Repo(record.common_dir)
    trees = Trees(start.files, present.snapshot.tree, merge.tree)
    old, new = os.fsencode(place.upper), os.fsencode(fresh.upper)
    upper = Adoption(repo, old, new, trees, present.left_out, is_whole=record.is_whole)
    upper.take()
    if record.dirty:
        trees = Trees(start.base, start.files, repo.tree_of(record.dirty))
        Adoption(repo, os.fsencode(place.dirty), os.fsencode(fresh.dirty), trees, ()).take()
    copy_git(place, fresh)
    complete_git(record, fresh)
    return tuple(Conflict(path, _IN_THE_WAY) for path in sorted(upper.in_the_way))


def _count_files(repo: Repo, old: TreeId, new: TreeId) -> int:
    before, after = (None if tree == EMPTY_TREE else bytes.fromhex(tree) for tree in (old, new))
    return count_changes(repo.read_tree, before, after).total


def _move_head(
    live: LiveSandbox, record: Record, target: BranchName, old: CommitId | None, new: CommitId | None
) -> None:
    """Move HEAD, whatever it stands for, and the agent's copy of the target; the index is that of HEAD."""
    assert new is not None
    ref = branch_ref(target)
    is_behind, _ = live.run_inside(["git", "merge-base", "--is-ancestor", ref, str(record.base)], b"")
    _, current = live.run_inside(["git", "symbolic-ref", "-q", "HEAD"], b"")
    if is_behind == 0 and current.strip() != ref.encode():
        run_git(live, "update-ref", "-m", "sync", ref, str(record.base))
    run_git(live, "update-ref", "-m", f"sync: {target}", "HEAD", new, old or "0" * 40)
    if new != record.base:  # else the frozen index is the one
        run_git(live, "reset", "-q")
