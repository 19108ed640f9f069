"""A further tree in a sandbox that lives: mounted out of its sight, shown in one step, taken away unused.

The command may be at work meanwhile, and it owns the directories on the way: no link of its is followed.
"""

from __future__ import annotations

import errno
import os

from overlayrun.errors import MountError, OverlayrunError
from overlayrun.kernel import abi, namespaces, syscalls
from overlayrun.sandbox import mounts
from overlayrun.sandbox.plan import TREES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final

    from overlayrun.sandbox.plan import Layer

_PLACE: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_GIT: Final = ".git"
_LONGEST: Final = 4096


def show_tree(joined: Sequence[int], layers: Sequence[Layer], root: str, name: str, *, own: bool) -> str:
    """Make the mounts of `plan.tree_plan` and show them as `TREES/name`; a mark to know it again by.

    joined: by `namespaces.open_namespaces`. root: where the layers put the tree. own: whether the sandbox's
    command owns files as the caller does; else they are mapped. Raises MountError. The caller has one thread.
    """

    def work() -> str:
        opened = None
        if not own:
            opened = mounts.Opened(namespaces.id_map_namespace())
            mounts.open_all(layers, opened)
        parent = os.getppid()
        # The sandbox's rights, but the host's mounts: the layers lie where the sandbox sees nothing.
        namespaces.join([joined[0]])
        namespaces.die_with_parent(parent)
        syscalls.unshare(abi.CLONE_NEWNS)
        mounts.apply(layers, opened)
        tree = syscalls.open_tree(root, abi.OPEN_TREE_CLONE | abi.AT_RECURSIVE)
        syscalls.setns(joined[1], abi.CLONE_NEWNS)
        _go_to_trees()
        _go_to(name)
        syscalls.move_mount(tree, ".")
        return _mark(tree)

    return _in_child(work)


def hide_tree(joined: Sequence[int], name: str, mark: str) -> bool:
    """Unmount a tree unless somebody uses it: whether it is gone, and nobody can write to it any more.

    mark: by `show_tree`. A tree with other mounts than its `.git` in it stays. Raises MountError where
    another thing has its place.
    """

    def work() -> str:
        parent = os.getppid()
        namespaces.join(list(joined[:2]))
        namespaces.die_with_parent(parent)
        _go_to_trees()
        fd = os.open(name, _PLACE)
        if _mark(fd) != mark:
            raise OSError(errno.ENOENT, "its tree was moved away")
        os.close(fd)  # it would be in use by us
        return "gone" if _unmount_tree(name) else ""

    return bool(_in_child(work))


def _unmount_tree(name: str) -> bool:
    # A mountpoint can't be renamed, so these paths go where they went a moment ago.
    kept = syscalls.open_tree(f"{name}/{_GIT}", abi.OPEN_TREE_CLONE)
    if not _unmount(f"{name}/{_GIT}"):
        return False
    if not _unmount(name):
        syscalls.move_mount(kept, f"{name}/{_GIT}")
        return False
    os.close(kept)
    try:
        os.rmdir(name)
    except OSError:  # the command put something below it
        pass
    return True


def _unmount(path: str) -> bool:
    try:
        syscalls.umount2(path, abi.UMOUNT_NOFOLLOW)
    except OSError as err:
        if err.errno == errno.EBUSY:
            return False
        raise
    return True


def _go_to_trees() -> None:
    os.chdir("/")
    for name in TREES.strip("/").split("/"):
        _go_to(name)


def _go_to(name: str) -> None:
    """Change to a directory of the current one, made if it is missing. There is no /proc to name it by."""
    try:
        os.mkdir(name)
    except FileExistsError:
        pass
    fd = os.open(name, _PLACE)
    try:
        os.fchdir(fd)
    finally:
        os.close(fd)


def _mark(fd: int) -> str:
    info = os.fstat(fd)
    return f"{info.st_dev} {info.st_ino}"


def _in_child(work: Callable[[], str]) -> str:
    """What `work` gives in a process that may change its namespaces; raises what it raised as MountError."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, b"+" + work().encode())
        except (OSError, OverlayrunError) as err:
            os.write(write, b"-" + str(err).encode("utf-8", "surrogateescape")[:_LONGEST])
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as answer:
        said = answer.read()
    os.waitpid(pid, 0)
    if said[:1] != b"+":
        raise MountError(said[1:].decode("utf-8", "replace") or "the process that mounts was killed")
    return said[1:].decode()
