"""The backends, and which of them to take."""

from __future__ import annotations

import os

from overlayrun.backends import btrfs, copy, overlay, reflink
from overlayrun.backends.api import Start, is_overlay_known, overlay_mark
from overlayrun.errors import HostError, UsageError
from overlayrun.files import remove_tree, write_whole
from overlayrun.model import BackendKind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

    from overlayrun.backends.api import Backend, Place
    from overlayrun.workspace.layout import Layout
    from overlayrun.workspace.record import Record

# In the order of preference.
BACKENDS: Final[Mapping[str, Backend]] = {
    "overlay": overlay.BACKEND,
    "btrfs": btrfs.BACKEND,
    "reflink": reflink.BACKEND,
    "copy": copy.BACKEND,
}


class Choice:
    """A backend that works here. reasons: what each lacks that would have been better."""

    __slots__ = ("name", "reasons")

    def __init__(self, name: str, reasons: Mapping[str, str]) -> None:
        self.name = name
        self.reasons = reasons

    @property
    def has_overlay(self) -> bool:
        """Whether overlays can be mounted on the state's file system, whatever was chosen."""
        return "overlay" not in self.reasons

    @property
    def why(self) -> str:
        """The reasons in one line; "" for the first choice."""
        return "; ".join(f"no {reason}" for reason in self.reasons.values())

    def __str__(self) -> str:
        return f"{self.name}: {self.why}" if self.reasons else self.name


def choose(layout: Layout, wanted: BackendKind) -> Choice:
    """The backend of a new workspace: `wanted`, or by trying. Raises UsageError for one that can't work.

    That overlays work is noted for the rest of this boot, so that it is tried once.
    """
    if wanted is BackendKind.OVERLAY or (wanted is BackendKind.AUTO and is_overlay_known(layout)):
        return Choice("overlay", {})  # where it was not tried, the run itself says best why it can't
    scratch = f"{layout.root}/.{os.getpid()}-backend"
    found = try_all(scratch, None if wanted is BackendKind.AUTO else wanted.value)
    if found.has_overlay:
        write_whole(layout.backend, overlay_mark(layout), durable=False)
    if wanted is not BackendKind.AUTO and found.name != wanted.value:
        raise UsageError(
            f"backend {wanted.value} can't work here: no {found.reasons[wanted.value]}",
            hint="leave --backend out, or see: overlayrun doctor",
        )
    return found


def try_all(scratch: str, wanted: str | None = None) -> Choice:
    """The first that works, or `wanted` where it does; overlay is tried in any case. No name: none does.

    scratch: a directory, made for it, on the file system that asks. Raises OSError.
    """
    remove_tree(scratch)
    os.mkdir(scratch, 0o700)
    reasons: dict[str, str] = {}
    try:
        for name, backend in BACKENDS.items():
            is_wanted = wanted in (None, name)
            if not is_wanted and name != "overlay":
                continue
            reason = backend.refusal(scratch)
            if reason is None and is_wanted:
                return Choice(name, reasons)
            if reason is not None:
                reasons[name] = reason
        return Choice("", reasons)
    finally:
        remove_tree(scratch)


def fitting(layout: Layout, name: str) -> str:
    """Backend of a workspace that is made anew: `name`, or `copy` where its repository was moved off it."""
    scratch = f"{layout.root}/.{os.getpid()}-backend"
    return name if try_all(scratch, name).name else "copy"


def make_tree(layout: Layout, record: Record, dirty: str, mode: int, place: Place) -> None:
    """Make the tree that a workspace begins with, by its backend. Raises HostError.

    dirty: the layer of uncommitted changes, where the record has any. mode: of the root directory.
    """
    start = Start(record.stack, record.carried_layers, dirty if record.dirty else None, mode)
    start.for_nobody = not record.root_uid
    try:
        BACKENDS[record.backend].make(layout, start, place)
    except OSError as err:
        raise HostError(
            f"the tree could not be made ({record.backend}): {err.strerror}: {err.filename}",
            hint="make room: overlayrun gc; overlayrun rm BRANCH",
        ) from err
