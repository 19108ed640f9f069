"""A new branch from the present state of another. On disk it begins as a record and refs alone.

A fork stands on what its source stands on: the same base, the same uncommitted changes of the user's. So a
merge or an apply of it brings the source's work and leaves out what was the user's own, as the source's does.
(With the source's tip as its base it would bring the user's changes along, and apply would lack the work.)
Its snapshot chain goes on from the source's. The upper layer is written from the last snapshot, O(change),
when somebody first opens the workspace: an agent that forks takes no disk by it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Final

from overlayrun.capture import answer_of
from overlayrun.chain import is_checked_out
from overlayrun.errors import OverlayrunError, StoreError, UsageError
from overlayrun.model import DirtyPolicy, RunOptions
from overlayrun.prepare import Prepared, open_or_make
from overlayrun.removal import drop
from overlayrun.snapshot import Snapshot
from overlayrun.store.commits import TRAILER, format_commit
from overlayrun.store.location import Repository, find_repository
from overlayrun.store.refs import (
    RefUpdate,
    branch_ref,
    dirty_ref,
    parse_branch_name,
    shadowed_by,
    snapshots_ref,
    update_refs,
)
from overlayrun.store.repo import Repo, SnapshotInfo
from overlayrun.store.settings import read_settings
from overlayrun.workspace.catalogue import find_exact, records
from overlayrun.workspace.layout import Layout
from overlayrun.workspace.record import UNFILLED, Record

_MOST: Final = 64  # forks of one run, asked for from inside
# What a run was asked for and its fork is not.
_ITS_OWN: Final[dict[str, Any]] = {
    "into": None,
    "dirty": DirtyPolicy.IGNORE,
    "rm": False,
    "keep": False,
    "apply": False,
    "message": None,
    "strict": False,
    "profile": None,
    "bind_ro": (),
    "bind_rw": (),
    "ssh_agent": False,
}


@dataclass(frozen=True, slots=True)
class Forked:
    """A fork that was made. source: the workspace it was made from; snapshot: of it, None if it had none."""

    record: Record
    source: Record
    snapshot: SnapshotInfo | None


class Forks:
    """Forks of one workspace, as its run asks for them. Raises as `make_fork`; UsageError for one too many.

    made: how many the run has, whatever workspace of it they are of; a process has one run.
    """

    made = 0

    def __init__(self, repository: Repository, layout: Layout, source: Record, options: RunOptions) -> None:
        self._repository = repository
        self._layout = layout
        self._source = source
        self._options = options

    def check(self, name: str | None) -> None:
        """Raise for what can't be had, before anything is done for it."""
        if Forks.made >= _MOST:
            raise UsageError(
                f"this run has made {_MOST} forks", hint="without limit outside: overlayrun fork"
            )
        if name is None:
            return
        _refuse(Repo(self._source.common_dir), self._layout, name)
        if shadowed_by(self._source.common_dir, parse_branch_name(name)):
            raise UsageError(f"branch {name} is taken", hint="choose a new name")

    def make(self, name: str | None) -> Forked:
        """A fork of the last snapshot."""
        Forks.made += 1
        return make_fork(self._repository, self._layout, self._source, self._options, name, by_command=True)


