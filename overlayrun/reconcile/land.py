"""Move the refs of the queue: landings, notes, approvals; always by compare-and-swap, in one transaction.

A process that is killed between two of these steps leaves a state that the next `settle` goes on from; one
that loses a compare-and-swap gets RefMoved and looks again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from overlayrun.errors import RefMoved
from overlayrun.files import flush_disk
from overlayrun.model import EMPTY_TREE, BranchName, CommitId
from overlayrun.reconcile.candidates import Candidate
from overlayrun.reconcile.deliver import deliver, recover_delivery
from overlayrun.reconcile.queue import Item, Note, target_tip
from overlayrun.reconcile.worktrees import Held
from overlayrun.store.commits import format_commit, format_message
from overlayrun.store.landings import Landing, landing_of, note_at
from overlayrun.store.pack import ObjectWriter
from overlayrun.store.refs import (
    RefUpdate,
    approved_ref,
    branch_ref,
    conflict_ref,
    flush_refs,
    from_ref,
    landed_ref,
    parked_ref,
    tip_ref,
    update_refs,
)
from overlayrun.store.repo import Repo
from overlayrun.store.settings import read_settings
from overlayrun.workspace.catalogue import records
from overlayrun.workspace.layout import Layout

_ATTEMPTS: Final = 100
_PAUSE: Final = 0.05  # seconds between them


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of landed commits. waiting: how many the target's own branch does not have yet."""

    target: BranchName
    commit: CommitId
    waiting: int
    held: tuple[Held, ...]


