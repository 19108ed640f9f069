"""What a branch's own HOME is given before the command starts. On the launch path.

An earlier run of the branch may have put links anywhere into it: it is entered by descriptors, and a link in
the way ends it.
"""

from __future__ import annotations

import errno
import os
import stat

from overlayrun.files import copy_file
from overlayrun.layers.marks import set_opaque
from overlayrun.sandbox import seeds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Final, Self

# A link, a file or a whiteout, a directory that the agent has closed.
_IN_THE_WAY: Final = (errno.ENOTDIR, errno.ELOOP, errno.EACCES)


class OwnHome:
    """The upper of HOME, or a HOME of the branch's own.

    upper: its directory. home: where it shows, without links. is_view: what is not in it shows the user's.
    """

    __slots__ = ("home", "is_view", "upper")

    def __init__(self, upper: str, home: str, *, is_view: bool) -> None:
        self.upper = upper
        self.home = home
        self.is_view = is_view

    def give_copy(self, source: str, *, empty: bool = False) -> None:
        """A file of the user's at its place, unless the branch has or had one. empty: just the name."""
        if not source.startswith(f"{self.home}/") or not os.path.isfile(source):
            return
        with _Directory(self, os.path.dirname(source)) as directory:
            if directory.fd is None or _is_there(os.path.basename(source), directory.fd):
                return
            target = f"/proc/self/fd/{directory.fd}/{os.path.basename(source)}"
            if empty:
                os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            else:
                copy_file(source, target)

    def give_directory(self, path: str) -> None:
        """An empty directory at its place, whatever the user's holds, unless the branch has or had one."""
        with _Directory(self, os.path.dirname(path)) as directory:
            name = os.path.basename(path)
            if directory.fd is None or _is_there(name, directory.fd):
                return
            os.mkdir(name, 0o700, dir_fd=directory.fd)
            if self.is_view:
                set_opaque(f"/proc/self/fd/{directory.fd}/{name}")

    def seed(self, mounted: Iterable[str]) -> None:
        """Spare OpenCode its installations. mounted: what lies on other mounts, which it can't write to."""
        covered = tuple(f"{path}/" for path in mounted)
        for path in _config_directories(self):
            if not path.startswith(f"{self.home}/") or f"{path}/".startswith(covered):
                continue
            if not seeds.takes_seed(self._parts(path)):
                continue
            with _Directory(self, path) as directory:
                if directory.fd is not None:
                    seeds.write_seed(directory.fd)

    def _parts(self, path: str) -> list[str]:
        layers = [self.upper, *([self.home] if self.is_view else [])]
        return list(seeds.directories(layers, os.path.relpath(path, self.home)))

    def shows_directory(self, path: str) -> bool:
        """Whether the command sees a directory there."""
        return bool(self._parts(path))


def _config_directories(own: OwnHome) -> Iterator[str]:
    """Where OpenCode looks for its configuration, outside a project."""
    above = os.environ.get("XDG_CONFIG_HOME") or f"{own.home}/.config"
    yield os.path.realpath(f"{above}/opencode")
    if own.shows_directory(f"{own.home}/.opencode"):
        yield f"{own.home}/.opencode"
    chosen = os.environ.get("OPENCODE_CONFIG_DIR", "")
    if chosen.startswith("/"):
        yield os.path.realpath(chosen)


def _is_there(name: str, directory: int) -> bool:
    try:
        os.lstat(name, dir_fd=directory)
    except OSError as err:
        return err.errno != errno.ENOENT
    return True


class _Directory:
    """A directory of an own HOME by its place, made where it is missing with the modes that the user's have.

    fd: None where something is in the way: then the user's does not show there either.
    """

    __slots__ = ("fd",)

    def __init__(self, own: OwnHome, path: str) -> None:
        self.fd: int | None = os.open(own.upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        below = os.path.relpath(path, own.home)
        shown = own.home
        for name in [] if below == "." else below.split("/"):
            shown = f"{shown}/{name}"
            self._enter(name, _mode(shown))

    def _enter(self, name: str, mode: int) -> None:
        above = self.fd
        if above is None:
            return
        try:
            if not _is_there(name, above):
                os.mkdir(name, mode, dir_fd=above)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            self.fd = os.open(name, flags, dir_fd=above)
        except OSError as err:
            if err.errno not in _IN_THE_WAY:
                raise
            self.fd = None
        finally:
            os.close(above)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.fd is not None:
            os.close(self.fd)


def _mode(path: str) -> int:
    try:
        return stat.S_IMODE(os.stat(path).st_mode) | stat.S_IRWXU
    except OSError:
        return 0o700
