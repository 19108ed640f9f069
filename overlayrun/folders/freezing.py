"""Frozen trees for folders: made by a child, since one of 100,000 files takes seconds, and kept from `gc`."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Final, NoReturn

from overlayrun.bases.stack import doubtful, stack_of
from overlayrun.folders.api import Later
from overlayrun.folders.shown import Scene, as_errno
from overlayrun.kernel import namespaces
from overlayrun.model import TreeId
from overlayrun.prepare import frozen_tree
from overlayrun.store.location import find_repository
from overlayrun.workspace.lock import hold, share

_LOOK: Final = 0.02  # seconds between two looks whether a child has ended


class Freezer:
    """The frozen trees of one repository, for a process with one thread."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._children: dict[TreeId, int] = {}
        self._failed: dict[TreeId, int] = {}
        self._held: dict[str, tuple[int, int]] = {}
        self._is_waiting = False

    def need(self, tree: TreeId) -> None:
        """Have a tree frozen. Raises Later until it is, OSError where that failed."""
        layout = self._scene.layout
        stack = stack_of(layout, tree)
        if stack and not doubtful(layout, stack):
            return
        if tree in self._failed:
            number = self._failed.pop(tree)
            raise OSError(number, os.strerror(number))
        if tree not in self._children:
            self._children[tree] = self._start(tree)
        raise Later

    def take(self, tree: TreeId) -> list[str]:
        """The layers of a tree, topmost first; `gc` leaves them until `release`. Raises as `need`."""
        self.need(tree)
        layout = self._scene.layout
        try:
            choosing = share(layout.lock, waits=False)  # no `gc` between the choice of layers and their use
        except BlockingIOError:
            self._is_waiting = True
            raise Later from None
        try:
            self.need(tree)
            stack = frozen_tree(find_repository(self._scene.root), layout, tree, self._scene.tell)
            for layer in stack:
                fd, count = self._held.get(layer, (-1, 0))
                self._held[layer] = (fd if count else hold(f"{layout.root}/{layer}"), count + 1)
            return stack
        finally:
            os.close(choosing)

    def release(self, stack: Sequence[str]) -> None:
        """Let `gc` have what `take` gave."""
        for layer in stack:
            fd, count = self._held.pop(layer)
            if count > 1:
                self._held[layer] = (fd, count - 1)
            else:
                os.close(fd)

    def has_news(self) -> bool:
        """Whether to ask again for what was for later."""
        ended, self._is_waiting = self._is_waiting, False
        for tree, pid in list(self._children.items()):
            gone, status = os.waitpid(pid, os.WNOHANG)
            if gone:
                ended = True
                del self._children[tree]
                if status:
                    self._failed[tree] = max(os.waitstatus_to_exitcode(status), 0) or errno.EIO
        return ended

    @property
    def patience(self) -> float:
        """Seconds until the next look is worth it."""
        return _LOOK if self._children or self._is_waiting else 3600.0

    def _start(self, tree: TreeId) -> int:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._freeze(tree, parent)
        return pid

    def _freeze(self, tree: TreeId, parent: int) -> NoReturn:
        status = errno.EIO
        try:
            namespaces.die_with_parent(parent)
            choosing = share(self._scene.layout.lock)
            with as_errno(self._scene.tell):
                frozen_tree(find_repository(self._scene.root), self._scene.layout, tree, self._scene.tell)
            os.close(choosing)
            status = 0
        except OSError as err:
            status = min(err.errno or errno.EIO, 0xFF)
        finally:
            os._exit(status)
