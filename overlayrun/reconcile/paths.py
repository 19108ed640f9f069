"""Trees by whole paths: look one up, make an edited one. Cost follows what differs."""

from __future__ import annotations

from collections.abc import Mapping

from overlayrun.model import EMPTY_TREE, TreeId
from overlayrun.store.compare import Objects
from overlayrun.store.pack import ObjectWriter
from overlayrun.store.trees import TREE, Entry, format_tree, is_tree


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
