"""New branches from the present state of another, all from one snapshot of it.

A fork stands on what its source stands on: the same base, the same uncommitted changes of the user's, the
same ignored files. So a merge or an apply of it brings the source's work and leaves out what was the user's
own, as the source's does. (With the source's tip as its base it would bring the user's changes along, and
apply would lack the work.) Its snapshot chain goes on from the source's; its layers are copies of the
source's. (One frozen layer for all forks would have to be a lower one, and then the snapshots, which read
uppers, would lack it; a copy of a hundred changed files takes 20 ms where reflinks are missing.)
"""

from __future__ import annotations

import os
import time
from itertools import islice

from overlayrun.along import Along, fill, look
from overlayrun.durable import sync_in_background
from overlayrun.errors import OverlayrunError, RefMoved, StoreError, UsageError
from overlayrun.files import flush_directory, identity_of, remove_tree
from overlayrun.halfway import give_name, note_refs
from overlayrun.model import BranchName
from overlayrun.store.git import git
from overlayrun.store.heads import is_checked_out
from overlayrun.store.last import Ends, Last, ends_of
from overlayrun.store.refs import (
    RefUpdate,
    base_ref,
    branch_ref,
    dirty_ref,
    flush_refs,
    parse_branch_name,
    shadowed_by,
    snapshots_ref,
    update_refs,
)
from overlayrun.workspace.catalogue import records
from overlayrun.workspace.layout import Layout
from overlayrun.workspace.lock import lock, share
from overlayrun.workspace.names import branch_names, workspace_id
from overlayrun.workspace.record import UNFILLED, Record, boot_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any, Final

_MOST: Final = 64  # forks of one run, asked for from inside; and of one command
_ATTEMPTS: Final = 5  # to find names that nobody takes meanwhile
# What a fork has from its source, where it is not the same by its nature.
_SHARED: Final = (
    *("base", "dirty", "target", "stack", "carried", "carried_layers", "live", "common_dir"),
    *("home", "profile", "agent_state", "prompt", "root_uid", "backend"),
)


class Wanted:
    """What is asked for. name: of the one, or what the names of several begin with; None for names of ours.

    by_command: as in the record. is_quiet: nobody works in the source, whose lock the caller holds. tell:
    called with a line before anything slow.
    """

    __slots__ = ("by_command", "count", "is_quiet", "name", "tell")

    def __init__(self, name: str | None, count: int = 1, *, is_quiet: bool = False) -> None:
        self.name = name
        self.count = count
        self.is_quiet = is_quiet
        self.by_command = False
        self.tell: Callable[[str], None] = lambda _: None

    @property
    def names(self) -> list[BranchName]:
        """The names that are given; none where they are to be found. Raises UsageError."""
        if self.name is None:
            return []
        if self.count == 1:
            return [parse_branch_name(self.name)]
        return [parse_branch_name(f"{self.name}-{number}") for number in range(1, self.count + 1)]


class Forked:
    """A fork that was made. source: the workspace it was made from; snapshot: of it, None if it had none.

    notes: what did not come along, for the user.
    """

    __slots__ = ("notes", "record", "snapshot", "source")

    def __init__(self, record: Record, source: Record, snapshot: Last | None, notes: Sequence[str]) -> None:
        self.record = record
        self.source = source
        self.snapshot = snapshot
        self.notes = list(notes)


class Forks:
    """Forks of one workspace, as its run asks for them. Raises as `make_forks`; UsageError for one too many.

    made: how many the run has, whatever workspace of it they are of; a process has one run.
    """

    made = 0

    def __init__(self, layout: Layout, source: Record) -> None:
        self._layout = layout
        self._source = source

    def check(self, wanted: Wanted) -> None:
        """Raise for what can't be had, before anything is done for it."""
        if Forks.made + wanted.count > _MOST:
            raise UsageError(
                f"this run has made {Forks.made} forks, and may make {_MOST}",
                hint="without limit outside: overlayrun fork",
            )
        common_dir = self._source.common_dir
        for name in wanted.names:
            _refuse(self._layout, common_dir, [name], _there(common_dir, [name]))
            if shadowed_by(common_dir, name):
                raise _taken(name)

    def make(self, wanted: Wanted) -> list[Forked]:
        """Forks of the present state; the caller has taken a snapshot."""
        wanted.by_command = True
        Forks.made += wanted.count
        made = make_forks(self._layout, self._source, wanted)
        flush_forks(self._layout, made)
        return made


