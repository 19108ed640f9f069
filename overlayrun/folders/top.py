"""The folders above the trees: what is in them is asked from those who know, and a tree is opened when used.

A listing opens no tree, nor does `ls -l`: names that were listed a moment ago are taken to be directories
until somebody goes into one. Other names are asked for one by one, as a revision that no list holds.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import threading
import time
import zlib
from typing import Final

from overlayrun.folders.api import Answers, Kind, Tree
from overlayrun.folders.device import NOTHING, Listing, Looks, attributes, listed
from overlayrun.folders.nodes import Nodes, Shown
from overlayrun.folders.requests import HELD, Answer, Method, hold
from overlayrun.kernel import fuse

_FRESH: Final = 1.0
"""Seconds for which a list, and a name's place in the folders, need not be asked for again."""
_STATFS: Final = fuse.STATFS_OUT.pack(0, 0, 0, 0, 0, 4096, 255, 4096)
_CHANGING: Final = (
    *(fuse.SETATTR, fuse.SYMLINK, fuse.MKNOD, fuse.UNLINK, fuse.RENAME, fuse.RENAME2),
    *(fuse.LINK, fuse.CREATE, fuse.SETXATTR, fuse.REMOVEXATTR),
)


class Folder:
    """A directory of names. kind: None at the top. above: a branch, in the snapshots."""

    def __init__(self, number: int, kind: Kind | None, above: str = "") -> None:
        self.number = number
        self.kind = kind
        self.above = above
        self.names: list[str] = []
        self.forget()

    def forget(self) -> None:
        """Let its names be asked for again."""
        self.listed_at = -_FRESH

    @property
    def has_folders(self) -> bool:
        """Whether its names are folders and not trees."""
        return self.kind is None or (self.kind is Kind.SNAPSHOTS and not self.above)


