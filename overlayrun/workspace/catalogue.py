"""Find workspaces: by branch, by a unique beginning of its name, all; and all repositories."""

from __future__ import annotations

import os

from overlayrun.errors import UsageError, WorkspaceBroken
from overlayrun.files import write_whole
from overlayrun.kernel.mountinfo import mounts
from overlayrun.kernel.remote import silent_mounts
from overlayrun.workspace.layout import Layout
from overlayrun.workspace.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from overlayrun.kernel.mountinfo import Mount


def records(layout: Layout) -> Iterator[Record]:
    """Every readable record, oldest first; broken ones are `doctor`'s to report."""
    found = []
    for name in _names(layout):
        try:
            found.append(Record.load(layout.workspace(name).record))
        except WorkspaceBroken:
            continue
    yield from sorted(found, key=lambda record: record.created)


def broken(layout: Layout) -> list[str]:
    """Directories under workspaces/ whose record can't be read."""
    bad = []
    for name in _names(layout):
        try:
            Record.load(layout.workspace(name).record)
        except WorkspaceBroken:
            bad.append(layout.workspace(name).root)
    return bad


def _names(layout: Layout) -> list[str]:
    try:
        names = [entry.name for entry in os.scandir(layout.workspaces) if not entry.name.startswith(".")]
        return [name for name in names if not os.path.exists(layout.workspace(name).throwaway)]
    except FileNotFoundError:
        return []


def find_exact(layout: Layout, branch: str) -> Record | None:
    """The workspace of a branch, or None."""
    return next((record for record in records(layout) if record.branch == branch), None)


def find(layout: Layout, text: str) -> Record:
    """The one workspace whose branch is `text`, begins with it, or has it after `overlay/`.

    Raises UsageError that names the candidates otherwise.
    """
    known = list(records(layout))
    exact = [record for record in known if record.branch == text]
    starts = [record for record in known if record.branch.startswith((text, f"overlay/{text}"))]
    matching = exact or starts
    if len(matching) == 1:
        return matching[0]
    if not matching:
        raise UsageError(f"no workspace is called {text!r}", hint="see: overlayrun ls")
    raise UsageError(
        f"{text!r} could be {', '.join(record.branch for record in matching)}", hint="type more of the name"
    )


def user_state() -> str:
    """Directory of what overlayrun keeps for the user rather than for a repository."""
    return f"{os.environ.get('XDG_STATE_HOME') or os.path.expanduser('~/.local/state')}/overlayrun"


def _catalogue_path() -> str:
    return f"{user_state()}/repositories"


def repositories() -> list[str]:
    """State directories of this user's repositories that still exist, oldest first."""
    return survey()[0]


def survey(mounted: Iterable[Mount] | None = None) -> tuple[list[str], dict[str, str]]:
    """`repositories()`, and those whose file system does not answer: path to its mountpoint.

    mounted: `mounts()`, where the caller has asked for them already.
    """
    known = _known()
    silent = silent_mounts(known, mounts() if mounted is None else mounted)
    return [path for path in known if path not in silent and os.path.isdir(path)], silent


def _known() -> list[str]:
    try:
        with open(_catalogue_path(), "rb") as file:
            lines = [os.fsdecode(line) for line in file.read().split(b"\0") if line]
    except (FileNotFoundError, PermissionError):  # the latter in a HOME of somebody else's
        return []
    return [*dict.fromkeys(lines)]


def remember_repository(layout: Layout) -> None:
    """Enter a state directory into the user's catalogue; an unwritable HOME is no reason to stop."""
    if layout.root in _known():
        return
    there, silent = survey()
    known = [*there, *silent]
    path = _catalogue_path()
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        write_whole(
            path, b"".join(os.fsencode(line) + b"\0" for line in [*known, layout.root]), durable=False
        )
    except OSError:
        pass
