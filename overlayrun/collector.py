"""What an upper layer changed, gathered into new git trees: the visitor of a walk."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from overlayrun.errors import SnapshotError
from overlayrun.layers.names import is_dotgit, is_dotgitmodules
from overlayrun.layers.walk import Content, Opened
from overlayrun.layers.wire import FileInfo, LimitReached, Trouble
from overlayrun.store.convert import Converter
from overlayrun.store.hashes import HashCache
from overlayrun.store.ignore import IgnoreRules
from overlayrun.store.pack import ObjectWriter, ShortRead, join_exactly
from overlayrun.store.repo import Repo
from overlayrun.store.trees import (
    EXECUTABLE,
    FILE,
    GITLINK,
    SYMLINK,
    TREE,
    Entries,
    Entry,
    format_tree,
    is_tree,
)
from overlayrun.survey import Made

STREAMED: Final = 8 << 20  # bytes; larger files are never held in memory
PATH_MAX: Final = 4096  # linux/limits.h: no checkout could make a longer path
_NO_END: Final = 1 << 62


class LeftOutReason(Enum):
    """Why a path of the upper is not in the snapshot as it is there."""

    UNREADABLE = "no permission to read it"
    UNSUPPORTED = "a socket, FIFO or device"
    DOTGIT = "git keeps that name for itself"
    IN_SUBMODULE = "inside a submodule, which keeps its commit"
    TOO_LARGE = "larger than the limit"
    TOO_DEEP = "the path has more than 4095 bytes"
    LINKED_MODULES = "git refuses a .gitmodules that is a symlink"
    FILTER = "its clean filter could not be run"


_REASONS: Final = {
    Trouble.UNREADABLE: LeftOutReason.UNREADABLE,
    Trouble.UNSUPPORTED: LeftOutReason.UNSUPPORTED,
}


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A path, relative to the repository's root, that the snapshot does not hold as the upper does."""

    path: bytes
    reason: LeftOutReason


@dataclass(frozen=True, slots=True)
class Limits:
    """Where a snapshot stops.

    entries: changed files, or directories with changes, or paths left out. file_bytes: of one file.
    total_bytes: of all files that the snapshot before does not hold. seconds: for the reading;
    interval_seconds: of a snapshot that nobody asked for. force_large: none of these holds.
    """

    entries: int = 200_000
    file_bytes: int = 2 << 30
    total_bytes: int = 8 << 30
    seconds: float = 600.0
    interval_seconds: float = 120.0
    force_large: bool = False

    @property
    def largest(self) -> int:
        """Bytes of a file that is taken."""
        return _NO_END if self.force_large else self.file_bytes


@dataclass(slots=True)
class Directory:
    """One directory of the upper.

    start: what the start tree has there; committed: what the agent's own HEAD has there; entries: what the
    snapshot will have. ignored: an ignore rule excludes it, so that only tracked files below count.
    attributed: the start tree's attributes may reach its files.
    """

    path: bytes
    parent: Directory | None
    start_id: bytes | None
    start: Mapping[bytes, Entry]
    committed: Mapping[bytes, Entry]
    entries: Entries
    rules: IgnoreRules
    ignored: bool = False
    attributed: bool = False

    def join(self, name: bytes) -> bytes:
        """Path of an entry, relative to the root."""
        return b"%b/%b" % (self.path, name) if self.path else name

    def tracks(self, name: bytes) -> bool:
        """Whether git would follow this file whatever the ignore rules say."""
        return any(entry and not is_tree(entry) for entry in (self.start.get(name), self.committed.get(name)))

    def tracks_below(self, name: bytes) -> bool:
        """Whether git follows anything in this directory."""
        return is_tree(self.start.get(name)) or is_tree(self.committed.get(name))


