"""Put a workspace back to one of its snapshots. The present state is put aside, never removed."""

from __future__ import annotations

import os

from overlayrun.bases.freeze import write_layer
from overlayrun.bases.gitdir import write_git_directory
from overlayrun.capture import capture
from overlayrun.errors import StoreError, UsageError
from overlayrun.files import remove_tree
from overlayrun.idle import idle_sandbox
from overlayrun.kernel import abi, syscalls
from overlayrun.model import SnapshotReason
from overlayrun.sandbox.plan import OBJECTS
from overlayrun.snapshot import Snapshot
from overlayrun.store.location import Repository
from overlayrun.store.refs import branch_ref
from overlayrun.store.repo import Repo, SnapshotInfo
from overlayrun.workspace.layout import Layout, WorkspaceLayout
from overlayrun.workspace.record import Record


def restore(repository: Repository, layout: Layout, record: Record, wanted: SnapshotInfo) -> Snapshot:
    """Go back to a snapshot: what is there now is snapshotted first, and the result is a new snapshot.

    The caller holds the lock. Carried files stay as they are: no snapshot ever held them.
    """
    with idle_sandbox(repository, layout, record) as live:
        capture(layout, record, SnapshotReason.REQUEST, None, live)
    rebuild(repository, layout, record, number=wanted.number)
    return capture(layout, record, SnapshotReason.REQUEST, f"Restore snapshot {wanted.number}", None)


def rebuild(repository: Repository, layout: Layout, record: Record, *, number: int | None) -> str:
    """Make the upper layers anew from a snapshot (None: the last), and give where the old ones were put.

    Source of the swap: renameat2(2), RENAME_EXCHANGE: at every moment there is a whole upper.
    """
    place = layout.workspace(record.id)
    repo = Repo(record.common_dir)
    wanted = _snapshot(repo, record, number)
    start = repo.tree_of(record.dirty or record.base)
    fresh = f"{place.root}/fresh"
    remove_tree(fresh)
    os.makedirs(f"{fresh}/upper")
    os.chmod(f"{fresh}/upper", os.stat(place.upper).st_mode & 0o7777)
    if record.dirty:
        _remake_dirty(repository, layout, record, fresh)
    write_layer(repository, start, wanted.tree if wanted else start, f"{fresh}/upper", fresh)
    _move_carried(record, place.upper, f"{fresh}/upper")
    _write_git(repository, repo, record, wanted, f"{fresh}/git")
    for name in ("upper", "git"):
        syscalls.renameat2(f"{fresh}/{name}", f"{place.root}/{name}", abi.RENAME_EXCHANGE)
    aside = _put_aside(place, fresh)
    record.inode = os.stat(place.upper).st_ino
    record.save(place.record)
    if os.path.exists(place.hashes):
        os.unlink(place.hashes)
    if wanted and wanted.head:
        _reset_index(repository, layout, record)
    return aside


def _remake_dirty(repository: Repository, layout: Layout, record: Record, scratch: str) -> None:
    """The layer of uncommitted changes from its commit: torn by a power cut, or a copy without marks."""
    place = layout.workspace(record.id).dirty
    fresh = f"{scratch}/dirty"
    os.makedirs(fresh)
    tree = Repo(record.common_dir).tree_of(record.dirty)
    write_layer(repository, record.tree, tree, fresh, scratch)
    syscalls.renameat2(fresh, place, abi.RENAME_EXCHANGE)


def _snapshot(repo: Repo, record: Record, number: int | None) -> SnapshotInfo | None:
    for found in repo.snapshots(record.id):
        if number is None or found.number == number:
            return found
    if number is None:
        return None
    raise UsageError(
        f"branch {record.branch} has no snapshot {number}", hint=f"see: overlayrun log {record.branch}"
    )


def _move_carried(record: Record, old: str, new: str) -> None:
    for path in record.carried:
        if not os.path.lexists(f"{old}/{path}"):
            continue
        os.makedirs(os.path.dirname(f"{new}/{path}"), exist_ok=True)
        os.rename(f"{old}/{path}", f"{new}/{path}")


def _write_git(
    repository: Repository, repo: Repo, record: Record, wanted: SnapshotInfo | None, place: str
) -> None:
    """A fresh `.git` whose branch stands at the agent's last commit of that snapshot."""
    head = (wanted.head if wanted else None) or record.base
    refs = {branch_ref(record.branch): head} if head else {}
    target = repo.ref(f"refs/heads/{record.target}") if record.target else None
    if target:
        refs[f"refs/heads/{record.target}"] = target
    write_git_directory(repository, place, OBJECTS, branch_ref(record.branch), refs)


def _put_aside(place: WorkspaceLayout, fresh: str) -> str:
    os.makedirs(place.kept, mode=0o700, exist_ok=True)
    aside = f"{place.kept}/{len(os.listdir(place.kept)) + 1}"
    os.rename(fresh, aside)
    return aside


def _reset_index(repository: Repository, layout: Layout, record: Record) -> None:
    """The frozen index is the base's; the agent's own commits need one of theirs."""
    with idle_sandbox(repository, layout, record) as live:
        status, _ = live.run_inside(["git", "reset", "-q"], b"")
    if status:
        raise StoreError("git reset failed inside the workspace", hint="run it there yourself: git reset")
