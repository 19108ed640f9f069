"""Paths in which two trees differ, and what of the user's lies where they will come."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from overlayrun.model import CommitId
from overlayrun.store.git import git

GITLINK: Final = "160000"
"""Mode of a submodule."""
_ABSENT: Final = "000000"


@dataclass(frozen=True, slots=True)
class Touched:
    """A path that differs between two commits; modes and ids as git's raw diff has them."""

    path: bytes
    old_mode: str
    new_mode: str
    old: str
    new: str

    @property
    def is_added(self) -> bool:
        """Whether the old commit does not have it."""
        return self.old_mode == _ABSENT

    @property
    def is_deleted(self) -> bool:
        """Whether the new commit does not have it."""
        return self.new_mode == _ABSENT


def touched_between(common_dir: str, old: CommitId, new: CommitId) -> list[Touched]:
    """Paths that differ between two commits, in git's order."""
    options = ["-r", "-z", "--no-renames", "--raw", "--ignore-submodules=none"]
    fields = git(["diff-tree", *options, old, new], git_dir=common_dir).split(b"\0")[:-1]
    found = []
    for what, path in zip(fields[::2], fields[1::2], strict=True):
        old_mode, new_mode, was, now, _ = what.decode().removeprefix(":").split(" ")
        found.append(Touched(path, old_mode, new_mode, was, now))
    return found


def strangers(tree: str, each: Touched, deleted: set[bytes]) -> Iterator[bytes]:
    """What lies where a file is to be made, and is none that the same change deletes.

    tree: root of the working tree. A link on the way is a stranger: it would lead elsewhere.
    """
    root, parts = os.fsencode(tree), each.path.split(b"/")
    for end in range(1, len(parts)):
        above = b"/".join(parts[:end])
        mode = mode_of(os.path.join(root, above))
        if mode is None:
            return
        if not stat.S_ISDIR(mode):
            yield from {above} - deleted
            return
    mode = mode_of(os.path.join(root, each.path))
    if mode is None or (stat.S_ISDIR(mode) and each.new_mode == GITLINK):
        return
    if stat.S_ISDIR(mode):
        yield from (path for path in _files_below(root, each.path) if path not in deleted)
    else:
        yield each.path


def mode_of(path: bytes) -> int | None:
    """A file's mode, None where there is none."""
    try:
        return os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def _files_below(root: bytes, path: bytes) -> Iterator[bytes]:
    for directory, names, files in os.walk(os.path.join(root, path)):
        links = [name for name in names if os.path.islink(os.path.join(directory, name))]
        yield from (os.path.relpath(os.path.join(directory, name), root) for name in (*links, *files))
