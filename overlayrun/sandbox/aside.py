"""Directories that are made anew aside in an overlay, and put in their places, after a kill by `finish`.

Aside is `.overlayrun-moving` at the top of the mount. A note says there what each new directory is to become,
so that what a kill left is put in its place by `finish`; until then a snapshot holds it where it is. The
command may have written the note: its path is followed from the top down and through no link.
"""

from __future__ import annotations

import errno
import os
import stat

from overlayrun.kernel import syscalls
from overlayrun.sandbox.seccomp import OURS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final, Self

    Place = tuple[int, str]  # descriptor of a directory, name in it

ASIDE: Final = ".overlayrun-moving"
PROBE: Final = "probe"
NOTE: Final = ".becomes"
PLACE: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
"""To open a directory in which names are to change."""
OPENED: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
NOT_EMPTY: Final = (errno.ENOTEMPTY, errno.EEXIST)
_TRIES: Final = 20  # somebody goes on making files in the old directory
_LARGE: Final = 1 << 20  # bytes of a file that is copied up before its directory is taken apart
_GIT: Final = ".git"
_NO_WAY_DOWN: Final = frozenset(("", ".", ".."))


def finish(roots: Sequence[str], aside: str | None = None) -> int:
    """Put in place what killed processes left aside in overlays; EIO if some of it must stay.

    aside: one alone. Nobody else is at work there.
    """
    for root in roots:
        quietly(_finish_all, root, aside)
        quietly(os.rmdir, f"{root}/{ASIDE}")
    return errno.EIO if any(os.path.lexists(f"{root}/{ASIDE}/{aside or ''}") for root in roots) else 0


def _finish_all(path: str, aside: str | None) -> None:
    root = os.open(path, PLACE)
    try:
        above = os.open(ASIDE, OPENED, dir_fd=root)
        try:
            for name in os.listdir(above) if aside is None else (aside,):
                quietly(_finish_one, root, above, name)
        finally:
            os.close(above)
    finally:
        os.close(root)


def _finish_one(root: int, above: int, name: str) -> None:
    place = os.open(name, OPENED, dir_fd=above)
    try:
        for note in sorted(os.listdir(place)):
            if note.endswith(NOTE):
                quietly(_finish_note, root, place, note)
        quietly(lambda: os.rmdir(PROBE, dir_fd=place))
    finally:
        os.close(place)
    os.rmdir(name, dir_fd=above)


def _finish_note(root: int, place: int, note: str) -> None:
    mode, modified, path = os.readlink(note, dir_fd=place).split(" ", 2)
    made = (place, note.removesuffix(NOTE))
    if exists(*made):
        *above, name = path.split("/")
        if [*above, name][0] == _GIT or not _NO_WAY_DOWN.isdisjoint((*above, name)):
            raise OSError(errno.EXDEV, "no note of ours", path)
        parent = _beneath(root, above)
        try:
            with Directory(made) as new:
                _put_in_place(new, (parent, name))
                os.fchmod(new.fd, int(mode, 8))
                os.utime(new.fd, ns=(int(modified), int(modified)))
        finally:
            os.close(parent)
    os.unlink(note, dir_fd=place)