class Ledger:
    """The refs of one target's queue, written."""

    def __init__(self, layout: Layout, repo: Repo, target: BranchName, tell: Callable[[str], object]) -> None:
        """tell: shows the user a sentence about files of his."""
        self._tell = tell
        self._layout = layout
        self._repo = repo
        self._git_dir = repo.git_dir
        self._identity = read_settings(repo.git_dir).identity
        self.target = target

    def settle(self) -> Delivery | None:
        """Finish what an earlier landing left; None where nothing waits.

        The user's own commits come first: where he moved the target elsewhere, what was landed and not yet
        delivered goes back into the queue. Raises RefMoved.
        """
        held = recover_delivery(self._git_dir, self._layout, self._tell)
        tip, main = self._repo.ref(tip_ref(self.target)), self._repo.ref(branch_ref(self.target))
        if main is not None and held:
            return Delivery(self.target, tip or main, waiting(self._repo, self.target), held)
        if tip is None or main is None:
            return None
        if self._repo.is_ancestor(tip, main):
            self._forget_tip(tip)
            return None
        if not self._leads_on(main, tip):
            self._take_back(tip, main)
            return None
        return self.deliver()

    def _leads_on(self, main: CommitId, tip: CommitId) -> bool:
        """Whether the target is where it was when the tip was made, or on the way from there."""
        start = self._repo.ref(from_ref(self.target))
        ahead = self._repo.is_ancestor(main, tip)
        return start is not None and ahead and self._repo.is_ancestor(start, main)

    def _take_back(self, tip: CommitId, main: CommitId) -> None:
        updates = [*self._tip_gone(tip)]
        for record in records(self._layout):
            landing = landing_of(self._repo, record.id, self.target)
            if landing is None or self._repo.is_ancestor(landing.commit, main):
                continue
            if self._repo.is_ancestor(landing.commit, tip) and not self._was_delivered(landing.commit):
                ref = landed_ref(record.id, self.target)
                updates.append(RefUpdate(ref, self._delivered_before(landing), self._repo.ref(ref)))
        update_refs(self._git_dir, updates, why="the target was moved")

    def _delivered_before(self, landing: Landing) -> CommitId | None:
        """The note on an earlier landing that the user has had."""
        at = landing.before
        while at and not self._was_delivered(note_at(self._repo, at).commit):
            at = note_at(self._repo, at).before
        return at

    def _was_delivered(self, commit: CommitId) -> bool:
        start = self._repo.ref(from_ref(self.target))
        return start is not None and self._repo.is_ancestor(commit, start)

    def _tip_gone(self, tip: CommitId) -> Iterator[RefUpdate]:
        yield RefUpdate(tip_ref(self.target), None, tip)
        start = self._repo.ref(from_ref(self.target))
        if start:
            yield RefUpdate(from_ref(self.target), None, start)

    def _forget_tip(self, tip: CommitId) -> None:
        update_refs(self._git_dir, list(self._tip_gone(tip)), why="delivered")

    def land(self, base: CommitId, candidates: Sequence[Candidate]) -> Delivery:
        """Make the last candidate the target's tip, and deliver it. Raises RefMoved; then nothing landed.

        base: what the first stands on. Everything is on the disk before a ref shows it.
        """
        main, tip = self._repo.ref(branch_ref(self.target)), self._repo.ref(tip_ref(self.target))
        last = candidates[-1].commit
        updates = [RefUpdate(tip_ref(self.target), last, base if tip else None)]
        # Asserts that the target has not moved: with a tip it waits, without one it is the base.
        updates.append(RefUpdate(branch_ref(self.target), main if tip else base, main if tip else base))
        if not tip:
            updates.append(RefUpdate(from_ref(self.target), base, None))
        updates += self._landings(candidates)
        self._flush()
        update_refs(self._git_dir, updates, why="land")
        return self._see_home(last)

    def _see_home(self, landed: CommitId) -> Delivery:
        """Deliver what has landed, whoever else is at it. Raises RefMoved where the user's move undoes it."""
        for _ in range(_ATTEMPTS):
            try:
                return self.deliver()
            except RefMoved:
                if not self._is_landed(landed):
                    raise
                time.sleep(_PAUSE)
        return self.deliver()

    def _is_landed(self, commit: CommitId) -> bool:
        tip, main = self._repo.ref(tip_ref(self.target)), self._repo.ref(branch_ref(self.target))
        if main is None or self._repo.is_ancestor(commit, main):
            return main is not None
        return tip is not None and self._repo.is_ancestor(commit, tip) and self._leads_on(main, tip)

    def _landings(self, candidates: Sequence[Candidate]) -> Iterator[RefUpdate]:
        writer = ObjectWriter(self._repo.objects, durable=False)
        for one in candidates:
            yield self._landing(writer, one.item, one.commit)
            for of in (parked_ref, conflict_ref):
                over = of(one.item.record.id, self.target)
                if old := self._repo.ref(over):
                    yield RefUpdate(over, None, old)

    def _landing(self, writer: ObjectWriter, item: Item, commit: CommitId) -> RefUpdate:
        """The note that `commit` brought a branch, on top of the one before."""
        ref = landed_ref(item.record.id, self.target)
        before = self._repo.ref(ref)
        parents = [commit, item.tip, *([before] if before else [])]
        return RefUpdate(ref, self._note(writer, f"Landed {item.branch}", parents), before)

    def note_held(self, base: CommitId, items: Sequence[Item]) -> None:
        """Note of branches that the target has their whole change at `base`. Raises RefMoved."""
        ref = tip_ref(self.target) if self._repo.ref(tip_ref(self.target)) else branch_ref(self.target)
        writer = ObjectWriter(self._repo.objects, durable=False)
        updates = [RefUpdate(ref, base, base), *(self._landing(writer, item, base) for item in items)]
        self._flush()
        update_refs(self._git_dir, updates, why="landed already")

    def _note(self, writer: ObjectWriter, message: str, parents: Sequence[CommitId]) -> CommitId:
        tree = writer.add(b"tree", b"")
        assert tree.hex() == EMPTY_TREE
        data = format_commit(tree, parents, self._identity, int(time.time()), message + "\n")
        oid = writer.add(b"commit", data)
        writer.finish()
        return CommitId(oid.hex())

    def _flush(self) -> None:
        """One syncfs(2) for all that was written since the last: objects first, then refs."""
        flush_disk(self._repo.objects)

    def deliver(self) -> Delivery:
        """Bring the target's own branch, and the files where it is checked out, to the tip.

        Raises RefMoved.
        """
        tip, main = self._repo.ref(tip_ref(self.target)), self._repo.ref(branch_ref(self.target))
        assert main is not None
        if tip is None or tip == main:
            return Delivery(self.target, main, 0, ())
        if not self._leads_on(main, tip):
            raise RefMoved(f"{self.target} was moved by somebody else meanwhile")
        held = deliver(self._git_dir, self._layout, self.target, main, tip, self._tell)
        if held:
            return Delivery(self.target, tip, self._repo.count_first_parents(main, tip), held)
        self._forget_tip(tip)
        return Delivery(self.target, tip, 0, ())

    def park(self, item: Item, note: Note) -> None:
        """Note why a branch does not land as it is; for the commit that it stands at."""
        trailers = {"Standing": note.standing.value} | ({"Log": note.log} if note.log else {})
        writer = ObjectWriter(self._repo.objects)
        parents = [item.tip, target_tip(self._repo, self.target)]
        at = self._note(writer, format_message(note.why, "", trailers).rstrip("\n"), parents)
        ref = parked_ref(item.record.id, self.target)
        update_refs(self._git_dir, [RefUpdate(ref, at, self._repo.ref(ref))], why=note.standing.value)

    def note_conflict(self, item: Item, at: CommitId) -> None:
        """Keep the marked merge of a branch that conflicts now."""
        ref = conflict_ref(item.record.id, self.target)
        old = self._repo.ref(ref)
        if old != at:
            update_refs(self._git_dir, [RefUpdate(ref, at, old)], why="conflict")

    def unpark(self, item: Item) -> None:
        """Forget that note, so that the branch is tried again."""
        ref = parked_ref(item.record.id, self.target)
        if at := self._repo.ref(ref):
            with suppress(RefMoved):  # somebody else forgets it, or has noted something newer
                update_refs(self._git_dir, [RefUpdate(ref, None, at)], why="tried again")


def approve(repo: Repo, item: Item) -> None:
    """Let the branch land as it stands now. Raises RefMoved where somebody else approves it just now."""
    ref = approved_ref(item.record.id)
    update_refs(repo.git_dir, [RefUpdate(ref, item.tip, repo.ref(ref))], why="approve")
    flush_refs(repo.git_dir, [ref])


def unapprove(repo: Repo, item: Item) -> bool:
    """Take that back; whether there was anything to take."""
    ref = approved_ref(item.record.id)
    at = repo.ref(ref)
    if at:
        update_refs(repo.git_dir, [RefUpdate(ref, None, at)], why="unapprove")
    return at is not None


def waiting(repo: Repo, target: BranchName) -> int:
    """How many landed commits the target's own branch does not have yet."""
    tip, main = repo.ref(tip_ref(target)), repo.ref(branch_ref(target))
    if tip is None or main is None or not repo.is_ancestor(main, tip):
        return 0
    return repo.count_first_parents(main, tip)
