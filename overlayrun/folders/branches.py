"""Branches as folders: each has its workspace's tree, ours while nobody runs there, else that of the run."""

from __future__ import annotations

import errno
import os
import shlex
import time
from typing import Any, Final, Protocol

from overlayrun.errors import OverlayrunError, WorkspaceBusy, WorkspaceError
from overlayrun.folders.api import SEPARATOR, Kind, Tree
from overlayrun.folders.children import Children
from overlayrun.folders.shown import (
    COMMAND,
    Scene,
    Shown,
    as_errno,
    give_back,
    open_live,
    open_own,
    show,
    take,
    words_of,
)
from overlayrun.model import RunOptions
from overlayrun.prepare import open_or_make
from overlayrun.removal import drop
from overlayrun.store.location import Repository, find_repository
from overlayrun.store.repo import Repo
from overlayrun.unsaved import branch_is_checked_out, unsaved
from overlayrun.workspace.catalogue import find_exact, records
from overlayrun.workspace.lock import lock, unlock
from overlayrun.workspace.record import Record

_QUIET: Final = 0.5  # seconds after the last write until a snapshot
_AGAIN: Final = 30.0  # seconds after a snapshot that failed
_IDLE: Final = 60.0  # seconds after the last use until a tree is given back
_SOON: Final = 3.0  # the same where files wait for that
_LOOK: Final = 0.5  # seconds between two looks at what others do
_PATIENCE: Final = 1.0  # seconds in which a run that begins or ends is waited for


class LetGo(Protocol):
    """Has the file system close a tree: see `channel.ControlEnd.let_go`."""

    def __call__(self, kind: Kind, name: str, *, unused: float = 0) -> bool:
        """Whether it is closed."""


def nobody_has(kind: Kind, name: str, *, unused: float = 0) -> bool:
    """There is no file system."""
    return True


