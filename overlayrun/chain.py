"""Append to a workspace's snapshot chain: the commits of one snapshot, and the refs that show them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from overlayrun.errors import RefMoved, StoreError
from overlayrun.model import CommitId, TreeId
from overlayrun.snapshot_job import SnapshotJob
from overlayrun.store.commits import format_commit, format_message, parse_trailers, printable
from overlayrun.store.heads import is_checked_out
from overlayrun.store.pack import ObjectWriter
from overlayrun.store.refs import RefUpdate, branch_ref, snapshots_ref
from overlayrun.store.repo import Repo, SnapshotInfo
from overlayrun.store.trees import ChangeCount
from overlayrun.wording import TOLD, Occasion, branch_text, branch_trailers, snapshot_text, trailers_of

ABSENT: Final = "absent"  # in a trailer: the branch does not exist
_FILES: Final = "Files:"
_MARK: Final = ".moving"  # beside the hash cache
_ATTEMPTS: Final = 5
_PAUSE: Final = 0.05  # seconds until a ref that another git process has locked is tried again


@dataclass(frozen=True, slots=True)
class Link:
    """One snapshot to append. previous: the newest on the chain; head: the agent's own, already imported."""

    job: SnapshotJob
    repo: Repo
    identity: bytes
    previous: SnapshotInfo | None
    head: CommitId | None
    tree: TreeId
    changes: ChangeCount

    @property
    def number(self) -> int:
        """Of the snapshot, from 1."""
        return self.previous.number + 1 if self.previous else 1

    @property
    def last(self) -> CommitId | None:
        """Where the chain ends now."""
        return self.previous.commit if self.previous else None


def is_half_moved(job: SnapshotJob) -> bool:
    """Whether a snapshot was killed while it moved the refs, so that one of them may still be behind."""
    return os.path.exists(f"{job.hashes}{_MARK}")


@dataclass(frozen=True, slots=True)
class Appended:
    """tip: what the branch stands for; note: why the branch itself did not move, if so."""

    commit: CommitId
    tip: CommitId | None
    number: int
    note: str | None


@dataclass(frozen=True, slots=True)
class _BranchMove:
    """What happens to the branch. old: the value that we wrote last; why_not: None if it moves."""

    old: CommitId | None
    why_not: str | None = None


def append(link: Link, writer: ObjectWriter, occasion: Occasion) -> Appended:
    """Write the commits, flush every object, then move the refs in one transaction.

    A branch that can't be moved never stops the snapshot itself. Raises StoreError; RefMoved where another
    snapshot
    of this workspace was taken meanwhile. The caller holds the workspace's lock.
    """
    left = _clear_up(link)
    for attempt in range(_ATTEMPTS):
        move = _plan_branch(link, left)
        if attempt == _ATTEMPTS - 1 and move.why_not is None:
            move = _BranchMove(move.old, "git refused to move it")
        tip = _write_tip(link, writer, occasion)
        commit = _write_snapshot(link, writer, occasion, tip, move)
        writer.finish()
        try:
            with _moving(link, move, tip):
                updates = _updates(link, tip, commit, move)
                link.repo.move_refs(updates, why=f"snapshot ({occasion.reason.value})")
        except StoreError as err:
            _raise_or_wait(link, attempt, err)
            continue
        note = f"branch {link.job.branch} was left where it is: {move.why_not}" if move.why_not else None
        return Appended(commit, tip, link.number, note)
    raise AssertionError("the last attempt returns or raises")


@contextmanager
def _moving(link: Link, move: _BranchMove, tip: CommitId | None) -> Iterator[None]:
    """Note where the branch comes from and goes to, for the case that we are killed between two refs."""
    mark = link.job.hashes + _MARK
    with open(mark, "a", encoding="ascii") as file:
        file.write(f"{move.old or ABSENT}\n{tip or ABSENT}\n")
        file.flush()
        os.fsync(file.fileno())  # the refs are flushed one by one: a power cut may part them as a kill does
    yield
    os.unlink(mark)


def _clear_up(link: Link) -> set[CommitId | None]:
    """Where a snapshot that was killed among its refs may have left the branch; removes the locks it left.

    Git never removes a lock by itself. A lock that is older than our note is the user's.
    """
    mark = link.job.hashes + _MARK
    try:
        since = os.stat(mark).st_mtime_ns
        with open(mark, encoding="ascii") as file:
            places = file.read().split("\n")
    except FileNotFoundError:
        return set()
    for ref in (snapshots_ref(link.job.workspace_id), branch_ref(link.job.branch)):
        lock = f"{link.job.git_dir}/{ref}.lock"
        with suppress(FileNotFoundError):
            if os.lstat(lock).st_mtime_ns >= since:
                os.unlink(lock)
    return {None if place == ABSENT else CommitId(place) for place in places if place}


