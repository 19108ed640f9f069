"""What a backend is. On the launch path.

`overlay` leaves the tree in its frozen layers and keeps the changes alone; `btrfs`, `reflink` and `copy` give
a workspace a whole tree of its own, which the sandbox shows as it is: there a directory can be renamed, and
it goes where no overlay can be mounted. What is shown, committed and kept is the same.
"""

from __future__ import annotations

import os

from overlayrun.files import read_bytes
from overlayrun.workspace.record import boot_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    from overlayrun.workspace.layout import Layout

    class Backend(Protocol):
        """One way to make a tree."""

        name: str

        def refusal(self, scratch: str) -> str | None:
            """What is missing, in words after "no", found out in an empty directory; None where it works."""

        def make(self, layout: Layout, start: Start, place: Place) -> None:
            """Make a tree that holds what the start's layers show. Raises OSError, HostError."""

        def cloner(self, tree: str) -> Callable[[str, str], None] | None:
            """What makes another tree of a whole one at once: as it is at one moment, with inodes and times.

            Called with both paths. None where each file is to be copied. Raises OSError.
            """


class Start:
    """What a workspace starts from, as paths of layers, top first.

    frozen: of the git tree, as the record names them below the state directory. carried: of ignored files, as
    well. dirty: the layer of uncommitted changes, a path. mode: of the root directory. for_nobody: whether
    the command of a run by root is nobody.
    """

    __slots__ = ("carried", "dirty", "for_nobody", "frozen", "mode")

    def __init__(self, frozen: Sequence[str], carried: Sequence[str], dirty: str | None, mode: int) -> None:
        self.frozen = frozen
        self.carried = carried
        self.dirty = dirty
        self.mode = mode
        self.for_nobody = True


class Place:
    """Where a whole tree is made; neither is there yet.

    tree: its directory. whole: a directory for `index`, git's index of the frozen tree with the stat data of
    the files as they lie in `tree`, and `size`, the bytes that the tree took.
    """

    __slots__ = ("tree", "whole")

    def __init__(self, tree: str, whole: str) -> None:
        self.tree = tree
        self.whole = whole

    @property
    def index(self) -> str:
        """Stat data of the files of the frozen tree."""
        return f"{self.whole}/index"

    @property
    def size(self) -> str:
        """Bytes on the disk, as text."""
        return f"{self.whole}/size"


def is_overlay_known(layout: Layout) -> bool:
    """Whether overlays were found to work on the state's file system since the machine was started."""
    try:
        return read_bytes(layout.backend) == overlay_mark(layout)
    except OSError:
        return False


def overlay_mark(layout: Layout) -> bytes:
    """What the file says where they do: boot id, and the directory that was tried, which no copy of it is."""
    info = os.stat(layout.root)
    return f"{boot_id()} {info.st_dev} {info.st_ino}".encode()
