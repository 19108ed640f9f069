"""A directory of the base, made anew in the upper without a change that anybody sees: then it can be renamed.

Overlayfs renames a directory that only the upper has, and gives EXDEV for one that a lower has as well
(Documentation/filesystems/overlayfs.rst, "renaming directories"; redirect_dir is not for ordinary users). So
an empty directory is made aside, everything is renamed into it, one entry after the other, and then it is
renamed over the old one, from the deepest directory up. No content is copied by us, and none is ever removed:
at every moment each entry has one whole place.

Aside is `.overlayrun-moving` at the top of the mount. A note says there what each new directory is to become,
so that what a kill left is put in its place by `finish`; until then a snapshot holds it where it is.

All this is done by a process that has given up what the command has: it can do nothing that the command
can't. Its calls of rename carry the mark that the filter lets pass.
"""

from __future__ import annotations

import errno
import os
import stat

from overlayrun.kernel import abi, syscalls
from overlayrun.sandbox.seccomp import OURS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final, Self

    Place = tuple[int, str]  # descriptor of a directory, name in it

ASIDE: Final = ".overlayrun-moving"
_PROBE: Final = "probe"
_NOTE: Final = ".becomes"
_DEEPEST: Final = 300  # directories one in the other: each holds a descriptor or two
_TRIES: Final = 20  # somebody goes on making files in the old directory
_LARGE: Final = 1 << 20  # bytes of a file that is copied up before its directory is taken apart
_OPENED: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NOT_EMPTY: Final = (errno.ENOTEMPTY, errno.EEXIST)


class Wish:
    """A rename that the kernel is to make: real paths, less the last component's own links.

    root: mountpoint of the overlay that holds both. aside: name of the place where it is worked on.
    """

    __slots__ = ("aside", "flags", "root", "source", "target")

    def __init__(self, root: str, source: str, target: str, flags: int) -> None:
        self.root = root
        self.source = source
        self.target = target
        self.flags = flags
        self.aside = os.urandom(8).hex()

    def serve(self) -> int:
        """Do what lets the kernel make the rename; 0: ask it now, else the errno that it would give.

        Where anything stands in the way the kernel gives its own answer, and nothing has changed. EIO: what
        was set aside could not be put back; it is whole there, and `finish` tries again.
        """
        try:
            if not self._may_succeed():
                return 0
            if not self._exchanges and _is_filled(self.target):
                return errno.ENOTEMPTY  # the kernel would look for this after what gives EXDEV
            with _Aside(self.root, self.aside) as aside:
                for path in self._moved():
                    aside.make_movable(path)
        except OSError as err:
            return errno.EIO if err.errno == errno.EIO else 0
        return 0

    @property
    def _exchanges(self) -> bool:
        return bool(self.flags & abi.RENAME_EXCHANGE)

    def _moved(self) -> list[str]:
        """Directories that get another place."""
        both = (self.source, self.target) if self._exchanges else (self.source,)
        return [path for path in both if os.path.lexists(path) and _is_directory(path)]

    def _may_succeed(self) -> bool:
        """Whether the kernel would not refuse for a reason that it looks for before."""
        above = {os.path.dirname(self.source), os.path.dirname(self.target)}
        if not all(os.access(directory, os.W_OK | os.X_OK) for directory in above):
            return False
        if len(above) > 1 and not all(os.access(directory, os.W_OK) for directory in self._moved()):
            return False
        if f"{self.target}/".startswith(f"{self.source}/"):
            return False
        if self._exchanges:
            return os.path.lexists(self.target) and not self.source.startswith(f"{self.target}/")
        if os.path.lexists(self.target):
            return _is_directory(self.target) and not self.flags & abi.RENAME_NOREPLACE
        return True


def _is_directory(path: str) -> bool:
    return stat.S_ISDIR(os.lstat(path).st_mode)


def _is_filled(directory: str) -> bool:
    try:
        with os.scandir(directory) as entries:
            return next(entries, None) is not None
    except OSError:  # not there, or not to be read: the kernel will find out
        return False


