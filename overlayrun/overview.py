"""What there is to say of workspaces, as values: for `ls`, `status`, `show`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from overlayrun.account import Session
from overlayrun.alone import Alone, alone
from overlayrun.errors import StoreError, WorkspaceBroken
from overlayrun.model import BranchName, CommitId
from overlayrun.store.git import git
from overlayrun.store.landings import has_landed
from overlayrun.store.refs import branch_ref
from overlayrun.store.repo import DiffStat, Repo, SnapshotInfo
from overlayrun.workspace.catalogue import records
from overlayrun.workspace.layout import Layout
from overlayrun.workspace.lock import is_locked
from overlayrun.workspace.record import Record


class State(Enum):
    """What a workspace is doing: computed from lock, record and store, never kept."""

    RUNNING = "running"
    IDLE = "idle"
    INTERRUPTED = "interrupted"
    BROKEN = "broken"


class Turn(Enum):
    """Whose turn it is in the session of a running workspace: told by the agent."""

    WORKING = "working"
    WAITING = "waiting"


@dataclass(frozen=True, slots=True)
class Overview:
    """One workspace.

    latest: its newest snapshot. change: of that snapshot against the start. tip: what the branch stands for;
    target_tip: what its target does. ahead: commits of the branch that the target does not have; None where
    either does not exist. landed: there are commits, and the target has them all. alone: bytes on the disk
    that belong to this workspace alone. fault: why its state is BROKEN. parent: the branch that it was forked
    from, None where it was not, or where that one was removed.
    """

    record: Record
    place: str
    state: State
    latest: SnapshotInfo | None
    change: DiffStat
    ahead: int | None
    landed: bool
    alone: Alone
    fault: str | None = None
    tip: CommitId | None = None
    target_tip: CommitId | None = None
    parent: BranchName | None = None

    @property
    def snapshots(self) -> int:
        """How many snapshots there are."""
        return self.latest.number if self.latest else 0

    @property
    def size(self) -> int:
        """Bytes on the disk, at most."""
        return self.alone.size

    @property
    def session(self) -> Session:
        """What the agent told of itself."""
        return Session.from_json(self.record.session)

    @property
    def turn(self) -> Turn | None:
        """Whether the agent works or waits for the user; None where none does, or nobody told."""
        return turn_of(self.record) if self.state is State.RUNNING else None


def turn_of(record: Record) -> Turn | None:
    """Whose turn it is in a workspace that runs."""
    session = Session.from_json(record.session)
    if session == Session():
        return None
    return Turn.WAITING if session.waits else Turn.WORKING


def overviews(layout: Layout, repo: Repo) -> Iterator[Overview]:
    """Every workspace with a branch, oldest first."""
    for record in records(layout):
        if not record.throwaway:
            yield overview(layout, repo, record)


def overview(layout: Layout, repo: Repo, record: Record) -> Overview:
    """One workspace; what git's store has lost makes it BROKEN, and raises nothing."""
    place = layout.workspace(record.id).root
    taken = alone(layout.workspace(record.id), record)
    try:
        latest = next(repo.snapshots(record.id), None)
        start = repo.tree_of(record.dirty or record.base)
        change = repo.diff_stat(start, latest.tree) if latest else DiffStat(0, 0, 0)
        tip, target = tip_of(repo, record), target_tip(repo, record)
        ahead, landed = _standing(repo, record, tip, target)
    except StoreError as err:
        return Overview(
            record,
            place,
            State.BROKEN,
            None,
            DiffStat(0, 0, 0),
            None,
            landed=False,
            alone=taken,
            fault=err.brief,
            parent=parent_of(layout, record),
        )
    return Overview(
        record,
        place,
        state_of(layout, record),
        latest,
        change,
        ahead,
        landed,
        taken,
        tip=tip,
        target_tip=target,
        parent=parent_of(layout, record),
    )


def parent_of(layout: Layout, record: Record) -> BranchName | None:
    """The branch that a workspace was forked from, while that has its workspace."""
    try:
        return Record.load(layout.workspace(record.parent).record).branch if record.parent else None
    except WorkspaceBroken:
        return None


def state_of(layout: Layout, record: Record) -> State:
    """Running while a process holds the lock; idle, too, while it is shown as a folder."""
    place = layout.workspace(record.id)
    if is_locked(place.lock):
        return State.RUNNING
    return State.INTERRUPTED if record.is_open and not is_locked(place.folder_lock) else State.IDLE


def tip_of(repo: Repo, record: Record) -> CommitId | None:
    """What the branch stands for: the user may have moved it; where it is gone, the last snapshot says."""
    tip = repo.ref(branch_ref(record.branch))
    if tip:
        return tip
    latest = next(repo.snapshots(record.id), None)
    return latest.tip if latest else None


def target_tip(repo: Repo, record: Record) -> CommitId | None:
    """Where the workspace's target stands; without what waits to be delivered, which may go."""
    return repo.ref(branch_ref(record.target)) if record.target else None


def _standing(
    repo: Repo, record: Record, tip: CommitId | None, target: CommitId | None
) -> tuple[int | None, bool]:
    """Commits ahead of the target, and whether the work has landed there."""
    if tip is None or target is None or record.target is None:
        return None, False
    if tip == record.base:
        return 0, False
    ahead = count_commits(repo, [tip, f"^{target}"])
    return ahead, has_landed(repo, record.id, tip, record.target, target)


def count_commits(repo: Repo, words: list[str]) -> int:
    """How many commits git's rev-list(1) finds by these words."""
    return int(git(["rev-list", "--count", *words, "--"], git_dir=repo.git_dir))
