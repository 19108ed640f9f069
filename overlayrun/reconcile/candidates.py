"""Merge branches one after another onto a target's tip: the chain of commits that may land."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from overlayrun.incoming import Incoming, incoming
from overlayrun.model import CommitId, TreeId
from overlayrun.reconcile.door import Door, Withheld
from overlayrun.reconcile.queue import Item
from overlayrun.reconcile.settings import LandingMode
from overlayrun.store.commits import format_commit
from overlayrun.store.git import git
from overlayrun.store.merger import Conflict, Merged, MergeEngine
from overlayrun.store.pack import ObjectWriter
from overlayrun.store.repo import CommitInfo, Repo
from overlayrun.store.settings import read_settings


@dataclass(frozen=True, slots=True)
class Candidate:
    """A commit that brings one branch to the target. incoming: how that differs from what it stands on."""

    item: Item
    commit: CommitId
    tree: TreeId
    incoming: Incoming

    @property
    def files(self) -> int:
        """How many it changes."""
        return self.incoming.files


@dataclass(frozen=True, slots=True)
class Clash:
    """A branch that conflicts with `onto`. base: what the merge began from, None for the merge base."""

    item: Item
    onto: CommitId
    base: CommitId | None
    merged: Merged

    @property
    def conflicts(self) -> tuple[Conflict, ...]:
        """Sorted by path."""
        return self.merged.conflicts


@dataclass(frozen=True, slots=True)
class Chain:
    """Candidates, each on the one before, and what stayed out.

    held: what the tip had already. withheld: what was not let through.
    """

    base: CommitId
    candidates: tuple[Candidate, ...]
    clashes: tuple[Clash, ...]
    held: tuple[Item, ...]
    withheld: tuple[Withheld, ...]


@dataclass(frozen=True, slots=True)
class Proposal:
    """A resolved merge of `source`: `commit` stands on `onto` and holds the result."""

    source: CommitId
    onto: CommitId
    commit: CommitId
    tree: TreeId


def propose(repo: Repo, clash: Clash, tree: TreeId) -> Proposal:
    """Note how a conflict was resolved, as a commit with both parents; flushed."""
    message = f"Merge branch '{clash.item.branch}' into {clash.item.target}\n"
    identity = read_settings(repo.git_dir).identity
    parents = [clash.onto, clash.item.tip]
    with ObjectWriter(repo.objects) as writer:
        data = format_commit(bytes.fromhex(tree), parents, identity, int(time.time()), message)
        oid = writer.add(b"commit", data)
        writer.finish()
    return Proposal(clash.item.tip, clash.onto, CommitId(oid.hex()), tree)


class Builder:
    """Writes candidates. They are not flushed to the disk: whoever moves a ref to one does that first."""

    def __init__(
        self,
        repo: Repo,
        engine: MergeEngine,
        mode: LandingMode,
        proposals: Mapping[str, Proposal],
        *,
        fast_forward: bool,
        door: Door | None,
    ) -> None:
        """fast_forward: a target that has nothing which the branch lacks becomes the branch.

        proposals, by workspace id: how conflicts were resolved. door: None to let everything through.
        """
        self._repo = repo
        self._engine = engine
        self._mode = mode
        self._proposals = proposals
        self._fast_forward = fast_forward
        self._door = door
        self._identity = read_settings(repo.git_dir).identity
        self._writer = ObjectWriter(repo.objects, durable=False)

    def tree_of(self, commit: CommitId) -> TreeId:
        """Tree of a commit."""
        return self._repo.tree_of(commit)

    def chain(self, base: CommitId, items: Sequence[Item]) -> Chain:
        """Merge what can be merged, and may be; else a branch is taken out of the chain at once."""
        candidates: list[Candidate] = []
        clashes: list[Clash] = []
        held: list[Item] = []
        withheld: list[Withheld] = []
        onto = base
        for item in items:
            made = self.candidate(onto, item)
            if isinstance(made, Clash):
                clashes.append(made)
            elif made is None:
                # What only a candidate has is not on the target yet: the next chain tells.
                held += [item] if onto == base else []
            elif refused := self._refused(made):
                withheld.append(refused)
            else:
                candidates.append(made)
                onto = made.commit
        return Chain(base, tuple(candidates), tuple(clashes), tuple(held), tuple(withheld))

    def _refused(self, made: Candidate) -> Withheld | None:
        if self._door is None:
            return None
        return self._door.withheld(
            made.item, made.incoming, is_resolved=self._proposal(made.item) is not None
        )

    def _proposal(self, item: Item) -> Proposal | None:
        """How a conflict of what the branch stands for now was resolved."""
        proposal = self._proposals.get(item.record.id)
        return proposal if proposal and proposal.source == item.tip else None

    def candidate(self, onto: CommitId, item: Item) -> Candidate | Clash | None:
        """One branch on top of `onto`; None where that has the whole change already."""
        if self._fast_forward and self._can_forward(onto, item):
            return self._made(item, onto, item.tip)
        proposal = self._proposal(item)
        if proposal:
            return self._proposed(onto, item, proposal)
        merged = self._engine.merge(onto, item.tip, item.base)
        if not merged.is_clean:
            return Clash(item, onto, item.base, merged)
        again = None
        if self._mode is LandingMode.REBASE and item.base is None:
            again = self._rebased(onto, item, merged.tree)
        return self._made(item, onto, again) if again else self._merged(onto, item, merged.tree)

    def _proposed(self, onto: CommitId, item: Item, proposal: Proposal) -> Candidate | Clash | None:
        """A resolved merge; where the target has moved on meanwhile, merged with that once more."""
        if proposal.onto == onto:
            return self._merged(onto, item, proposal.tree)
        merged = self._engine.merge(onto, proposal.commit, proposal.onto)
        if not merged.is_clean:
            return Clash(item, onto, item.base, self._engine.merge(onto, item.tip, item.base))
        return self._merged(onto, item, merged.tree)

    def _merged(self, onto: CommitId, item: Item, tree: TreeId) -> Candidate | None:
        """The commit that brings a branch as `tree`; with both parents, unless only its change is to land."""
        alone = item.is_own_only or self._mode is not LandingMode.MERGE
        if alone and tree == self._repo.tree_of(onto):
            return None
        parents = [onto] if alone else [onto, item.tip]
        message = self._own_message(item) if alone else f"Merge branch '{item.branch}' into {item.target}\n"
        return self._made(item, onto, self._commit(tree, parents, message))

    def _can_forward(self, onto: CommitId, item: Item) -> bool:
        ordinary = self._mode is LandingMode.MERGE and not item.is_own_only
        return ordinary and self._repo.is_ancestor(onto, item.tip)

    def _made(self, item: Item, onto: CommitId, commit: CommitId) -> Candidate:
        tree = self._repo.tree_of(commit)
        return Candidate(item, commit, tree, incoming(self._repo, self._repo.tree_of(onto), tree))

    def _own_message(self, item: Item) -> str:
        """The message of a branch with one commit; of several, all of them below each other."""
        commits = list(self._own_commits(item))
        if len(commits) == 1:
            return commits[0].message
        listed = "\n\n".join(f"* {commit.message.strip()}" for commit in commits)
        return f"{item.branch}: {len(commits)} commits\n\n{listed}\n"

    def _own_commits(self, item: Item) -> Iterator[CommitInfo]:
        """Commits of the branch that the target does not have, oldest first, without merges."""
        start = item.base or item.record.base
        without = [f"^{commit}" for commit in (start, item.record.base) if commit]
        words = ["rev-list", "--reverse", "--topo-order", "--no-merges", item.tip, *without]
        for line in git(words, git_dir=self._repo.git_dir).decode().split():
            yield self._repo.commit(line)

    def _rebased(self, onto: CommitId, item: Item, tree: TreeId) -> CommitId | None:
        """Each commit of the branch again on top of `onto`, with its own message.

        None where that does not come to `tree`, its merge: a commit conflicts alone, a merge of the branch's
        own would be lost, or nothing is new. Such a branch lands as one commit.
        """
        at = onto
        for commit in self._own_commits(item):
            if self._repo.is_ancestor(commit.id, onto):
                continue
            merged = self._engine.merge(at, commit.id, commit.parents[0] if commit.parents else None)
            if not merged.is_clean:
                return None
            if merged.tree != self._repo.tree_of(at):
                at = self._commit(merged.tree, [at], commit.message)
        return None if at == onto or self._repo.tree_of(at) != tree else at

    def _commit(self, tree: TreeId, parents: list[CommitId], message: str) -> CommitId:
        data = format_commit(bytes.fromhex(tree), parents, self._identity, int(time.time()), message)
        oid = self._writer.add(b"commit", data)
        self._writer.finish()
        return CommitId(oid.hex())
