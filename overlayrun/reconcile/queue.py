"""The queue of one target, computed from refs: what waits, what has landed, what does not land and why.

Nothing of it is stored but notes below refs/overlayrun/queue/: a commit each, so that git keeps and moves
them. A note on a branch holds for the commit that it was written about and for no later one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Final

from overlayrun.carriers import Carrier
from overlayrun.errors import UsageError
from overlayrun.incoming import incoming
from overlayrun.model import EMPTY_TREE, BranchName, CommitId, TreeId
from overlayrun.overview import State, state_of, tip_of
from overlayrun.reconcile.paths import entry_at
from overlayrun.reconcile.settings import FILE, ExecPolicy, Settings
from overlayrun.report import printable
from overlayrun.store.commits import parse_trailers
from overlayrun.store.git import git
from overlayrun.store.landings import Landing, has_landed, is_merge_of, landing_of
from overlayrun.store.refs import approved_ref, branch_ref, conflict_ref, parked_ref, tip_ref
from overlayrun.store.repo import Repo
from overlayrun.store.trees import Entry
from overlayrun.workspace.catalogue import records
from overlayrun.workspace.layout import Layout
from overlayrun.workspace.record import Record

_SHOWN: Final = 3  # paths in a sentence


class Standing(Enum):
    """Where a branch stands on its way to the target."""

    WAITING = "waiting"
    RUNNING = "running"
    UNAPPROVED = "not approved"
    CONFLICT = "conflict"
    LANDED = "landed"
    FAILED = "failed"
    PARKED = "parked"
    TAKEN_OUT = "taken out"
    UNCHANGED = "no change"

    @property
    def is_home(self) -> bool:
        """Whether there is nothing to bring to the target."""
        return self in (Standing.LANDED, Standing.UNCHANGED)


@dataclass(frozen=True, slots=True)
class Item:
    """One branch and one target.

    tip: what the branch stands for. base: from which its own change counts, None where that is the merge
    base. is_own_only: it lands without its history, which stands on what the user had not committed, or
    which the target has in another form. landing: its last one that the target still has.
    """

    record: Record
    target: BranchName
    tip: CommitId
    standing: Standing
    why: str = ""
    base: CommitId | None = None
    landing: Landing | None = None
    is_own_only: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether the branch stands where it began: one that runs can still be without a snapshot."""
        return self.tip in (self.record.base, self.record.dirty)

    @property
    def branch(self) -> BranchName:
        """The branch's name."""
        return self.record.branch


def target_tip(repo: Repo, target: BranchName) -> CommitId:
    """Where the target stands with everything that has landed, delivered or not. Raises UsageError."""
    tip = repo.ref(tip_ref(target)) or repo.ref(branch_ref(target))
    if tip is None:
        raise UsageError(f"there is no branch {target!a} to merge into", hint="name one: --into BRANCH")
    return tip


