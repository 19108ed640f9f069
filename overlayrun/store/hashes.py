"""Blob ids of files already stored, so that a snapshot reads only what changed since the last one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

_VERSION: Final = 1

# inode, size, mtime and ctime in ns: equal for a file that is the same as before. ctime is the part that a
# writer can't choose.
Stamp = tuple[int, int, int, int]


@dataclass(slots=True)
class HashCache:
    """Ids by path and stamp, as one snapshot found them.

    rules: what besides a file's bytes decides its blob. commit: the snapshot that holds every id, so that
    none needs
    to be looked up. started: ns, when the walk began: files changed about then or later may be stamped as
    before and
    differ. others: ids of the trees and symlinks it wrote.
    """

    rules: str
    commit: str = ""
    started: int = 0
    files: dict[bytes, tuple[Stamp, bytes]] = field(default_factory=dict)
    others: set[bytes] = field(default_factory=set)

    def objects(self) -> Iterator[bytes]:
        """Every id that the snapshot is sure to hold."""
        yield from self.others
        for _, oid in self.files.values():
            yield oid

    def find(self, path: bytes, stamp: Stamp, margin: int) -> bytes | None:
        """Raw id of a file that is surely as it was; margin: ns before `started` that are not believed."""
        found = self.files.get(path)
        if found is None or found[0] != stamp or stamp[3] >= self.started - margin:
            return None
        return found[1]


def load_hashes(path: str, rules: str, commit: str | None) -> HashCache:
    """The cache at `path`; an empty one if it is missing, broken, or of other rules or another snapshot."""
    try:
        with open(path, "rb") as file:
            stored = json.load(file)
        if (stored["version"], stored["rules"], stored["commit"]) != (_VERSION, rules, commit):
            return HashCache(rules)
        files = {os.fsencode(name): (tuple(mark), bytes.fromhex(oid)) for name, mark, oid in stored["files"]}
        others = {bytes.fromhex(oid) for oid in stored["others"]}
        return HashCache(rules, stored["commit"], int(stored["started"]), files, others)
    except (OSError, ValueError, KeyError, TypeError):
        return HashCache(rules)


def save_hashes(path: str, cache: HashCache) -> None:
    """Replace the cache at `path`. Not flushed: after a power cut an empty one costs time alone."""
    stored: dict[str, Any] = {
        "version": _VERSION,
        "rules": cache.rules,
        "commit": cache.commit,
        "started": cache.started,
        "files": [[os.fsdecode(name), mark, oid.hex()] for name, (mark, oid) in cache.files.items()],
        "others": [oid.hex() for oid in cache.others],
    }
    aside = f"{path}.{os.getpid()}.new"
    try:
        with open(aside, "w", encoding="ascii") as file:
            file.write(json.dumps(stored))
        os.replace(aside, path)
    except OSError:
        with suppress(OSError):
            os.unlink(aside)
