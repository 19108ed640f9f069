"""Take along into a new upper what no snapshot holds: ignored files, carried ones, what was left out.

By hard links, so that the old upper stays whole until the new one has taken its place. Nothing runs in the
workspace meanwhile: paths of the upper are safe to follow by name, links in it never are.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from overlayrun.files import copy_file, remove_tree
from overlayrun.layers.marks import is_whiteout, set_opaque
from overlayrun.model import EMPTY_TREE, TreeId
from overlayrun.store.repo import Repo
from overlayrun.store.trees import GITLINK, Entries, Entry, is_tree

_NOTHING: Final[Entries] = {}


def link_tree(old: bytes, new: bytes, *, copied: bool = False) -> None:
    """Make `new`, a file or a directory with all below it, of hard links; marks, modes and times are kept.

    copied: regular files become copies, and so they do in another subvolume. Raises OSError.
    """
    made: list[tuple[bytes, bytes, int]] = []
    waiting = [(old, new)]
    try:
        while waiting:
            source, target = waiting.pop()
            info = os.lstat(source)
            if stat.S_ISDIR(info.st_mode):
                os.mkdir(target, 0o700)
                made.append((source, target, info.st_mode))
                _open(source, info.st_mode)
                waiting += [(source + b"/" + name, target + b"/" + name) for name in os.listdir(source)]
            elif copied and stat.S_ISREG(info.st_mode):
                copy_file(source, target)
            else:
                _link(source, target, info)
    finally:
        for source, target, mode in reversed(made):  # what is below changes a directory's times
            os.chmod(source, stat.S_IMODE(mode))
            shutil.copystat(source, target, follow_symlinks=False)


def _link(source: bytes, target: bytes, info: os.stat_result) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as err:
        if err.errno != errno.EXDEV:
            raise
        if stat.S_ISREG(info.st_mode):
            copy_file(source, target)
        elif stat.S_ISLNK(info.st_mode):
            os.symlink(os.readlink(source), target)
        else:
            os.mknod(target, info.st_mode, info.st_rdev)
        shutil.copystat(source, target, follow_symlinks=False)


def make_way(path: str) -> None:
    """Remove what is at a path of a new upper: what a checkout or a carried layer has put there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        remove_tree(path)


def _open(directory: bytes, mode: int) -> None:
    """Let us into a directory that the agent has closed, be it for itself."""
    if mode & stat.S_IRWXU != stat.S_IRWXU:
        os.chmod(directory, stat.S_IMODE(mode) | stat.S_IRWXU)


@dataclass(frozen=True, slots=True)
class Trees:
    """What git knows of both uppers. start: what the old one lies on; was, now: what they hold over it."""

    start: TreeId
    was: TreeId
    now: TreeId


@dataclass(frozen=True, slots=True)
class _Place:
    """A directory of the old upper, as the three trees have it. blocked: in the new tree a file is there."""

    path: bytes
    start: Mapping[bytes, Entry]
    was: Mapping[bytes, Entry]
    now: Mapping[bytes, Entry]
    blocked: bool = False

    def join(self, name: bytes) -> bytes:
        return self.path + b"/" + name if self.path else name


@dataclass(slots=True)
class Adoption:
    """One transfer from the upper `old` to `new`, which holds already what git knows.

    is_whole: they hold the whole tree, and what the old one changed in it is to be taken. left_out: paths
    that the last snapshot could not take as they are. in_the_way: paths that nobody may overwrite, and that
    the new tree has too; they were not taken.
    """

    repo: Repo
    old: bytes
    new: bytes
    trees: Trees
    left_out: Collection[bytes]
    is_whole: bool = False
    in_the_way: list[bytes] = field(default_factory=list)
    _modes: list[tuple[bytes, int]] = field(default_factory=list)

    def take(self) -> None:
        """Go through the old upper. Raises OSError."""
        start, was, now = map(self._entries, (self.trees.start, self.trees.was, self.trees.now))
        waiting = [_Place(b"", start, was, now)]
        try:
            while waiting:
                place = waiting.pop()
                waiting += self._take_directory(place)
        finally:
            for path, mode in reversed(self._modes):
                os.chmod(self._old(path), mode)
        for path, mode in reversed(self._modes):
            if os.path.isdir(self._new(path)) and not os.path.islink(self._new(path)):
                os.chmod(self._new(path), mode)

    def _take_directory(self, place: _Place) -> Iterator[_Place]:
        """Take what is to be taken of one directory, and yield those below that git knows."""
        directory = os.path.join(self.old, place.path)
        for name in os.listdir(directory):
            path = place.join(name)
            if path == b".git":  # the mountpoint
                continue
            info = os.lstat(self._old(path))
            was, now = place.was.get(name), place.now.get(name)
            if not stat.S_ISDIR(info.st_mode):
                self._take_file(place, name, info)
            elif is_tree(was) or is_tree(now):
                self._modes.append((path, stat.S_IMODE(info.st_mode)))
                _open(self._old(path), info.st_mode)
                blocked = place.blocked or not (now is None or is_tree(now))
                start = self._below(place.start.get(name))
                yield _Place(path, start, self._below(was), self._below(now), blocked)
            else:  # git knows nothing in it; where it has a submodule, that is empty
                is_free = now is None or now[0] == GITLINK
                self._take_whole(path, is_free=is_free and not place.blocked)

    def _take_file(self, place: _Place, name: bytes, info: os.stat_result) -> None:
        path, was, now = place.join(name), place.was.get(name), place.now.get(name)
        if is_whiteout(info):
            if place.start.get(name) is None and now is None and not place.blocked:
                self._take_whole(path, is_free=True)
        elif self.is_whole and was is not None and was == place.start.get(name) and path not in self.left_out:
            return  # never changed
        elif was is not None and path not in self.left_out:
            # As the agent left it: with its time, and with what no checkout of ours would write (LFS).
            if was == now and os.path.lexists(self._new(path)):
                self._take_whole(path, is_free=True)
        else:
            self._take_whole(path, is_free=was == now and not place.blocked)

    def _take_whole(self, path: bytes, *, is_free: bool) -> None:
        if not is_free:
            self.in_the_way.append(path)
            return
        self._make_parents(path.rpartition(b"/")[0])
        make_way(os.fsdecode(self._new(path)))
        link_tree(self._old(path), self._new(path))

    def _make_parents(self, directory: bytes) -> None:
        """Directories down to `directory`; one that is gone from the tree hides all that lay there."""
        parts = directory.split(b"/") if directory else []
        for end in range(1, len(parts) + 1):
            place = self._new(b"/".join(parts[:end]))
            try:
                is_gone = is_whiteout(os.lstat(place))
            except FileNotFoundError:
                os.mkdir(place)
                continue
            if is_gone:
                os.unlink(place)
                os.mkdir(place)
                set_opaque(os.fsdecode(place))

    def _old(self, path: bytes) -> bytes:
        return self.old + b"/" + path

    def _new(self, path: bytes) -> bytes:
        return self.new + b"/" + path

    def _entries(self, tree: TreeId) -> Mapping[bytes, Entry]:
        return _NOTHING if tree == EMPTY_TREE else self.repo.read_tree(bytes.fromhex(tree))

    def _below(self, entry: Entry | None) -> Mapping[bytes, Entry]:
        return self.repo.read_tree(entry[1]) if entry and is_tree(entry) else _NOTHING
