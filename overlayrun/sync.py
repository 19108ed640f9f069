"""`sync`: the target comes into a branch whose workspace is idle, under its uncommitted work.

The same as `git stash; git merge TARGET; git stash pop` in the agent's tree, all or nothing. Afterwards the
workspace stands on the target's commit, so that the branch differs from its base by its own change alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from overlayrun.adopt import Adoption, Trees
from overlayrun.capture import capture
from overlayrun.errors import StoreError, UsageError, WorkspaceError
from overlayrun.files import remove_tree
from overlayrun.idle import idle_sandbox
from overlayrun.live import LiveSandbox
from overlayrun.model import EMPTY_TREE, BranchName, CommitId, SnapshotReason, TreeId
from overlayrun.snapshot import Snapshot
from overlayrun.store.commits import format_commit
from overlayrun.store.git import git
from overlayrun.store.location import Repository
from overlayrun.store.merger import Conflict, MergeEngine
from overlayrun.store.refs import branch_ref, dirty_ref, landed_ref
from overlayrun.store.repo import Repo, SnapshotInfo
from overlayrun.store.settings import read_settings
from overlayrun.store.trees import count_changes, is_tree
from overlayrun.swap import (
    copy_git,
    installed,
    layers_kept,
    make_fresh,
    open_fresh,
    run_git,
    stand_on,
)
from overlayrun.workspace.layout import Layout
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
_ABSENT: Final = b"0 " + b"0" * 40


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
class _Present:
    """The workspace before. head: its HEAD, the base where the agent made no commit; own: only if it did."""

    snapshot: SnapshotInfo
    left_out: frozenset[bytes]
    head: CommitId | None
    own: CommitId | None


@dataclass(frozen=True, slots=True)
class _Merge:
    """The workspace after: its HEAD, uncommitted changes of the user's it began with, all its files."""

    head: CommitId | None
    dirty: CommitId | None
    tree: TreeId
    conflicts: tuple[Conflict, ...] = ()
    notes: tuple[str, ...] = ()


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
        merge = _Merger(repo, engine, record, target, goal).merge(present)
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
) -> _Present:
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
    return _Present(snapshot, frozenset(item.path for item in taken.left_out), head, snapshot.head)


