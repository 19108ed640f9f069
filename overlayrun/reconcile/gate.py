"""The gate: candidates land once a check has passed on the very tree that they make."""

from __future__ import annotations

import select
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from overlayrun.model import BranchName, CommitId
from overlayrun.reconcile.candidates import Builder, Candidate, Chain
from overlayrun.reconcile.checks import Answer, Checks, Question, Running
from overlayrun.reconcile.events import Event, EventKind
from overlayrun.reconcile.plan import Odds, each_prefix, judge, prefixes
from overlayrun.reconcile.queue import Item

_TICK: Final = 1000  # milliseconds between two calls of `idle` while checks run


@dataclass(slots=True)
class _Way:
    """How far a chain has come.

    onto: the last that landed. left: candidates on top of it, not landed yet. failing: the shortest prefix of
    those that is known to fail. suspect: one that failed right on top of what had landed then; it is asked
    once more, beside the others merged without it. is_proven: something has landed, so the base is sound.
    """

    onto: CommitId
    left: list[Candidate] = field(default_factory=list)
    failing: int | None = None
    suspect: Candidate | None = None
    is_proven: bool = False

    def take(self, chain: Chain) -> None:
        """Go on with another chain on the same base; what is not in it is for the next one."""
        self.left, self.failing = list(chain.candidates), None


class Gate:
    """Checks prefixes of a chain, as many at a time as there are slots, and lands the longest that passes."""

    def __init__(
        self,
        checks: Checks,
        builder: Builder,
        land: Callable[[CommitId, Sequence[Candidate], float], None],
        give_back: Callable[[Item, Answer], None],
        show: Callable[[Event], None],
    ) -> None:
        """land: (what the first stands on, candidates, seconds of their check); may raise RefMoved.

        give_back: told of what failed alone, twice.
        """
        self._checks = checks
        self._builder = builder
        self._land = land
        self._give_back = give_back
        self._show = show
        self._odds = Odds()
        self._running: list[Running] = []

    def through(self, chain: Chain, slots: int, *, each: bool) -> Answer | None:
        """Land all of a chain that passes. Raises RefMoved as `land` does; nothing keeps running then.

        Gives the answer of what the chain stands on, if that fails by itself: then nobody is to blame.
        """
        way = _Way(chain.base)
        way.take(chain)
        while way.left or way.suspect:
            lengths = self._lengths(way, slots - (way.suspect is not None), each=each)
            passed, answers = self._ask(way, lengths)
            verdict = judge(passed, way.failing, each=each)
            way.failing = verdict.failing
            if verdict.lands:
                self._advance(way, way.left[: verdict.lands], answers)
            if way.suspect:
                sick = self._decide(way, way.suspect, answers, stands=not verdict.lands)
                if sick:
                    return sick
            if way.failing == 1:
                way.suspect = way.left[0]
                way.take(self._builder.chain(way.onto, [one.item for one in way.left[1:]]))
        return None

    def _lengths(self, way: _Way, free: int, *, each: bool) -> list[int]:
        if not way.left or not free:
            return []
        if each:
            return each_prefix(len(way.left), free)
        return prefixes(len(way.left), way.failing, free, self._odds.reach(free))

    def _advance(self, way: _Way, landed: list[Candidate], answers: dict[CommitId, Answer]) -> None:
        self._odds = self._odds.after(passed=len(landed), failed=0)
        self._land(way.onto, landed, answers[landed[-1].commit].seconds)
        way.onto, way.left = landed[-1].commit, way.left[len(landed) :]
        way.is_proven = True

    def _decide(
        self, way: _Way, suspect: Candidate, answers: dict[CommitId, Answer], *, stands: bool
    ) -> Answer | None:
        """The second answer decides. stands: what the suspect was merged onto is where we still are.

        Gives the answer of that place itself, if it fails too.
        """
        way.suspect = None
        answer = answers[suspect.commit]
        if answer.passed and stands:
            rest = [one.item for one in way.left]
            self._advance(way, [suspect], answers)
            way.take(self._builder.chain(way.onto, rest))
        elif not answer.passed:
            base = None if way.is_proven else self._ask_base(way.onto, suspect.item.target)
            if base and not base.passed:
                return base
            way.is_proven = True
            self._odds = self._odds.after(passed=0, failed=1)
            self._give_back(suspect.item, answer)
        return None

    def _ask_base(self, commit: CommitId, target: BranchName) -> Answer:
        """How the target itself does: the first that fails may have found it so."""
        question = Question(commit, self._builder.tree_of(commit), (target,))
        known = self._checks.known(question)
        if known:
            return known
        answers: dict[CommitId, Answer] = {}
        try:
            self._start(question)
            self._collect(answers)
        finally:
            self.stop()
        return answers[commit]

    def _start(self, question: Question) -> None:
        self._show(Event(EventKind.CHECKING, question.branches[-1], _checking(question)))
        self._running.append(self._checks.start(question))

    def _ask(self, way: _Way, lengths: list[int]) -> tuple[dict[int, bool], dict[CommitId, Answer]]:
        """By prefix length whether it passed, and every answer by commit."""
        left = way.left
        asked = {left[length - 1].commit: _question(left[:length]) for length in lengths}
        if way.suspect:
            asked[way.suspect.commit] = _question([way.suspect])
        answers: dict[CommitId, Answer] = {}
        try:
            for commit, question in asked.items():
                known = self._checks.known(question)
                if known:
                    answers[commit] = known
                else:
                    self._start(question)
            self._collect(answers)
        finally:
            self.stop()
        return {length: answers[left[length - 1].commit].passed for length in lengths}, answers

    def _collect(self, answers: dict[CommitId, Answer]) -> None:
        waiting = select.poll()
        for running in self._running:
            waiting.register(running.job.fd, select.POLLIN)
        while self._running:
            for fd, _ in waiting.poll(_TICK):
                running = next(one for one in self._running if one.job.fd == fd)
                waiting.unregister(fd)
                self._running.remove(running)
                answer = running.answer()
                answers[running.question.commit] = answer
                self._show(Event(EventKind.CHECKED, answer.branches[-1], _checked(answer)))
            self._show(Event(EventKind.TICK, None, ""))

    def stop(self) -> None:
        """End every check that runs."""
        while self._running:
            self._running.pop().job.end()


def _question(prefix: Sequence[Candidate]) -> Question:
    last = prefix[-1]
    return Question(last.commit, last.tree, tuple(one.item.branch for one in prefix))


def _checking(question: Question) -> str:
    others = len(question.branches) - 1
    more = f" after {others} more" if others else ""
    return f"checking {question.branches[-1]}{more}"


def _checked(answer: Answer) -> str:
    how = f"passed in {answer.seconds:.1f} s" if answer.passed else answer.why
    return f"checked {answer.branches[-1]}: {how}"
