"""What the kernel knows of shown trees: a node for each file that it looked up, found again by name.

A node stands for (parent, name) and is checked by its inode's number. Descriptors are opened one name at a
time and never through a link, so no path that somebody swaps leads out of the tree (openat2's RESOLVE_BENEATH
has nothing left to do); files need none while they are closed. What is open can be closed at any time and is
opened again when it is next needed.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from overlayrun.folders.api import Kind, Tree

_PLACE: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
FIRST_NODE: Final = 1 << 40
"""First number of a node, beside those that the top's folders have."""

Given = dict[str, "Given | int"]


class Unbound(Exception):
    """A tree is needed that is not open: ask for it and try again."""

    def __init__(self, shown: Shown) -> None:
        super().__init__(shown.name)
        self.shown = shown


class Moving(Exception):
    """A directory of the tree is being moved: put what asks again to `waiting`."""

    def __init__(self, waiting: list[Callable[[], None]]) -> None:
        super().__init__()
        self.waiting = waiting


class Node:
    """A file of a shown tree. fd: of a directory that was needed, O_PATH; else -1.

    given: what is shown in another's place, a descriptor, or names to those below. Each name has its own
    node, even of one file: in an overlay, names that share a lower file part when one is written to. is_up:
    a file that is known not to be a large one of a lower.
    """

    __slots__ = (
        *("children", "fd", "given", "handles", "ino", "is_up", "kind"),
        *("lookups", "name", "number", "parent", "shown"),
    )

    def __init__(self, shown: Shown, parent: Node | None, name: str, ino: int, kind: int) -> None:
        self.shown = shown
        self.parent = parent
        self.name = name
        self.ino = ino
        self.kind = kind
        self.number = 0
        self.lookups = 0
        self.fd = -1
        self.is_up = False
        self.given: Given | int | None = None
        self.children: dict[str, Node] = {}
        self.handles: list[Handle] = []


class Handle:
    """An open file or directory. fd: -1 where it was let go and not needed since. listing: as it was read."""

    __slots__ = ("fd", "flags", "listing", "node", "number")

    def __init__(self, node: Node, fd: int, flags: int) -> None:
        self.node = node
        self.fd = fd
        self.flags = flags
        self.number = 0
        self.listing: list[tuple[str, int, int]] = []

    @property
    def is_writer(self) -> bool:
        """Whether it may change the file."""
        return self.flags & os.O_ACCMODE != os.O_RDONLY


class Shown:
    """A tree in its place in the folders; unbound until it is used, and again after it was let go.

    waiting: what waits for the end of a `moves.Pending`, or until it was let go; None where nothing is to.
    busy: how much `slow` work is under way. absent: (parent's number, name) that the kernel knows to be
    nowhere.
    """

    __slots__ = (
        *("absent", "busy", "changed", "key", "kind", "live", "name", "replaced", "root", "used"),
        *("waiting", "writable"),
    )

    def __init__(self, kind: Kind, name: str) -> None:
        self.kind = kind
        self.name = name
        self.key = ""
        self.writable = False
        self.live = False
        self.changed = False
        self.used = 0.0
        self.busy = 0
        self.absent: set[tuple[int, str]] = set()
        self.replaced: tuple[int, ...] = ()
        self.waiting: list[Callable[[], None]] | None = None
        self.root = Node(self, None, name, 0, stat.S_IFDIR)

    @property
    def is_moving(self) -> bool:
        """Whether one of its directories is being moved."""
        return self.waiting is not None

    @property
    def is_bound(self) -> bool:
        """Whether there is a descriptor of the tree."""
        return self.root.fd >= 0

    def bind(self, tree: Tree) -> None:
        """Take a tree over with its descriptors."""
        self.key, self.writable, self.live = tree.key, tree.writable, tree.live
        self.root.fd = tree.fd
        self.replaced = tuple(fd for _, fd in tree.replaced)
        _give(self.root, _nested(tree.replaced))


def _give(node: Node, given: Given | int | None) -> None:
    """Show it in a node's place, and what is below it in the places of nodes that the kernel knows still."""
    node.given = given
    for name, what in given.items() if isinstance(given, dict) else ():
        if name in node.children:
            _give(node.children[name], what)


def _nested(replaced: tuple[tuple[str, int], ...]) -> Given | None:
    found: Given = {}
    for path, fd in replaced:
        *above, last = path.split("/")
        level = found
        for name in above:
            below = level.setdefault(name, {})
            assert isinstance(below, dict), path
            level = below
        level[last] = fd
    return found or None


@dataclass(frozen=True, slots=True)
class LetGo:
    """What the kernel knows of a tree that was let go. entries: (parent's number, name) of all below it."""

    nodes: list[int]
    entries: list[tuple[int, str]]


