"""What the file system of `overlayrun open` asks, and who answers it: names here, bytes by descriptors.

The file system runs in a process of its own, with threads; who answers runs in another, without, because it
starts sandboxes. Names are those of folders: `/` of a branch's name is `~` there, which no ref can hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

SEPARATOR: Final = "~"


class Kind(Enum):
    """The folders at the top; the value is the folder's name."""

    BRANCHES = "branches"
    COMMITS = "commits"
    SNAPSHOTS = "snapshots"


@dataclass(frozen=True, slots=True)
class Tree:
    """A directory to be shown.

    fd: of it, O_PATH, the receiver's to close. key: the same as long as the tree is the same. replaced:
    (path, descriptor of a regular file) below it that is shown in another's place. live: others write in it
    too, so nothing of it is kept in a cache.
    """

    fd: int
    writable: bool
    key: str
    replaced: tuple[tuple[str, int], ...] = ()
    live: bool = False


class Later(Exception):
    """An answer that has to be made first, by somebody else: to be asked again."""


class Answers(Protocol):
    """What is in the folders.

    Every method raises OSError with the errno that the caller is to see, or Later.
    """

    def names(self, kind: Kind, above: str) -> list[str]:
        """Names in a folder, sorted. above: "" but for a branch of the snapshots, whose numbers they are."""

    def tree(self, kind: Kind, name: str) -> Tree:
        """The tree of a name, opened if it is not. name: for snapshots `branch/number`. ENOENT if unknown."""

    def make(self, name: str) -> Tree:
        """A new branch `x` from HEAD, or `x@revision`; shown as `x`, under that name too. EEXIST, EINVAL."""

    def remove(self, name: str) -> None:
        """Remove a branch that has landed or has no changes. ENOTEMPTY otherwise, EBUSY where one runs."""

    def touched(self, name: str) -> None:
        """Somebody wrote in the branch's tree; called once a second at most, and after its last close."""
