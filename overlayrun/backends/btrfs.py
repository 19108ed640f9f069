"""Backend `btrfs`: a workspace's tree is a snapshot of a subvolume that holds the frozen tree. O(1).

The subvolumes, `masters`, are made when a tree is first used: each a snapshot of the one for the layers below
its topmost, with that layer joined in, so that a new commit costs its change. A snapshot keeps inodes and
change times: the index that was made for the master holds in every workspace.
"""

from __future__ import annotations

import hashlib
import os

from overlayrun.backends.api import Place
from overlayrun.backends.joining import copy_bottom, finish, join, join_carried, write_index
from overlayrun.bases.stack import BOOT, birth_mark, doubtful
from overlayrun.files import copy_file, disk_usage, read_bytes, remove_tree, write_whole
from overlayrun.kernel import btrfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final

    from overlayrun.backends.api import Backend, Start
    from overlayrun.workspace.layout import Layout


class _Btrfs:
    """See `api.Backend`."""

    __slots__ = ()
    name = "btrfs"

    def refusal(self, scratch: str) -> str | None:
        """Make a subvolume and a snapshot of it, and remove both, whole or as directories."""
        source, target = f"{scratch}/source", f"{scratch}/target"
        try:
            btrfs.create_subvolume(source)
            btrfs.snapshot(source, target)
        except OSError as err:
            return f"subvolumes ({err.strerror})"
        finally:
            for path in (target, source):
                remove_tree(path)
        return None

    def make(self, layout: Layout, start: Start, place: Place) -> None:
        """Flat where a master is there already; beside it, what the uncommitted changes take."""
        os.makedirs(layout.masters, mode=0o700, exist_ok=True)
        frozen = [f"{layer}/tree" for layer in start.frozen]
        master = _Masters(layout, start.frozen[0], len(frozen)).get([*start.carried, *frozen])
        os.mkdir(place.whole, 0o700)
        copy_file(f"{master}/index", place.index)
        btrfs.snapshot(f"{master}/tree", place.tree)
        finish(start, place, int(read_bytes(f"{master}/size")))

    def cloner(self, tree: str) -> Callable[[str, str], None] | None:
        """A snapshot of the subvolume, unless the command made further ones in it."""
        return btrfs.snapshot if btrfs.is_lone_subvolume(tree) else None


class _Masters:
    """Masters of one stack. top: the layer whose index is the tree's; frozen: how many are not carried."""

    def __init__(self, layout: Layout, top: str, frozen: int) -> None:
        self._layout = layout
        self._top = top
        self._frozen = frozen

    def get(self, layers: Sequence[str]) -> str:
        """The master of layers below the state directory, top first; made where it is missing or torn."""
        digest = hashlib.sha256("\0".join(layers).encode()).hexdigest()[:40]
        name = f"masters/{digest}"
        place = f"{self._layout.root}/{name}"
        if os.path.isdir(place):
            if not doubtful(self._layout, [name]):
                os.utime(place)  # `gc` goes by the last use
                return place
            remove_tree(place)
        aside = f"{self._layout.masters}/.{os.getpid()}-{digest}"
        remove_tree(aside)
        os.mkdir(aside, 0o700)
        try:
            self._make(layers, aside)
            write_whole(f"{aside}/{BOOT}", birth_mark(f"{aside}/tree"), durable=False)
            os.rename(aside, place)
        except OSError:
            if not os.path.isdir(place):  # else another run was faster
                raise
        finally:
            remove_tree(aside)
        return place

    def _make(self, layers: Sequence[str], aside: str) -> None:
        made = Place(f"{aside}/tree", aside)
        top, below = f"{self._layout.root}/{layers[0]}", layers[1:]
        size = 0
        if below:
            master = self.get(below)
            btrfs.snapshot(f"{master}/tree", made.tree)
            size = int(read_bytes(f"{master}/size"))
        else:
            btrfs.create_subvolume(made.tree)
            copy_bottom(top, made.tree, "always")
        if len(layers) > self._frozen:
            size += join_carried(top, made.tree, "always")
            copy_file(f"{master}/index", made.index)
        else:
            if below:
                join(top, made.tree)
            size = self._index(layers, made) or size
        write_whole(made.size, b"%d" % size, durable=False)

    def _index(self, layers: Sequence[str], made: Place) -> int:
        """The index of the whole frozen tree; of a part of its stack nobody asks for one."""
        if len(layers) < self._frozen:
            return disk_usage(made.tree)
        return write_index(f"{self._layout.root}/{self._top}/git/index", made)


BACKEND: Final[Backend] = _Btrfs()
