"""Make a conflict smaller: merge a branch's snapshots one by one.

The states of the branch are the base of the merge, each snapshot taken since, oldest first, and the branch's
commit. Each step merges one state into what the target has become, with the state before as base. Where all
steps are clean, the result is a proposal like any other and is judged as one; where a step conflicts in less
than the whole did, that step can be handed to a resolver, and the rest follows after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from overlayrun.model import CommitId, TreeId
from overlayrun.reconcile.acceptance import Proposal, judge, lines_of, read_blocks
from overlayrun.reconcile.conflict import Case
from overlayrun.reconcile.paths import entry_at
from overlayrun.reconcile.resolvers import sides_of
from overlayrun.store.commits import format_commit
from overlayrun.store.compare import Objects
from overlayrun.store.merger import Merged, MergeEngine
from overlayrun.store.repo import Repo, SnapshotInfo
from overlayrun.store.trees import EXECUTABLE, FILE


@dataclass(frozen=True, slots=True)
class Replayed:
    """How far a replay came: one of tree and step is there.

    tree: the accepted result. step: the conflict to resolve before it can go on. rest: states after it.
    declared: paths outside any conflict that resolvers of earlier steps changed.
    """

    tree: TreeId | None
    step: Case | None
    rest: tuple[CommitId, ...] = ()
    declared: tuple[bytes, ...] = field(default=())


def replay(engine: MergeEngine, repo: Repo, case: Case) -> Replayed | None:
    """Merge the branch step by step; None where that leaves no less to resolve than the whole merge."""
    states = _states(repo, case)
    if len(states) < 3:
        return None
    return _go_on(engine, repo, case, Replayed(repo.tree_of(case.tip), None, tuple(states)))


def resume(
    engine: MergeEngine, repo: Repo, case: Case, before: Replayed, tree: TreeId, declared: tuple[bytes, ...]
) -> Replayed | None:
    """Go on after `before.step` was resolved as `tree`; declared: what its resolver changed besides."""
    assert before.step is not None
    states = (before.step.source, *before.rest)
    return _go_on(engine, repo, case, Replayed(tree, None, states, (*before.declared, *declared)))


def _go_on(engine: MergeEngine, repo: Repo, case: Case, at: Replayed) -> Replayed | None:
    """at.tree: what the target has become; at.rest: the state that it holds, and those that follow."""
    tree = at.tree
    assert tree is not None
    for number, (base, source) in enumerate(zip(at.rest, at.rest[1:], strict=False)):
        tip = _stand_in(repo, tree)
        merged = engine.merge(tip, source, base)
        if not merged.is_clean:
            if extent(repo, merged) >= extent(repo, case.merged):
                return None
            step = Case(case.record, case.target, tip, source, base, merged, case.log, case)
            return Replayed(None, step, at.rest[number + 2 :], at.declared)
        tree = merged.tree
    proposal = Proposal(tree, at.declared)
    refused = judge(repo, case.merged, sides_of(repo, case), proposal).refused
    return None if refused else Replayed(tree, None, (), at.declared)


def extent(objects: Objects, merged: Merged) -> tuple[int, int]:
    """How much there is to resolve: conflicted paths, then lines in marker blocks."""
    paths = [conflict.path for conflict in merged.conflicts if conflict.stages]
    return len(paths), sum(_block_lines(objects, merged.tree, path) for path in paths)


def _block_lines(objects: Objects, tree: TreeId, path: bytes) -> int:
    entry = entry_at(objects, tree, path)
    if entry is None or entry[0] not in (FILE, EXECUTABLE):
        return 0
    content = objects.read_blob(entry[1].hex())
    marked = read_blocks(content)
    return 0 if marked is None else len(lines_of(content)) - len(marked.outside)


def _states(repo: Repo, case: Case) -> list[CommitId]:
    """Commits of the states in order; one that changes no file is left out."""
    found = [case.base]
    for commit in (*_snapshots(repo, case), case.source):
        if repo.tree_of(commit) != repo.tree_of(found[-1]):
            found.append(commit)
    return found


def _snapshots(repo: Repo, case: Case) -> list[CommitId]:
    """Snapshots between the base and the branch's commit, oldest first."""
    newest_first = list(repo.snapshots(case.record.id))
    tips = [snapshot.tip for snapshot in newest_first]
    later = tips.index(case.source) if case.source in tips else 0
    since = _since_base(repo, case, newest_first[later:])
    return [snapshot.commit for snapshot in since][::-1]


def _since_base(repo: Repo, case: Case, newest_first: list[SnapshotInfo]) -> Iterator[SnapshotInfo]:
    """Down to the first whose commit does not hold the base, as one before a sync with the target."""
    for snapshot in newest_first:
        on_base = snapshot.tip is not None and repo.is_ancestor(case.base, snapshot.tip)
        if not on_base and case.base != case.record.dirty:
            return
        yield snapshot


def _stand_in(repo: Repo, tree: TreeId) -> CommitId:
    """A commit of a tree that nothing refers to."""
    return repo.write_commit(format_commit(bytes.fromhex(tree), [], b"overlayrun <>", 0, "for one merge\n"))
