"""Hide files: by whiteouts below a copy-on-write view, by empty mounts elsewhere. On the launch path."""

from __future__ import annotations

import os
import stat

from overlayrun.kernel import abi, syscalls
from overlayrun.layers.marks import write_whiteout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

# A read-only mount with an empty file and an empty directory, to be shown in many places.
_NOTHING: Final = "/run/overlayrun/nothing"
_SMALL: Final = "mode=755,size=64k,nr_inodes=4"


def hiding_layer(names: Iterable[str], below: str) -> int:
    """A detached tmpfs with whiteouts, to be the top lower layer over `below`: descriptor of its mount.

    A layer and not whiteouts of the upper, because the command can take those away: it makes the file and
    removes it again, and the secret that the user puts there next shows. In memory, because a directory
    inside `below` is refused as overlapping. Directories on the way take their modes from `below`.
    """
    context = syscalls.fsopen("tmpfs")
    try:
        for key, value in (("mode", "755"), ("size", "4m")):
            syscalls.fsconfig(context, abi.FSCONFIG_SET_STRING, key, value)
        syscalls.fsconfig(context, abi.FSCONFIG_CMD_CREATE)
        layer = syscalls.fsmount(context, abi.MOUNT_ATTR_NOSUID | abi.MOUNT_ATTR_NODEV)
    finally:
        os.close(context)
    try:
        _fill(layer, names, below)
    except OSError:
        os.close(layer)
        raise
    return layer


def _fill(layer: int, names: Iterable[str], below: str) -> None:
    _like(layer, ".", below)
    made: set[str] = set()
    hidden: set[str] = set()
    for name in sorted(names):  # so that a directory comes before what is in it
        parents = [name[:at] for at in range(len(name)) if name[at] == "/"] if "/" in name else []
        if not hidden.isdisjoint(parents):
            continue
        for parent in parents:
            if parent not in made:
                os.mkdir(parent, dir_fd=layer)
                _like(layer, parent, f"{below}/{parent}")
                made.add(parent)
        write_whiteout(layer, name)
        hidden.add(name)


def _like(layer: int, name: str, model: str) -> None:
    info = os.stat(model)
    os.chmod(name, stat.S_IMODE(info.st_mode), dir_fd=layer)
    os.utime(name, ns=(info.st_atime_ns, info.st_mtime_ns), dir_fd=layer)


def cover(paths: Iterable[str]) -> None:
    """Put emptiness over every path that is there: a read-only file or directory without content.

    /run is the sandbox's own already. A path that can't be reached can't be read either.
    """
    if not os.path.isdir(_NOTHING):
        _make_nothing()
    for path in paths:
        try:
            # Unlike lstat(2) this asks nothing of what is mounted there, whose server may be dead.
            os.close(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC))
            kind = "directory"
        except NotADirectoryError:
            kind = "file"
        except OSError:
            continue
        fd = syscalls.open_tree(f"{_NOTHING}/{kind}", abi.OPEN_TREE_CLONE)
        try:
            syscalls.move_mount(fd, path)
        finally:
            os.close(fd)


def _make_nothing() -> None:
    os.makedirs(_NOTHING)
    syscalls.mount("tmpfs", _NOTHING, "tmpfs", abi.MS_NOSUID | abi.MS_NODEV | abi.MS_NOEXEC, _SMALL)
    os.mkdir(f"{_NOTHING}/directory", 0o555)
    os.close(os.open(f"{_NOTHING}/file", os.O_CREAT | os.O_CLOEXEC, 0o444))
    syscalls.mount_setattr(_NOTHING, abi.MOUNT_ATTR_RDONLY, recursive=False)
