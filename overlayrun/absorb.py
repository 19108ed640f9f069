"""A branch's work comes into the workspace of another one, as a fork's into the branch that it came from.

A merge of snapshots, not of refs: the other workspace's files change, and its next snapshot has it all. (With
its ref moved alone, its workspace would not have the work, and could not move its own branch any more.) What
the merge changes is given to `git apply` inside, which changes all of its files or none, and nothing where
somebody has changed one meanwhile: so it works under a run as well.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from overlayrun.capture import answer_of, capture
from overlayrun.control import ask
from overlayrun.durable import sync_in_background
from overlayrun.errors import OverlayrunError, RefMoved, UsageError, WorkspaceBusy, WorkspaceError
from overlayrun.idle import idle_sandbox
from overlayrun.model import EMPTY_TREE, CommitId, SnapshotReason, TreeId
from overlayrun.store.commits import format_commit
from overlayrun.store.landings import Landing, landing_of
from overlayrun.store.location import Repository
from overlayrun.store.merger import Conflict, merge_once
from overlayrun.store.pack import ObjectWriter
from overlayrun.store.refs import RefUpdate, landed_ref, update_refs
from overlayrun.store.repo import Repo, SnapshotInfo
from overlayrun.store.settings import read_settings
from overlayrun.transplant import transplant
from overlayrun.workspace.flushed import refuse_torn
from overlayrun.workspace.layout import Layout
from overlayrun.workspace.lock import is_locked, lock
from overlayrun.workspace.record import Record, boot_id

_RESTORED: Final = "Restore snapshot "


@dataclass(frozen=True, slots=True)
class Absorbed:
    """What came of it. said: one sentence for the user. conflicts: if any, nothing was changed.

    files: that changed. snapshot: of the result, as `answer_of` tells of it; None where nothing was changed.
    """

    said: str
    files: int = 0
    conflicts: tuple[Conflict, ...] = ()
    snapshot: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class _Open:
    """A workspace whose files may be changed. take: a snapshot of it, in these words.

    change: from a snapshot to a tree, then a snapshot in these words; see `transplant`.
    """

    take: Callable[[str | None], dict[str, Any]]
    change: Callable[[SnapshotInfo, TreeId, str], tuple[bool, dict[str, Any]]]


def absorb(
    repository: Repository, layout: Layout, target: Record, source: Record, *, dry_run: bool = False
) -> Absorbed:
    """Merge the last snapshot of `source` into the workspace of `target`, which may run.

    dry_run: tell alone. Raises UsageError, WorkspaceError, StoreError; then nothing was changed.
    """
    repo = Repo(target.common_dir)
    theirs = next(repo.snapshots(source.id), None)
    if source.id == target.id:
        raise UsageError(f"branch {source.branch} can't be merged into itself")
    if theirs is None:
        return Absorbed(f"branch {source.branch} changed nothing")
    with _opened(repository, layout, target) as opened:
        words = None if next(repo.snapshots(target.id), None) else f"Before the merge of {source.branch}"
        opened.take(words)
        return _merge(repo, (target, source), theirs, opened, dry_run=dry_run)


def _merge(
    repo: Repo, pair: tuple[Record, Record], theirs: SnapshotInfo, opened: _Open, *, dry_run: bool
) -> Absorbed:
    target, source = pair
    ours = next(repo.snapshots(target.id))
    landing = _landing(repo, target, source)
    base = landing.source if landing else repo.merge_base(ours.commit, theirs.commit)
    merged = merge_once(repo.git_dir, ours.commit, theirs.commit, base)
    if not merged.is_clean:
        said = f"branch {source.branch} conflicts with {target.branch}; nothing was changed"
        return Absorbed(said, conflicts=merged.conflicts)
    files = repo.diff_stat(ours.tree, merged.tree).files
    if not files:
        if not dry_run and (landing is None or landing.source != theirs.commit):
            # A kill may have come before the note: the next merge is not to meet these changes again.
            _note(repo, target, source, ours.commit, theirs.commit)
        return Absorbed(f"branch {source.branch} is in {target.branch} already")
    told = f"{files} file{'s' * (files != 1)}"
    if dry_run:
        return Absorbed(f"{source.branch} would come into {target.branch} ({told})", files)
    is_done, taken = opened.change(ours, merged.tree, f"Merge {source.branch}")
    if not is_done:
        raise _unchanged(target, taken)
    _note(repo, target, source, CommitId(taken["commit"]), theirs.commit)
    said = f"{source.branch} is merged into {target.branch}'s workspace ({told}): snapshot {taken['number']}"
    return Absorbed(said, files, snapshot=taken)


def _unchanged(target: Record, now: dict[str, Any]) -> WorkspaceError:
    branch = target.branch
    if now["unchanged"]:
        return WorkspaceError(
            f"branch {branch} has other files in the way now; nothing was changed",
            hint="once it is at rest, or they are gone, type it again",
        )
    return WorkspaceError(  # its command goes on writing, or its disk is full
        f"the merge came to no end, and branch {branch} has changed meanwhile: snapshot {now['number']}",
        hint=f"overlayrun diff {branch}@{{1}}..{branch}; to go back there: overlayrun restore {branch}@{{1}}",
    )


@contextmanager
def _opened(repository: Repository, layout: Layout, target: Record) -> Iterator[_Open]:
    """The workspace's sandbox: the one that runs, or one without a command, with the lock held."""
    place = layout.workspace(target.id)
    if is_locked(place.lock):
        yield _running(layout, target)
        return
    try:
        held = lock(place.lock)
    except WorkspaceBusy as err:
        raise WorkspaceBusy(f"branch {target.branch} is in use", hint="type it again") from err
    try:
        record = Record.load(place.record)
        refuse_torn(place, record)
        with _changing(layout, record), idle_sandbox(repository, layout, record) as live:

            def take(words: str | None) -> dict[str, Any]:
                return answer_of(capture(layout, record, SnapshotReason.REQUEST, words, live))

            def change(ours: SnapshotInfo, new: TreeId, words: str) -> tuple[bool, dict[str, Any]]:
                start = ours.number, ours.tree
                return transplant(
                    live,
                    record.common_dir,
                    place.absorbing,
                    start,
                    new,
                    lambda is_done: take(words if is_done else None),
                )

            yield _Open(take, change)
    finally:
        os.close(held)
        sync_in_background(layout, [Record.load(place.record)])


