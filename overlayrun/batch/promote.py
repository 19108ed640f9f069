"""Make a task's branch in the user's repository from what an attempt made on another host.

Only a coordinator does this, for the one attempt that it still waits for: a late result of another has its
ref and nothing more. On disk the workspace begins as a record and refs, as a fork does: its upper layer is
written when somebody first opens it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Final

from overlayrun.batch.leavings import free_branch
from overlayrun.batch.run_options import options_of
from overlayrun.batch.task import Attempt
from overlayrun.errors import OverlayrunError, StoreError, UsageError
from overlayrun.files import write_whole
from overlayrun.model import CommitId, DirtyPolicy, RunOptions, SnapshotReason
from overlayrun.prepare import Prepared, open_or_make
from overlayrun.removal import drop
from overlayrun.store.commits import format_commit, format_message, parse_trailers
from overlayrun.store.location import Repository
from overlayrun.store.refs import RefUpdate, branch_ref, snapshots_ref
from overlayrun.store.repo import Repo
from overlayrun.store.settings import read_settings
from overlayrun.workspace.layout import Layout
from overlayrun.workspace.record import UNFILLED

# What an attempt was asked for on its host, and means nothing here.
_ITS_HOSTS: Final[dict[str, Any]] = {"dirty": DirtyPolicy.IGNORE, "bind_ro": (), "bind_rw": ()}


def promote(
    repository: Repository,
    layout: Layout,
    options: RunOptions,
    attempt: Attempt,
    tip: CommitId | None,
    tell: Callable[[str], None],
) -> None:
    """Let the attempt's branch stand at `tip`, with a workspace as if it had been made here.

    tip: verified and kept by the attempt's ref; None for nothing changed. What an earlier attempt of the task
    had is kept by its own ref and taken away. Raises UsageError where the branch is somebody else's,
    StoreError, HostError.
    """
    repo = Repo(repository.common_dir)
    free_branch(repository, layout, attempt, tell)
    wanted = RunOptions(**{**vars(options_of(options, attempt)), **_ITS_HOSTS})
    prepared = open_or_make(repository, layout, wanted, attempt.task.command, tell)
    try:
        if prepared.resumed:  # made by somebody else between the look and now
            raise UsageError(f"branch {attempt.task.branch} was taken meanwhile")
        _stand(repo, layout, prepared, attempt, tip)
    except OSError as err:
        raise StoreError(f"branch {attempt.task.branch} can't be written: {err.strerror}") from err
    finally:
        os.close(prepared.lock)


def _stand(repo: Repo, layout: Layout, prepared: Prepared, attempt: Attempt, tip: CommitId | None) -> None:
    """Move a new workspace, empty so far, on to what the attempt made."""
    record = prepared.record
    place = layout.workspace(record.id)
    record.inode = UNFILLED
    try:
        write_whole(place.attempt, attempt.ref.encode(), durable=False)
        # First the record: a workspace whose making is killed in between begins at its base.
        record.save(place.record)
        if tip is not None:
            moves = [
                RefUpdate(branch_ref(record.branch), tip, record.base),
                RefUpdate(snapshots_ref(record.id), _snapshot(repo, attempt, tip), None),
            ]
            repo.move_refs(moves, why="attempt")
    except (OverlayrunError, OSError):
        drop(layout, record, branch=False)
        raise


def _snapshot(repo: Repo, attempt: Attempt, tip: CommitId) -> CommitId:
    """The first snapshot of the workspace: what the branch stands for, and the agent's own last commit."""
    found = repo.commit(tip)
    trailers = {
        "Branch": attempt.task.branch,
        "Base": attempt.base,
        "Snapshot": "1",
        "Reason": SnapshotReason.EXIT.value,
        "Number": "1",
    }
    head = _own_head(repo, attempt, tip)
    if head is not None:
        trailers["Head"] = head
    message = format_message(f"overlayrun: attempt {attempt.number} of {attempt.task.id}", "", trailers)
    identity = read_settings(repo.git_dir).identity
    when = max(int(time.time()), found.time)
    return repo.write_commit(format_commit(bytes.fromhex(found.tree), [tip], identity, when, message))


def _own_head(repo: Repo, attempt: Attempt, tip: CommitId) -> CommitId | None:
    """The agent's own last commit; None for none. What it left uncommitted is one commit on top."""
    found = repo.commit(tip)
    if "Snapshot" not in parse_trailers(found.message):
        return tip
    head = next(iter(found.parents), None)
    if head is None or head == attempt.base or not repo.is_ancestor(CommitId(attempt.base), head):
        return None
    return head
