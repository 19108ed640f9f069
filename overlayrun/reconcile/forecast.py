"""Which branches would conflict with the target, and with each other, if they were merged now.

Answers are kept by the commits that they are about, so that looking again costs what has changed since.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

from overlayrun.errors import OverlayrunError, StoreError
from overlayrun.files import write_whole
from overlayrun.model import BranchName, CommitId
from overlayrun.reconcile.queue import Item, Queue
from overlayrun.reconcile.settings import Settings
from overlayrun.store.compare import changed_paths
from overlayrun.store.merger import Conflict, MergeEngine
from overlayrun.store.repo import Repo
from overlayrun.workspace.layout import Layout
from overlayrun.workspace.lock import lock

_WORKERS: Final = min(4, os.cpu_count() or 1)
_VERSION: Final = 1
_OLDER: Final = 1000  # answers
Answer = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Forecast:
    """Two that were merged for trial. other: None for the target. conflicts: (path, kind), by path."""

    branch: str
    other: str | None
    conflicts: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class _Change:
    """What a branch changed. paths: all; loses: it deleted or moved something."""

    item: Item
    paths: frozenset[bytes]
    loses: bool


@dataclass(frozen=True, slots=True)
class _Pair:
    """What to merge for trial. key: by which the answer is kept."""

    one: Item
    other: Item | None
    key: str


def forecast(
    layout: Layout,
    repo: Repo,
    queue: Queue,
    *,
    about: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Forecast]:
    """Every pair that would conflict. about: pairs with this branch alone. progress: (done, of how many)."""
    changes = [_change(repo, item) for item in queue.items() if not item.standing.is_home]
    pairs = list(_pairs(queue, changes, about))
    known = _load(layout)
    missing = [pair for pair in pairs if pair.key not in known]
    answers = known | dict(_ask(repo, queue.tip, missing, progress))
    if missing:
        _save(layout, answers, {pair.key for pair in _pairs(queue, changes, None)})
    return [
        Forecast(pair.one.branch, pair.other.branch if pair.other else None, tuple(answers[pair.key]))
        for pair in pairs
        if answers.get(pair.key)
    ]


class Known:
    """Answers that are kept, for who does not want to wait for the others."""

    def __init__(self, layout: Layout) -> None:
        self._answers = _load(layout)

    def paths(self, target: CommitId | None, source: CommitId | None) -> int | None:
        """How many paths of a branch conflict with the target; None where nobody has looked yet."""
        answer = self._answers.get(_key(target, source)) if target and source else None
        return None if answer is None else len(answer)

    def others(self, source: CommitId | None, others: Iterable[CommitId]) -> int:
        """With how many of the others a branch conflicts, as far as anybody has looked."""
        keys = (key for other in others if source for key in (_key(source, other), _key(other, source)))
        return sum(1 for key in keys if self._answers.get(key))


def refresh_in_background(layout: Layout, git_dir: str, targets: Iterable[BranchName]) -> None:
    """Look at everything anew in a process of its own, at low priority, one at a time."""
    if os.fork():
        return
    try:
        os.setsid()
        os.nice(10)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(null, stream)
        with suppress(OverlayrunError):
            held = lock(f"{layout.root}/forecast.lock")
            repo = Repo(git_dir)
            for target in targets:
                forecast(layout, repo, Queue(layout, repo, target, Settings()))
            os.close(held)
    finally:
        os._exit(0)


def _change(repo: Repo, item: Item) -> _Change:
    start = item.base or item.record.base
    found = list(changed_paths(repo, repo.tree_of(start), repo.tree_of(item.tip)))
    loses = any(change.after is None for change in found)
    return _Change(item, frozenset(change.path for change in found), loses)


def _key(one: CommitId, other: CommitId) -> str:
    return f"{one} {other}"


def _pairs(queue: Queue, changes: Sequence[_Change], about: str | None) -> Iterator[_Pair]:
    for change in changes:
        if about in (None, change.item.branch):
            yield _Pair(change.item, None, _key(queue.tip, change.item.tip))
    for one, other in combinations(changes, 2):
        if about in (None, one.item.branch, other.item.branch) and _may_conflict(one, other):
            first, second = (one, other) if about != other.item.branch else (other, one)
            yield _Pair(first.item, second.item, _key(first.item.tip, second.item.tip))


def _may_conflict(one: _Change, other: _Change) -> bool:
    """False only where nothing was moved and no path of one is, or lies below, a path of the other."""
    if one.loses or other.loses:
        return True
    above = [_with_directories(change.paths) for change in (one, other)]
    return bool(one.paths & above[1] or other.paths & above[0])


def _with_directories(paths: frozenset[bytes]) -> set[bytes]:
    found = set(paths)
    for path in paths:
        directory = path.rpartition(b"/")[0]
        while directory and directory not in found:
            found.add(directory)
            directory = directory.rpartition(b"/")[0]
    return found


def _ask(
    repo: Repo, tip: CommitId, pairs: Sequence[_Pair], progress: Callable[[int, int], None]
) -> Iterator[tuple[str, Answer]]:
    """Merge every pair, with an engine for each processor."""
    if not pairs:
        return
    shares = [pairs[number::_WORKERS] for number in range(_WORKERS)]
    done = 0
    with ThreadPoolExecutor(_WORKERS) as pool:
        for share in pool.map(lambda share: list(_merge(repo.git_dir, tip, share)), _chunks(shares)):
            done += len(share)
            progress(done, len(pairs))
            yield from share


def _chunks(shares: Sequence[Sequence[_Pair]]) -> Iterator[Sequence[_Pair]]:
    """Pieces small enough for progress, large enough for an engine of their own."""
    for share in shares:
        for start in range(0, len(share), 100):
            yield share[start : start + 100]


def _merge(git_dir: str, tip: CommitId, pairs: Sequence[_Pair]) -> Iterator[tuple[str, Answer]]:
    with MergeEngine(git_dir, tip) as engine:
        for pair in pairs:
            target = pair.other.tip if pair.other else tip
            base = pair.one.base if pair.other is None else None
            with suppress(StoreError):  # no common history: there is nothing to foresee
                yield pair.key, _shown(engine.merge(target, pair.one.tip, base).conflicts)


def _shown(conflicts: Sequence[Conflict]) -> Answer:
    return [(os.fsdecode(conflict.path), conflict.kind) for conflict in conflicts]


def _path(layout: Layout) -> str:
    return f"{layout.root}/forecast.json"


def _load(layout: Layout) -> dict[str, Answer]:
    try:
        with open(_path(layout), encoding="utf-8", errors="surrogateescape") as file:
            data: dict[str, Any] = json.load(file)
        if data["version"] != _VERSION:
            return {}
        return {key: [(path, kind) for path, kind in answer] for key, answer in data["answers"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _save(layout: Layout, answers: dict[str, Answer], current: set[str]) -> None:
    """Keep what is about commits that branches stand at now, and some of the rest: of other targets."""
    older = [key for key in answers if key not in current][-_OLDER:]
    kept = {key: answer for key, answer in answers.items() if key in current or key in older}
    data = json.dumps({"version": _VERSION, "answers": kept}).encode()
    with suppress(OSError):
        write_whole(_path(layout), data, durable=False)