@contextmanager
def _changing(layout: Layout, record: Record) -> Iterator[None]:
    """Let the record be open meanwhile: after a kill the next command takes a snapshot of what there is."""
    run, place = record.last_run, layout.workspace(record.id)
    ended = run.ended if run else None
    with suppress(FileNotFoundError):
        os.unlink(place.synced)
    if run:
        run.ended, run.boot = None, boot_id()
    else:
        record.filled = boot_id()
    record.save(place.record)  # flushes the directory, too: no mark of the files before comes back
    try:
        yield
    except OverlayrunError:  # what there is has its snapshot
        _close(layout, record, ended)
        raise
    _close(layout, record, ended)


def _close(layout: Layout, record: Record, ended: float | None) -> None:
    if record.last_run:
        record.last_run.ended = ended or time.time()
        record.save(layout.workspace(record.id).record)


def _running(layout: Layout, target: Record) -> _Open:
    """Under a run it is its supervisor that changes the files: a kill of this command does not part them."""

    def asked(request: dict[str, Any]) -> dict[str, Any]:
        told, _ = ask(layout.workspace(target.id).sockets, "outside", request)
        if "error" in told:
            raise WorkspaceError(f"no snapshot was taken: {told['error']}", hint=told.get("hint"))
        return told

    def take(words: str | None) -> dict[str, Any]:
        return asked({"op": "snapshot", "message": words})

    def change(ours: SnapshotInfo, new: TreeId, words: str) -> tuple[bool, dict[str, Any]]:
        told = asked({"op": "change", "number": ours.number, "old": ours.tree, "new": new, "message": words})
        return told["done"], told

    return _Open(take, change)


def _landing(repo: Repo, target: Record, source: Record) -> Landing | None:
    """The last merge of the one into the other, unless the other went back to before it since."""
    found = landing_of(repo, source.id, target.branch)
    at = found.commit if found else None
    number = next((each.number for each in repo.snapshots(target.id) if each.commit == at), None)
    for each in repo.snapshots(target.id) if number else ():
        if each.commit == at:
            return found
        back = each.subject.removeprefix(_RESTORED)
        if back != each.subject and back.isdigit() and number and int(back) < number:
            return None
    return None


def _note(repo: Repo, target: Record, source: Record, commit: CommitId, theirs: CommitId) -> None:
    """Keep which snapshot of the source came in with which of the target's: the next merge begins there."""
    ref = landed_ref(source.id, target.branch)
    before = repo.ref(ref)
    with ObjectWriter(repo.objects) as writer:
        tree = writer.add(b"tree", b"")
        assert tree.hex() == EMPTY_TREE
        parents = [commit, theirs, *([before] if before else [])]
        identity = read_settings(repo.git_dir).identity
        data = format_commit(tree, parents, identity, int(time.time()), f"Merged {source.branch}\n")
        oid = CommitId(writer.add(b"commit", data).hex())
        writer.finish()
    try:
        update_refs(repo.git_dir, [RefUpdate(ref, oid, before)], why="merge")
    except RefMoved:  # the same merge, by somebody else at the same time
        return