class Top:
    """Answers about folders, as `Requests` gives them about nodes; methods that ask give a function.

    lock: held by whoever calls a method, and not while its function runs.
    """

    def __init__(self, nodes: Nodes, answers: Answers, lock: threading.Lock, looks: Looks) -> None:
        self._nodes = nodes
        self._answers = answers
        self._lock = lock
        self._looks = looks
        self._numbers = itertools.count(fuse.ROOT_ID)
        self._folders: dict[int, Folder] = {}
        self._listings: dict[int, Listing] = {}
        self._places: dict[tuple[Kind, str], Shown] = {}
        root = self._add(None)
        self._below: dict[tuple[int, str], Folder] = {
            (root.number, kind.value): self._add(kind) for kind in Kind
        }
        self.methods: dict[int, Method] = {
            fuse.LOOKUP: self._lookup,
            fuse.GETATTR: self._getattr,
            fuse.MKDIR: self._mkdir,
            fuse.RMDIR: self._rmdir,
            fuse.OPENDIR: self._opendir,
            fuse.READDIR: self._readdir,
            fuse.READDIRPLUS: self._readdirplus,
            fuse.RELEASEDIR: self._releasedir,
            fuse.FSYNCDIR: lambda number, body: b"",
            fuse.STATFS: lambda number, body: _STATFS,
            # ENOSYS would tell the kernel that the trees' files have no attributes either.
            fuse.GETXATTR: self._getxattr,
            fuse.LISTXATTR: self._listxattr,
            **dict.fromkeys(_CHANGING, self._refuse),
        }

    def _add(self, kind: Kind | None, above: str = "") -> Folder:
        folder = Folder(next(self._numbers), kind, above)
        self._folders[folder.number] = folder
        return folder

    def shown(self) -> list[tuple[int, Shown]]:
        """All trees that have a place, each with the number of the folder that it is in."""
        return [(self._parent(shown), shown) for shown in self._places.values()]

    def _parent(self, shown: Shown) -> int:
        above = shown.name.rpartition("/")[0]
        for folder in self._folders.values():
            if folder.kind is shown.kind and folder.above == above:
                return folder.number
        return fuse.ROOT_ID

    def bind(self, shown: Shown) -> None:
        """Open a tree that is needed. Without the lock."""
        tree = self._answers.tree(shown.kind, shown.name)
        with self._lock:
            if shown.is_bound:
                _close(tree)
            else:
                shown.bind(tree)

    def _lookup(self, number: int, body: memoryview) -> Answer:
        folder, name = self._folders[number], os.fsdecode(bytes(body[:-1]))
        below = self._below.get((number, name))
        if below is not None:
            return self._folder_entry(below)
        kind = folder.kind
        if kind is None or name.startswith("."):  # no ref begins so, but many a program looks for such names
            raise OSError(errno.ENOENT, "no such folder", name)
        return lambda: self._look(folder, kind, name)

    def _look(self, folder: Folder, kind: Kind, name: str) -> bytes:
        if folder.has_folders:
            self._answers.names(kind, name)  # ENOENT where there is none
            with self._lock:
                below = self._below.get((folder.number, name)) or self._add(kind, name)
                self._below[folder.number, name] = below
                return self._folder_entry(below)
        full = f"{folder.above}/{name}" if folder.above else name
        shown = self._places.get((kind, full))
        # A name of the commits may stand for another one by now.
        is_known = kind is not Kind.COMMITS and shown is not None and shown.is_bound
        is_open = shown is not None and shown.is_bound
        tree = None
        if not is_known and (is_open or name not in self._names(folder)):
            tree = self._answers.tree(kind, full)
        with self._lock:
            return self._root_entry(self._placed(kind, full, tree))

    def _placed(self, kind: Kind, name: str, tree: Tree | None) -> Shown:
        shown = self._places.get((kind, name))
        if shown is not None and tree is not None and shown.is_bound:
            if shown.key == tree.key or kind is Kind.BRANCHES:
                _close(tree)
                tree = None
            else:
                shown = None
        if shown is None:
            shown = self._places[kind, name] = Shown(kind, name)
            self._nodes.add(shown.root)
        if tree is not None:
            shown.bind(tree)
        return shown

    def _names(self, folder: Folder) -> list[str]:
        if time.monotonic() - folder.listed_at > _FRESH:
            assert folder.kind is not None
            folder.names = self._answers.names(folder.kind, folder.above)
            folder.listed_at = time.monotonic()
        return folder.names

    def _folder_entry(self, folder: Folder) -> bytes:
        fields = (folder.number, 0, HELD, HELD, 0, 0, *self._attributes(folder))
        return fuse.ENTRY_OUT.pack(*fields)

    def _attributes(self, folder: Folder) -> tuple[int, ...]:
        return self._looks.of(folder.number, is_writable=folder.kind is Kind.BRANCHES)

    def _root_entry(self, shown: Shown) -> bytes:
        root = shown.root
        root.lookups += 1
        number = root.number
        if shown.is_bound:
            info = os.fstat(root.fd)
            held, found = hold(shown, info), attributes(info, number)
        else:
            held, found = (0, 0), self._looks.of(number, is_writable=True)
        return fuse.ENTRY_OUT.pack(number, 0, int(_FRESH), held[0], 0, held[1], *found)

    def _getattr(self, number: int, _: memoryview) -> Answer:
        return fuse.ATTR_OUT.pack(HELD, 0, 0, *self._attributes(self._folders[number]))

    def _mkdir(self, number: int, body: memoryview) -> Answer:
        name = os.fsdecode(bytes(body[fuse.MKDIR_IN.size : -1]))
        self._check_branches(number, name)

        def make() -> bytes:
            tree = self._answers.make(name)
            self._folders[number].forget()
            with self._lock:
                return self._root_entry(self._placed(Kind.BRANCHES, name, tree))

        return make

    def _rmdir(self, number: int, body: memoryview) -> Answer:
        name = os.fsdecode(bytes(body[:-1]))
        self._check_branches(number, name)

        def remove() -> bytes:
            self._answers.remove(name)
            self._folders[number].forget()
            with self._lock:
                shown = self._places.pop((Kind.BRANCHES, name), None)
                if shown is not None:
                    self._nodes.let_go(shown)
            return b""

        return remove

    def _check_branches(self, number: int, name: str) -> None:
        if self._folders[number].kind is not Kind.BRANCHES:
            self._refuse(number, memoryview(b""))
        if name.startswith("."):
            raise OSError(errno.EINVAL, "no name of a branch", name)

    def _refuse(self, number: int, _: memoryview) -> Answer:
        writable = self._folders[number].kind in (None, Kind.BRANCHES) if number in self._folders else True
        raise OSError(errno.EPERM if writable else errno.EROFS, "not in this folder")

    def _getxattr(self, _: int, __: memoryview) -> Answer:
        raise OSError(errno.ENODATA, "no attributes in the folders")

    def _listxattr(self, _: int, body: memoryview) -> Answer:
        return b"" if fuse.GETXATTR_IN.unpack_from(body)[0] else fuse.GETXATTR_IN.pack(0, 0)

    def _opendir(self, number: int, _: memoryview) -> Answer:
        folder = self._folders[number]
        if folder.kind is None:
            return self._opened([kind.value for kind in Kind])

        def ask() -> bytes:
            names = self._names(folder)
            with self._lock:
                return self._opened(names)

        return ask

    def _opened(self, names: list[str]) -> bytes:
        fh = next(self._numbers)
        self._listings[fh] = [
            (name, zlib.crc32(os.fsencode(name)) + 1, stat.S_IFDIR) for name in (".", "..", *names)
        ]
        return fuse.OPEN_OUT.pack(fh, 0, 0)

    def _releasedir(self, _: int, body: memoryview) -> Answer:
        self._listings.pop(fuse.COUNT.unpack_from(body)[0], None)
        return b""

    def _readdir(self, _: int, body: memoryview) -> Answer:
        return listed(body, self._listings[fuse.READ_IN.unpack_from(body)[0]])

    def _readdirplus(self, _: int, body: memoryview) -> Answer:
        return listed(body, self._listings[fuse.READ_IN.unpack_from(body)[0]], lambda _: NOTHING)


def _close(tree: Tree) -> None:
    for fd in (tree.fd, *(fd for _, fd in tree.replaced)):
        os.close(fd)
