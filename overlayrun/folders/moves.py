"""Renames of directories that the kernel refuses in an overlay: prepared while the caller waits, then made.

The tree's other requests wait too, so nobody sees what is half done; those of other trees go on.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Final

from overlayrun.folders import passthrough
from overlayrun.folders.nodes import Node, Nodes
from overlayrun.kernel import abi
from overlayrun.sandbox.renaming import End, Move

Name = tuple[Node, str]
_MOVES: Final = abi.RENAME_EXCHANGE | abi.RENAME_NOREPLACE


class Pending:
    """A rename that is to be prepared. It holds descriptors of its own of what it needs until its end.

    Requests of the tree wait from now on until `end`. error: errno of the whole, 0 for none.
    """

    __slots__ = ("_flags", "_held", "_move", "_new", "_nodes", "_old", "_shown", "_top", "error")

    def __init__(self, nodes: Nodes, old: Name, new: Name, flags: int) -> None:
        self._nodes = nodes
        self._old, self._new, self._flags = old, new, flags
        self._shown = old[0].shown
        self.error = 0
        self._top = _top_of_mount(nodes, old[0])
        root, *places = self._held = _held([nodes.directory(node) for node in (self._top, old[0], new[0])])
        source, target = (
            End(place, name, "/".join([*_names(self._top, parent), name]))
            for place, (parent, name) in zip(places, (old, new), strict=True)
        )
        self._move = Move(root, source, target, flags, os.urandom(8).hex())
        self._shown.waiting = []

    def prepare(self) -> None:
        """Without the lock: it may take its time."""
        try:
            self.error = self._move.prepare()
        except OSError as err:
            self.error = err.errno or errno.EIO

    def end(self, *, is_wanted: bool) -> tuple[list[int], list[Callable[[], None]]]:
        """With the lock: rename; what the kernel must forget, by nodes' numbers, and who waits for the tree.

        is_wanted: whether the caller still waits; else all is as before.
        """
        numbers = [self._top.number]
        for parent, name in (self._old, self._new):
            node = parent.children.get(name)
            if node is not None:
                numbers += self._nodes.made_anew(node, self._move.anew)
        try:
            if is_wanted and not self.error:
                passthrough.rename(self._nodes, self._old, self._new, self._flags)
        except OSError as err:
            self.error = err.errno or errno.EIO
        for fd in self._held:
            os.close(fd)
        waiting, self._shown.waiting = self._shown.waiting or [], None
        return numbers, waiting


def _held(fds: list[int]) -> list[int]:
    copies: list[int] = []
    try:
        copies.extend(map(os.dup, fds))
    except OSError:
        for fd in copies:
            os.close(fd)
        raise
    return copies


def may_be_prepared(nodes: Nodes, old: Name, new: Name, flags: int) -> bool:
    """Whether a rename that gave EXDEV is one of a directory within one file system."""
    if old[0].shown is not new[0].shown or flags & ~_MOVES:
        return False
    if _device(nodes, old[0]) != _device(nodes, new[0]):
        return False
    return _is_directory(nodes, old) or (bool(flags & abi.RENAME_EXCHANGE) and _is_directory(nodes, new))


def _device(nodes: Nodes, node: Node) -> int:
    return os.fstat(nodes.directory(node)).st_dev


def _is_directory(nodes: Nodes, place: Name) -> bool:
    parent, name = place
    return stat.S_ISDIR(os.stat(name, dir_fd=nodes.directory(parent), follow_symlinks=False).st_mode)


def _top_of_mount(nodes: Nodes, node: Node) -> Node:
    """The topmost directory of the file system that a directory is in."""
    device = _device(nodes, node)
    while node.parent is not None and _device(nodes, node.parent) == device:
        node = node.parent
    return node


def _names(top: Node, node: Node) -> list[str]:
    names: list[str] = []
    while node is not top and node.parent is not None:
        names.insert(0, node.name)
        node = node.parent
    return names
