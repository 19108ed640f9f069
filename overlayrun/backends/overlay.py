"""Backend `overlay`: nothing is made; the sandbox mounts the frozen layers below an upper of the changes."""

from __future__ import annotations

from overlayrun.errors import HostError
from overlayrun.kernel.probe import Capabilities

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from overlayrun.backends.api import Backend, Place, Start
    from overlayrun.workspace.layout import Layout

# Without these no backend has a sandbox: their lack is told by the run itself.
_NEEDS: Final = ("user", "mnt", "tmpfs")
_ABILITIES: Final = ("overlay", "upper", "volatile", "whiteout", "opaque")


class _Overlay:
    """See `api.Backend`."""

    __slots__ = ()
    name = "overlay"

    def refusal(self, scratch: str) -> str | None:
        """Mount overlays of layers in the scratch directory."""
        able = Capabilities(scratch)
        if not all(able[name].works for name in _NEEDS):
            return None
        failed = next((able[name] for name in _ABILITIES if not able[name].works), None)
        return None if failed is None else f"overlay ({failed.text.removesuffix(': mountpoint')})"

    def make(self, layout: Layout, start: Start, place: Place) -> None:
        """Not to be called."""
        del layout, start
        raise HostError(f"an overlay has no tree of its own: {place.tree}")

    def cloner(self, tree: str) -> Callable[[str, str], None] | None:
        """Each file is copied."""
        del tree
        return None


BACKEND: Final[Backend] = _Overlay()
