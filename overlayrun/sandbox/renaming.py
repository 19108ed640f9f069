"""A directory of the base, made anew in the upper without a change that anybody sees: then it can be renamed.

Overlayfs renames a directory that only the upper has, and gives EXDEV for one that a lower has as well
(Documentation/filesystems/overlayfs.rst, "renaming directories"; redirect_dir is not for ordinary users). So
an empty directory is made aside, everything is renamed into it, one entry after the other, and then it is
renamed over the old one, from the deepest directory up. No content is copied by us, and none is ever removed:
at every moment each entry has one whole place.

In a sandbox all this is done by a process that has given up what the command has: it can do nothing that the
command can't. Its calls of rename carry the mark that the filter lets pass. For a folder the process that
shows it does it, from descriptors of the tree and through no link.
"""

from __future__ import annotations

import errno
import os
import stat

from overlayrun.kernel import abi, syscalls
from overlayrun.sandbox.aside import (
    ASIDE,
    NOT_EMPTY,
    NOTE,
    OPENED,
    PLACE,
    PROBE,
    Directory,
    exchange,
    exists,
    quietly,
)
from overlayrun.sandbox.seccomp import OURS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from overlayrun.sandbox.aside import Place

_DEEPEST: Final = 300  # directories one in the other: each holds a descriptor or two
_TRIES: Final = 20
_COPIED: Final = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


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
        """As `Move.prepare`, which follows no links from here on; 0 where a path leads nowhere."""
        opened: list[int] = []
        try:
            for path in (self.root, os.path.dirname(self.source), os.path.dirname(self.target)):
                opened.append(os.open(path, PLACE))
            source, target = (
                End(fd, os.path.basename(path), os.path.relpath(path, self.root))
                for fd, path in zip(opened[1:], (self.source, self.target), strict=True)
            )
            return Move(opened[0], source, target, self.flags, self.aside).prepare()
        except OSError:
            return 0
        finally:
            for fd in opened:
                os.close(fd)


class End:
    """Where a rename begins or ends: a name in an open directory. path: from the top of the overlay."""

    __slots__ = ("directory", "name", "path")

    def __init__(self, directory: int, name: str, path: str) -> None:
        self.directory = directory
        self.name = name
        self.path = path

    @property
    def place(self) -> Place:
        """As it is opened."""
        return self.directory, self.name

    def is_there(self) -> bool:
        """Whether the name is."""
        return exists(*self.place)

    def is_directory(self) -> bool:
        """Whether it is one, and no link to one."""
        return stat.S_ISDIR(os.stat(self.name, dir_fd=self.directory, follow_symlinks=False).st_mode)

    def is_filled(self) -> bool:
        """Whether it is a directory with something in it."""
        try:
            fd = os.open(self.name, OPENED, dir_fd=self.directory)
        except OSError:  # not there, or not to be read: the kernel will find out
            return False
        try:
            with os.scandir(fd) as entries:
                return next(entries, None) is not None
        finally:
            os.close(fd)

    def is_in(self, other: End) -> bool:
        """Whether it lies below another one, or is it."""
        return f"{self.path}/".startswith(f"{other.path}/")


class Move:
    """A rename in one overlay that the kernel is to make. root: descriptor of the overlay's top.

    anew: of directories that were made anew, the inode's number before and now.
    """

    __slots__ = ("_aside", "_flags", "_root", "_source", "_target", "anew")

    def __init__(self, root: int, source: End, target: End, flags: int, aside: str) -> None:
        self._root = root
        self._source = source
        self._target = target
        self._flags = flags
        self._aside = aside
        self.anew: dict[int, int] = {}

    def prepare(self) -> int:
        """Do what lets the kernel make the rename; 0: ask it now, else the errno that it would give.

        Where anything stands in the way the kernel gives its own answer, and nothing has changed. EIO: what
        was set aside could not be put back; it is whole there, and `aside.finish` tries again.
        """
        try:
            if not self._may_succeed():
                return 0
            if not self._exchanges and self._target.is_filled():
                return errno.ENOTEMPTY  # the kernel would look for this after what gives EXDEV
            with _Aside(self._root, self._aside, self.anew) as aside:
                for end in self._moved():
                    aside.make_anew(end.place, end.path.split("/"))
        except OSError as err:
            return errno.EIO if err.errno == errno.EIO else 0
        return 0

    @property
    def _exchanges(self) -> bool:
        return bool(self._flags & abi.RENAME_EXCHANGE)

    def _moved(self) -> list[End]:
        """Directories that get another place."""
        both = (self._source, self._target) if self._exchanges else (self._source,)
        return [end for end in both if end.is_there() and end.is_directory()]

    def _may_succeed(self) -> bool:
        """Whether the kernel would not refuse for a reason that it looks for before."""
        source, target = self._source, self._target
        for end in (source, target):
            if not os.access(".", os.W_OK | os.X_OK, dir_fd=end.directory):
                return False
        is_across = os.path.dirname(source.path) != os.path.dirname(target.path)
        if is_across and not all(os.access(end.name, os.W_OK, dir_fd=end.directory) for end in self._moved()):
            return False
        if target.is_in(source):
            return False
        if self._exchanges:
            return target.is_there() and not source.is_in(target)
        if target.is_there():
            return target.is_directory() and not self._flags & abi.RENAME_NOREPLACE
        return True


