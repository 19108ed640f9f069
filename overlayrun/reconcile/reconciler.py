"""The reconciler: every branch that is ready goes to its target, checked; conflicts are handed on.

All state is in refs: this process may be killed at any moment, and another one may work on the same target
at the same time. A lost compare-and-swap means looking again, and is nobody's error.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, NoReturn, Self

from overlayrun.errors import RefMoved, UsageError
from overlayrun.model import BranchName, CommitId
from overlayrun.reconcile.board import Board
from overlayrun.reconcile.candidates import Builder, Candidate, Chain, Clash, Proposal, propose
from overlayrun.reconcile.checks import Answer, Checks, tail
from overlayrun.reconcile.conflict import Case, write_conflict
from overlayrun.reconcile.door import Ask, Door, Obstacle, Withheld
from overlayrun.reconcile.events import Event, EventKind
from overlayrun.reconcile.gate import Gate
from overlayrun.reconcile.handoff import Handoff, Resolved
from overlayrun.reconcile.land import Delivery, Ledger
from overlayrun.reconcile.queue import Item, Note, Queue, Standing
from overlayrun.reconcile.resolutions import remember
from overlayrun.reconcile.settings import Settings
from overlayrun.recover import recover_all
from overlayrun.store.location import Repository
from overlayrun.store.merger import MergeEngine
from overlayrun.store.refs import branch_ref, tip_ref
from overlayrun.store.repo import Repo
from overlayrun.workspace.catalogue import find_exact
from overlayrun.workspace.layout import Layout
from overlayrun.workspace.record import Record

_TICK: Final = 1.0  # seconds between two looks at the world
_PAUSE: Final = 0.05  # seconds until we look again after somebody else moved a ref
_BEGINS: Final = (EventKind.CHECKING, EventKind.RESOLVING)
_ATTEMPTS: Final = 200
_HELD_AGAIN: Final = 5.0  # seconds until a held delivery is tried again


@dataclass(slots=True)
class Outcome:
    """What a reconciliation came to. delivery: None where nothing landed and nothing waited.

    withheld: of those that were asked for by name.
    """

    landed: list[Candidate] = field(default_factory=list)
    failed: list[tuple[Item, Note]] = field(default_factory=list)
    clashes: list[Clash] = field(default_factory=list)
    withheld: list[Withheld] = field(default_factory=list)
    delivery: Delivery | None = None

    @property
    def is_whole(self) -> bool:
        """Whether everything landed and was delivered."""
        waits = self.delivery is not None and self.delivery.waiting > 0
        return not (self.failed or self.clashes or self.withheld or waits)


@dataclass(frozen=True, slots=True)
class _Hand:
    """A conflict that somebody works on."""

    clash: Clash
    handoff: Handoff


class Reconciler:
    """Brings branches to one target. A context manager that leaves no resolver behind."""

    def __init__(
        self,
        repository: Repository,
        layout: Layout,
        target: BranchName,
        settings: Settings,
        show: Callable[[Event], None],
        ask: Ask | None = None,
    ) -> None:
        """ask: asks the user about files that run code; without it, what he did not approve stays out.

        Raises UsageError for a target that has a workspace: its next snapshot would undo what came by its
        ref alone.
        """
        if find_exact(layout, target) is not None:
            raise UsageError(
                f"{target} is a branch with a workspace: what comes into it must change its files, too",
                hint=f"one branch after another: overlayrun merge BRANCH --into {target}",
            )
        self._repository = repository
        self._layout = layout
        self._settings = settings
        self._tell = show
        self._board = Board(layout, target)
        self._repo = Repo(repository.common_dir)
        self._ledger = Ledger(layout, self._repo, target, self._note)
        self._door = Door(self._repo, settings, ask)
        self._by_name = False
        self._hands: dict[str, _Hand] = {}
        self._proposals: dict[str, Proposal] = {}
        self._resolved: dict[str, Clash] = {}
        self._tried_twice: set[str] = set()
        self.target = target
        self.outcome = Outcome()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hand in self._hands.values():
            hand.handoff.end()
        self._board.close()

    def _show(self, event: Event) -> None:
        """Tell of it, and keep the board right."""
        if event.branch and event.kind in _BEGINS:
            self._board.begin(event.branch, event.kind.value)
        elif event.branch:
            self._board.end(event.branch)
        self._tell(event)

    def _note(self, text: str) -> None:
        self._show(Event(EventKind.NOTE, None, text))

    def reconcile(self) -> Outcome:
        """Bring everything home that is ready, until nothing more lands."""
        return self._until_done(self._ready, fast_forward=False)

    def merge(self, wanted: Sequence[Record]) -> Outcome:
        """Bring these branches home, in this order, whatever was noted of them."""

        def named(queue: Queue) -> list[Item]:
            return [queue.item(record) for record in wanted]

        for item in named(self._queue()):
            self._ledger.unpark(item)
        self._by_name = True
        return self._until_done(named, fast_forward=True)

    def watch(self) -> NoReturn:
        """Go on for ever: bring home what becomes ready, and what was held once it can be delivered."""
        seen: object = None
        while True:
            recover_all(self._repository, self._layout, lambda _: None)
            now = self._picture()
            if now != seen or self._hands:
                self.outcome = Outcome(delivery=self.outcome.delivery)
                self._until_done(self._ready, fast_forward=False)
            seen = now  # from before: what came meanwhile is looked at once more
            time.sleep(_TICK)
            self._show(Event(EventKind.TICK, None, ""))

    def _picture(self) -> object:
        """What a new look could find otherwise: the target, every branch, whether files are in the way."""
        queue = self._queue()
        items = [(item.record.id, item.tip, item.standing) for item in queue.items()]
        main = self._repo.ref(branch_ref(self.target))
        held = self.outcome.delivery is not None and self.outcome.delivery.waiting
        return queue.tip, main, items, held and time.monotonic() // _HELD_AGAIN

    def foresee(self, wanted: Sequence[Record]) -> Chain:
        """What `merge` would do; nothing is moved."""
        queue = self._queue()
        items = [queue.item(record) for record in wanted]
        with MergeEngine(self._repo.git_dir, queue.tip) as engine:
            return self._builder(engine, None, fast_forward=True).chain(queue.tip, self._open(items))

    def _queue(self) -> Queue:
        return Queue(self._layout, self._repo, self.target, self._settings)

    def _ready(self, queue: Queue) -> list[Item]:
        return [item for item in queue.items() if self._is_ready(item)]

    def _is_ready(self, item: Item) -> bool:
        """What waits; and what conflicts, once it is resolved or where there is somebody to do it."""
        can_resolve = self._settings.resolve is not None or item.record.id in self._proposals
        return item.standing is Standing.WAITING or (item.standing is Standing.CONFLICT and can_resolve)

    def _open(self, items: Sequence[Item]) -> list[Item]:
        """Those that are not home yet, and were not given up in this reconciliation."""
        done = {item.record.id for item, _ in self.outcome.failed} | self._hands.keys()
        done |= {clash.item.record.id for clash in self.outcome.clashes}
        done |= {each.item.record.id for each in self.outcome.withheld}
        there = [item for item in items if not item.standing.is_home and not item.is_empty]
        return [item for item in there if item.record.id not in done]

    def _until_done(self, items: Callable[[Queue], list[Item]], *, fast_forward: bool) -> Outcome:
        lost: list[object] = []
        while True:
            try:
                self._tell_delivery(self._ledger.settle(), late=True)
                queue = self._queue()
                wanted = self._open(items(queue))
                if wanted:
                    self._pass(queue.tip, wanted, fast_forward=fast_forward)
                elif not self._hands:
                    return self.outcome
                self._collect(0 if wanted else _TICK)
            except RefMoved:
                lost.append([self._repo.ref(of(self.target)) for of in (tip_ref, branch_ref)])
                if lost.count(lost[-1]) == _ATTEMPTS:  # nobody moves anything: a lock that was left
                    raise
                time.sleep(_PAUSE)

    def _builder(self, engine: MergeEngine, door: Door | None, *, fast_forward: bool) -> Builder:
        mode = self._settings.mode
        return Builder(self._repo, engine, mode, self._proposals, fast_forward=fast_forward, door=door)

    def _pass(self, tip: CommitId, items: Sequence[Item], *, fast_forward: bool) -> None:
        """Land what can be landed now. A pass in which all conflict hands them on.

        tip: where the target stood when the items were looked at.
        """
        with MergeEngine(self._repo.git_dir, tip) as engine:
            builder = self._builder(engine, self._door, fast_forward=fast_forward)
            chain = builder.chain(tip, items)
            for each in chain.withheld:
                self._withhold(each)
            if chain.held:
                self._ledger.note_held(tip, chain.held)
            if not chain.candidates:
                self._hand_on(chain.clashes)
            elif self._settings.check is None:
                self._land(tip, chain.candidates, None)
            else:
                self._gate(builder, chain)

    def _withhold(self, each: Withheld) -> None:
        """Leave a branch out for now; noted, where nobody asked for it by name."""
        if self._by_name:
            self.outcome.withheld.append(each)
            return
        item = each.item
        standing = Standing.UNAPPROVED if each.obstacle is Obstacle.CONSENT else Standing.PARKED
        note = Note(standing, each.why, None)
        self._ledger.park(item, note)
        self.outcome.failed.append((item, note))
        text = f"{item.branch} is {standing.value}: {note.why}"
        self._show(Event(EventKind.PARKED, item.branch, text, {"why": note.why, "log": None}))

    def _gate(self, builder: Builder, chain: Chain) -> None:
        assert self._settings.check is not None
        checks = Checks(self._layout, self._repository.root, self._settings.check, self._settings.timeout)
        gate = Gate(checks, builder, self._land, self._give_back, self._show)
        sick = gate.through(chain, self._settings.slots, each=self._settings.check_each)
        if sick:
            self._blame_target([one.item for one in chain.candidates], sick)

    def _blame_target(self, items: Sequence[Item], answer: Answer) -> None:
        """Nothing is noted of the branches: they are tried again once the target has moved."""
        why = f"{self.target} itself fails the check"
        note = Note(Standing.WAITING, why, answer.log)
        self.outcome.failed += [(item, note) for item in items]
        text = f"nothing lands: {why} ({answer.why}); what it printed: {answer.log}"
        self._show(Event(EventKind.FAILED, None, text, {"why": why, "log": answer.log}))

    def _give_back(self, item: Item, answer: Answer) -> None:
        clash = self._resolved.get(item.record.id)
        if clash and item.record.id not in self._tried_twice and self._settings.resolve:
            self._tried_twice.add(item.record.id)
            del self._proposals[item.record.id]
            self._start(clash, tail(answer.log))
            return
        note = Note(Standing.FAILED, f"{answer.why}, twice", answer.log)
        self._ledger.park(item, note)
        self.outcome.failed.append((item, note))
        text = f"{item.branch} goes back: {note.why}: overlayrun log --checks {item.branch}"
        self._show(Event(EventKind.FAILED, item.branch, text, {"why": note.why, "log": note.log}))

    def _land(self, base: CommitId, candidates: Sequence[Candidate], seconds: float | None) -> None:
        delivery = self._ledger.land(base, candidates)
        for one in candidates:
            self.outcome.landed.append(one)
            self._show(_landed(one, seconds, is_delivered=delivery.waiting == 0))
            clash = self._resolved.pop(one.item.record.id, None)
            if clash:
                remember(self._repo, clash.merged, self._proposals.pop(one.item.record.id).tree)
        self._tell_delivery(delivery)

    def _tell_delivery(self, delivery: Delivery | None, *, late: bool = False) -> None:
        """late: of what an earlier landing left waiting."""
        if delivery is None:
            return
        before, self.outcome.delivery = self.outcome.delivery, delivery
        if delivery.held and before != delivery:
            self._show(_held(delivery))
        elif late and not delivery.held:
            text = f"delivered what had landed: {self.target} is at {delivery.commit[:10]}"
            self._show(Event(EventKind.DELIVERED, None, text, {"commit": delivery.commit}))

    def _hand_on(self, clashes: Sequence[Clash]) -> None:
        """Conflicts with what the target is now: noted, and resolved by others if anybody does."""
        for clash in clashes:
            self._ledger.note_conflict(clash.item, write_conflict(self._repo, self._case(clash, None)))
            count = len(clash.conflicts)
            text = f"{clash.item.branch} conflicts with {self.target} in {count} file{'s' * (count != 1)}"
            self._show(Event(EventKind.CONFLICT, clash.item.branch, text))
            self._start(clash, None)

    def _case(self, clash: Clash, log: str | None) -> Case:
        item = clash.item
        base = clash.base or self._repo.merge_base(clash.onto, item.tip)
        return Case(item.record, self.target, clash.onto, item.tip, base, clash.merged, log)

    def _start(self, clash: Clash, log: str | None) -> None:
        item = clash.item
        if self._settings.resolve:
            text = f"{item.branch}: handed to {self._settings.resolve}"
            self._show(Event(EventKind.RESOLVING, item.branch, text))
        case = self._case(clash, log)
        handoff = Handoff(self._repository, self._layout, case, self._settings)
        self._hands[item.record.id] = _Hand(clash, handoff)

    def _collect(self, seconds: float) -> None:
        """Wait for resolvers, and take what they propose; at once if one has ended."""
        waiting = select.poll()
        for hand in self._hands.values():
            waiting.register(hand.handoff.fd, select.POLLIN)
        ended = {fd for fd, _ in waiting.poll(seconds * 1000)}
        for workspace, hand in list(self._hands.items()):
            if hand.handoff.fd in ended:
                del self._hands[workspace]
                self._take(hand.clash, hand.handoff.result())
        self._show(Event(EventKind.TICK, None, ""))

    def _take(self, clash: Clash, resolution: Resolved) -> None:
        item = clash.item
        if resolution.tree is None:
            self._give_up(clash, resolution)
            return
        self._proposals[item.record.id] = propose(self._repo, clash, resolution.tree)
        self._resolved[item.record.id] = clash
        self._show(Event(EventKind.RESOLVED, item.branch, f"{item.branch}: {resolution.how}"))

    def _give_up(self, clash: Clash, resolution: Resolved) -> None:
        self.outcome.clashes.append(clash)
        if resolution.refused is None:  # there is nobody to resolve it
            return
        item = clash.item
        kept = f"; kept in {resolution.workspace}" if resolution.workspace else ""
        note = Note(Standing.PARKED, f"{resolution.refused}{kept}", resolution.log)
        self._ledger.park(item, note)
        text = f"{item.branch} is parked: {note.why}"
        self._show(Event(EventKind.PARKED, item.branch, text, {"why": note.why, "log": note.log}))


def _landed(one: Candidate, seconds: float | None, *, is_delivered: bool) -> Event:
    files = f"{one.files} file{'s' * (one.files != 1)}"
    checked = "" if seconds is None else f", checked in {seconds:.1f} s"
    where = f"{one.item.target} is at {one.commit[:10]}" if is_delivered else f"as {one.commit[:10]}"
    text = f"branch {one.item.branch} is merged: {where} ({files}{checked})"
    data = {"commit": one.commit, "files": one.files, "seconds": seconds}
    return Event(EventKind.LANDED, one.item.branch, text, data)


def _held(delivery: Delivery) -> Event:
    why = "; ".join(held.why for held in delivery.held)
    count = f"{delivery.waiting} landed commit{'s wait' if delivery.waiting != 1 else ' waits'}"
    text = f"{count}: {why}; clear the way, then: overlayrun reconcile"
    return Event(EventKind.HELD, None, text, {"waiting": delivery.waiting, "why": why})
