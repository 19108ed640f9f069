"""Frozen trees for folders: made by a child, since one of 100,000 files takes seconds, and kept from `gc`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from overlayrun.bases.stack import doubtful, stack_of
from overlayrun.folders.api import Later
from overlayrun.folders.children import Children
from overlayrun.folders.shown import Scene
from overlayrun.model import TreeId
from overlayrun.prepare import frozen_tree
from overlayrun.store.location import find_repository
from overlayrun.workspace.lock import hold, share

_LOOK: Final = 0.02  # seconds between two looks whether layers can be chosen


class Freezer:
    """The frozen trees of one repository, for a process with one thread."""

    def __init__(self, scene: Scene, children: Children) -> None:
        self._scene = scene
        self._children = children
        self._held: dict[str, tuple[int, int]] = {}
        self._is_waiting = False

    def need(self, tree: TreeId) -> None:
        """Have a tree frozen. Raises Later until it is, OSError where that failed."""
        layout = self._scene.layout
        stack = stack_of(layout, tree)
        if stack and not doubtful(layout, stack):
            return
        key = f"freeze {tree}"
        if not self._children.is_done(key):
            self._children.begin(key, lambda: self._freeze(tree))

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
        was_waiting, self._is_waiting = self._is_waiting, False
        return was_waiting

    @property
    def patience(self) -> float:
        """Seconds until the next look is worth it."""
        return _LOOK if self._is_waiting else 3600.0

    def _freeze(self, tree: TreeId) -> None:
        choosing = share(self._scene.layout.lock)
        frozen_tree(find_repository(self._scene.root), self._scene.layout, tree, self._scene.tell)
        os.close(choosing)
