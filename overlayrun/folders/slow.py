"""Native work on files of a tree that may take long: done beside the thread that answers everybody.

It has descriptors of its own, so nothing of it depends on what is closed or renamed meanwhile; its tree is
let go after it. The order is kept: who waits for an answer asks nothing else, and others' order is nobody's.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import Final

from overlayrun.folders.nodes import Node, Nodes, Shown

LARGE: Final = 1 << 20
"""Bytes of a file from which its first change may take long: an overlay copies all of it before."""
FAR: Final = 64 << 10
"""Bytes of a read or write from which the hand-over to another thread costs little beside it."""


class Slow:
    """Work without the lock, then `end` with it. work: gives the answer, None for "now answer the request".

    fds: the work's own, closed at its end.
    """

    __slots__ = ("_fds", "_shown", "is_before", "work")

    def __init__(
        self, shown: Shown, fds: list[int], work: Callable[[], bytes | None], *, is_before: bool = False
    ) -> None:
        self._shown = shown
        self._fds = fds
        self.work = work
        self.is_before = is_before
        shown.busy += 1

    def end(self) -> None:
        """Let its tree be let go."""
        self._shown.busy -= 1
        for fd in self._fds:
            os.close(fd)


class Below(Exception):
    """A large file that may lie in a lower still: do `slow`, which copies it up, and try again."""

    def __init__(self, slow: Slow) -> None:
        super().__init__()
        self.slow = slow


def need_up(nodes: Nodes, node: Node, change: Callable[[str], None]) -> None:
    """Raise Below for a large file at its first change, once. change: one that changes nothing."""
    if node.is_up or node.kind != stat.S_IFREG or node.given is not None or not node.shown.writable:
        return
    pinned = nodes.pin(node)
    if os.fstat(pinned).st_size < LARGE:
        os.close(pinned)
        node.is_up = True
        return

    def work() -> None:
        change(f"/proc/self/fd/{pinned}")
        node.ino = os.fstat(pinned).st_ino  # another one if the lower's had several names
        node.is_up = True

    raise Below(Slow(node.shown, [pinned], work, is_before=True))


def by_open(path: str) -> None:
    """Before an open for writing, which fails as this does."""
    os.close(os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY))


def by_chown(path: str) -> None:
    """Before what sets the file's ctime; it may be one that can't be opened."""
    os.chown(path, -1, -1)
