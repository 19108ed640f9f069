"""A view of HOME made of parts, where other mounts lie below it. On the launch path.

In a user namespace the kernel makes no overlay of a directory that has a mount anywhere below it: that would
show what the mount covers (has_locked_children of fs/namespace.c; such mounts can be neither left out nor
taken off there). So each directory on the way to a mount gets an overlay over a copy of it: its files, its
links, its directories without what is in them. Each directory in it that has no mount below gets an overlay
of its own, whose upper is its place in the one upper of HOME: what is written lies where it would without
any mount.
"""

from __future__ import annotations

import errno
import os
import stat

from overlayrun.files import copy_file
from overlayrun.layers.marks import is_opaque
from overlayrun.sandbox.plan import Overlay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Final

_FATAL: Final = (errno.ENOENT, errno.ENOSPC, errno.EDQUOT)  # gone meanwhile; no room
_LARGEST: Final = 64 << 20  # bytes of a file that is copied
_MOST: Final = 256 << 20  # bytes of all together: a second or less
_CROWD: Final = 200  # overlays in all: each takes half a millisecond to make, and as much to take away


class Divided:
    """Overlays, a directory before those in it; each is to be made before the one that it lies in.

    read_only: paths that can't be copied on write, to be shown as they are.
    """

    __slots__ = ("overlays", "read_only")

    def __init__(self) -> None:
        self.overlays: list[Overlay] = []
        self.read_only: list[str] = []


def divide(whole: Overlay, mounted: Collection[str], left: Collection[str], copies: str) -> Divided:
    """The parts of a view of one directory, `whole`, that has mounts below it.

    mounted: their places. Nothing is asked of them: one whose server is dead would never answer. left: places
    that something else is mounted on later. copies: a directory, to be made, for what is copied, beside the
    work directory. Raises OSError where there is no room for it.
    """
    return _Division(whole, mounted, left, copies).made


class _Division:
    __slots__ = ("_copies", "_hidden", "_left", "_mounted", "_on_the_way", "_room", "_whole", "made")

    def __init__(self, whole: Overlay, mounted: Collection[str], left: Collection[str], copies: str) -> None:
        self.made = Divided()
        self._whole = whole
        self._copies = copies
        self._hidden = frozenset(whole.hidden)
        self._left = frozenset(left)
        self._mounted = frozenset(mounted)
        self._on_the_way = {above for place in mounted for above in _above(place, whole.target)}
        self._room = _MOST
        os.mkdir(copies)
        self._divide("")

    def _divide(self, name: str) -> None:
        """Make the part that a directory on the way is. name: below the whole, "" for the whole itself."""
        source = _join(self._whole.target, name)
        entries = sorted(os.scandir(source), key=lambda entry: entry.name)
        parts = sum(entry.is_dir(follow_symlinks=False) for entry in entries)
        if name and len(self.made.overlays) + parts > _CROWD:
            self.made.read_only.append(source)
            return
        copy = self._part(name, None)
        for entry in entries:
            below = _join(name, entry.name)
            if below not in self._hidden:
                self._add(entry, below, f"{copy}/{entry.name}")
        _set_like(copy, os.stat(source))

    def _add(self, entry: os.DirEntry[str], name: str, copy: str) -> None:
        try:
            # The kind is that of the directory's entry: nothing is asked of what is mounted there.
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), copy)
            elif entry.is_dir(follow_symlinks=False):
                os.mkdir(copy)
                if entry.path not in self._mounted and entry.path not in self._left:
                    self._add_directory(entry, name, copy)
            elif entry.path in self._mounted:
                _make_empty(copy)
            elif entry.is_file(follow_symlinks=False):
                self._add_file(entry, copy)
        except FileNotFoundError:  # gone since it was listed
            pass

    def _add_file(self, entry: os.DirEntry[str], copy: str) -> None:
        info = entry.stat(follow_symlinks=False)
        if info.st_uid == os.geteuid() and info.st_size <= min(_LARGEST, self._room):
            try:
                copy_file(entry.path, copy)
            except OSError as err:
                if err.errno in _FATAL:
                    raise
            else:
                self._room -= info.st_size
                return
        _make_empty(copy)
        self.made.read_only.append(entry.path)

    def _add_directory(self, entry: os.DirEntry[str], name: str, copy: str) -> None:
        info = entry.stat(follow_symlinks=False)
        if info.st_uid != os.geteuid() or not os.access(entry.path, os.R_OK | os.X_OK):
            # An overlay of its own would belong to us, whoever the directory belongs to.
            self.made.read_only.append(entry.path)
        elif self._shows_through(name, info):
            if entry.path in self._on_the_way:
                self._divide(name)
            else:
                self._part(name, entry.path)
        _set_like(copy, info)

    def _part(self, name: str, lower: str | None) -> str:
        """Add an overlay; its lower, a new copy unless one is given."""
        whole, number = self._whole, len(self.made.overlays)
        if lower is None:
            lower = f"{self._copies}/{number}"
            os.mkdir(lower)
        work = f"{whole.work}-{number}" if name else whole.work
        os.makedirs(work, exist_ok=True)
        part = Overlay(whole.name, _join(whole.target, name), [lower], _join(whole.upper, name), work)
        part.hidden = _below(whole.hidden, name) if lower == part.target else ()
        self.made.overlays.append(part)
        return lower

    def _shows_through(self, name: str, info: os.stat_result) -> bool:
        """Whether the branch has not put something else in the place of a directory; makes its upper.

        Nothing of the branch runs: a link that an earlier run left stays what it is, and is not followed.
        """
        upper = _join(self._whole.upper, name)
        try:
            found = os.lstat(upper)
        except FileNotFoundError:
            os.mkdir(upper)
            _set_like(upper, info)
            return True
        except PermissionError:  # the agent has closed a directory above
            return False
        try:
            return stat.S_ISDIR(found.st_mode) and not is_opaque(upper)
        except PermissionError:
            return False


def _above(place: str, top: str) -> list[str]:
    """Directories from `top` down to the one that holds `place`."""
    found = []
    while (place := os.path.dirname(place)).startswith(f"{top}/"):
        found.append(place)
    return found


def _below(names: Collection[str], name: str) -> list[str]:
    return [path[len(name) + 1 :] for path in names if path.startswith(f"{name}/")]


def _join(place: str, name: str) -> str:
    return f"{place}/{name}" if place and name else place or name


def _make_empty(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))


def _set_like(path: str, info: os.stat_result) -> None:
    os.chmod(path, stat.S_IMODE(info.st_mode))
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