def _raise_or_wait(link: Link, attempt: int, err: StoreError) -> None:
    if link.repo.ref(snapshots_ref(link.job.workspace_id)) != link.last:
        raise RefMoved("another snapshot of this workspace was taken meanwhile") from err
    if attempt == _ATTEMPTS - 1:
        raise err
    time.sleep(_PAUSE)


def _write_tip(link: Link, writer: ObjectWriter, occasion: Occasion) -> CommitId | None:
    """The agent's own last commit where it holds everything, else one commit on top of it."""
    job, repo = link.job, link.repo
    if link.head is None and link.tree == repo.tree_of(job.dirty or job.base):
        return job.base
    if link.head and link.tree == repo.tree_of(link.head):
        return link.head
    parent = link.head or job.dirty or job.base
    text = branch_text(occasion, _default_text(link))
    trailers = _trailers(link) | branch_trailers(occasion)
    message = format_message(text, _summary(link.changes), trailers)
    return _commit(link, writer, [parent] if parent else [], message)


def _write_snapshot(
    link: Link, writer: ObjectWriter, occasion: Occasion, tip: CommitId | None, move: _BranchMove
) -> CommitId:
    text = snapshot_text(occasion, told_in(link.repo, link.previous), _default_text(link))
    trailers = (
        _trailers(link)
        | trailers_of(occasion)
        | {"Reason": occasion.reason.value, "Number": str(link.number)}
    )
    if link.head:
        trailers["Head"] = link.head
    if move.why_not:
        trailers["Kept"] = move.old or ABSENT
    message = format_message(text, _summary(link.changes), trailers)
    shown = tip or link.job.dirty or link.job.base
    return _commit(link, writer, [parent for parent in (link.last, shown) if parent], message)


def _commit(link: Link, writer: ObjectWriter, parents: list[CommitId], message: str) -> CommitId:
    # The host's clock may be set back; the chain's dates never are.
    when = max(int(time.time()), link.previous.time if link.previous else 0)
    data = format_commit(bytes.fromhex(link.tree), parents, link.identity, when, message)
    return CommitId(writer.add(b"commit", data).hex())


def told_in(repo: Repo, snapshot: SnapshotInfo | None) -> str:
    """Which prompt a snapshot belongs to; "" for none."""
    return parse_trailers(repo.commit(snapshot.commit).message).get(TOLD, "") if snapshot else ""


def tells(repo: Repo, snapshot: SnapshotInfo, occasion: Occasion) -> bool:
    """Whether the commit that a snapshot made for the branch has the words that one made now would have.

    Where there is none, because the agent's own commit holds everything, or there are no words, there is
    nothing to tell.
    """
    message = repo.commit(snapshot.tip).message if snapshot.tip else ""
    words = branch_text(occasion, "")
    if not words or "Snapshot" not in parse_trailers(message):
        return True
    return message.startswith(f"{format_message(words, '', {})[:-1]}\n\n{_FILES}")


def _default_text(link: Link) -> str:
    count = link.changes.total
    return f"overlayrun: {printable(link.job.command, one_line=True)} ({count} file{'s' * (count != 1)})"


def _summary(changes: ChangeCount) -> str:
    return f"{_FILES} {changes.added} added, {changes.modified} modified, {changes.deleted} deleted."


def _trailers(link: Link) -> dict[str, str]:
    job = link.job
    trailers = {"Branch": job.branch, "Command": job.command}
    if job.exit_status is not None:
        trailers["Exit"] = str(job.exit_status)
    return trailers | {"Base": job.base or ABSENT, "Snapshot": str(link.number)}


def _plan_branch(link: Link, left: set[CommitId | None]) -> _BranchMove:
    """Whether the branch is where we left it, and free to move. left: see `_clear_up`."""
    now, last = link.repo.ref(branch_ref(link.job.branch)), link.previous
    expected = {last.written} if last else {None, link.job.base}
    if now not in expected | left:
        old = last.written if last else None
        return _BranchMove(old, "you moved it meanwhile" if now else "you deleted it meanwhile")
    if is_checked_out(link.job.git_dir, link.job.branch):
        return _BranchMove(now, "it is checked out in a working tree of yours")
    return _BranchMove(now)


def _updates(link: Link, tip: CommitId | None, commit: CommitId, move: _BranchMove) -> list[RefUpdate]:
    updates = [RefUpdate(snapshots_ref(link.job.workspace_id), commit, link.last)]
    if tip and tip != move.old and move.why_not is None:
        updates.append(RefUpdate(branch_ref(link.job.branch), tip, move.old))
    return updates
