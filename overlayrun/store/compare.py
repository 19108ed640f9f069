"""Two trees against each other, by whole paths. Cost follows what differs, not the repository."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from overlayrun.model import EMPTY_TREE, TreeId
from overlayrun.store.trees import Entry, is_tree


class Objects(Protocol):
    """Where trees (by raw id) and blobs (by hexadecimal id) are read; `Repo` is one."""

    def read_tree(self, oid: bytes) -> Mapping[bytes, Entry]:
        """Entries by name."""

    def read_blob(self, oid: str) -> bytes:
        """Content."""


@dataclass(frozen=True, slots=True)
class Change:
    """A file that differs between two trees; None where there is no file."""

    path: bytes
    before: Entry | None
    after: Entry | None


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory that differs. prefix: its path with a slash at the end, empty for the root."""

    prefix: bytes
    before: Mapping[bytes, Entry]
    after: Mapping[bytes, Entry]

    def changes(self) -> Iterator[Change]:
        """Files right in it that differ, in no order."""
        for name in self.before.keys() | self.after.keys():
            was, now = (None if is_tree(entry) else entry for entry in self._versions(name))
            if was != now:
                yield Change(self.prefix + name, was, now)

    def below(self) -> Iterator[tuple[bytes, bytes | None, bytes | None]]:
        """Directories right in it that differ: prefix, and raw id of both versions."""
        for name in self.before.keys() | self.after.keys():
            versions = self._versions(name)
            one, other = (entry[1] if entry and is_tree(entry) else None for entry in versions)
            if versions[0] != versions[1] and (one or other):
                yield self.prefix + name + b"/", one, other

    def _versions(self, name: bytes) -> tuple[Entry | None, Entry | None]:
        return self.before.get(name), self.after.get(name)


def changed_directories(objects: Objects, old: TreeId, new: TreeId) -> Iterator[Directory]:
    """Directories that differ between two trees, a parent before its children; reads no other trees."""
    left = [(b"", _root(old), _root(new))] if old != new else []
    while left:
        prefix, *roots = left.pop()
        before, after = (objects.read_tree(root) if root else {} for root in roots)
        found = Directory(prefix, before, after)
        yield found
        left += found.below()


def changed_paths(objects: Objects, old: TreeId, new: TreeId) -> Iterator[Change]:
    """Files that differ between two trees, in no order; reads only trees that differ."""
    for directory in changed_directories(objects, old, new):
        yield from directory.changes()


def _root(tree: TreeId) -> bytes | None:
    return None if tree == EMPTY_TREE else bytes.fromhex(tree)
