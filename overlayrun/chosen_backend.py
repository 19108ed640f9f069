"""Which backend a new workspace gets, and its tree by that. On the launch path."""

from __future__ import annotations

import os

from overlayrun.backends.api import Place, is_overlay_known
from overlayrun.errors import UsageError
from overlayrun.giving import can_map
from overlayrun.kernel import namespaces
from overlayrun.model import AgentState, BackendKind, CarryPolicy, HomePolicy
from overlayrun.view import home_directory

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
    """Let the record name its backend, and a HOME that it can show; what is to be said. Raises UsageError."""
    return [*_choose(layout, options, record), *_choose_home(options, record)]


def _choose_home(options: RunOptions, record: Record) -> list[str]:
    """Leave root's HOME out where its files can't be shown as nobody's, who root's command is."""
    shares_state = record.agent_state == AgentState.SHARED.value and record.profile not in (None, "none")
    is_view = record.home != HomePolicy.PRIVATE.value
    if not (is_view or shares_state) or record.root_uid or not namespaces.is_root_of_host():
        return []
    if can_map(home_directory()):
        return []
    if shares_state and "agent_state" not in options.asked:
        record.agent_state = AgentState.PRIVATE.value
    if not is_view or "home" in options.asked:  # then the run says why it can't be
        return []
    record.home = HomePolicy.PRIVATE.value
    return ["HOME is private: its disk has no id-mapped mounts, and root's command is nobody"]


def _choose(layout: Layout, options: RunOptions, record: Record) -> list[str]:
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

    It is marked as unfinished until the record is written: `mark_finished`. mode: of the root directory.
    tell: called with a line before anything slow.
    """
    from overlayrun.backends.registry import make_tree

    count = _count(f"{layout.root}/{record.stack[0]}/git/index")
    if record.backend != BackendKind.BTRFS.value and count >= _MANY:
        tell(f"copying {count} files")
    place = layout.workspace(record.id)
    os.close(os.open(place.unfinished, os.O_CREAT | os.O_CLOEXEC, 0o600))
    made = Place(f"{place.root}/making", place.whole)
    make_tree(layout, record, place.dirty, mode, made)
    os.rename(made.tree, place.upper)


def mark_finished(layout: Layout, record: Record) -> None:
    """From now on its tree may hold work: a command is to run there."""
    if record.is_whole:
        try:
            os.unlink(layout.workspace(record.id).unfinished)
        except FileNotFoundError:
            pass


def _count(index: str) -> int:
    """Entries of a git index (gitformat-index(5): signature, version, number)."""
    with open(index, "rb") as file:
        return int.from_bytes(file.read(12)[8:], "big")