@dataclass(frozen=True, slots=True)
class _Merger:
    """Merges that lead to the workspace's next state. Writes objects, moves nothing."""

    repo: Repo
    engine: MergeEngine
    record: Record
    target: BranchName
    goal: CommitId

    def merge(self, present: _Present) -> _Merge:
        """The next state, or what conflicts: first the agent's commits, then what it left uncommitted."""
        head, conflicts = self._merge_head(present)
        if conflicts:
            return _Merge(head, None, present.snapshot.tree, conflicts)
        dirty, notes = self._merge_dirty()
        # Between the two lies the uncommitted work. Where the branch began with changes of the user's, its
        # own change is counted from them, and they may have come to the target in another form meanwhile.
        old, new = (present.head, head) if self.record.dirty is None else (self.record.dirty, dirty)
        old, new = self._landed(present) or old or self._empty(), new or self.goal
        if self.repo.tree_of(old) == present.snapshot.tree:
            return _Merge(head, dirty, self.repo.tree_of(new), (), notes)
        merged = self.engine.merge(new, present.snapshot.commit, old)
        return _Merge(head, dirty, merged.tree, merged.conflicts, notes)

    def _merge_head(self, present: _Present) -> tuple[CommitId, tuple[Conflict, ...]]:
        if present.own is None or self.repo.is_ancestor(present.own, self.goal):
            return self.goal, ()
        merged = self.engine.merge(present.own, self.goal)
        if merged.conflicts:
            return self.goal, merged.conflicts
        message = f"Merge branch '{self.target}' into {self.record.branch}\n"
        return self._commit(merged.tree, [present.own, self.goal], message), ()

    def _merge_dirty(self) -> tuple[CommitId | None, tuple[str, ...]]:
        """The user's uncommitted changes over the target; None where it has them all.

        What the target has in another form is the target's: its user has gone on from there.
        """
        if self.record.dirty is None:
            return None, ()
        merged = self.engine.merge(self.record.dirty, self.goal, self.record.base or self._empty())
        paths = [each.path for each in merged.conflicts]
        tree = self._with_targets(merged.tree, paths) if paths else merged.tree
        notes = tuple(
            f"{os.fsdecode(path)}: {self.target}'s version replaces the uncommitted one that the branch"
            " began with"
            for path in paths
        )
        if tree == self.repo.tree_of(self.goal):
            return None, notes
        former = self.repo.ref(dirty_ref(self.record.id)) or self.record.dirty
        return self._commit(tree, [self.goal, former], "Uncommitted changes, synced\n"), notes

    def _with_targets(self, tree: TreeId, paths: Sequence[bytes]) -> TreeId:
        """`tree` with what the target has at `paths`. O(files), through an index: no usual case."""
        index = f"{self.repo.git_dir}/overlayrun-sync-{os.getpid()}.index"
        lines = [b"%b\t%b\0" % (self._entry(path), path) for path in paths]
        env = {"GIT_INDEX_FILE": index}
        try:
            git(["read-tree", tree], git_dir=self.repo.git_dir, env=env)
            # Removals first: a file may have taken the place of a directory.
            git(
                ["update-index", "-z", "--index-info"],
                git_dir=self.repo.git_dir,
                env=env,
                input=b"".join(sorted(lines)),
            )
            return TreeId(git(["write-tree"], git_dir=self.repo.git_dir, env=env).decode().strip())
        finally:
            if os.path.exists(index):
                os.unlink(index)

    def _entry(self, path: bytes) -> bytes:
        """`<mode> <id>` of a file of the target, as `git update-index --index-info` reads it."""
        *above, name = path.split(b"/")
        entries = self.repo.read_tree(bytes.fromhex(self.repo.tree_of(self.goal)))
        for directory in above:
            entry = entries.get(directory)
            if entry is None or not is_tree(entry):
                return _ABSENT
            entries = self.repo.read_tree(entry[1])
        found = entries.get(name)
        return b"%b %b" % (found[0], found[1].hex().encode()) if found and not is_tree(found) else _ABSENT

    def _landed(self, present: _Present) -> CommitId | None:
        """What of the branch the target got since the base, if it holds the agent's HEAD: merge from there.

        Else what the agent went on to do with landed lines would conflict with them.
        """
        found = self._noted() or self._merged_tip()
        if found is None or (present.head and not self.repo.is_ancestor(present.head, found)):
            return None
        return found

    def _noted(self) -> CommitId | None:
        note = self.repo.ref(landed_ref(self.record.id, self.target))
        if note is None or len(parents := self.repo.commit(note).parents) < 2:
            return None
        landing, landed = parents[:2]
        is_in_base = self.record.base and self.repo.is_ancestor(landing, self.record.base)
        return landed if self.repo.is_ancestor(landing, self.goal) and not is_in_base else None

    def _merged_tip(self) -> CommitId | None:
        known = ["--not", self.record.base] if self.record.base else []
        listed = git(["rev-list", self.goal, *known], git_dir=self.repo.git_dir)
        since = set(listed.decode().split())
        tips = (snapshot.tip for snapshot in self.repo.snapshots(self.record.id))
        return next((tip for tip in tips if tip in since), None)

    def _empty(self) -> CommitId:
        """What a branch of a repository without commits began from."""
        return self._commit(EMPTY_TREE, [], "empty\n")

    def _commit(self, tree: TreeId, parents: list[CommitId], message: str) -> CommitId:
        identity = read_settings(self.repo.git_dir).identity
        return self.repo.write_commit(
            format_commit(bytes.fromhex(tree), parents, identity, int(time.time()), message)
        )


def _carry_out(
    repository: Repository,
    layout: Layout,
    record: Record,
    target: BranchName,
    goal: CommitId,
    states: tuple[_Present, _Merge],
) -> Synced:
    """Make the next state aside, put it in place, snapshot it."""
    present, merge = states
    repo, place = Repo(record.common_dir), layout.workspace(record.id)
    start = repo.tree_of(record.dirty or record.base)
    with layers_kept(layout):
        stand_on(repository, layout, record, goal, merge.dirty)
        fresh = make_fresh(repository, layout, record, merge.tree)
        trees = Trees(start, present.snapshot.tree, merge.tree)
        old, new = os.fsencode(place.upper), os.fsencode(fresh.upper)
        adoption = Adoption(repo, old, new, trees, present.left_out)
        adoption.take()
        if adoption.in_the_way:
            remove_tree(fresh.root)
            conflicts = tuple(Conflict(path, _IN_THE_WAY) for path in sorted(adoption.in_the_way))
            return _refused(record, target, goal, conflicts)
        copy_git(place, fresh)
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
