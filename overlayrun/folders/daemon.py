"""The process of `overlayrun open`: answers the file system, lets go of what others want, takes snapshots.

It has one thread, because it starts sandboxes. The file system is another process, which ends with this one.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from overlayrun import control
from overlayrun.errors import HostError, OverlayrunError, WorkspaceBusy
from overlayrun.files import write_whole
from overlayrun.folders.api import Kind, Tree
from overlayrun.folders.branches import Branches
from overlayrun.folders.children import Children
from overlayrun.folders.commits import Commits
from overlayrun.folders.freezing import Freezer
from overlayrun.folders.place import Stand, drop_link, keep_link, open_already
from overlayrun.folders.server import Served, clear_stale, start, stop, unmount
from overlayrun.folders.shown import Scene, Tell, as_errno
from overlayrun.kernel import syscalls
from overlayrun.model import RunOptions
from overlayrun.recover import recover_all
from overlayrun.store.location import Repository
from overlayrun.workspace.layout import Layout
from overlayrun.workspace.lock import lock

_DYING: Final = 5.0  # seconds
_LOOK: Final = 1.0  # seconds between two looks whether all is in its place
_ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class _Answers:
    """See `api.Answers`."""

    def __init__(self, branches: Branches, commits: Commits, tell: Tell) -> None:
        self._branches = branches
        self._commits = commits
        self._tell = tell

    def names(self, kind: Kind, above: str) -> list[str]:
        """By kind."""
        with as_errno(self._tell):
            if kind is Kind.BRANCHES:
                return self._branches.names()
            return self._commits.names(kind, above)

    def tree(self, kind: Kind, name: str) -> Tree:
        """By kind."""
        with as_errno(self._tell):
            if kind is Kind.BRANCHES:
                return self._branches.tree(name)
            return self._commits.tree(kind, name)

    def make(self, name: str) -> Tree:
        """A new branch."""
        with as_errno(self._tell):
            return self._branches.make(name)

    def remove(self, name: str) -> None:
        """One without work."""
        with as_errno(self._tell):
            self._branches.remove(name)

    def touched(self, name: str) -> None:
        """A write."""
        with as_errno(self._tell):
            self._branches.touched(name)


class Daemon:
    """The folders of one repository. place: a link to the mountpoint. options: of branches that are made."""

    def __init__(self, scene: Scene, options: RunOptions, place: str, mountpoint: str) -> None:
        self._mountpoint = mountpoint
        self._layout = scene.layout
        self._place = place
        self._tell = scene.tell
        self._began = time.time()
        self._is_over = False
        self._is_unmounted = False
        self._children = Children(scene.tell)
        self._freezer = Freezer(scene, self._children)
        self._branches = Branches(scene, options, self._children)
        self._commits = Commits(scene, self._freezer)
        self._answers = _Answers(self._branches, self._commits, scene.tell)
        self._served: Served | None = None
        self._stands = Stand(scene.layout)

    def serve(self, ready: Callable[[], object]) -> None:
        """Show the folders until somebody ends it. ready: called once they are there.

        Raises OverlayrunError.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        signals = syscalls.signalfd(_ENDING)
        if not _clear(self._mountpoint):  # by a daemon of another repository that was here before
            unmount(self._mountpoint)
        self._served = start(self._mountpoint)
        self._branches.let_go = self._commits.let_go = self._let_go
        door = control.listen(self._layout.folders, "control")
        try:
            write_whole(f"{self._layout.folders}/place", os.fsencode(self._place), durable=False)
            ready()
            self._loop(signals, door.fileno(), lambda: control.answer(door, self._handle))
        finally:
            self._shut()
            door.close()
            os.close(signals)

    def _loop(self, signals: int, door: int, answer: Callable[[], None]) -> None:
        assert self._served is not None
        while not self._is_over:
            if not self._stands.is_there():
                self._tell(f"the repository is not in {self._layout.root} any more")
                return
            keep_link(self._place, self._mountpoint)
            if self._children.has_news() | self._freezer.has_news():
                self._served.end.ask_again()
            seconds = min(self._branches.tick(), self._freezer.patience, _LOOK)
            waits = self._served.end.has_waiting
            watched = [signals, door, self._served.end.fileno(), *self._children.fds]
            ready = _ready(watched, 0 if waits else seconds)
            if signals in ready:
                return
            if door in ready:
                answer()
            if not self._is_over and (waits or self._served.end.fileno() in ready) and not self._hear():
                self._tell(f"{self._place} was unmounted")
                self._is_unmounted = True
                return

    def _hear(self) -> bool:
        assert self._served is not None
        return self._served.end.serve(self._answers)

    def _let_go(self, kind: Kind, name: str, *, unused: float = 0) -> bool:
        return self._served is None or self._served.end.let_go(kind, name, unused=unused)

    def _handle(self, request: dict[str, Any]) -> tuple[dict[str, Any], Sequence[int]]:
        operation = request["op"]
        if operation == "status":
            told = {"pid": os.getpid(), "place": self._place, "since": self._began}
            told["mountpoint"] = self._mountpoint
            return {**told, "branches": self._branches.shown, "troubles": self._branches.troubles()}, ()
        if operation == "save":
            self._save()
            return {"troubles": self._branches.troubles()}, ()
        if operation == "let go":
            return self._give_back(str(request["id"])), ()
        if operation == "stop":
            self._is_over = True
            return {"place": self._place, "failed": self._shut()}, ()
        return {"error": f"unknown request {operation!a}"}, ()

    def _save(self) -> None:
        """Take the snapshots of all that is written."""
        if self._served is not None:
            self._served.end.hear()
            self._hear()
        self._branches.save()

    def _give_back(self, workspace_id: str) -> dict[str, Any]:
        try:
            self._branches.give_back(workspace_id)
        except OverlayrunError as err:  # who asked finds it open in the record, and tries again
            self._tell(f"no last snapshot: {err.brief}")
        except OSError as err:
            self._tell(f"not given back: {err}")
            return {"error": os.strerror(err.errno or errno.EIO)}
        return {}

    def _shut(self) -> list[str]:
        """Unmount, then take the last snapshots: nobody can write any more. Branches whose failed."""
        served, self._served = self._served, None
        if served is not None:
            if not self._is_unmounted:  # else another may be mounted there by now
                stop(served)
            if self._stands.is_there():  # else it may be another's
                drop_link(self._place, self._mountpoint)
            while served.end.serve(self._answers):
                pass
        self._commits.close_all()
        return self._branches.close_all()


def _ready(fds: list[int], seconds: float) -> set[int]:
    """Those that have input, at once or within so many seconds."""
    waiting = select.poll()
    for fd in fds:
        waiting.register(fd, select.POLLIN)
    return {fd for fd, _ in waiting.poll(seconds * 1000 + 1 if seconds else 0)}


def _clear(mountpoint: str) -> bool:
    """Take the mount of a killed daemon away; its file system's process may be dying only now.

    False where a living one has it.
    """
    end = time.monotonic() + _DYING
    while True:
        try:
            clear_stale(mountpoint)
        except HostError:
            if time.monotonic() > end:
                return False
        else:
            return True
        time.sleep(0.05)


def claim_folders(repository: Repository, layout: Layout, tell: Tell) -> None:
    """Take the place of the one daemon of a repository, and clear up after one that was killed.

    The lock is this process's for good. Raises WorkspaceBusy where there is one.
    """
    os.makedirs(layout.folders, mode=0o700, exist_ok=True)
    try:
        lock(f"{layout.folders}/lock")
    except WorkspaceBusy as err:
        raise open_already(layout) from err
    former = layout.shown_in()
    if former is not None:
        _clear(os.path.realpath(former))  # or it is that of another repository now
    recover_all(repository, layout, tell)
