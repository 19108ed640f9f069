"""Which frozen layers make up a tree: told by directory names alone. On the launch path."""

from __future__ import annotations

import os

from overlayrun.files import read_bytes
from overlayrun.model import TreeId
from overlayrun.workspace.record import boot_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from overlayrun.workspace.layout import Layout

# Looking a name up costs about 1 µs a layer.
LONGEST_CHAIN: Final = 8
BOOT: Final = "boot"  # file that names the boot in which a layer was made
_SYNCED: Final = "synced"


def stack_of(layout: Layout, tree: TreeId) -> list[str]:
    """Layers of a frozen tree below the state directory, topmost first; empty where it is not frozen."""
    chain: list[str] = []
    while not os.path.isdir(layout.base(tree)):
        above = _delta_to(layout, tree)
        if above is None or len(chain) > LONGEST_CHAIN:
            return []
        chain.append(f"layers/{above}")
        tree = TreeId(above.partition("-")[0])
    return [*chain, f"bases/{tree}"]


def _delta_to(layout: Layout, tree: TreeId) -> str | None:
    try:
        names = os.listdir(layout.layers)
    except FileNotFoundError:
        return None
    return next((name for name in names if name.endswith(f"-{tree}") and not name.startswith(".")), None)


def doubtful(layout: Layout, stack: Sequence[str]) -> list[str]:
    """Layers that may not be whole: torn by a power cut before they reached the disk, or copied."""
    return [layer for layer in stack if not _is_whole(layout, layer)]


def _is_whole(layout: Layout, layer: str) -> bool:
    place = f"{layout.root}/{layer}"
    try:
        boot, inode = read_bytes(f"{place}/{BOOT}").decode().split(" ")
    except (FileNotFoundError, ValueError):
        return False
    return int(inode) == os.stat(f"{place}/tree").st_ino and (is_synced(layout, layer) or boot == boot_id())


def birth_mark(tree: str) -> bytes:
    """Content of a new layer's BOOT file: boot id, and the inode of its `tree`, which no copy shares."""
    return f"{boot_id()} {os.stat(tree).st_ino}".encode()


def is_synced(layout: Layout, layer: str) -> bool:
    """Whether a layer is known to have reached the disk, and so survived a power cut whole."""
    return os.path.exists(f"{layout.root}/{layer}/{_SYNCED}")


def mark_synced(layout: Layout, layer: str) -> None:
    """Say that a layer has reached the disk; the caller has called syncfs(2)."""
    os.close(os.open(f"{layout.root}/{layer}/{_SYNCED}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
