"""One branch that is shown: opened, snapshotted, given back.

A tree of ours is noted in the workspace's record as an open run is, so that whoever comes after a kill or a
power cut takes the missing snapshot. Its `folder.lock` is ours meanwhile; who takes the workspace's own lock
asks us first to let go (`workspace.lock`).
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from overlayrun.bases.gitdir import is_touched
from overlayrun.capture import capture
from overlayrun.control import ask
from overlayrun.durable import sync_aside
from overlayrun.errors import (
    HostError,
    OverlayrunError,
    StoreError,
    UsageError,
    WorkspaceBroken,
    WorkspaceBusy,
    WorkspaceError,
)
from overlayrun.files import remove_tree
from overlayrun.folders.api import Tree
from overlayrun.folders.gitdir import git_stamp, hand_over, head_of, note_known, prepare_folder
from overlayrun.folders.trees import live_tree, own_tree
from overlayrun.idle import idle_sandbox
from overlayrun.model import CommitId, SnapshotReason
from overlayrun.prepare import open_known
from overlayrun.recover import recover
from overlayrun.sandbox.aside import finish
from overlayrun.snapshot import LeftOutReason, Snapshot
from overlayrun.store.location import find_repository
from overlayrun.workspace.flushed import is_noted
from overlayrun.workspace.layout import Layout, WorkspaceLayout
from overlayrun.workspace.lock import is_locked, lock, shown_here, unlock
from overlayrun.workspace.record import Record, Run, boot_id

COMMAND: Final = "open"
"""What a record names as the command of a run that was a folder."""

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Scene:
    """One repository. root: of its working tree. tell: writes a line to the log."""

    root: str
    layout: Layout
    tell: Tell


@contextmanager
def as_errno(tell: Tell) -> Iterator[None]:
    """What went wrong as a number for who uses the folder; the words go to the log."""
    try:
        yield
    except OverlayrunError as err:
        tell(words_of(err) + (f"; {err.hint}" if err.hint else ""))
        raise OSError(_errno_of(err), err.brief) from err


def _errno_of(err: OverlayrunError) -> int:
    if isinstance(err, WorkspaceBusy):
        return errno.EBUSY
    if isinstance(err.__cause__, OSError) and err.__cause__.errno:
        return err.__cause__.errno
    return errno.EINVAL if isinstance(err, UsageError) else errno.EIO


def words_of(err: OverlayrunError | OSError) -> str:
    """What went wrong, with its cause."""
    if isinstance(err, OSError):
        return str(err)
    cause = err.__cause__.strerror if isinstance(err.__cause__, OSError) else None
    return ": ".join(filter(None, (err.brief, err.details or cause)))


@dataclass(slots=True)
class Shown:
    """A branch that is shown. lock: of the folder, -1 for the tree of a run. link: file shown as `.git`.

    before: the record's last run as it was; run: its number, told apart from the next one. head: the commit
    that the branch's own git stood on. stamp: of the folder's git. written: whether somebody wrote. first,
    due: monotonic times of the first write that no snapshot has, and of the next snapshot; used: of the last
    use. trouble: why the last snapshot failed. waits: some files of it are taken only when the tree is given
    back, because a filter of the user's is to run on them in the sandbox.
    """

    record: Record
    place: WorkspaceLayout
    fd: int
    lock: int
    link: str
    run: int
    before: Run | None = None
    head: CommitId | None = None
    stamp: int = 0
    written: bool = False
    first: float | None = None
    due: float | None = None
    used: float = 0.0
    trouble: str = ""
    waits: bool = False

    @property
    def is_live(self) -> bool:
        """Whether it is the tree of a run."""
        return self.lock < 0

    def has_new_commits(self) -> bool:
        """Whether HEAD of the folder's git, of a tree of ours, has moved since the last look."""
        before, self.stamp = self.stamp, git_stamp(self.place)
        return self.stamp != before and not self.is_live

    def tree(self) -> Tree:
        """As the file system takes it."""
        link = os.open(self.link, os.O_RDONLY | os.O_CLOEXEC)
        key = f"{self.record.id}:{self.run}"
        return Tree(os.dup(self.fd), writable=True, key=key, replaced=((".git", link),), live=self.is_live)

    def is_over(self) -> bool:
        """Whether the run whose tree it is has ended, or another has begun; or the workspace is gone."""
        if not self.is_live:
            return not os.path.isdir(self.place.root)
        if not is_locked(self.place.lock):
            return True
        try:
            last = Record.load(self.place.record).last_run
        except OverlayrunError:
            return True
        return last is None or last.number != self.run


def open_own(scene: Scene, record: Record) -> Shown:
    """The tree of a branch in which nobody runs. Raises WorkspaceBusy where somebody does, OSError."""
    repository = find_repository(scene.root)
    prepared = open_known(repository, scene.layout, record)
    try:
        recover(repository, scene.layout, prepared.record, scene.tell)
        return show(scene, prepared.record)
    finally:
        unlock(prepared.lock)