def make_forks(layout: Layout, source: Record, wanted: Wanted) -> list[Forked]:
    """Branches of their own from the source's present state; the caller has taken a snapshot of it.

    Nothing runs in them. All of them are made or none. What is too much to copy stays behind, and is told of.
    `flush_forks` is to follow.
    Raises UsageError for a name that can't be had, StoreError, HostError, SnapshotError.
    """
    if not 1 <= wanted.count <= _MOST:
        raise UsageError(f"{wanted.count} forks can't be made at once", hint=f"from 1 to {_MOST}: -n {_MOST}")
    along = Along(layout, source, is_quiet=wanted.is_quiet)
    look(along, wanted.count, wanted.tell, by_command=wanted.by_command)
    for attempt in range(_ATTEMPTS):
        try:
            return _make_all(along, wanted)
        except RefMoved:
            if wanted.name is not None:
                raise _taken(", ".join(wanted.names)) from None
            if attempt == _ATTEMPTS - 1:
                raise
        except OSError as err:
            raise StoreError(
                f"the fork can't be written: {err.strerror}",
                hint="nothing was made: make room, and try again",
            ) from err
    raise AssertionError("the last attempt returns or raises")


def flush_forks(layout: Layout, made: Sequence[Forked]) -> None:
    """Bring their copies to the disk, in the background; for a caller who holds no lock that is to go.

    That they are there is on the disk at once: they are told of.
    """
    flush_refs(made[0].record.common_dir, [branch_ref(each.record.branch) for each in made])
    flush_directory(layout.workspaces)
    records = [each.record for each in made if each.record.filled]
    if records:
        sync_in_background(layout, records)


def _taken(name: str) -> UsageError:
    return UsageError(f"branch {name} is taken", hint="choose a new name: -b NAME")


def _make_all(along: Along, wanted: Wanted) -> list[Forked]:
    layout, source = along.layout, along.source
    choosing = share(layout.lock)  # no `gc` between the choice of layers and the records that name them
    made: list[Forked] = []
    locks: list[int] = []
    done = False
    try:
        names = wanted.names
        ends = ends_of(source.common_dir, source.id, [branch_ref(name) for name in names])
        _refuse(layout, source.common_dir, names, ends.there)
        updates = []
        for name in names or _free_names(source, wanted.count):
            fork = _record(source, name, by_command=wanted.by_command)
            made.append(Forked(fork, source, ends.last, along.notes))
            locks.append(_build(along, made[-1]))
            updates += _refs(layout, fork, ends)
        if along.layers:
            _check_unmoved(layout, source)
        update_refs(source.common_dir, updates, why=f"fork of {source.branch}")
        done = True
        for each in made:
            give_name(layout, each.record.id)
    finally:
        if not done:
            _undo(layout, made)
        for fd in (*locks, choosing):
            os.close(fd)
    return made


def _refuse(layout: Layout, common_dir: str, names: Sequence[BranchName], there: dict[str, Any]) -> None:
    """Raise for a name that is a workspace's, or the user's, be it that no commit has it yet."""
    known = list(records(layout)) if names else []
    used = {record.branch for record in known} | {record.target for record in known}
    for name in names:
        if branch_ref(name) in there or name in used or is_checked_out(common_dir, name):
            raise _taken(name)


def _there(common_dir: str, names: Sequence[BranchName]) -> dict[str, Any]:
    words = ["for-each-ref", "--format=%(refname)", *map(branch_ref, names)]
    return dict.fromkeys(git(words, git_dir=common_dir).decode("utf-8", "replace").split("\n"))


