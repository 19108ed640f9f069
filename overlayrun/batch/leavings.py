"""What an attempt leaves: its branch, its workspace, and the ref that keeps what it made.

A task's branch is its last attempt's. Before the next one takes the name, what is there is kept by a ref of
its own, which never moves.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from overlayrun.batch.task import Attempt, Task
from overlayrun.errors import UsageError
from overlayrun.files import read_bytes, write_whole
from overlayrun.model import CommitId
from overlayrun.prepare import is_new
from overlayrun.recover import recover
from overlayrun.removal import drop
from overlayrun.store.git import git
from overlayrun.store.location import Repository
from overlayrun.store.refs import RefUpdate, branch_ref
from overlayrun.store.repo import Repo
from overlayrun.workspace.catalogue import find_exact
from overlayrun.workspace.layout import Layout
from overlayrun.workspace.lock import lock, unlock
from overlayrun.workspace.record import Record

_SHOWN: Final = 10
Tell = Callable[[str], None]


def refuse_taken(repository: Repository, tasks: Sequence[Task]) -> None:
    """Raise UsageError where new tasks can't have their branches: all of them at once, before any starts."""
    listed = git(
        ["for-each-ref", "--format=%(refname:lstrip=2)", "refs/heads"], git_dir=repository.common_dir
    )
    there = set(os.fsdecode(listed).splitlines())
    above = {name[:at]: name for name in there for at, letter in enumerate(name) if letter == "/"}
    faults = [fault for task in tasks if (fault := _taken(task, there, above))]
    if faults:
        more = [f"and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
        raise UsageError(
            f"branches of {len(faults)} task{'s' * (len(faults) != 1)} can't be made",
            details="\n".join(faults[:_SHOWN] + more),
            hint="give them others, as in: --branch 'batch/{run}/{id}'",
        )


def _taken(task: Task, there: Collection[str], above: Mapping[str, str]) -> str | None:
    """Why a task can't have its branch. above: a branch below each name that git keeps as a directory."""
    if task.branch in there:
        return f"{task.id}: branch {task.branch} exists already"
    parents = [task.branch[:at] for at, letter in enumerate(task.branch) if letter == "/"]
    other = above.get(task.branch) or next((name for name in parents if name in there), None)
    return other and f"{task.id}: branch {task.branch} can't be beside {other}: git allows only one of them"


def free_branch(repository: Repository, layout: Layout, attempt: Attempt, tell: Tell) -> None:
    """Make the branch's name free for an attempt: what an earlier one made is kept by that one's own ref.

    Its workspace is dropped. Raises UsageError where the name belongs to anything else, OverlayrunError where
    what it holds can't be kept: then nothing is dropped.
    """
    if is_new(repository, attempt.task.branch):
        return
    record = find_exact(layout, attempt.task.branch)
    if record is None:
        return
    place = layout.workspace(record.id)
    held = lock(place.lock)
    try:
        ref = _mark_of(place.attempt)
        # Killed before it began; a whole tree is never empty, and without a run nothing has changed it.
        if not ref and record.last_run is None and (record.is_whole or not os.listdir(place.upper)):
            ref = attempt.ref
        if not ref.startswith(attempt.ref.rpartition("/")[0] + "/"):
            raise UsageError(
                f"branch {record.branch} has a workspace that is no attempt's of this task",
                hint=f"give the task another branch, or: overlayrun rm {record.branch}",
            )
        _keep_branch(repository, layout, record, ref, tell)
        drop(layout, record, branch=True)
    finally:
        unlock(held)


def keep_left(repository: Repository, layout: Layout, attempt: Attempt, tell: Tell) -> CommitId | None:
    """Keep what an attempt that was killed has left, by its ref; None where it made nothing.

    Raises WorkspaceBusy while something of it lives, OverlayrunError where its snapshot can't be taken.
    """
    kept = Repo(repository.common_dir).ref(attempt.ref)
    record = find_exact(layout, attempt.task.branch)
    if kept is not None or record is None:
        return kept
    place = layout.workspace(record.id)
    if os.path.exists(place.attempt) and not _mark_of(place.attempt):
        # A power cut emptied it, which only the last attempt's had to fear; the next one goes by it.
        write_whole(place.attempt, attempt.ref.encode(), durable=True)
    if _mark_of(place.attempt) != attempt.ref:
        return None
    held = lock(place.lock)
    try:
        return _keep_branch(repository, layout, record, attempt.ref, tell)
    finally:
        unlock(held)


def _keep_branch(
    repository: Repository, layout: Layout, record: Record, ref: str, tell: Tell
) -> CommitId | None:
    """Let `ref` keep a workspace's work, whose lock the caller holds; None for a branch still at its base."""
    record = Record.load(layout.workspace(record.id).record)
    recover(repository, layout, record, tell)
    repo = Repo(record.common_dir)
    tip = repo.ref(branch_ref(record.branch))
    if tip is None or tip == record.base:
        return None
    kept = repo.ref(ref)
    if kept is None:
        keep(record.common_dir, ref, tip)
    elif kept != tip and not repo.is_ancestor(tip, kept):
        raise UsageError(
            f"branch {record.branch} holds work that came after its attempt",
            hint=f"give it a name: git branch NEW-NAME {record.branch}, then: overlayrun rm {record.branch}",
        )
    return tip


def keep(git_dir: str, ref: str, tip: CommitId) -> None:
    """Make an attempt's ref. Raises RefMoved where it is there: it never moves."""
    Repo(git_dir).move_refs([RefUpdate(ref, tip, None)], why="attempt")


def _mark_of(path: str) -> str:
    try:
        return read_bytes(path).decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
