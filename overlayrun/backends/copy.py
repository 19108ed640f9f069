"""Backend `copy`: every file is copied. It goes anywhere, and is what the others are measured by."""

from __future__ import annotations

from overlayrun.backends.joining import make_by_copying

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from overlayrun.backends.api import Backend, Place, Start
    from overlayrun.workspace.layout import Layout


class _Copy:
    """See `api.Backend`."""

    __slots__ = ()
    name = "copy"

    def refusal(self, scratch: str) -> str | None:
        """Whoever can make the scratch directory can copy."""
        del scratch
        return None

    def make(self, layout: Layout, start: Start, place: Place) -> None:
        """O(files and bytes). Shares nothing, even where the file system could: that is `reflink`."""
        make_by_copying(layout, start, place, "never")

    def cloner(self, tree: str) -> Callable[[str, str], None] | None:
        """Each file is copied."""
        del tree
        return None


BACKEND: Final[Backend] = _Copy()
