"""What of a workspace's present state comes along into its forks: all of its layers, where they are not huge.

Its tree as it is, uncommitted and ignored files included; its `.git`, with index, stash and what is half
done; what it changed in HOME. Else a fork is written from the last snapshot, which holds what git knows.
"""

from __future__ import annotations

import os

from overlayrun.bases.carried import default_policy
from overlayrun.bases.gitcopy import copy_git_directory
from overlayrun.files import identity_of
from overlayrun.layers.duplicate import Duplicate, bill
from overlayrun.model import CarryPolicy
from overlayrun.sandbox.limits import size_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Final

    from overlayrun.backends.present import Present
    from overlayrun.model import BranchName
    from overlayrun.workspace.layout import Layout, WorkspaceLayout
    from overlayrun.workspace.record import Record

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ENTRIES: Final = 200_000  # of all copies together: half a minute, or two minutes on a slow disk
_ENTRIES_INSIDE: Final = 10_000  # the same where the run itself copies, and shows nothing meanwhile
_MANY: Final = 10_000  # from so many on it is said that they are copied
_BYTES: Final = 4 << 30  # of all copies together, where the disk can't share blocks between files
_SHARE: Final = 4  # and at most this part of what is free
_OUTSIDE: Final = " from inside"


class Along:
    """What is copied. layers: (place of the source's, its name in a workspace); empty where nothing is.

    clone: what makes a whole tree again at once, where that can be had. entries, size: of one copy. is_quiet:
    nobody works in the source, whose lock the caller holds. notes: why something stays behind.
    """

    __slots__ = ("clone", "entries", "is_quiet", "layers", "layout", "notes", "size", "source")

    def __init__(self, layout: Layout, source: Record, *, is_quiet: bool) -> None:
        self.layout = layout
        self.source = source
        self.is_quiet = is_quiet
        self.clone: Callable[[str, str], None] | None = None
        self.entries = self.size = 0
        self.layers: list[tuple[str, str]] = []
        self.notes: list[str] = []


def look(along: Along, count: int, tell: Callable[[str], None], *, by_command: bool) -> None:
    """Decide what comes along into `count` forks.

    tell: called with a line before anything slow. by_command: the run that was asked copies, and waits.
    """
    source, place = along.source, along.layout.workspace(along.source.id)
    if identity_of(place.upper) != source.inode:
        return  # a fork that nobody has opened, or a copy: the snapshot knows best
    if source.is_whole:
        from overlayrun.backends.registry import BACKENDS  # 5 ms, for whole trees alone

        along.clone = BACKENDS[source.backend].cloner(place.upper)
    for path, name in _layers(place, source):
        if name == "upper" and along.clone:
            along.layers.append((path, name))
            continue
        most = (_ENTRIES_INSIDE if by_command else _ENTRIES) // count
        excess = _excess(along, path, count, most)
        if excess is None:
            along.layers.append((path, name))
        elif name == "upper":
            told = "the new branch gets what the snapshot holds, and ignored files as its source began with"
            along.notes.append(f"{excess} are too much to copy{_OUTSIDE * by_command}: {told}")
            return
        else:
            what = "HOME" if name == "home" else "directories that are shown live"
            where = _OUTSIDE * by_command
            along.notes.append(f"changes in {what} stay behind: {excess} are too much to copy{where}")
    if along.entries * count >= _MANY:
        tell(f"copying {along.entries} files" + (f", {count} times" if count > 1 else ""))


def _layers(place: WorkspaceLayout, source: Record) -> Iterator[tuple[str, str]]:
    """Layers of the command's, less its `.git`; the one without which there is nothing comes first."""
    yield place.upper, "upper"
    yield place.home_upper, "home"
    for number in range(len(source.live)):
        yield place.live(number), f"live/{number}"


def _excess(along: Along, path: str, count: int, most: int) -> str | None:
    """What a layer holds, where that is too much to copy so many times. most: entries of one copy."""
    fd = os.open(path, _DIRECTORY)
    try:
        found = bill(fd, entries=most)
    finally:
        os.close(fd)
    if along.entries + found.entries > most:
        return f"more than {most} files"
    if found.size and default_policy(along.layout) is not CarryPolicy.REFLINK:
        disk = os.statvfs(along.layout.root)
        room = min(_BYTES, disk.f_bavail * disk.f_frsize // _SHARE)
        if (along.size + found.size) * count > room:
            return f"{size_text(found.size)} of files"
    along.entries += found.entries
    along.size += found.size
    return None


def fill(along: Along, place: WorkspaceLayout, new: BranchName) -> list[str]:
    """Copy it into a workspace whose layers are not there yet; paths that had to stay behind.

    new: its branch. Raises OSError, SnapshotError.
    """
    source, own = along.source, along.layout.workspace(along.source.id)
    # Before the tree: what is committed meanwhile looks uncommitted in the fork, and not taken back.
    os.mkdir(place.git_upper, 0o700)
    fd = os.open(own.git_upper, _DIRECTORY)
    try:
        left_out = copy_git_directory(fd, place.git_upper, source.branch, new, is_quiet=along.is_quiet)
    finally:
        os.close(fd)
    present = _present(along, own, place) if source.is_whole else None
    for path, name in along.layers:
        if present and name == "upper":
            left_out += present.make()
            continue
        target = f"{place.root}/{name}"
        os.makedirs(target, mode=0o700)
        left_out += _copy(path, target, is_quiet=along.is_quiet)
    if source.dirty:
        os.mkdir(place.dirty, 0o700)
        _copy(own.dirty, place.dirty, is_quiet=True)  # nobody writes to a lower layer
    if present:
        present.settle()
    return [os.fsdecode(path) for path in left_out]


def _present(along: Along, own: WorkspaceLayout, place: WorkspaceLayout) -> Present:
    from overlayrun.backends.present import Present

    return Present(own, place, along.clone, is_quiet=along.is_quiet)


def _copy(path: str, target: str, *, is_quiet: bool) -> list[bytes]:
    copy = Duplicate(is_quiet=is_quiet)
    fd = os.open(path, _DIRECTORY)
    try:
        copy.make(fd, target)
    finally:
        os.close(fd)
    return copy.left_out
