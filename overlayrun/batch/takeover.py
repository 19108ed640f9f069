"""Take over what a job without privileges made: its summary and bundles, from a folder that it wrote.

For a job that may publish. Nothing in the folder names a path, a ref or an option here; what it says of
success is that job's word.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from overlayrun.batch.bundles import LARGEST, take_bundle
from overlayrun.batch.layout import AttemptLayout
from overlayrun.batch.publish import Publication
from overlayrun.batch.transcript import one_line
from overlayrun.errors import OverlayrunError, StoreError, UsageError
from overlayrun.masking import mask_text
from overlayrun.model import CommitId
from overlayrun.store.refs import RefUpdate, parse_branch_name, update_refs
from overlayrun.store.repo import Repo

_LARGEST_SUMMARY: Final = 64 << 20
_MOST_TASKS: Final = 10_000
_MOST_ATTEMPTS: Final = 1_000_000
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_VERSION: Final = 1  # of summary.json


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A task that succeeded there. ref: keeps its commits here. problem: why they are not here, else None."""

    publication: Publication
    ref: str
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class _Row:
    """What the summary says of a task. path: of its bundle."""

    publication: Publication
    ref: str
    path: str


def import_bundles(
    directory: str, git_dir: str, target: str, *, largest: int = LARGEST, total: int = 4 * LARGEST
) -> tuple[Received, ...]:
    """Bring in the commits of each task that succeeded, of judged ones the winners', by its attempt's ref.

    directory: a report with bundles, as `--bundle` and `--report` write it. target: revision; what a task
    was made from must be in its history, or be what another task that came in made. largest, total: bytes of
    one bundle and of all. Refs that are there do not move. One task's fault is its `problem` alone.
    Raises UsageError for a folder without a summary that can be read.
    """
    repo = Repo(git_dir)
    taking = _Taking(repo, repo.resolve(target), largest, total)
    left = list(_rows(os.path.realpath(directory)))
    found: dict[str, Received] = {}
    while ready := [row for row in left if taking.knows(row.publication.base)]:
        left = [row for row in left if row not in ready]
        found |= {row.ref: taking.take(row) for row in ready}
    for row in left:
        words = f"its base {row.publication.base[:10]} is not in the history of {target}"
        found[row.ref] = Received(publication=row.publication, ref=row.ref, problem=words)
    return tuple(found.values())


class _Taking:
    """Bundles that come in, one after another."""

    def __init__(self, repo: Repo, target: CommitId, largest: int, left: int) -> None:
        self._repo = repo
        self._target = target
        self._largest = largest
        self._left = left
        self._taken: set[str] = set()

    def knows(self, base: str) -> bool:
        """Whether work on this commit may come in."""
        if base in self._taken:
            return True
        return self._repo.has(bytes.fromhex(base)) and self._is_in_history(base)

    def _is_in_history(self, base: str) -> bool:
        try:
            commit = self._repo.commit(base).id
        except StoreError:  # it is a tree or a blob
            return False
        return self._repo.is_ancestor(commit, self._target)

    def take(self, row: _Row) -> Received:
        """Bring one in; its fault is a value."""
        problem = None
        try:
            self._bring(row)
            self._taken.add(row.publication.tip)
        except OverlayrunError as err:
            problem = one_line(f"{err.brief}: {err.details}" if err.details else err.brief)
        return Received(publication=row.publication, ref=row.ref, problem=problem)

    def _bring(self, row: _Row) -> None:
        tip, now = row.publication.tip, self._repo.ref(row.ref)
        if now is not None:
            if now != tip:
                raise StoreError(f"{row.ref} holds another commit already: {now[:10]}")
            return
        if os.path.realpath(row.path) != row.path:
            raise StoreError("its bundle is a link, or lies below one")
        size = os.path.getsize(row.path) if os.path.exists(row.path) else 0
        if size > self._left:
            raise StoreError("the bundles are larger than all of them may be")
        self._left -= size
        take_bundle(self._repo, row.path, tip, row.publication.base, limit=self._largest)
        update_refs(self._repo.git_dir, [RefUpdate(row.ref, CommitId(tip), None)], why="batch")


def _rows(directory: str) -> Iterator[_Row]:
    """Tasks of a summary that succeeded and made something; what is no such thing is passed over."""
    summary = _read(f"{directory}/summary.json")
    run, tasks = summary.get("run"), summary.get("tasks")
    if summary.get("schema") != _VERSION or not isinstance(tasks, list) or not _is_part(run):
        raise UsageError(f"not the summary of a batch, or of another version: {directory}/summary.json")
    seen = set()
    for task in tasks[:_MOST_TASKS]:
        row = _row(directory, str(run), task) if isinstance(task, dict) else None
        if row and row.ref not in seen:
            seen.add(row.ref)
            yield row


def _row(directory: str, run: str, task: dict[str, Any]) -> _Row | None:
    attempts, name = task.get("attempts"), task.get("id")
    last = attempts[-1] if isinstance(attempts, list) and attempts else None
    if not isinstance(last, dict) or task.get("succeeded") is not True or task.get("winner") is False:
        return None
    number, base, tip = (last.get(each) for each in ("attempt", "base", "tip"))
    if not (_is_part(name) and _is_number(number) and _are_commits(base, tip)):
        return None
    detail = task.get("detail")
    publication = Publication(
        task=str(name),
        base=str(base),
        tip=str(tip),
        title=f"Batch {run}: {name}",
        body=mask_text(detail[:10_000]) if isinstance(detail, str) else "",
    )
    place = AttemptLayout(f"{directory}/tasks/{name}/{number}")
    return _Row(publication, f"refs/overlayrun/attempts/{run}/{name}/{number}", place.bundle)


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            data = json.loads(file.read(_LARGEST_SUMMARY))
    except (OSError, ValueError, RecursionError) as err:
        raise UsageError(f"no summary of a batch can be read: {path}", details=str(err)) from err
    return data if isinstance(data, dict) else {}


def _is_part(text: object) -> bool:
    """Whether it may be a part of a ref and of a path."""
    try:
        return isinstance(text, str) and "/" not in parse_branch_name(text)
    except UsageError:
        return False


def _is_number(value: object) -> bool:
    return type(value) is int and 0 < value < _MOST_ATTEMPTS


def _are_commits(*values: object) -> bool:
    return all(isinstance(value, str) and _COMMIT.fullmatch(value) for value in values)