def _beneath(root: int, names: Sequence[str]) -> int:
    """Descriptor of a directory at or below another one, the caller's to close."""
    fd = os.dup(root)
    for name in names:
        try:
            below = os.open(name, PLACE | os.O_NOFOLLOW, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd


def _put_in_place(new: Directory, old: Place) -> None:
    """Where the old one is gone, the new one is all there is."""
    if exists(*old):
        with Directory(old) as directory:
            exchange(directory, new)
    else:
        new.replace(old)


class Directory:
    """An open directory by its name in another; a context manager. info: as it was found.

    Raises EBUSY where another file system is mounted: `rename` of one in sight of another process would
    take the mount along.
    """

    __slots__ = ("fd", "info", "place")

    def __init__(self, place: Place) -> None:
        parent, name = self.place = place
        there = os.open(name, PLACE | os.O_NOFOLLOW, dir_fd=parent)
        try:
            self.info = os.fstat(there)
            if self.info.st_dev != os.fstat(parent).st_dev:
                raise OSError(errno.EBUSY, "something is mounted there", name)
            # An owner who can't read or change it could still rename it.
            if self.info.st_mode & stat.S_IRWXU != stat.S_IRWXU:
                _chmod(there, self.info.st_mode | stat.S_IRWXU)
            self.fd = os.open(".", OPENED, dir_fd=there)
        finally:
            os.close(there)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def entries(self) -> tuple[list[str], list[str]]:
        """Names of its directories, and of its large files."""
        directories, large = [], []
        with os.scandir(self.fd) as found:
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    directories.append(entry.name)
                elif entry.is_file(follow_symlinks=False) and _is_large(entry):
                    large.append(entry.name)
        return directories, large

    def pour_into(self, other: Directory) -> None:
        """Rename every entry into another directory."""
        for name in os.listdir(self.fd):
            _rename((self.fd, name), (other.fd, name))

    def replace(self, old: Place) -> None:
        """Take the place of an empty directory."""
        _rename(self.place, old)

    def resemble(self, other: Directory) -> None:
        """Have the owner, the group and the extended attributes of another."""
        mine = os.fstat(self.fd)
        if mine.st_uid != other.info.st_uid:
            os.fchown(self.fd, other.info.st_uid, other.info.st_gid)
        elif mine.st_gid != other.info.st_gid:
            os.fchown(self.fd, -1, other.info.st_gid)
        wanted = [name for name in os.listxattr(other.fd) if not name.startswith("security.")]
        for name in os.listxattr(self.fd):
            if name not in wanted and not name.startswith("security."):
                os.removexattr(self.fd, name)
        for name in wanted:
            os.setxattr(self.fd, name, os.getxattr(other.fd, name))

    def restore(self, info: os.stat_result) -> None:
        """Have the mode and the times that another had."""
        os.fchmod(self.fd, stat.S_IMODE(info.st_mode))
        os.utime(self.fd, ns=(info.st_atime_ns, info.st_mtime_ns))


def _is_large(entry: os.DirEntry[str]) -> bool:
    return entry.stat(follow_symlinks=False).st_size >= _LARGE


def _rename(source: Place, target: Place) -> None:
    """renameat2(2), also of a directory that its owner can't write to."""
    (old, name), (new, name_there) = source, target
    try:
        syscalls.renameat2(name, name_there, 0, directories=(old, new), mark=OURS)
    except PermissionError:
        mode = os.stat(name, dir_fd=old, follow_symlinks=False).st_mode
        if not stat.S_ISDIR(mode) or mode & stat.S_IWUSR:
            raise
        there = os.open(name, PLACE | os.O_NOFOLLOW, dir_fd=old)
        try:
            _chmod(there, mode | stat.S_IWUSR)
            syscalls.renameat2(name, name_there, 0, directories=(old, new), mark=OURS)
            _chmod(there, mode)
        finally:
            os.close(there)


def _chmod(fd: int, mode: int) -> None:
    """Of a directory opened as a place: by its name somebody could have put a link there."""
    os.chmod(f"/proc/self/fd/{fd}", stat.S_IMODE(mode))


def exchange(old: Directory, new: Directory) -> None:
    """Pour and replace, until nobody has put anything into the old one in between."""
    for _ in range(_TRIES):
        old.pour_into(new)
        try:
            return new.replace(old.place)
        except OSError as err:
            if err.errno not in NOT_EMPTY:
                raise
    raise OSError(errno.EXDEV, "it is filled again and again", old.place[1])


def exists(directory: int, name: str) -> bool:
    """Whether there is such a name; a link counts."""
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def quietly(call: Callable[..., object], *arguments: object) -> None:
    """Call where a failure changes nothing."""
    try:
        call(*arguments)
    except (OSError, ValueError, OverflowError):  # not ours, or changed by somebody meanwhile
        pass
