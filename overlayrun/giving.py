"""What a run by root shows where a disk has no id-mapped mounts, as an overlay in a container has none.

The command is nobody on the host, and root of its own files inside. With such mounts root's files on disk are
its own; without, what the workspace alone holds is given to nobody on the disk. On the launch path.
"""

from __future__ import annotations

import errno
import os

from overlayrun.kernel import abi, namespaces, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_FOR_OTHERS: Final = 0o5


def can_map(path: str) -> bool:
    """Whether root can show a directory in a mount where its own files belong to nobody; for root alone."""
    try:
        fd = syscalls.open_tree(path, abi.OPEN_TREE_CLONE | abi.AT_NO_AUTOMOUNT)
    except OSError:
        return True  # there is nothing to show
    id_map = namespaces.id_map_namespace()
    try:
        syscalls.mount_setattr(fd, 0, recursive=False, propagation=abi.MS_PRIVATE, id_map=id_map)
    except OSError:
        return False
    finally:
        os.close(fd)
        os.close(id_map)
    return True


def give_to_nobody(directory: str) -> None:
    """Make nobody the owner of what belongs to root at and below a directory.

    What belongs to nobody already keeps its times. Raises OSError.
    """
    _give(directory, 0, namespaces.NOBODY)


def give_where_unmapped(directory: str) -> None:
    """The same, where a run by root needs it. Raises OSError."""
    if namespaces.is_root_of_host() and not can_map(directory):
        give_to_nobody(directory)


def take_back(directory: str) -> None:
    """The other way, where something was given: for a command that is root after all. Raises OSError."""
    if os.lstat(directory).st_uid == namespaces.NOBODY:
        _give(directory, namespaces.NOBODY, 0)


def _give(directory: str, giver: int, owner: int) -> None:
    # By descriptors, without following a link: an agent leaves trees that no path leads into.
    argv = ["chown", "-R", "-h", "-P", f"--from={giver}", f"{owner}:{owner}", "--", directory]
    pid = os.posix_spawnp(argv[0], argv, os.environ)
    if os.waitpid(pid, 0)[1]:
        raise OSError(errno.EPERM, "its files can't be given to the command's user", directory)


def require_open(objects: str) -> None:
    """Raise OSError unless everybody may read what a git directory holds, one umask having made it all."""
    packs = f"{objects}/pack"
    places = [objects, *(entry.path for entry in os.scandir(objects))]
    places += [entry.path for entry in os.scandir(packs)] if os.path.isdir(packs) else []
    for place in places:
        mode = os.stat(place).st_mode
        wanted = _FOR_OTHERS if os.path.isdir(place) else _FOR_OTHERS & ~1
        if mode & wanted != wanted:
            raise OSError(errno.EACCES, "root alone may read it: chmod -R a+rX", place)