def finish(roots: Sequence[str], aside: str | None = None) -> int:
    """Put in place what killed processes left aside in overlays; EIO if some of it must stay.

    aside: one alone. Nobody else is at work there.
    """
    for root in roots:
        _quietly(_finish_all, root, aside)
        _quietly(os.rmdir, f"{root}/{ASIDE}")
    return errno.EIO if any(os.path.lexists(f"{root}/{ASIDE}/{aside or ''}") for root in roots) else 0


def _finish_all(root: str, aside: str | None) -> None:
    above = os.open(f"{root}/{ASIDE}", _OPENED)
    try:
        for name in os.listdir(above) if aside is None else (aside,):
            _quietly(_finish_one, root, above, name)
    finally:
        os.close(above)


def _finish_one(root: str, above: int, name: str) -> None:
    place = os.open(name, _OPENED, dir_fd=above)
    try:
        for note in sorted(os.listdir(place)):
            if note.endswith(_NOTE):
                _quietly(_finish_note, root, place, note)
        _quietly(lambda: os.rmdir(_PROBE, dir_fd=place))
    finally:
        os.close(place)
    os.rmdir(name, dir_fd=above)


def _finish_note(root: str, place: int, note: str) -> None:
    mode, modified, path = os.readlink(note, dir_fd=place).split(" ", 2)
    made = (place, note.removesuffix(_NOTE))
    if _exists(*made):
        parent = os.open(f"{root}/{os.path.dirname(path)}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with _Directory(made) as new:
                _put_in_place(new, (parent, os.path.basename(path)))
                os.fchmod(new.fd, int(mode, 8))
                os.utime(new.fd, ns=(int(modified), int(modified)))
        finally:
            os.close(parent)
    os.unlink(note, dir_fd=place)


def _put_in_place(new: _Directory, old: Place) -> None:
    """Where the old one is gone, the new one is all there is."""
    if _exists(*old):
        with _Directory(old) as directory:
            _exchange(directory, new)
    else:
        new.replace(old)


class _Directory:
    """An open directory by its name in another; a context manager. mode: as it was found."""

    __slots__ = ("fd", "info", "place")

    def __init__(self, place: Place) -> None:
        parent, name = self.place = place
        self.info = os.stat(name, dir_fd=parent, follow_symlinks=False)
        # An owner who can't read or change it could still rename it.
        if stat.S_ISDIR(self.info.st_mode) and self.info.st_mode & stat.S_IRWXU != stat.S_IRWXU:
            os.chmod(name, stat.S_IMODE(self.info.st_mode) | stat.S_IRWXU, dir_fd=parent)
        self.fd = os.open(name, _OPENED, dir_fd=parent)

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

    def pour_into(self, other: _Directory) -> None:
        """Rename every entry into another directory."""
        for name in os.listdir(self.fd):
            _rename((self.fd, name), (other.fd, name))

    def replace(self, old: Place) -> None:
        """Take the place of an empty directory."""
        _rename(self.place, old)

    def resemble(self, other: _Directory) -> None:
        """Have the group and the extended attributes of another."""
        if os.fstat(self.fd).st_gid != other.info.st_gid:
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
        os.chmod(name, stat.S_IMODE(mode) | stat.S_IWUSR, dir_fd=old)
        syscalls.renameat2(name, name_there, 0, directories=(old, new), mark=OURS)
        os.chmod(name_there, stat.S_IMODE(mode), dir_fd=new)


def _quietly(call: Callable[..., object], *arguments: object) -> None:
    try:
        call(*arguments)
    except (OSError, ValueError):  # not ours, or changed by somebody meanwhile
        pass


class _Aside:
    """A place of its own aside in an overlay, where new directories grow; a context manager."""

    __slots__ = ("_above", "_fd", "_made", "_name", "_root")

    def __init__(self, root: str, name: str) -> None:
        self._root = root.rstrip("/")
        self._above = f"{self._root}/{ASIDE}"
        self._name = f"{self._above}/{name}"
        self._made = 0
        for _ in range(_TRIES):  # another one may be removing it
            try:
                _quietly(os.mkdir, self._above, 0o700)
                os.mkdir(self._name, 0o700)
                break
            except FileNotFoundError:
                continue
        self._fd = os.open(self._name, _OPENED)
        os.mkdir(_PROBE, 0o700, dir_fd=self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        _quietly(lambda: os.rmdir(_PROBE, dir_fd=self._fd))
        os.close(self._fd)
        _quietly(os.rmdir, self._name)
        _quietly(os.rmdir, self._above)

    def make_movable(self, path: str) -> None:
        """Let only the upper have a directory and all below it. Raises OSError."""
        parent = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            relative = os.path.relpath(path, self._root or "/")
            self._make_anew((parent, os.path.basename(path)), relative.split("/"))
        finally:
            os.close(parent)

    def _make_anew(self, place: Place, names: Sequence[str]) -> None:
        if not self._is_of_a_lower(place):
            return
        if len(names) > _DEEPEST:
            raise OSError(errno.EXDEV, "too deep", place[1])
        with _Directory(place) as old:
            try:
                self._take_apart(old, names)
            except OSError:
                _quietly(lambda: os.fchmod(old.fd, stat.S_IMODE(old.info.st_mode)))
                raise

    def _take_apart(self, old: _Directory, names: Sequence[str]) -> None:
        directories, large = old.entries()
        for name in directories:
            self._make_anew((old.fd, name), [*names, name])
        for name in large:
            _copy_up(old.fd, name)
        self._swap(old, "/".join(names))

    def _is_of_a_lower(self, place: Place) -> bool:
        """Ask the kernel to put it over a directory that is not empty: it looks for the lower first."""
        parent, name = place
        try:
            syscalls.renameat2(name, self._name, 0, directories=(parent, abi.AT_FDCWD), mark=OURS)
        except OSError as err:
            if err.errno in _NOT_EMPTY:
                return False
            # EACCES: one that can't be written to, of which the kernel does not tell.
            if err.errno in (errno.EXDEV, errno.EACCES):
                return True
            raise
        raise OSError(errno.EXDEV, "somebody removed what is in the way", name)

    def _swap(self, old: _Directory, path: str) -> None:
        self._made += 1
        made, mode = str(self._made), stat.S_IMODE(old.info.st_mode)
        note = f"{made}{_NOTE}"
        os.symlink(f"{mode:o} {old.info.st_mtime_ns} {path}", note, dir_fd=self._fd)
        try:
            os.mkdir(made, 0o700, dir_fd=self._fd)
            with _Directory((self._fd, made)) as new:
                try:
                    new.resemble(old)
                    os.fchmod(new.fd, mode | stat.S_IRWXU)
                    _exchange(old, new)
                except OSError as err:
                    self._put_back(new, old, err)
                new.restore(old.info)
        finally:
            if not _exists(self._fd, made):
                os.unlink(note, dir_fd=self._fd)

    def _put_back(self, new: _Directory, old: _Directory, reason: OSError) -> None:
        try:
            new.pour_into(old)
            os.rmdir(new.place[1], dir_fd=self._fd)
            old.restore(old.info)
        except OSError as err:
            raise OSError(errno.EIO, "it stays aside", self._name) from err
        raise reason


def _exchange(old: _Directory, new: _Directory) -> None:
    """Pour and replace, until nobody has put anything into the old one in between."""
    for _ in range(_TRIES):
        old.pour_into(new)
        try:
            return new.replace(old.place)
        except OSError as err:
            if err.errno not in _NOT_EMPTY:
                raise
    raise OSError(errno.EXDEV, "it is filled again and again", old.place[1])


def _copy_up(directory: int, name: str) -> None:
    """To open a file for writing is enough; one that can't be is copied when it is renamed."""
    flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    _quietly(lambda: os.close(os.open(name, flags, dir_fd=directory)))


def _exists(directory: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