def _free_names(source: Record, count: int) -> Iterator[BranchName]:
    stem = "refs/heads/overlay/"
    words = ["for-each-ref", "--format=%(refname:lstrip=2)", stem]
    used = set(git(words, git_dir=source.common_dir).decode("utf-8", "replace").split("\n"))
    free = (BranchName(name) for name in branch_names(source.branch) if name not in used)
    return islice(free, count)


def _record(source: Record, name: BranchName, *, by_command: bool) -> Record:
    record = Record(workspace_id(), name, source.root, source.tree)
    for field in _SHARED:
        setattr(record, field, getattr(source, field))
    record.created, record.by_command = time.time(), by_command
    record.parent = source.id
    return record


def _build(along: Along, made: Forked) -> int:
    """Everything of a workspace but its name; its lock. What it is given holds no work of anybody's yet."""
    record, layout = made.record, along.layout
    place = layout.workspace(f".{record.id}")
    os.mkdir(place.root, 0o700)
    held = lock(place.lock)
    try:
        os.makedirs(f"{place.sockets}/inside", mode=0o700)
        record.inode = UNFILLED
        if along.layers:
            left_out = fill(along, place, record.branch)
            made.notes += [
                f"left out, because it was being written or can't be read: {path}" for path in left_out
            ]
            record.inode, record.filled = identity_of(place.upper), boot_id()
        else:
            os.mkdir(place.upper, os.stat(layout.workspace(made.source.id).upper).st_mode & 0o7777)
        for number in range(len(record.live)):
            os.makedirs(place.live(number), mode=0o700, exist_ok=True)
        os.makedirs(place.home_upper, mode=0o700, exist_ok=True)
        record.save(place.record)
    except BaseException:
        os.close(held)
        raise
    return held


def _refs(layout: Layout, record: Record, ends: Ends) -> list[RefUpdate]:
    last = ends.last
    tip = last.tip if last else record.base
    wanted = {
        branch_ref(record.branch): tip,
        base_ref(record.id): record.base,
        dirty_ref(record.id): ends.dirty,
        snapshots_ref(record.id): last.chain if last else None,
    }
    updates = [RefUpdate(ref, commit, None) for ref, commit in wanted.items() if commit]
    note_refs(layout.workspace(f".{record.id}").root, updates)
    return updates


def _check_unmoved(layout: Layout, source: Record) -> None:
    """Raise where the source's upper was exchanged under the copy: its run ended, and a sync came."""
    if identity_of(layout.workspace(source.id).upper) != source.inode:
        raise StoreError(
            f"branch {source.branch} was moved meanwhile", hint=f"try again: overlayrun fork {source.branch}"
        )


def _undo(layout: Layout, made: Sequence[Forked]) -> None:
    """Leave nothing; what a full disk keeps, a later command clears."""
    for each in made:
        try:
            remove_tree(layout.workspace(f".{each.record.id}").root)
        except OverlayrunError:
            continue


def fork_answer(made: Sequence[Forked], taken: dict[str, Any] | None) -> dict[str, Any]:
    """Forks as the control socket and `--json` tell of them: plain values; the first one's at the top.

    taken: the source's snapshot, as `capture.answer_of` tells of it; None where none was needed.
    """
    first = made[0]
    last = first.snapshot
    notes = [*(taken["notes"] if taken else []), *dict.fromkeys(note for each in made for note in each.notes)]
    return {
        "branch": first.record.branch,
        "id": first.record.id,
        "source": first.source.branch,
        "number": last.number if last else 0,
        "tip": last.tip if last else first.record.base,
        "left_out": taken["left_out"] if taken else [],
        "notes": notes,
        "start": f"overlayrun -b {first.record.branch} -- COMMAND",
        "forks": [{"branch": each.record.branch, "id": each.record.id} for each in made],
    }
