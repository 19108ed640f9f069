"""The trees that folders show, as descriptors: made by a child, in namespaces that nobody else is in.

A descriptor keeps the mount alive; with the last one it is gone. No command runs there, and nothing of the
host's mounts changes.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Sequence
from typing import Final

from overlayrun.errors import MountError, OverlayrunError
from overlayrun.files import remove_tree
from overlayrun.kernel import abi, namespaces, syscalls
from overlayrun.kernel.passed import receive
from overlayrun.layers.marks import write_whiteout
from overlayrun.sandbox import aside, mounts
from overlayrun.sandbox.plan import Overlay, tree_plan
from overlayrun.store.location import Repository
from overlayrun.view import view_of
from overlayrun.workspace.layout import Layout
from overlayrun.workspace.record import Record

_LONGEST: Final = 4096
_TREE: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def own_tree(repository: Repository, layout: Layout, record: Record) -> int:
    """Descriptor of a workspace's tree, writable, mounted for us alone. Raises OSError.

    The caller holds the workspace. What the agent has as `.git` is not in it.
    """
    place = layout.workspace(record.id)
    if record.is_whole:
        return os.open(place.upper, _TREE)
    plan = tree_plan(view_of(repository, layout, record), frozenset())
    not_shown = f"{record.root}/.git"
    layers = [layer for layer in plan if isinstance(layer, Overlay) and layer.target != not_shown]

    def work() -> int:
        mounts.apply(layers)
        aside.finish([layer.target for layer in layers if os.path.lexists(f"{layer.target}/{aside.ASIDE}")])
        return syscalls.open_tree(record.root, abi.OPEN_TREE_CLONE | abi.AT_RECURSIVE)

    return _from_child(work, private=True)


def live_tree(joined: Sequence[int], root: str) -> int:
    """Descriptor of the tree that a run shows its command. joined: as a run answers. Raises OSError."""

    def work() -> int:
        namespaces.join(list(joined[:2]))
        found = os.open(root, _TREE)
        # In a HOME of its own the command can rename a directory above, and have another in its place.
        if syscalls.statx(found)[0] == syscalls.statx(os.open("..", _TREE, dir_fd=found))[0]:
            raise OSError(errno.ESTALE, "the command moved its tree away")
        return found

    return _from_child(work, private=False)


def frozen_view(layout: Layout, stack: Sequence[str]) -> int:
    """Descriptor of a frozen tree without its empty `.git`; read-only. Raises OSError."""
    lowers = [_git_hidden(layout), *(f"{layout.root}/{layer}/tree" for layer in stack)]
    overlay = Overlay("frozen tree", layout.folders, lowers, "", "")
    return _from_child(lambda: mounts.open_overlay(overlay), private=True)


def _git_hidden(layout: Layout) -> str:
    """A layer that hides `.git`."""
    layer = f"{layout.folders}/layer"
    if not os.path.isdir(layer):
        aside = f"{layer}.new"
        remove_tree(aside)
        os.makedirs(aside, 0o755)
        fd = os.open(aside, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            write_whiteout(fd, b".git")
        finally:
            os.close(fd)
        os.rename(aside, layer)
    return layer


def _from_child(work: Callable[[], int], *, private: bool) -> int:
    """The descriptor that `work` opens in a process of its own. private: in a mount namespace of its own.

    The caller has one thread. Raises OSError, with the errno of what `work` met.
    """
    flags = abi.CLONE_NEWNS if private else 0
    if private and not namespaces.is_root_of_host():
        flags |= abi.CLONE_NEWUSER
    uid, gid = os.geteuid(), os.getegid()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = syscalls.clone(flags)
    if pid == 0:
        try:
            if flags & abi.CLONE_NEWUSER:
                namespaces.map_identity(uid, gid)
            socket.send_fds(theirs, [b"+"], [work()])
        except (OSError, OverlayrunError) as err:
            theirs.send(_told(err))
        finally:
            os._exit(0)
    theirs.close()
    with ours:
        said, fds, _ = receive(ours, _LONGEST, 1)
    os.waitpid(pid, 0)
    if fds:
        return fds[0]
    number, _, words = said.decode("utf-8", "replace").partition(" ")
    raise OSError(int(number or errno.EIO), words or "the process that mounts was killed")


def _told(err: OSError | OverlayrunError) -> bytes:
    cause = err.__cause__ if isinstance(err, MountError) else err
    number = cause.errno if isinstance(cause, OSError) else None
    return f"{number or errno.EIO} {err}".encode("utf-8", "surrogateescape")[:_LONGEST]
