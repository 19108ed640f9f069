"""Bring a branch's change into the user's working tree."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from overlayrun.bases.dirty import look, record_dirty
from overlayrun.errors import StoreError
from overlayrun.files import flush_disk, remove_tree
from overlayrun.incoming import MEANING, Incoming, incoming
from overlayrun.model import CommitId, TreeId
from overlayrun.reconcile.exchange import Order, exchange, see
from overlayrun.reconcile.touched import strangers, touched_between
from overlayrun.reconcile.works import Tell, alone, recover_exchange
from overlayrun.reconcile.worktrees import Held, WorkTree
from overlayrun.store.commits import printable
from overlayrun.store.git import git
from overlayrun.store.location import Repository
from overlayrun.store.merger import Conflict, merge_once
from overlayrun.store.refs import QUEUE, RefUpdate, update_refs
from overlayrun.store.repo import Repo
from overlayrun.workspace.layout import Layout
from overlayrun.workspace.record import Record


@dataclass(frozen=True, slots=True)
class Brought:
    """What came of it. said: one sentence for the user. conflicts: if any, nothing was changed.

    withheld: what came with it and was not let through; held: what of the user's was in the way; then too
    nothing was changed.
    """

    said: str
    conflicts: tuple[Conflict, ...] = ()
    withheld: Incoming | None = None
    held: tuple[Held, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether the user has all of the change now."""
        return not self.conflicts and self.withheld is None and not self.held


def refuse(found: Incoming) -> str | None:
    """Let nothing through that the user has to be asked about; why, for a sentence."""
    if found.unsafe:
        return f"unsafe content: {found.unsafe[0]}"
    if found.bare:
        return "it holds a bare git repository"
    return f"it brings {MEANING}" if found.carriers else None


def apply(
    repository: Repository,
    layout: Layout,
    record: Record,
    refused: Callable[[Incoming], str | None] = refuse,
    tell: Tell = lambda _: None,
) -> Brought:
    """Bring the branch's change into the user's working tree as uncommitted changes; index and HEAD stay.

    A three-way merge with what the user has there now, uncommitted changes included. All or nothing: killed
    halfway, it is undone by the next `apply` or `merge`. refused: why what would come may not; None where it
    may. tell: called with what the user must know of files of his.
    """
    repo = Repo(record.common_dir)
    latest = next(repo.snapshots(record.id), None)
    start = record.dirty or record.base
    if latest is None or repo.tree_of(start) == latest.tree:
        return Brought(f"branch {record.branch} changed nothing")
    here = _present(repository, layout, record)
    merged = merge_once(record.common_dir, here, latest.commit, start or _empty_commit(repository))
    if not merged.is_clean:
        return Brought(
            f"branch {record.branch} conflicts with your working tree; nothing was changed", merged.conflicts
        )
    found = incoming(repo, repo.tree_of(here), merged.tree)
    why = refused(found)
    if why:
        return Brought(f"branch {record.branch} is not applied: {why}", withheld=found)
    if merged.tree == repo.tree_of(here):
        return Brought(f"your working tree has all of branch {record.branch} already")
    new = _write_commit(repository, merged.tree, here)
    touched = touched_between(record.common_dir, here, new)
    order = Order(
        layout, record.common_dir, record.branch, here, new, touched, follows=True, uncommitted=True
    )
    held = _exchange(repository, order, lambda: _present(repository, layout, record), tell)
    if held:
        return Brought(f"branch {record.branch} is not applied: {held[0].why}", held=held)
    return Brought(f"branch {record.branch} is in your working tree, uncommitted: git status")


def _exchange(
    repository: Repository, order: Order, look_again: Callable[[], CommitId], tell: Tell
) -> tuple[Held, ...]:
    """Let the files change places with the user's; why not, or ()."""
    tree = WorkTree(repository.root, repository.git_dir)
    with alone(order.layout) as lock:
        if not lock:
            return (Held(tree.path, "a delivery is under way"),)
        held = recover_exchange(order.common_dir, order.layout, tell)
        if held:
            return held
        deleted = {each.path for each in order.touched if each.is_deleted}
        added = [each for each in order.touched if each.is_added]
        strange = sorted({path for each in added for path in strangers(tree.path, each, deleted)})
        if strange:
            name = printable(os.fsdecode(strange[0]), one_line=True)
            return (Held(tree.path, f"{name} is in the way", tuple(strange)),)
        seen = see(tree, order.touched, uncommitted=True)
        # What is displaced must be what was merged: the user may have saved since that was looked at.
        repo = Repo(order.common_dir)
        if repo.tree_of(look_again()) != repo.tree_of(order.old):
            return (Held(tree.path, "you saved something just now"),)
        done = exchange(order, [seen], tell)
    return _patch(repository, order) if done is None else done


def _patch(repository: Repository, order: Order) -> tuple[Held, ...]:
    """Let git do it where files can't change places; a ref keeps what it writes over until it is done."""
    kept = RefUpdate(f"{QUEUE}user-backup/{time.time_ns()}", order.old, None)
    update_refs(order.common_dir, [kept], why="backup")
    options = ["-p", "--binary", "--full-index", "--no-renames"]
    patch = git(["diff-tree", *options, order.old, order.new], git_dir=order.common_dir)
    try:
        git(["apply", "--whitespace=nowarn", "-"], cwd=repository.root, input=patch)
        flush_disk(repository.root)
    except StoreError as err:
        why = (err.details or err.brief).partition("\n")[0]
        return (Held(repository.root, f"git refuses: {printable(why, one_line=True)}"),)
    finally:
        update_refs(order.common_dir, [RefUpdate(kept.ref, None, order.old)], why="backup")
    return ()


def _present(repository: Repository, layout: Layout, record: Record) -> CommitId:
    """The user's working tree as a commit that no ref shows."""
    changed = look(repository).changed
    if not changed:
        return repository.head or _empty_commit(repository)
    scratch = f"{layout.workspace(record.id).root}/present"
    try:
        return record_dirty(repository, changed, scratch, "The working tree when a branch was applied")
    finally:
        remove_tree(scratch)


def _empty_commit(repository: Repository) -> CommitId:
    tree = git(["mktree"], git_dir=repository.common_dir).decode().strip()
    return _write_commit(repository, TreeId(tree))


def _write_commit(repository: Repository, tree: TreeId, *parents: CommitId) -> CommitId:
    """A commit that no ref shows."""
    above = [word for parent in parents for word in ("-p", parent)]
    words = ["commit-tree", *above, "-m", "The working tree with a branch", tree]
    return CommitId(git(words, git_dir=repository.common_dir).decode().strip())