@dataclass(slots=True)
class Collector:
    """Visitor of `walk_upper`: reads what changed, then builds the trees.

    known: the cache of the snapshot before; margin: ns before it began that it is not believed for; found:
    the cache for the next one, filled on the way. largest: bytes of the largest file that was left out for
    its size. made: of an upper that holds the whole tree, what is known of it as it was made.
    """

    repo: Repo
    writer: ObjectWriter
    converter: Converter
    known: HashCache
    margin: int
    carried: frozenset[bytes]
    limits: Limits
    file_mode: bool
    found: HashCache
    made: Made | None = None
    left_out: list[LeftOut] = field(default_factory=list)
    ignored: int = 0
    raced: int = 0
    largest: int = 0
    _entries: int = 0
    _bytes: int = 0
    _changed_directories: int = 0
    _trees: dict[bytes, Mapping[bytes, Entry]] = field(default_factory=dict)
    _directories: list[Directory] = field(default_factory=list)

    def top(
        self, start: bytes | None, committed: bytes | None, rules: IgnoreRules, opened: Opened
    ) -> Directory:
        """State of the root. start, committed: raw tree ids, None for empty; rules: from outside the tree."""
        entries = self._read(start)
        shown = dict(entries) if self.made is None else {}
        root = Directory(b"", None, start, entries, self._read(committed), shown, rules)
        root.rules = self._with_gitignore(root, opened.ignore)
        root.attributed = self.converter.sees(b"", entries)
        self._directories.append(root)
        return root

    def wants(self, where: Directory, name: bytes, info: FileInfo) -> bool:
        """Decide by name, type and stamp; see Visitor."""
        path = where.join(name)
        if self.made is not None:
            # What is named here was never deleted: it is the start's until it is known to be another.
            self._keep(where, name)
            if where.entries.get(name) and self.made.is_still(path, info):
                return False
        if self._is_barred(where, name, path):
            return False
        if stat.S_ISDIR(info.mode):
            return self._wants_directory(where, name, path)
        if self._is_ignored(where, name, path):
            where.entries.pop(name, None)
            return False
        return self._wants_file(where, name, path, info)

    def enter(self, where: Directory, name: bytes, opened: Opened) -> Directory:
        """A changed directory; see Visitor."""
        path, before = where.join(name), where.start.get(name)
        start_id = before[1] if before and is_tree(before) else None
        if self.made is None or start_id is None:
            self._changed_directories += 1
            self._check_count(self._changed_directories, "directories changed")
        start = self._read(start_id)
        committed = where.committed.get(name)
        hidden = opened.opaque or self.made is not None
        inside = Directory(
            path,
            where,
            start_id,
            start,
            self._read(committed[1] if committed and is_tree(committed) else None),
            # Below an opaque directory nothing shows through either, and no mark says so again.
            dict(start) if is_tree(where.entries.get(name)) and not hidden else {},
            where.rules,
            ignored=where.ignored or where.rules.is_ignored(path, directory=True),
        )
        if not inside.ignored:
            inside.rules = self._with_gitignore(inside, opened.ignore)
        inside.attributed = self.converter.sees(path, start) or where.attributed
        self._directories.append(inside)
        return inside

    def file(self, where: Directory, name: bytes, content: Content, info: FileInfo) -> None:
        """A changed regular file; see Visitor."""
        path, mode = where.join(name), self._mode(where, name, info)
        before = where.start.get(name)
        if before:
            self.writer.trust(before[1])
        try:
            oid = self._store(where, path, content, info.size)
        except ShortRead:
            self.raced += 1
            return
        except OSError as err:
            raise SnapshotError("a changed file could not be stored", details=str(err)) from err
        where.entries[name] = (mode, oid)
        self.found.files[path] = (info.stamp, oid)

    def link(self, where: Directory, name: bytes, text: bytes) -> None:
        """A changed symlink; see Visitor."""
        oid = self.writer.add(b"blob", text)
        where.entries[name] = (SYMLINK, oid)
        self.found.others.add(oid)

    def deleted(self, where: Directory, name: bytes) -> None:
        """A whiteout; see Visitor."""
        where.entries.pop(name, None)

    def trouble(self, where: Directory, name: bytes, what: Trouble) -> None:
        """What could not be read keeps the start tree's version; see Visitor."""
        path = where.join(name)
        if self.made is not None:
            self._keep(where, name)
        if what is Trouble.RACED:
            self.raced += 1
        elif not self._is_barred(where, name, path) and not self._is_ignored(where, name, path):
            if what is Trouble.UNSUPPORTED:
                where.entries.pop(name, None)
            self._leave_out(path, _REASONS[what])

    def finish(self) -> bytes | None:
        """Raw id of the new root tree, None if it is empty; writes every new tree."""
        converted = self.converter.finish()
        oid: bytes | None = None
        for directory in reversed(self._directories):  # a parent stands before its children
            self._settle(directory, converted)
            oid = self._write(directory)
            if directory.parent is not None:
                _replace(directory.parent.entries, directory.path.rpartition(b"/")[2], oid)
        self.left_out.sort(key=lambda one: one.path)
        return oid

    def read_tree(self, oid: bytes) -> Mapping[bytes, Entry]:
        """Entries of a tree, new or old; each is read once."""
        if oid not in self._trees:
            self._trees[oid] = self.repo.read_tree(oid)
        return self._trees[oid]

    def _settle(self, directory: Directory, converted: Mapping[bytes, bytes | None]) -> None:
        """Put in ids of converted files; what a filter failed on keeps the start tree's version."""
        waiting = [name for name, entry in directory.entries.items() if not entry[1]] if converted else []
        for name in waiting:
            path, mode = directory.join(name), directory.entries[name][0]
            oid = converted[path]
            if oid:
                directory.entries[name] = (mode, oid)
                self.found.files[path] = (self.found.files[path][0], oid)
                continue
            del directory.entries[name], self.found.files[path]
            self._keep(directory, name)
            self._leave_out(path, LeftOutReason.FILTER)

    def _write(self, directory: Directory) -> bytes | None:
        if not directory.entries:
            return None
        if directory.entries == directory.start:
            return directory.start_id
        oid = self.writer.add(b"tree", format_tree(directory.entries))
        self._trees[oid] = directory.entries
        self.found.others.add(oid)
        return oid

    def _is_barred(self, where: Directory, name: bytes, path: bytes) -> bool:
        if is_dotgit(name):
            if path != b".git":  # the workspace's own is always there
                self._leave_out(path, LeftOutReason.DOTGIT)
            return True
        if len(path) >= PATH_MAX:
            self._leave_out(path, LeftOutReason.TOO_DEEP)
            return True
        return path in self.carried

    def _wants_directory(self, where: Directory, name: bytes, path: bytes) -> bool:
        before = where.start.get(name)
        if before and before[0] == GITLINK:
            where.entries[name] = before
            self._leave_out(path, LeftOutReason.IN_SUBMODULE)
            return False
        if where.tracks_below(name):
            return True
        if where.ignored or where.rules.is_ignored(path, directory=True):
            where.entries.pop(name, None)
            self.ignored += 1
            return False
        return True

    def _is_ignored(self, where: Directory, name: bytes, path: bytes) -> bool:
        if where.tracks(name) or not (where.ignored or where.rules.is_ignored(path, directory=False)):
            return False
        self.ignored += 1
        return True

    def _wants_file(self, where: Directory, name: bytes, path: bytes, info: FileInfo) -> bool:
        self._entries += 1
        self._check_count(self._entries, "files changed")
        if stat.S_ISLNK(info.mode):
            if is_dotgitmodules(name):
                self._leave_out(path, LeftOutReason.LINKED_MODULES)
                return False
            return True
        oid = self.known.find(path, info.stamp, self.margin)
        if oid is None:
            return self._has_room(where, name, path, info)
        where.entries[name] = (self._mode(where, name, info), oid)
        self.found.files[path] = (info.stamp, oid)
        return False

    def _has_room(self, where: Directory, name: bytes, path: bytes, info: FileInfo) -> bool:
        """Count the bytes of a file that is to be read; one that is too large keeps its old version."""
        if info.size > self.limits.largest:
            self._keep(where, name)
            self._leave_out(path, LeftOutReason.TOO_LARGE)
            self.largest = max(self.largest, info.size)
            return False
        self._bytes += info.size
        if self._bytes > self.limits.total_bytes and not self.limits.force_large:
            limit = show_bytes(self.limits.total_bytes)
            raise LimitReached(
                f"the changed files have {show_bytes(self._bytes)} or more, the limit is {limit}"
            )
        return True

    def _check_count(self, count: int, what: str) -> None:
        if count > self.limits.entries and not self.limits.force_large:
            raise LimitReached(f"more than {self.limits.entries} {what}")

    def _mode(self, where: Directory, name: bytes, info: FileInfo) -> bytes:
        before = where.start.get(name)
        if not self.file_mode:
            return before[0] if before and before[0] in (FILE, EXECUTABLE) else FILE
        return EXECUTABLE if info.mode & stat.S_IXUSR else FILE

    def _store(self, where: Directory, path: bytes, content: Content, size: int) -> bytes:
        """Raw id of a file's blob; empty until `finish` if attributes may reach it."""
        if where.attributed:
            self.converter.take(path, content, size, where.start.get(path.rpartition(b"/")[2]))
            return b""
        if size > STREAMED:
            return self.writer.add_file(content, size)
        return self.writer.add(b"blob", join_exactly(content, size))

    def _keep(self, where: Directory, name: bytes) -> None:
        before = where.start.get(name)
        if before:
            where.entries[name] = before
        else:
            where.entries.pop(name, None)

    def _leave_out(self, path: bytes, reason: LeftOutReason) -> None:
        self.left_out.append(LeftOut(path, reason))
        self._check_count(len(self.left_out), "paths can't be taken")

    def _read(self, oid: bytes | None) -> Mapping[bytes, Entry]:
        return self.read_tree(oid) if oid else {}

    def _with_gitignore(self, inside: Directory, content: bytes | None) -> IgnoreRules:
        """Add the .gitignore that the agent sees there: the upper's, else the start tree's."""
        if content is None:
            before = inside.entries.get(b".gitignore")
            content = (
                self.repo.read_blob(before[1].hex()) if before and before[0] in (FILE, EXECUTABLE) else None
            )
        return inside.rules.within(inside.path, content) if content else inside.rules


def show_bytes(size: int) -> str:
    """A size as people say it."""
    for unit, bits in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << bits:
            return f"{size / (1 << bits):.3g} {unit}"
    return f"{size} bytes"


def _replace(entries: Entries, name: bytes, oid: bytes | None) -> None:
    if oid:
        entries[name] = (TREE, oid)
    else:
        entries.pop(name, None)
