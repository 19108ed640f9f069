"""Which backend a new workspace gets, and its tree by that. On the launch path."""

from __future__ import annotations

import os

from overlayrun.backends.api import Place, is_overlay_known
from overlayrun.errors import UsageError
from overlayrun.model import BackendKind, CarryPolicy, HomePolicy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from overlayrun.model import RunOptions
    from overlayrun.workspace.layout import Layout
    from overlayrun.workspace.record import Record

_MANY: Final = 5000  # files that take a while


def refuse_other_backend(options: RunOptions, record: Record) -> None:
    """Raise UsageError where the command line asks for another backend than a branch was made with."""
    wanted = options.backend.value
    if "backend" in options.asked and options.backend is not BackendKind.AUTO and wanted != record.backend:
        raise UsageError(
            f"branch {record.branch} was made with backend {record.backend}, and stays with it",
            hint=f"leave --backend out, or: overlayrun --base {record.branch} --backend {wanted}"
            " -b NEW-NAME -- COMMAND",
        )


def choose_backend(layout: Layout, options: RunOptions, record: Record) -> list[str]:
    """Let the record name its backend; what is to be said of it. Raises UsageError."""
    if options.backend is BackendKind.OVERLAY:
        return []  # where it can't work, the run itself says best why
    if options.backend is BackendKind.AUTO and is_overlay_known(layout):
        return []
    from overlayrun.backends.registry import choose  # 5 ms, once after each start of the machine

    choice = choose(layout, options.backend)
    record.backend = choice.name
    if choice.has_overlay:
        return []
    if options.carry is CarryPolicy.LIVE:
        raise UsageError(f"--carry live can't work here: {choice.why}", hint="leave --carry out")
    notes = [f"backend {choice.name}: {choice.why}"]
    if record.home != HomePolicy.PRIVATE.value:
        record.home = HomePolicy.PRIVATE.value
        notes.append("HOME is private: no view of yours can be mounted here")
    return notes


def make_whole(layout: Layout, record: Record, mode: int, tell: Callable[[str], None]) -> None:
    """Make the tree of a workspace that holds the whole; it has its name when it is complete.

    mode: of the root directory. tell: called with a line before anything slow.
    """
    from overlayrun.backends.registry import make_tree

    count = _count(f"{layout.root}/{record.stack[0]}/git/index")
    if record.backend != BackendKind.BTRFS.value and count >= _MANY:
        tell(f"copying {count} files")
    place = layout.workspace(record.id)
    made = Place(f"{place.root}/making", place.whole)
    make_tree(layout, record, place.dirty, mode, made)
    os.rename(made.tree, place.upper)


def _count(index: str) -> int:
    """Entries of a git index (gitformat-index(5): signature, version, number)."""
    with open(index, "rb") as file:
        return int.from_bytes(file.read(12)[8:], "big")