class Nodes:
    """All nodes by number, and the directories that are open. For one thread at a time."""

    def __init__(self, most_open: int) -> None:
        self._numbers = itertools.count(FIRST_NODE)
        self._by_number: dict[int, Node] = {}
        self._open: dict[Node, None] = {}
        self._most_open = most_open

    def __getitem__(self, number: int) -> Node:
        node = self._by_number.get(number)
        if node is None:
            raise OSError(errno.ESTALE, "no such node")
        return node

    def add(self, node: Node) -> Node:
        """Give a node its number."""
        node.number = next(self._numbers)
        self._by_number[node.number] = node
        return node

    def known(self, parent: Node, name: str, info: os.stat_result) -> Node:
        """The node of a name that was just looked at: the one it had, if it is the same file."""
        node = parent.children.get(name)
        if node is not None and not (is_same(node, info) and node.number in self._by_number):
            self.unname(parent, name)  # it is another file, or the kernel forgot this one by its other name
            node = None
        if node is None:
            node = self.add(Node(parent.shown, parent, name, info.st_ino, stat.S_IFMT(info.st_mode)))
            parent.children[name] = node
        else:
            node.parent, node.name = parent, name  # of two names the one that was seen last
        if isinstance(parent.given, dict):
            node.given = parent.given.get(name)
        return node

    def unname(self, parent: Node, name: str) -> Node | None:
        """Forget a name; its node is from now on what still has it open."""
        node = parent.children.pop(name, None)
        if node is not None and (node.parent, node.name) == (parent, name):
            node.parent, node.name = None, ""
        return node

    def rename(self, node: Node, parent: Node, name: str) -> None:
        """Give a node that was unnamed its new name."""
        node.parent, node.name = parent, name
        parent.children[name] = node

    def forget(self, number: int, lookups: int) -> None:
        """The kernel dropped some of what it was told about a node."""
        node = self._by_number.get(number)
        if node is None:
            return
        node.lookups -= lookups
        if node.lookups > 0:
            return
        if node is node.shown.root:
            self.let_go(node.shown)  # nothing below it is known either
            return
        del self._by_number[number]
        if node.parent is not None and node.parent.children.get(node.name) is node:
            del node.parent.children[node.name]
        self._close(node)

    def of(self, shown: Shown) -> list[Node]:
        """All nodes of a tree."""
        return [node for node in self._by_number.values() if node.shown is shown]

    def directory(self, node: Node) -> int:
        """Descriptor of a directory, O_PATH; it stays the node's. ESTALE where another has its place."""
        if node.fd >= 0:
            return node.fd
        closed = [node]  # not by recursion: an agent can make a tree as deep as it likes
        while closed[-1].fd < 0:
            if closed[-1] is node.shown.root:
                raise Unbound(node.shown)
            above = closed[-1].parent
            if above is None:
                raise OSError(errno.ESTALE, "it is gone", closed[-1].name)
            closed.append(above)
        for below in closed[-2::-1]:
            below.fd = self.pin(below)
            self._open[below] = None
        return node.fd

    def pin(self, node: Node) -> int:
        """A new descriptor, O_PATH, of this very file, the caller's to close. ESTALE where it is another."""
        if isinstance(node.given, int):
            return os.dup(node.given)
        if node.fd >= 0:
            return os.dup(node.fd)
        if node.parent is None:
            if node is node.shown.root:
                raise Unbound(node.shown)
            return os.dup(self._still_open(node))
        fd = os.open(node.name, _PLACE, dir_fd=self.directory(node.parent))
        if not is_same(node, os.fstat(fd)):
            os.close(fd)
            raise OSError(errno.ESTALE, "another file has its place", node.name)
        return fd

    def look(self, node: Node) -> os.stat_result:
        """stat(2) of a node, or of what still has it open. ESTALE where another has its place."""
        if isinstance(node.given, int):
            return os.fstat(node.given)
        if node.fd >= 0 or node is node.shown.root:
            return os.fstat(self.directory(node))
        if node.parent is not None:
            info = os.stat(node.name, dir_fd=self.directory(node.parent), follow_symlinks=False)
            if is_same(node, info):
                return info
        return os.fstat(self._still_open(node))

    @staticmethod
    def _still_open(node: Node) -> int:
        for handle in node.handles:
            if handle.fd >= 0:
                return handle.fd
        raise OSError(errno.ESTALE, "it is gone", node.name)

    def let_go(self, shown: Shown) -> LetGo:
        """Close every descriptor of a tree; what the kernel is to doubt from now on."""
        nodes = self.of(shown)
        for node in [*nodes, *[node for node in self._open if node.shown is shown], shown.root]:
            self._close(node)
            node.given = None
            node.is_up = False
            _close_handles(node)
        for fd in shown.replaced:
            os.close(fd)
        shown.replaced = ()
        entries = [(node.number, name) for node in nodes for name in node.children]
        entries += shown.absent
        shown.absent = set()
        return LetGo([node.number for node in nodes], entries)

    def made_anew(self, node: Node, inodes: Mapping[int, int]) -> list[int]:
        """Directories at and below a node have other inodes now; numbers of all nodes there.

        inodes: their numbers now by those before.
        """
        found, below = [], [node]
        while below:
            one = below.pop()
            found.append(one.number)
            below += one.children.values()
            if one.kind == stat.S_IFDIR and one.ino in inodes:
                one.ino = inodes[one.ino]
                self._close(one)
                _close_handles(one)
        return found

    def trim(self) -> None:
        """Close directories that were opened longest ago where too many are open."""
        while len(self._open) > self._most_open:
            self._close(next(iter(self._open)))

    def _close(self, node: Node) -> None:
        self._open.pop(node, None)
        if node.fd >= 0:
            os.close(node.fd)
            node.fd = -1


def _close_handles(node: Node) -> None:
    """What is open is opened again when it is next used."""
    for handle in node.handles:
        if handle.fd >= 0:
            os.close(handle.fd)
            handle.fd = -1


def is_same(node: Node, info: os.stat_result) -> bool:
    """Whether that is the file that the node stands for."""
    return info.st_ino == node.ino and stat.S_IFMT(info.st_mode) == node.kind
