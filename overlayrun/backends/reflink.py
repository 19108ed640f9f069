"""Backend `reflink`: a copy whose files share their blocks with the frozen ones until they are written.

xfs, btrfs, bcachefs. O(files): a clone costs what a small file's copy costs, so it pays by the room it saves.
"""

from __future__ import annotations

import fcntl
import os

from overlayrun.backends.joining import make_by_copying
from overlayrun.kernel import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from overlayrun.backends.api import Backend, Place, Start
    from overlayrun.workspace.layout import Layout

_BLOCK: Final = 4096


class _Reflink:
    """See `api.Backend`."""

    __slots__ = ()
    name = "reflink"

    def refusal(self, scratch: str) -> str | None:
        """Clone a file."""
        try:
            with open(f"{scratch}/source", "wb") as source, open(f"{scratch}/target", "wb") as target:
                source.write(b"x" * _BLOCK)
                source.flush()
                with open(source.name, "rb") as readable:
                    fcntl.ioctl(target.fileno(), abi.FICLONE, readable.fileno())
        except OSError as err:
            return f"reflinks ({err.strerror})"
        finally:
            for name in ("source", "target"):
                if os.path.exists(f"{scratch}/{name}"):
                    os.unlink(f"{scratch}/{name}")
        return None

    def make(self, layout: Layout, start: Start, place: Place) -> None:
        """O(files)."""
        make_by_copying(layout, start, place, "always")

    def cloner(self, tree: str) -> Callable[[str, str], None] | None:
        """Each file is copied."""
        del tree
        return None


BACKEND: Final[Backend] = _Reflink()