class Queue:
    """What there is to say of every branch whose target this is. Reads refs and locks, changes nothing."""

    def __init__(self, layout: Layout, repo: Repo, target: BranchName, settings: Settings) -> None:
        """Raises UsageError where there is no such target."""
        self._layout = layout
        self._repo = repo
        self._settings = settings
        self.target = target
        self.tip = target_tip(repo, target)

    def items(self) -> Iterator[Item]:
        """Every branch, oldest workspace first: so they land."""
        for record in records(self._layout):
            if record.target == self.target and not record.throwaway and self._is_meant(record):
                yield self.item(record)

    def _is_meant(self, record: Record) -> bool:
        only = self._settings.only
        return not only or any(fnmatchcase(record.branch, pattern) for pattern in only)

    def item(self, record: Record) -> Item:
        """One branch, whatever its own target is."""
        source = tip_of(self._repo, record)
        running = state_of(self._layout, record) is State.RUNNING
        if source is None or source in (record.base, record.dirty):
            standing = Standing.RUNNING if running else Standing.UNCHANGED
            return Item(record, self.target, source or self.tip, standing)
        last = landing_of(self._repo, record.id, self.target)
        held = last if last and self._repo.is_on_mainline(last.commit, self.tip) else None
        item = self._item(record, source, held)
        if self._has(item):
            return replace(item, standing=Standing.LANDED)
        if running:
            return replace(item, standing=Standing.RUNNING)
        why = self._out(item, last if not held else None)
        if why:
            return replace(item, standing=Standing.TAKEN_OUT, why=why)
        return self._judged(item)

    def _out(self, item: Item, lost: Landing | None) -> str | None:
        """Why a branch lands only when it is named. lost: its last landing, which the target has no more."""
        record = item.record
        if self._repo.ref(branch_ref(record.branch)) is None:
            return f"you deleted the branch; for its last snapshot: overlayrun merge {record.branch}"
        if lost and lost.source == item.tip:
            return f"it had landed, and {self.target} does not have it any more"
        last = next(self._repo.snapshots(record.id), None) if record.last_run is None else None
        if last and last.tip == item.tip:  # the source may be in the middle of its work
            return f"nothing has run in it since it was forked; as it is: overlayrun merge {record.branch}"
        return None

    def _item(self, record: Record, source: CommitId, held: Landing | None) -> Item:
        """What is new of a branch since its landing `held`, or since it began."""
        base, alone = record.dirty, record.dirty is not None
        if held and record.base and self._repo.is_ancestor(held.commit, record.base):
            pass  # a sync has moved the base past that landing
        elif held and not self._is_merged(held):
            base, alone = held.source, True
        elif held and not self._repo.is_ancestor(held.source, source):
            # What a branch had not committed is one commit on top, and is written anew as it goes on.
            base = held.source
        return Item(record, self.target, source, Standing.WAITING, "", base, held, alone)

    def _is_merged(self, held: Landing) -> bool:
        return is_merge_of(self._repo, held) or self._repo.is_ancestor(held.source, self.tip)

    def _has(self, item: Item) -> bool:
        """Whether the target has all of the branch."""
        return has_landed(self._repo, item.record.id, item.tip, self.target, self.tip)

    def _judged(self, item: Item) -> Item:
        """What was noted of it, if that holds for the commit it stands at; else whether it needs approval."""
        note = parked_note(self._repo, item)
        if note and not (note.standing is Standing.UNAPPROVED and is_approved(self._repo, item)):
            return replace(item, standing=note.standing, why=note.why)
        needed = self._needs(item)
        if needed:
            return replace(item, standing=Standing.UNAPPROVED, why=needed)
        return self._conflicting(item)

    def _conflicting(self, item: Item) -> Item:
        at = self._repo.ref(conflict_ref(item.record.id, item.target))
        found = self._repo.commit(at) if at else None
        if found and found.parents == (self.tip, item.tip):
            why = f"{found.message.split(chr(10) * 2)[1].rstrip('.')}: overlayrun conflicts {item.branch}"
            return replace(item, standing=Standing.CONFLICT, why=why)
        return item

    def _needs(self, item: Item) -> str | None:
        """Why the user has to approve it first; None where he has, or need not."""
        if is_approved(self._repo, item):
            return None
        if self._settings.require_approval:
            return f"overlayrun approve {item.branch}"
        if self._changes_rules(item):
            return f"it changes {FILE}: overlayrun approve {item.branch}"
        found = () if self._settings.exec is ExecPolicy.ALLOW else carriers_in(self._repo, item, self.tip)
        return approve_words(item, found) if found else None

    def _changes_rules(self, item: Item) -> bool:
        """Whether it changes the file that says what is checked: that is for the user to decide."""
        rules = self._rules_of(item.tip)
        if rules == self._rules_of(self.tip):
            return False
        return any(rules != self._rules_of(start) for start in self._starts(item))

    def _starts(self, item: Item) -> Sequence[CommitId | None]:
        """Commits from which a merge would begin; where histories crossed there are several."""
        if item.base:
            return [item.base]
        found = git(["merge-base", "--all", self.tip, item.tip], git_dir=self._repo.git_dir, check=False)
        return [CommitId(line) for line in found.decode().split()] or [None]

    def _rules_of(self, commit: CommitId | None) -> Entry | None:
        tree = self._repo.tree_of(commit)
        return None if tree == EMPTY_TREE else self._repo.read_tree(bytes.fromhex(tree)).get(FILE.encode())


def is_approved(repo: Repo, item: Item) -> bool:
    """Whether the user has approved the branch as it stands."""
    return repo.ref(approved_ref(item.record.id)) == item.tip


def carriers_in(repo: Repo, item: Item, target: CommitId) -> tuple[Carrier, ...]:
    """Carriers that a branch has changed since it began, and that the target does not have like that.

    What a merge would really bring is looked at when it is made: the target may have moved against it.
    """
    start = item.base or item.record.base
    goal = repo.tree_of(target)
    return tuple(
        carrier
        for carrier in _own_carriers(repo, repo.tree_of(start), repo.tree_of(item.tip))
        if entry_at(repo, goal, carrier.path) != carrier.entry
    )


@lru_cache(maxsize=1024)
def _own_carriers(repo: Repo, old: TreeId, new: TreeId) -> tuple[Carrier, ...]:
    """Kept by the trees: the queue is looked at again every second while somebody waits."""
    return incoming(repo, old, new).carriers


def approve_words(item: Item, found: Sequence[Carrier]) -> str:
    """Why a branch waits for the user, and what he types."""
    paths = listed([carrier.path for carrier in found])
    return f"it changes files that run code ({paths}): overlayrun approve {item.branch}"


def listed(paths: Sequence[bytes]) -> str:
    """A few of some paths, on a line."""
    shown = ", ".join(printable(path.decode("utf-8", "surrogateescape")) for path in paths[:_SHOWN])
    return shown + (f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else "")


@dataclass(frozen=True, slots=True)
class Note:
    """Why a branch does not land as it is. log: path of the output of what refused it."""

    standing: Standing
    why: str
    log: str | None


def parked_note(repo: Repo, item: Item) -> Note | None:
    """What was noted of the commit that the branch stands at now."""
    at = repo.ref(parked_ref(item.record.id, item.target))
    if at is None:
        return None
    found = repo.commit(at)
    trailers = parse_trailers(found.message)
    if found.parents[:1] != (item.tip,):
        return None
    return Note(Standing(trailers.get("Standing", "parked")), found.subject, trailers.get("Log"))
