"""Git trees as raw entries: parse, format, compare. Cost follows the trees read, not the repository."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

# name -> (mode as git writes it, raw id of 20 bytes)
Entry = tuple[bytes, bytes]
Entries = dict[bytes, Entry]
ReadTree = Callable[[bytes], Mapping[bytes, Entry]]

TREE: Final = b"40000"
FILE: Final = b"100644"
EXECUTABLE: Final = b"100755"
SYMLINK: Final = b"120000"
GITLINK: Final = b"160000"

# Iterating libgit2's trees makes one Python object an entry; one regex over the raw bytes is several times
# faster.
_ENTRY: Final = re.compile(rb"([0-7]+) ([^\0]+)\0(.{20})", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ChangeCount:
    """Files (symlinks and gitlinks included) that differ between two trees."""

    added: int = 0
    modified: int = 0
    deleted: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.added + self.modified + self.deleted


def parse_tree(data: bytes) -> Entries:
    """Entries of a raw tree object."""
    return {name: (mode, oid) for mode, name, oid in _ENTRY.findall(data)}


def format_tree(entries: Mapping[bytes, Entry]) -> bytes:
    """Raw tree object of `entries`, in git's order (a directory sorts as if its name ended in a slash)."""
    rows = sorted(
        (name + b"/" if is_tree(entry) else name, name, entry[0], entry[1]) for name, entry in entries.items()
    )
    return b"".join(b"%b %b\0%b" % (mode, name, oid) for _, name, mode, oid in rows)


def is_tree(entry: Entry | None) -> bool:
    """Whether an entry is a directory; old tools wrote its mode with a leading zero."""
    return entry is not None and entry[0] in (TREE, b"040000")


def count_changes(read: ReadTree, old: bytes | None, new: bytes | None) -> ChangeCount:
    """Count files that differ between two trees (None: empty); reads only trees that differ."""
    added = modified = deleted = 0
    for was, now in changed_files(read, old, new):
        added += was is None
        deleted += now is None
        modified += was is not None and now is not None
    return ChangeCount(added, modified, deleted)


def changed_files(
    read: ReadTree, old: bytes | None, new: bytes | None
) -> Iterator[tuple[Entry | None, Entry | None]]:
    """Yield (before, after) of each file that differs between two trees; None where it is no file."""
    pairs = [(old, new)]
    while pairs:
        before, after = pairs.pop()
        for one, other in _differing(read, before, after):
            below = (one[1] if one and is_tree(one) else None, other[1] if other and is_tree(other) else None)
            if below != (None, None):
                pairs.append(below)
            was, now = None if below[0] else one, None if below[1] else other
            if was or now:
                yield was, now


def _differing(
    read: ReadTree, old: bytes | None, new: bytes | None
) -> list[tuple[Entry | None, Entry | None]]:
    if old == new:
        return []
    before: Mapping[bytes, Entry] = read(old) if old else {}
    after: Mapping[bytes, Entry] = read(new) if new else {}
    pairs = [(before.get(name), after.get(name)) for name in before.keys() | after.keys()]
    return [(one, other) for one, other in pairs if one != other]
