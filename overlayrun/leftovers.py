"""What killed processes left in the state directory, as findings. What a living run holds is not told."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator

from overlayrun.checks import Finding, State
from overlayrun.errors import WorkspaceBroken
from overlayrun.workspace.catalogue import broken, records
from overlayrun.workspace.layout import Layout, WorkspaceLayout
from overlayrun.workspace.lock import is_locked
from overlayrun.workspace.record import Record


def leftovers(layout: Layout) -> list[Finding]:
    """Broken records, interrupted workspaces, half-made directories, torn writes, stale sockets; by kind.

    Raises OSError where the state directory can't be read.
    """
    if not os.path.isdir(layout.workspaces):
        return []
    return [
        *_broken(layout),
        *_interrupted(layout),
        *_throwaways(layout),
        *_half_made(layout),
        *_torn(layout),
        *_sockets(layout),
    ]


def _workspaces(layout: Layout) -> list[WorkspaceLayout]:
    """Workspaces that no run holds."""
    names = sorted(name for name in os.listdir(layout.workspaces) if not name.startswith("."))
    return [place for place in map(layout.workspace, names) if not _is_held(place)]


def _is_held(place: WorkspaceLayout) -> bool:
    try:
        return is_locked(place.lock) or is_locked(place.folder_lock)
    except OSError:  # a lock that can't be opened is held by nobody of ours
        return False


def _broken(layout: Layout) -> Iterator[Finding]:
    free = {place.root: place for place in _workspaces(layout)}
    for root in sorted(broken(layout)):
        if root not in free:
            continue  # a run is making it just now
        place = free[root]
        count = _count(place.upper)
        remove = f"rm -r {shlex.quote(root)}"
        cure = (
            f"save what you need from {place.upper}, then: {remove}"
            if count
            else f"nothing is to be saved: {remove}"
        )
        found = f"{_reason(place)}; {place.upper} has {count} entries"
        yield Finding("broken record", State.LIMITED, found, "no command finds this workspace any more", cure)


def _reason(place: WorkspaceLayout) -> str:
    try:
        Record.load(place.record)
    except WorkspaceBroken as err:
        return err.brief
    return f"the record of {place.root} was mended just now"


def _count(directory: str) -> int:
    try:
        return len(os.listdir(directory))
    except OSError:
        return 0


def _interrupted(layout: Layout) -> Iterator[Finding]:
    for record in records(layout):
        if record.is_open and not _is_held(layout.workspace(record.id)):
            yield Finding(
                "interrupted workspace",
                State.LIMITED,
                f"the last run of branch {record.branch} was killed; its changes are kept",
                "its last snapshot is not taken yet",
                f"overlayrun snapshot {shlex.quote(record.branch)}",
            )


def _throwaways(layout: Layout) -> Iterator[Finding]:
    for place in _workspaces(layout):
        if os.path.exists(place.throwaway):
            yield _garbage("killed throwaway", place.root)


def _half_made(layout: Layout) -> Iterator[Finding]:
    """`.gone-<id>` on its way out, `.<pid>-<name>` on its way in; a living process may be at it."""
    above = os.path.dirname(layout.root)
    places = (layout.bases, layout.layers, layout.carried, layout.masters, layout.workspaces)
    for place in (*places, layout.root, above):
        for name in sorted(os.listdir(place)) if os.path.isdir(place) else ():
            path = f"{place}/{name}"
            pid, _, rest = name.removeprefix(".").partition("-")
            if not name.startswith(".") or not rest or (place == above and rest != "doctor"):
                continue
            gone = pid == "gone" and not _is_held(WorkspaceLayout(path))
            if gone or (pid.isdecimal() and not _lives(pid)):
                yield _garbage("half-made directory", path, by_gc=place not in (layout.root, above))


def _torn(layout: Layout) -> Iterator[Finding]:
    """`<name>.<pid>.new`, a write that was never renamed into place."""
    for place in (layout.root, layout.carried, *(place.root for place in _workspaces(layout))):
        for name in sorted(os.listdir(place)) if os.path.isdir(place) else ():
            stem, _, end = name.rpartition(".")
            pid = stem.rpartition(".")[2]
            if end == "new" and pid.isdecimal() and not _lives(pid):
                path = f"{place}/{name}"
                yield Finding(
                    "torn write", State.LIMITED, path, "it takes room, no more", f"rm {shlex.quote(path)}"
                )


def _sockets(layout: Layout) -> Iterator[Finding]:
    found = [
        path
        for place in _workspaces(layout)
        for path in (f"{place.sockets}/outside", f"{place.sockets}/inside/control")
        if _is_socket(path)
    ]
    if found:
        yield Finding(
            "stale sockets",
            State.OK,
            f"{len(found)} of ended runs",
            "the next run of the branch replaces them",
        )


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return False


def _lives(pid: str) -> bool:
    return os.path.exists(f"/proc/{pid}")


def _garbage(name: str, path: str, *, by_gc: bool = True) -> Finding:
    quoted = shlex.quote(path)
    # Overlayfs leaves directories of mode 000 behind.
    cure = "an hour after it was left: overlayrun gc" if by_gc else f"chmod -R u+rwX {quoted}; rm -r {quoted}"
    return Finding(name, State.LIMITED, path, "it takes room, no more", cure)