def show(scene: Scene, record: Record) -> Shown:
    """Mount the tree of a workspace whose lock the caller holds, and note that it is open. Raises OSError."""
    repository, place = find_repository(scene.root), scene.layout.workspace(record.id)
    link = prepare_folder(repository, scene.layout, record, scene.tell, live=False)
    held = lock(place.folder_lock)
    shown_here.add(place.root)
    before = record.last_run
    record.last_run = Run(before.number + 1 if before else 1, [COMMAND], boot_id(), time.time())
    record.last_run.folder = True
    try:
        # On the disk before the first write, which a power cut tears; of a new one no mark says it is whole.
        record.save(place.record, durable=before is not None)
        try:
            fd = own_tree(repository, scene.layout, record)
        except BaseException:
            record.last_run = before
            record.save(place.record, durable=False)
            raise
    except BaseException:
        _release(place, held)
        raise
    one = Shown(record, place, fd, held, link, record.last_run.number, before)
    one.head, one.stamp = head_of(record), git_stamp(place)
    return one


def open_live(scene: Scene, record: Record) -> Shown:
    """The tree of the run that has a branch. Raises WorkspaceError where it does not answer, OSError."""
    place = scene.layout.workspace(record.id)
    answer, joined = ask(place.sockets, "outside", {"op": "join"}, wait=0)
    try:
        if not joined or "root" not in answer:
            raise WorkspaceError("the run can't be joined")
        fd = live_tree(joined, answer["root"])
    finally:
        for namespace in joined:
            os.close(namespace)
    record = Record.load(place.record)
    number = record.last_run.number if record.last_run else 0
    link = prepare_folder(find_repository(scene.root), scene.layout, record, scene.tell, live=True)
    one = Shown(record, place, fd, -1, link, number)
    one.stamp = git_stamp(place)
    return one


def take(scene: Scene, one: Shown) -> Snapshot:
    """A snapshot of a tree of ours. Raises OverlayrunError."""
    taken = capture(scene.layout, one.record, SnapshotReason.INTERVAL, None, None)
    one.waits = any(item.reason is LeftOutReason.FILTER for item in taken.left_out)
    for note in taken.notes:
        scene.tell(f"branch {one.record.branch}: {note}")
    return taken


def give_back(scene: Scene, one: Shown) -> None:
    """End what is shown, which the file system has let go of: the last snapshot, and the record.

    Raises OverlayrunError or OSError where that fails; the record then says that a snapshot is missing.
    """
    try:
        if not one.is_live:
            _end(scene, one)
    finally:
        os.close(one.fd)
        if not one.is_live:
            _release(one.place, one.lock)


def _release(place: WorkspaceLayout, held: int) -> None:
    unlock(held)
    shown_here.discard(place.root)


def _end(scene: Scene, one: Shown) -> None:
    try:
        if not os.path.isdir(one.place.root):
            raise WorkspaceBroken(f"there is no {one.place.root} any more")
        finish([f"/proc/self/fd/{one.fd}"])  # what a killed file system was moving
        _settle(scene, one)
    finally:
        remove_tree(one.place.work)


def _settle(scene: Scene, one: Shown) -> None:
    """The record becomes that of a run that is over; as before it where nobody wrote."""
    record = one.record
    taken = _last(scene, one)
    if taken is None:
        record.last_run = one.before
        record.save(one.place.record, durable=False)
        if not is_noted(one.place, record):  # whoever was flushing it notes nothing of a newer record
            sync_aside(scene.layout, record)
        return
    head = head_of(record)
    if one.waits or head != one.head:
        _end_inside(scene, one, head)
    note_known(one.place, head)
    assert record.last_run is not None
    record.last_run.ended, record.last_run.status = time.time(), 0
    record.save(one.place.record)
    sync_aside(scene.layout, record)


def _last(scene: Scene, one: Shown) -> Snapshot | None:
    """The last snapshot; None where nobody wrote: there is nothing to tell of the time as a folder."""
    is_used = one.has_new_commits() or one.written
    if not is_used and not is_touched(one.place.upper, one.place.git_upper):
        return None
    taken = take(scene, one)
    return taken if is_used or not taken.unchanged else None


def _end_inside(scene: Scene, one: Shown, head: CommitId | None) -> None:
    """What needs the sandbox: the user's filters, and the agent's `.git`, which follows the folder's."""
    remove_tree(one.place.work)
    try:
        with idle_sandbox(find_repository(scene.root), scene.layout, one.record) as live:
            capture(scene.layout, one.record, SnapshotReason.INTERVAL, None, live)
            hand_over(live, one.place, head)
    except (HostError, StoreError) as err:
        scene.tell(f"branch {one.record.branch}: the agent's own .git stays behind: {err.brief}")
