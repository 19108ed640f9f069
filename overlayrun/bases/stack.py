"""Which frozen layers make up a tree: told by directory names alone. On the launch path."""

from __future__ import annotations

import os

from overlayrun.model import TreeId

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from overlayrun.workspace.layout import Layout

# Looking a name up costs about 1 µs a layer.
LONGEST_CHAIN: Final = 8
_SYNCED: Final = "synced"


def stack_of(layout: Layout, tree: TreeId) -> list[str]:
    """Layer directories of a frozen tree below the state directory, topmost first; empty where it is not frozen."""
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


def is_synced(layout: Layout, layer: str) -> bool:
    """Whether a layer is known to have reached the disk, and so survived a power cut whole."""
    return os.path.exists(f"{layout.root}/{layer}/{_SYNCED}")


def mark_synced(layout: Layout, layer: str) -> None:
    """Say that a layer has reached the disk; the caller has called syncfs(2)."""
    os.close(os.open(f"{layout.root}/{layer}/{_SYNCED}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