class Branches:
    """The branches of one repository, for one process with one thread.

    options: of the workspaces that are made; `every` is the longest time without a snapshot while somebody
    writes. let_go: has the file system drop a tree.
    """

    def __init__(self, scene: Scene, options: RunOptions, children: Children) -> None:
        self._scene = scene
        self._children = children
        self._options = options
        self._shown: dict[str, Shown] = {}
        self._also: dict[str, str] = {}
        self.let_go: LetGo = nobody_has

    def names(self) -> list[str]:
        """Folder names of all branches that have a workspace, sorted."""
        known = [record.branch for record in records(self._scene.layout) if not record.throwaway]
        return sorted(branch.replace("/", SEPARATOR) for branch in known)

    @property
    def shown(self) -> list[dict[str, Any]]:
        """What is open now, for `status`."""
        return [
            {"branch": branch, "live": one.is_live, "unsaved": one.due is not None}
            for branch, one in self._shown.items()
        ]

    def tree(self, name: str) -> Tree:
        """The tree of a branch, opened if it is not. Raises OSError."""
        branch = self._branch(name)
        one = self._shown.get(branch)
        if one is not None and one.is_over():
            one = self._reopened(branch, one)
        if one is None:
            one = self._shown[branch] = self._open(branch)
        one.used = time.monotonic()
        return one.tree()

    def _branch(self, name: str) -> str:
        return self._also.get(name, name).replace(SEPARATOR, "/")

    def _open(self, branch: str) -> Shown:
        """Ours, or that of the run that has it; one that begins or ends just now is waited for."""
        end = time.monotonic() + _PATIENCE
        while True:
            record = find_exact(self._scene.layout, branch)
            if record is None or record.throwaway:
                raise FileNotFoundError(errno.ENOENT, "no workspace has this branch")
            one = self._try(record)
            if one is not None:
                return one
            if time.monotonic() > end:
                raise OSError(errno.EBUSY, f"branch {branch} is in use")
            time.sleep(0.02)

    def _try(self, record: Record) -> Shown | None:
        """None while a run only begins or ends."""
        with as_errno(self._scene.tell):
            try:
                return open_own(self._scene, record)
            except WorkspaceBusy:
                pass
            try:
                return open_live(self._scene, record)
            except (OSError, WorkspaceError):
                return None

    def make(self, name: str) -> Tree:
        """A new branch `x` from HEAD or `x@revision`. Raises Later until it is there, OSError: EEXIST."""
        text, _, revision = name.partition("@")
        branch = text.replace(SEPARATOR, "/")
        key = f"make {name}"
        if not self._children.is_done(key):
            repository = find_repository(self._scene.root)
            self._refuse_known(repository, branch, text)
            base = revision.replace(SEPARATOR, "/") or None
            self._children.begin(key, lambda: self._make(repository, branch, base))
        one = self._shown[branch] = self._show(branch)
        if revision:
            self._also[name] = text
        one.used = time.monotonic()
        return one.tree()

    def _show(self, branch: str) -> Shown:
        """Of a branch that was just made."""
        record = find_exact(self._scene.layout, branch)
        if record is None:
            raise FileNotFoundError(errno.ENOENT, "it is gone already")
        held = lock(self._scene.layout.workspace(record.id).lock)
        try:
            return show(self._scene, record)
        finally:
            unlock(held)

    def _refuse_known(self, repository: Repository, branch: str, text: str) -> None:
        known = find_exact(self._scene.layout, branch)
        if known is None and not Repo(repository.common_dir).ref(f"refs/heads/{branch}"):
            return
        if known is None:
            self._scene.tell(f"mkdir {text}: git has that branch; one from it: mkdir NEW-NAME@{text}")
        raise FileExistsError(errno.EEXIST, "the branch is there")

    def _make(self, repository: Repository, branch: str, base: str | None) -> None:
        """In a child: by some backends, and before the base is frozen, it is a copy of all files."""
        options = RunOptions(**{**vars(self._options), "branch": branch, "base": base})
        prepared = open_or_make(repository, self._scene.layout, options, [COMMAND], self._scene.tell)
        unlock(prepared.lock)

    def remove(self, name: str) -> None:
        """Remove a branch that has landed or has no changes. Raises OSError: ENOTEMPTY, EBUSY, ENOENT."""
        branch = self._branch(name)
        record = find_exact(self._scene.layout, branch)
        if record is None:
            raise FileNotFoundError(errno.ENOENT, "no workspace has this branch")
        self.give_back(record.id)
        held = lock(self._scene.layout.workspace(record.id).lock)
        try:
            self._drop(record)
        finally:
            os.close(held)
        self._also = {also: text for also, text in self._also.items() if branch != self._branch(text)}

    def _drop(self, known: Record) -> None:
        layout = self._scene.layout
        record = Record.load(layout.workspace(known.id).record)
        repo = Repo(record.common_dir)
        if branch_is_checked_out(repo, record.branch):
            raise OSError(errno.EBUSY, "the branch is checked out in a working tree")
        lost = unsaved(layout, repo, record, keep_branch=False)
        if lost.reasons:
            self._scene.tell(f"branch {record.branch} is not removed: {'; '.join(lost.reasons)}")
            raise OSError(errno.ENOTEMPTY, "the branch holds what is nowhere else")
        drop(layout, record, branch=True)

    def touched(self, name: str) -> None:
        """Note a write. In the tree of a run the run's own snapshots take it."""
        branch = self._branch(name)
        if branch not in self._shown:
            self._shown[branch] = self._open(branch)
        self._touch(self._shown[branch])

    def _touch(self, one: Shown) -> None:
        now = one.used = time.monotonic()
        one.written = True
        if one.is_live:
            return
        one.first = now if one.first is None else one.first
        one.due = min(now + _QUIET, one.first + max(self._options.every, _QUIET))

    def tick(self) -> float:
        """Do what is due, and give the seconds until something may be due again."""
        for branch, one in list(self._shown.items()):
            self._look_at(branch, one, time.monotonic())
        due = [one.due - time.monotonic() for one in self._shown.values() if one.due is not None]
        return max(0.0, min([*due, _LOOK])) if self._shown else 3600.0

    def _look_at(self, branch: str, one: Shown, now: float) -> None:
        if one.is_over():
            self._reopened(branch, one)
            return
        if one.has_new_commits():
            self._touch(one)
        if one.due is not None and now >= one.due:
            self._snapshot(one)
        elif one.due is None and now - one.used > (idle := _SOON if one.waits else _IDLE):
            one.used = now  # else the next look comes at once
            if all(self.let_go(Kind.BRANCHES, name, unused=idle) for name in self._names_of(branch)):
                self._leave(branch, one)

    def _reopened(self, branch: str, one: Shown) -> Shown | None:
        """Leave a tree that is over. What was written after a run's last snapshot gets one of ours."""
        self._leave(branch, one)
        if not (one.is_live and one.written):
            return None
        try:
            new = self._shown[branch] = self._open(branch)
        except OSError as err:
            self._scene.tell(f"branch {branch}: not opened after its run: {err}")
            return None
        self._touch(new)
        return new

    def _snapshot(self, one: Shown) -> None:
        one.first = one.due = None
        try:
            take(self._scene, one)
            one.trouble = ""
        except (OverlayrunError, OSError) as err:
            one.trouble = words_of(err)
            self._scene.tell(f"branch {one.record.branch}: no snapshot this time: {one.trouble}")
            one.first = time.monotonic()
            one.due = one.first + _AGAIN

    def save(self) -> None:
        """Take the snapshots that are to come; `troubles` tells of what failed."""
        for branch, one in list(self._shown.items()):
            if one.due is not None or one.has_new_commits():
                self._snapshot(one)
            if one.waits:
                self._leave(branch, one)

    def troubles(self) -> list[str]:
        """A line about each branch whose snapshots fail."""
        return [
            f"branch {branch} has no snapshot of what was written last: {one.trouble}; nothing is lost, "
            f"it is tried again; or now: overlayrun snapshot {shlex.quote(branch)}"
            for branch, one in self._shown.items()
            if one.trouble
        ]

    def give_back(self, workspace_id: str) -> None:
        """Let go of a workspace, if it is shown: its last changes are in a snapshot then.

        Raises OverlayrunError where that can't be taken; it is let go all the same, and open in its record.
        """
        for branch, one in list(self._shown.items()):
            if one.record.id == workspace_id:
                self._close(branch, one)

    def close_all(self) -> list[str]:
        """Let go of every branch; those whose last snapshot failed, which the next command takes."""
        return [branch for branch, one in list(self._shown.items()) if not self._leave(branch, one)]

    def _leave(self, branch: str, one: Shown) -> bool:
        try:
            self._close(branch, one)
        except (OverlayrunError, OSError) as err:
            where = f"; nothing is lost: {one.place.upper}" if os.path.isdir(one.place.upper) else ""
            self._scene.tell(f"branch {branch}: the last snapshot failed: {words_of(err)}{where}")
            return False
        return True

    def _close(self, branch: str, one: Shown) -> None:
        del self._shown[branch]
        for name in self._names_of(branch):
            self.let_go(Kind.BRANCHES, name)
        give_back(self._scene, one)

    def _names_of(self, branch: str) -> list[str]:
        also = [name for name in self._also if self._branch(name) == branch]
        return [branch.replace("/", SEPARATOR), *also]
