"""Trees by whole paths: look one up, compare two, make an edited one. Cost follows what differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from overlayrun.model import EMPTY_TREE, TreeId
from overlayrun.store.pack import ObjectWriter
from overlayrun.store.trees import TREE, Entry, format_tree, is_tree


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


def changed_paths(objects: Objects, old: TreeId, new: TreeId) -> Iterator[Change]:
    """Files that differ between two trees, in no order; reads only trees that differ."""
    pairs = [(b"", _root(old), _root(new))]
    while pairs:
        prefix, *roots = pairs.pop()
        before, after = (objects.read_tree(root) if root else {} for root in roots)
        for name in before.keys() | after.keys():
            one, other = before.get(name), after.get(name)
            if one == other:
                continue
            path = prefix + name
            below = [entry[1] if entry and is_tree(entry) else None for entry in (one, other)]
            if any(below):
                pairs.append((path + b"/", below[0], below[1]))
            change = Change(path, None if below[0] else one, None if below[1] else other)
            if change.before != change.after:
                yield change


def _root(tree: TreeId) -> bytes | None:
    return None if tree == EMPTY_TREE else bytes.fromhex(tree)


def entry_at(objects: Objects, tree: TreeId, path: bytes) -> Entry | None:
    """What a tree has at a path; None also where that is a directory."""
    entry: Entry | None = (TREE, bytes.fromhex(tree))
    for name in path.split(b"/"):
        if entry is None or not is_tree(entry) or entry[1].hex() == EMPTY_TREE:
            return None
        entry = objects.read_tree(entry[1]).get(name)
    return None if is_tree(entry) else entry


def edited(
    objects: Objects, writer: ObjectWriter, tree: TreeId, edits: Mapping[bytes, Entry | None]
) -> TreeId:
    """The tree with other entries at some paths (None: none there); directories that become empty go.

    An entry may be a whole directory. No path may lie below another.
    """
    root = _edited(objects, writer, _root(tree), edits)
    return TreeId((root or writer.add(b"tree", b"")).hex())


def _edited(
    objects: Objects, writer: ObjectWriter, root: bytes | None, edits: Mapping[bytes, Entry | None]
) -> bytes | None:
    entries = dict(objects.read_tree(root)) if root else {}
    below: dict[bytes, dict[bytes, Entry | None]] = {}
    here: dict[bytes, Entry | None] = {}
    for path, entry in edits.items():
        name, slash, rest = path.partition(b"/")
        if slash:
            below.setdefault(name, {})[rest] = entry
        else:
            here[name] = entry
    for name, inner in below.items():
        old = entries.get(name)
        directory = _edited(objects, writer, old[1] if old and is_tree(old) else None, inner)
        here[name] = (TREE, directory) if directory else None
    entries |= {name: entry for name, entry in here.items() if entry}
    for name in (name for name, entry in here.items() if entry is None):
        entries.pop(name, None)
    return writer.add(b"tree", format_tree(entries)) if entries else None