class _Aside:
    """A place of its own aside in an overlay, where new directories grow; a context manager.

    anew: see `Move`.
    """

    __slots__ = ("_above", "_anew", "_fd", "_made", "_name", "_root")

    def __init__(self, root: int, name: str, anew: dict[int, int]) -> None:
        self._root = root
        self._name = name
        self._anew = anew
        self._made = 0
        for _ in range(_TRIES):
            quietly(lambda: os.mkdir(ASIDE, 0o700, dir_fd=root))
            try:
                self._open()
                break
            except FileNotFoundError:  # another one has just removed it
                continue
        else:
            raise OSError(errno.EXDEV, "it is removed again and again", ASIDE)

    def _open(self) -> None:
        self._above = os.open(ASIDE, OPENED, dir_fd=self._root)
        try:
            os.mkdir(self._name, 0o700, dir_fd=self._above)
            self._fd = os.open(self._name, OPENED, dir_fd=self._above)
        except OSError:
            os.close(self._above)
            raise
        # In the tree of a run by root the command is another, who may have to finish what is left here.
        owner = os.fstat(self._root)
        for made in (self._above, self._fd):
            if os.fstat(made).st_uid != owner.st_uid:
                quietly(os.fchown, made, owner.st_uid, owner.st_gid)
        os.mkdir(PROBE, 0o700, dir_fd=self._fd)

    def __enter__(self) -> _Aside:
        return self

    def __exit__(self, *_: object) -> None:
        quietly(lambda: os.rmdir(PROBE, dir_fd=self._fd))
        quietly(lambda: os.rmdir(self._name, dir_fd=self._above))
        quietly(lambda: os.rmdir(ASIDE, dir_fd=self._root))
        os.close(self._fd)
        os.close(self._above)

    def make_anew(self, place: Place, names: Sequence[str]) -> None:
        """Let only the upper have a directory and all below it. names: its path. Raises OSError."""
        if not self._is_of_a_lower(place):
            return
        if len(names) > _DEEPEST:
            raise OSError(errno.EXDEV, "too deep", place[1])
        with Directory(place) as old:
            try:
                self._take_apart(old, names)
            except OSError:
                quietly(lambda: os.fchmod(old.fd, stat.S_IMODE(old.info.st_mode)))
                raise

    def _take_apart(self, old: Directory, names: Sequence[str]) -> None:
        directories, large = old.entries()
        for name in directories:
            self.make_anew((old.fd, name), [*names, name])
        for name in large:
            _copy_up(old.fd, name)
        self._swap(old, "/".join(names))

    def _is_of_a_lower(self, place: Place) -> bool:
        """Ask the kernel to put it over a directory that is not empty: it looks for the lower first."""
        parent, name = place
        try:
            syscalls.renameat2(name, self._name, 0, directories=(parent, self._above), mark=OURS)
        except OSError as err:
            if err.errno in NOT_EMPTY:
                return False
            # EACCES: one that can't be written to, of which the kernel does not tell.
            if err.errno in (errno.EXDEV, errno.EACCES):
                return True
            raise
        raise OSError(errno.EXDEV, "somebody removed what is in the way", name)

    def _swap(self, old: Directory, path: str) -> None:
        self._made += 1
        made, mode = str(self._made), stat.S_IMODE(old.info.st_mode)
        note = f"{made}{NOTE}"
        os.symlink(f"{mode:o} {old.info.st_mtime_ns} {path}", note, dir_fd=self._fd)
        try:
            os.mkdir(made, 0o700, dir_fd=self._fd)
            with Directory((self._fd, made)) as new:
                try:
                    new.resemble(old)
                    os.fchmod(new.fd, mode | stat.S_IRWXU)
                    exchange(old, new)
                except OSError as err:
                    self._put_back(new, old, err)
                self._anew[old.info.st_ino] = new.info.st_ino
                new.restore(old.info)
        finally:
            if not exists(self._fd, made):
                os.unlink(note, dir_fd=self._fd)

    def _put_back(self, new: Directory, old: Directory, reason: OSError) -> None:
        try:
            new.pour_into(old)
            os.rmdir(new.place[1], dir_fd=self._fd)
            old.restore(old.info)
        except OSError as err:
            raise OSError(errno.EIO, "it stays aside", self._name) from err
        raise reason


def _copy_up(directory: int, name: str) -> None:
    """To open a file for writing is enough; one that can't be is copied when it is renamed."""
    quietly(lambda: os.close(os.open(name, _COPIED, dir_fd=directory)))