def make_fork(
    repository: Repository,
    layout: Layout,
    source: Record,
    options: RunOptions,
    name: str | None,
    *,
    by_command: bool = False,
) -> Forked:
    """A branch of its own from the source's last snapshot; the caller has taken one. Nothing runs in it.

    name: of the new branch, None for one after the source's. options: how ignored files come along: those
    that the user's tree has now, as in any new workspace. Ignored files that the source's command made, its
    index and its changes in HOME stay behind: no snapshot holds them. by_command: as in the record.
    Raises UsageError for a name that can't be had, StoreError, HostError.
    """
    if source.root != repository.root:  # another worktree of the repository
        repository = find_repository(source.root)
    if source.base is None:
        repository = _unborn(repository)
    repo = Repo(source.common_dir)
    if name is not None:
        _refuse(repo, layout, name)
    wanted = RunOptions(**{**vars(options), **_ITS_OWN, "branch": name, "base": source.base})
    prepared = open_or_make(repository, layout, wanted, [source.branch], lambda _: None)
    try:
        if prepared.resumed:  # made by somebody else between the look and now
            raise UsageError(f"branch {name} is taken", hint="choose a new name: -b NAME")
        prepared.record.by_command = by_command
        return Forked(prepared.record, source, _follow(repo, layout, prepared, source))
    except OSError as err:
        raise StoreError(f"the fork can't be written: {err.strerror}") from err
    finally:
        os.close(prepared.lock)


def _unborn(repository: Repository) -> Repository:
    """The repository as it was before its first commit, where the source began."""
    then = Repository(repository.root, repository.git_dir, repository.common_dir, repository.prefix)
    then.branch = repository.branch
    return then


def _refuse(repo: Repo, layout: Layout, name: str) -> None:
    """Raise for a name that is a workspace's, or the user's, be it that no commit has it yet."""
    parsed = parse_branch_name(name)
    is_taken = repo.ref(branch_ref(parsed)) is not None or find_exact(layout, parsed) is not None
    is_users = is_checked_out(repo.git_dir, parsed) or any(each.target == parsed for each in records(layout))
    if is_taken or is_users:
        raise UsageError(f"branch {name} is taken", hint="choose a new name: -b NAME")


def _follow(repo: Repo, layout: Layout, prepared: Prepared, source: Record) -> SnapshotInfo | None:
    """Let a new workspace, empty so far, go on from the source's last snapshot, which is given."""
    record = prepared.record
    for field in ("dirty", "target", "home", "profile", "agent_state", "prompt"):
        setattr(record, field, getattr(source, field))
    record.inode = UNFILLED
    last = next(repo.snapshots(source.id), None)
    chain = _as_moved(repo, last) if last else None
    tip = last.tip if last else record.base
    moves = [
        RefUpdate(branch_ref(record.branch), tip, record.base) if tip != record.base else None,
        RefUpdate(dirty_ref(record.id), repo.ref(dirty_ref(source.id)), None) if record.dirty else None,
        RefUpdate(snapshots_ref(record.id), chain, None) if chain else None,
    ]
    try:
        # First the record: a fork that is killed in between begins where its source began.
        record.save(layout.workspace(record.id).record)
        update_refs(repo.git_dir, [move for move in moves if move], why=f"fork of {source.branch}")
    except (OverlayrunError, OSError):
        drop(layout, record, branch=False)
        raise
    return last


def _as_moved(repo: Repo, last: SnapshotInfo) -> Any:
    """The snapshot; where the source's branch was kept in its place, one that says so of no branch.

    The fork's branch stands at its tip, and by the trailer it would look as if the user had moved it.
    """
    if last.written == last.tip:
        return last.commit
    found = repo.commit(last.commit)
    message = "\n".join(line for line in found.message.split("\n") if not line.startswith(f"{TRAILER}Kept: "))
    identity = read_settings(repo.git_dir).identity
    data = format_commit(bytes.fromhex(found.tree), found.parents, identity, found.time, message)
    return repo.write_commit(data)


def fork_answer(made: Forked, taken: Snapshot | None) -> dict[str, Any]:
    """A fork as the control socket and `--json` tell of it: plain values. taken: the source's snapshot."""
    told = answer_of(taken) if taken else {"left_out": [], "notes": []}
    last = made.snapshot
    return {
        "branch": made.record.branch,
        "id": made.record.id,
        "source": made.source.branch,
        "number": last.number if last else 0,
        "tip": last.tip if last else made.record.base,
        "left_out": told["left_out"],
        "notes": told["notes"],
        "start": f"overlayrun -b {made.record.branch} -- COMMAND",
    }
