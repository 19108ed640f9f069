"""Bring a branch's change into the user's working tree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from overlayrun.bases.dirty import look, record_dirty
from overlayrun.errors import StoreError
from overlayrun.files import remove_tree
from overlayrun.incoming import MEANING, Incoming, incoming
from overlayrun.model import CommitId
from overlayrun.store.git import git
from overlayrun.store.location import Repository
from overlayrun.store.merger import Conflict, merge_once
from overlayrun.store.repo import Repo
from overlayrun.workspace.layout import Layout
from overlayrun.workspace.record import Record


@dataclass(frozen=True, slots=True)
class Brought:
    """What came of it. said: one sentence for the user. conflicts: if any, nothing was changed.

    withheld: what came with it and was not let through; then too nothing was changed.
    """

    said: str
    conflicts: tuple[Conflict, ...] = ()
    withheld: Incoming | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the user has all of the change now."""
        return not self.conflicts and self.withheld is None


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
) -> Brought:
    """Bring the branch's change into the user's working tree as uncommitted changes; index and HEAD stay.

    A three-way merge with what the user has there now, uncommitted changes included. All or nothing. refused:
    why what would come may not; None where it may.
    """
    repo = Repo(record.common_dir)
    latest = next(repo.snapshots(record.id), None)
    start = record.dirty or record.base
    if latest is None or repo.tree_of(start) == latest.tree:
        return Brought(f"branch {record.branch} changed nothing")
    here = _present(repository, layout, record)
    base = start or _empty_commit(repository)
    merged = merge_once(record.common_dir, here or _empty_commit(repository), latest.commit, base)
    if not merged.is_clean:
        return Brought(
            f"branch {record.branch} conflicts with your working tree; nothing was changed", merged.conflicts
        )
    found = incoming(repo, repo.tree_of(here), merged.tree)
    why = refused(found)
    if why:
        return Brought(f"branch {record.branch} is not applied: {why}", withheld=found)
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
