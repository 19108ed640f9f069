"""Bring a branch's change home: into the working tree (`apply`), or into the target branch (`merge`)."""

from __future__ import annotations

import os
from dataclasses import dataclass

from overlayrun.bases.dirty import look, record_dirty
from overlayrun.errors import StoreError, UsageError
from overlayrun.files import remove_tree
from overlayrun.model import BranchName, CommitId, TreeId
from overlayrun.store.git import git
from overlayrun.store.location import Repository
from overlayrun.store.merger import Conflict, Merged, merge_trees
from overlayrun.store.refs import RefUpdate, branch_ref, is_ancestor, update_refs
from overlayrun.store.repo import Repo
from overlayrun.workspace.layout import Layout
from overlayrun.workspace.record import Record


@dataclass(frozen=True, slots=True)
class Brought:
    """What came of it. said: one sentence for the user. conflicts: if any, nothing was changed."""

    said: str
    conflicts: tuple[Conflict, ...] = ()


def apply(repository: Repository, layout: Layout, record: Record) -> Brought:
    """Bring the branch's change into the user's working tree as uncommitted changes; index and HEAD stay.

    A three-way merge with what the user has there now, uncommitted changes included. All or nothing.
    """
    repo = Repo(record.common_dir)
    latest = next(repo.snapshots(record.id), None)
    start = record.dirty or record.base
    if latest is None or repo.tree_of(start) == latest.tree:
        return Brought(f"branch {record.branch} changed nothing")
    here = _present(repository, layout, record)
    base = start or _empty_commit(repository)
    merged = merge_trees(record.common_dir, base, here or _empty_commit(repository), latest.commit)
    if merged.conflicts or merged.tree is None:
        return Brought(
            f"branch {record.branch} conflicts with your working tree; nothing was changed", merged.conflicts
        )
    patch = git(
        ["diff-tree", "-p", "--binary", "--full-index", "--no-renames", repo.tree_of(here), merged.tree],
        git_dir=record.common_dir,
    )
    if not patch:
        return Brought(f"your working tree has all of branch {record.branch} already")
    try:
        git(["apply", "--whitespace=nowarn", "-"], cwd=repository.root, input=patch)
    except StoreError as err:
        raise StoreError(
            f"branch {record.branch} can't be applied; nothing was changed",
            details=err.details,
            hint="move what is in the way, then try again",
        ) from err
    return Brought(f"branch {record.branch} is in your working tree, uncommitted: git status")


def _present(repository: Repository, layout: Layout, record: Record) -> CommitId | None:
    """The user's working tree as a commit that no ref shows."""
    changed = look(repository).changed
    if not changed:
        return repository.head
    scratch = f"{layout.workspace(record.id).root}/present"
    try:
        return record_dirty(repository, changed, scratch, "The working tree when a branch was applied")
    finally:
        remove_tree(scratch)


def _empty_commit(repository: Repository) -> CommitId:
    tree = git(["mktree"], git_dir=repository.common_dir).decode().strip()
    return CommitId(git(["commit-tree", "-m", "empty", tree], git_dir=repository.common_dir).decode().strip())


def merge(repository: Repository, record: Record, into: BranchName | None = None) -> Brought:
    """Merge a branch into its target: fast-forward, else git's ort and a commit with both parents.

    A branch that began with uncommitted changes lands as its own change only, as one commit. The target
    moves only forward and by compare-and-swap; where it is checked out, git's own `merge --ff-only` moves it
    with the files.
    """
    target = into or record.target
    if target is None:
        raise UsageError(
            f"branch {record.branch} has no target: it began on a detached HEAD",
            hint="name one: --into BRANCH",
        )
    repo = Repo(record.common_dir)
    tip, old = repo.ref(branch_ref(record.branch)), repo.ref(branch_ref(target))
    if tip is None or tip == record.base:
        return Brought(f"branch {record.branch} changed nothing")
    if old is not None and is_ancestor(record.common_dir, tip, old):
        return Brought(f"branch {record.branch} is in {target} already")
    new, merged = _merged(repo, record, target, old, tip)
    if new is None:
        return Brought(
            f"branch {record.branch} conflicts with {target}; nothing was changed", merged.conflicts
        )
    if new == old:
        return Brought(f"{target} has all of branch {record.branch} already")
    _deliver(repository, target, old, new)
    return Brought(f"branch {record.branch} is merged: {target} is at {new[:10]}")


def _merged(
    repo: Repo, record: Record, target: BranchName, old: CommitId | None, tip: CommitId
) -> tuple[CommitId | None, Merged]:
    clean = Merged(None, (), ())
    if old is None or (record.dirty is None and is_ancestor(record.common_dir, old, tip)):
        return tip, clean
    base = record.dirty or _merge_base(record, old, tip)
    merged = merge_trees(record.common_dir, base, old, tip)
    if merged.conflicts or merged.tree is None:
        return None, merged
    if record.dirty is None:
        return _commit(
            record, merged.tree, [old, tip], f"Merge branch '{record.branch}' into {target}"
        ), merged
    if merged.tree == repo.tree_of(old):
        return old, merged
    return _commit(record, merged.tree, [old], repo.commit(tip).message), merged


def _commit(record: Record, tree: TreeId, parents: list[CommitId], message: str) -> CommitId:
    words = [word for parent in parents for word in ("-p", parent)]
    answer = git(["commit-tree", *words, "-F", "-", tree], git_dir=record.common_dir, input=message.encode())
    return CommitId(answer.decode().strip())


def _merge_base(record: Record, one: CommitId, other: CommitId) -> CommitId:
    found = git(["merge-base", one, other], git_dir=record.common_dir, check=False).decode().strip()
    if not found:
        raise StoreError(f"branch {record.branch} has no history in common with its target")
    return CommitId(found)


def _deliver(repository: Repository, target: BranchName, old: CommitId | None, new: CommitId) -> None:
    trees = list(_checked_out(repository, target))
    if not trees:
        update_refs(repository.common_dir, [RefUpdate(branch_ref(target), new, old)], why="merge")
    for tree in trees:
        try:
            git(["merge", "--ff-only", "--no-overwrite-ignore", "-q", new], cwd=tree)
        except StoreError as err:
            raise StoreError(
                f"{target} is checked out in {tree}, and something there is in the way; nothing was changed",
                details=err.details,
                hint="commit or move what git names, then merge again",
            ) from err


def _checked_out(repository: Repository, branch: BranchName) -> list[str]:
    """Working trees of the user's that have a branch checked out."""
    listed = git(["worktree", "list", "--porcelain", "-z"], git_dir=repository.common_dir)
    found, tree = [], ""
    for line in os.fsdecode(listed).split("\0"):
        if line.startswith("worktree "):
            tree = line.removeprefix("worktree ")
        elif line == f"branch {branch_ref(branch)}":
            found.append(tree)
    return found
