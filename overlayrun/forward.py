"""A workspace's next state when its target comes in: commits and trees, as values. Moves nothing.

The same as `git stash; git merge TARGET; git stash pop`, with two differences: work goes on from what of it
has landed already, and what the user had not committed is told from what the branch changed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from overlayrun.model import EMPTY_TREE, BranchName, CommitId, TreeId
from overlayrun.store.commits import format_commit
from overlayrun.store.git import git
from overlayrun.store.merger import Conflict, MergeEngine
from overlayrun.store.refs import dirty_ref, landed_ref
from overlayrun.store.repo import Repo, SnapshotInfo
from overlayrun.store.scratch import Scratch
from overlayrun.store.settings import read_settings
from overlayrun.store.trees import is_tree
from overlayrun.workspace.record import Record

_ABSENT: Final = b"0 " + b"0" * 40


@dataclass(frozen=True, slots=True)
class Present:
    """The workspace before. head: its HEAD, the base where the agent made no commit; own: only if it did."""

    snapshot: SnapshotInfo
    left_out: frozenset[bytes]
    head: CommitId | None
    own: CommitId | None


@dataclass(frozen=True, slots=True)
class Forward:
    """The workspace after: its HEAD, uncommitted changes of the user's it began with, all its files."""

    head: CommitId | None
    dirty: CommitId | None
    tree: TreeId
    conflicts: tuple[Conflict, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Merger:
    """Merges that lead to the workspace's next state. Writes objects, moves nothing."""

    repo: Repo
    engine: MergeEngine
    record: Record
    target: BranchName
    goal: CommitId

    def merge(self, present: Present) -> Forward:
        """The next state, or what conflicts: first the agent's commits, then what it left uncommitted."""
        head, conflicts = self._merge_head(present)
        if conflicts:
            return Forward(head, None, present.snapshot.tree, conflicts)
        dirty, notes = self._merge_dirty()
        # Between the two lies the uncommitted work. Where the branch began with changes of the user's, its
        # own change is counted from them, and they may have come to the target in another form meanwhile.
        old, new = (present.head, head) if self.record.dirty is None else (self.record.dirty, dirty)
        old, new = self._landed(present) or old or self._empty(), new or self.goal
        if self.repo.tree_of(old) == present.snapshot.tree:
            return Forward(head, dirty, self.repo.tree_of(new), (), notes)
        merged = self.engine.merge(new, present.snapshot.commit, old)
        return Forward(head, dirty, merged.tree, merged.conflicts, notes)

    def _merge_head(self, present: Present) -> tuple[CommitId, tuple[Conflict, ...]]:
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
        lines = [b"%b\t%b\0" % (self._entry(path), path) for path in paths]
        with Scratch() as scratch:
            env = {"GIT_INDEX_FILE": f"{scratch.path}/index"}

            def on_index(*words: str, data: bytes = b"") -> str:
                return git(words, git_dir=self.repo.git_dir, env=env, input=data).decode().strip()

            on_index("read-tree", tree)
            # Removals first: a file may have taken the place of a directory.
            on_index("update-index", "-z", "--index-info", data=b"".join(sorted(lines)))
            return TreeId(on_index("write-tree"))

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

    def _landed(self, present: Present) -> CommitId | None:
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
