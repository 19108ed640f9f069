"""Operations on files of shown trees: native calls on descriptors, each by one name and never through a link.

An agent may write in the same tree at the same moment. Whatever it swaps, a call reaches a file of the tree
or fails: parents are descriptors, the last name is not followed, and what is changed by descriptor was
compared with its node before. Every method raises OSError with the errno that the caller is to see, Unbound
where the tree must be opened first, or Below where a file must be copied up first: nothing is done then.

No `.git` shows but the one that is given: of another, git on the host would believe the configuration, and
run programs that it names, for no more than a `git status` of a repository with a submodule.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from overlayrun.folders.nodes import Handle, Node, Nodes, is_same
from overlayrun.folders.slow import by_chown, by_open, need_up
from overlayrun.kernel import abi, fuse, syscalls

# Direct I/O wants aligned memory, and links and controlling terminals are never wanted.
_DROPPED: Final = os.O_DIRECT | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_DIRECTORY
# Not to wait at a pipe that took the file's place.
_ADDED: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_SET_ID: Final = stat.S_ISUID | stat.S_ISGID
_NODES: Final = (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK)
_OWN_XATTRS: Final = "user."
_GIT: Final = ".git"
_SECOND: Final = 10**9
Found = tuple[Node, os.stat_result]


def find(nodes: Nodes, parent: Node, name: str) -> Found:
    """Look a name up."""
    place = nodes.directory(parent)
    given = parent.given.get(name) if isinstance(parent.given, dict) else None
    if isinstance(given, int):
        info = os.fstat(given)
    elif name == _GIT and given is None:
        raise FileNotFoundError(errno.ENOENT, "git's own name", name)
    else:
        info = os.stat(name, dir_fd=place, follow_symlinks=False)
    return nodes.known(parent, name, info), info


def make(nodes: Nodes, parent: Node, name: str, how: Callable[[int], None]) -> Found:
    """Make a new name by a call with the parent's descriptor."""
    place = _place(nodes, parent, name)
    how(place)
    if _is_for_nobody(parent):
        owner = os.fstat(place)
        os.chown(name, owner.st_uid, owner.st_gid, dir_fd=place, follow_symlinks=False)
    parent.shown.changed = True
    nodes.unname(parent, name)
    return find(nodes, parent, name)


def _is_for_nobody(parent: Node) -> bool:
    """Whether what root makes there is for his run's command, nobody: it gets the directory's owner."""
    return parent.shown.live and os.geteuid() == 0


def mknod(nodes: Nodes, parent: Node, name: str, mode: int) -> Found:
    """A new file, pipe or socket; EPERM for devices and for files that run as their owner."""
    if stat.S_IFMT(mode) not in _NODES or mode & _SET_ID:
        raise OSError(errno.EPERM, "neither devices nor set-id bits", name)
    return make(nodes, parent, name, lambda place: os.mknod(name, mode, dir_fd=place))


def link(nodes: Nodes, node: Node, parent: Node, name: str) -> Found:
    """A further name of a file."""
    if node.shown is not parent.shown or node.given is not None:
        raise OSError(errno.EXDEV, "from another tree", name)
    if node.parent is None:
        raise OSError(errno.ESTALE, "its name is gone", name)
    place = _place(nodes, parent, name)
    need_up(nodes, node, by_chown)
    source = nodes.directory(node.parent)
    os.link(node.name, name, src_dir_fd=source, dst_dir_fd=place, follow_symlinks=False)
    parent.shown.changed = True
    info = os.stat(name, dir_fd=place, follow_symlinks=False)
    if is_same(node, info):
        parent.children[name] = node  # the kernel takes both names for one file then
    return find(nodes, parent, name)


def remove(nodes: Nodes, parent: Node, name: str, how: Callable[[int], None]) -> None:
    """Remove a name by a call with the parent's descriptor."""
    how(_place(nodes, parent, name))
    parent.shown.changed = True
    nodes.unname(parent, name)


def rename(nodes: Nodes, old: tuple[Node, str], new: tuple[Node, str], flags: int) -> None:
    """Rename with flags of renameat2(2), in one tree; EXDEV else. Whiteouts can't be made so: EINVAL."""
    (old_parent, old_name), (new_parent, new_name) = old, new
    if old_parent.shown is not new_parent.shown:
        raise OSError(errno.EXDEV, "another tree", new_name)
    if flags & abi.RENAME_WHITEOUT:
        raise OSError(errno.EINVAL, "no whiteouts", new_name)
    places = _place(nodes, old_parent, old_name), _place(nodes, new_parent, new_name)
    for parent, name in (old, new) if flags & abi.RENAME_EXCHANGE else (old,):
        if node := parent.children.get(name):
            with suppress(OSError):  # another file has its place: it goes by name
                need_up(nodes, node, by_chown)
    syscalls.renameat2(old_name, new_name, flags, directories=places)
    old_parent.shown.changed = True
    moved, target = nodes.unname(old_parent, old_name), nodes.unname(new_parent, new_name)
    if moved is not None:
        nodes.rename(moved, new_parent, new_name)
    if target is not None and flags & abi.RENAME_EXCHANGE:
        nodes.rename(target, old_parent, old_name)


def _place(nodes: Nodes, parent: Node, name: str) -> int:
    """Descriptor of a directory in which a name is to change."""
    place = nodes.directory(parent)
    if not parent.shown.writable:
        raise OSError(errno.EROFS, "read-only", name)
    if isinstance(parent.given, dict) and name in parent.given:
        raise OSError(errno.EBUSY, "shown in another's place", name)
    if name == _GIT:
        raise OSError(errno.EPERM, "git's own name", name)
    return place


def create(nodes: Nodes, parent: Node, name: str, flags: int, mode: int) -> tuple[Handle, os.stat_result]:
    """Open a file, making it if it is not there."""
    place = _place(nodes, parent, name)
    if mode & _SET_ID:
        raise OSError(errno.EPERM, "no set-id bits", name)
    wanted = flags & ~_DROPPED | flags & os.O_EXCL | os.O_CREAT | _ADDED
    fd = os.open(name, wanted, mode & 0o7777, dir_fd=place)
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        os.close(fd)
        raise OSError(errno.ESTALE, "no file", name)
    if _is_for_nobody(parent) and info.st_uid == 0:
        owner = os.fstat(place)
        os.fchown(fd, owner.st_uid, owner.st_gid)
    parent.shown.changed = True
    return _handle(nodes.known(parent, name, info), fd, flags), info


def open_file(nodes: Nodes, node: Node, flags: int) -> Handle:
    """Open a file."""
    if flags & (os.O_ACCMODE | os.O_TRUNC):
        _check_writable(node)
        if not flags & os.O_TRUNC:  # what is cut off is not copied
            need_up(nodes, node, by_open)
        node.shown.changed |= bool(flags & os.O_TRUNC)
    return _handle(node, _opened(nodes, node, flags), flags)


def _opened(nodes: Nodes, node: Node, flags: int) -> int:
    if node.parent is None or node.given is not None:
        return _reopened(nodes, node, flags & ~_DROPPED)
    wanted = flags & ~_DROPPED | _ADDED
    fd = os.open(node.name, wanted, dir_fd=nodes.directory(node.parent))
    if is_same(node, os.fstat(fd)):
        return fd
    os.close(fd)
    # ESTALE makes the kernel look the name up once more and open what is there now: another file that
    # took its place, or this one under another number after its first write in an overlay.
    raise OSError(errno.ESTALE, "another file has its place", node.name)


def _reopened(nodes: Nodes, node: Node, flags: int) -> int:
    pinned = nodes.pin(node)
    try:
        return os.open(f"/proc/self/fd/{pinned}", flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    finally:
        os.close(pinned)


def open_directory(nodes: Nodes, node: Node) -> Handle:
    """Open a directory to be listed."""
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=nodes.directory(node))
    return _handle(node, fd, os.O_RDONLY | os.O_DIRECTORY)


def _handle(node: Node, fd: int, flags: int) -> Handle:
    handle = Handle(node, fd, flags & ~(os.O_CREAT | os.O_EXCL | os.O_TRUNC))
    node.handles.append(handle)
    return handle


def descriptor(nodes: Nodes, handle: Handle) -> int:
    """Descriptor of what is open; opened again if its tree was let go meanwhile."""
    if handle.fd < 0:
        if handle.node.kind == stat.S_IFDIR:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            handle.fd = os.open(".", flags, dir_fd=nodes.directory(handle.node))
        else:
            handle.fd = _opened(nodes, handle.node, handle.flags)
    return handle.fd


def close(handle: Handle) -> None:
    """Close what is open; the last close of a writer counts as a change."""
    handle.node.handles.remove(handle)
    handle.node.shown.changed |= handle.is_writer
    if handle.fd >= 0:
        os.close(handle.fd)


def write(fd: int, data: memoryview | bytes, offset: int, *, is_page: bool) -> int:
    """Bytes written. is_page: of a mapping; the kernel guessed the handle, which is one that appends."""
    if not is_page:
        return os.pwrite(fd, data, offset)
    other = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        return os.pwrite(other, data, offset)
    finally:
        os.close(other)


def listing(nodes: Nodes, handle: Handle) -> list[tuple[str, int, int]]:
    """(name, inode, type as st_mode has it) of all in a directory, "." and ".." first."""
    node = handle.node
    given = node.given if isinstance(node.given, dict) else {}
    found = [(".", node.ino or 1, stat.S_IFDIR), ("..", 1, stat.S_IFDIR)]
    with os.scandir(descriptor(nodes, handle)) as entries:
        others = (entry for entry in entries if entry.name not in given and entry.name != _GIT)
        found += [(entry.name, entry.inode(), _type(entry)) for entry in others]
    for name, what in given.items():
        if isinstance(what, int):
            found.append((name, os.fstat(what).st_ino, stat.S_IFREG))
        else:
            info = os.stat(name, dir_fd=nodes.directory(node), follow_symlinks=False)
            found.append((name, info.st_ino, stat.S_IFMT(info.st_mode)))
    return found


def _type(entry: os.DirEntry[str]) -> int:
    if entry.is_symlink():
        return stat.S_IFLNK
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    return stat.S_IFREG if entry.is_file(follow_symlinks=False) else 0


class Wish:
    """What SETATTR asks for; None where it leaves things. Times are ns; NOW is the file system's own now."""

    __slots__ = ("atime", "gid", "mode", "mtime", "size", "uid")
    NOW: Final = -(1 << 63)

    def __init__(
        self, valid: int, size: int, times: tuple[int, int, int, int], mode: int, owner: tuple[int, int]
    ) -> None:
        self.size = size if valid & fuse.FATTR_SIZE else None
        self.mode = mode if valid & fuse.FATTR_MODE else None
        self.uid = owner[0] if valid & fuse.FATTR_UID else -1
        self.gid = owner[1] if valid & fuse.FATTR_GID else -1
        seconds = times[0] * _SECOND + times[2], times[1] * _SECOND + times[3]
        self.atime = self._time(valid, fuse.FATTR_ATIME, fuse.FATTR_ATIME_NOW, seconds[0])
        self.mtime = self._time(valid, fuse.FATTR_MTIME, fuse.FATTR_MTIME_NOW, seconds[1])

    def _time(self, valid: int, flag: int, now: int, value: int) -> int | None:
        if valid & now:
            return self.NOW
        return value if valid & flag else None


def set_attributes(nodes: Nodes, node: Node, handle: Handle | None, wish: Wish) -> os.stat_result:
    """Truncate, chmod, chown, utimensat of this very file; how it is then."""
    _check_writable(node)
    if wish.mode is not None and wish.mode & _SET_ID and node.kind != stat.S_IFDIR:
        raise OSError(errno.EPERM, "no set-id bits", node.name)
    need_up(nodes, node, by_chown)
    node.shown.changed = True
    pinned = nodes.pin(node)
    try:
        path = f"/proc/self/fd/{pinned}"
        if wish.size is not None:
            _truncate(path if handle is None else descriptor(nodes, handle), wish.size)
        if wish.uid != -1 or wish.gid != -1:
            os.chown(path, wish.uid, wish.gid)
        if wish.mode is not None:
            os.chmod(path, stat.S_IMODE(wish.mode))
        _set_times(path, wish)
        return os.fstat(pinned)
    finally:
        os.close(pinned)


def _truncate(file: str | int, size: int) -> None:
    """By descriptor: truncate(2) waits 45 seconds for who has a lease on the file, and so would everybody."""
    if isinstance(file, int):
        os.ftruncate(file, size)
        return
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        os.ftruncate(fd, size)
    finally:
        os.close(fd)


def _set_times(path: str, wish: Wish) -> None:
    if wish.atime is None and wish.mtime is None:
        return
    if wish.atime == wish.mtime == Wish.NOW:
        os.utime(path)
        return
    info = os.stat(path)
    wanted = []
    for asked, present in ((wish.atime, info.st_atime_ns), (wish.mtime, info.st_mtime_ns)):
        kept = present if asked is None else asked
        wanted.append(time.time_ns() if kept == Wish.NOW else kept)
    os.utime(path, ns=(wanted[0], wanted[1]))


def _check_writable(node: Node) -> None:
    if not node.shown.writable or isinstance(node.given, int):
        raise OSError(errno.EROFS, "read-only", node.name)


def read_link(nodes: Nodes, node: Node) -> bytes:
    """Target of a symbolic link; the kernel follows it, where the reader is."""
    pinned = nodes.pin(node)
    try:
        return os.readlink(b"", dir_fd=pinned)
    finally:
        os.close(pinned)


def getxattr(nodes: Nodes, node: Node, name: str) -> bytes:
    """Value of an attribute of users; EOPNOTSUPP for other names."""
    _check_name(name)
    pinned = nodes.pin(node)
    try:
        return os.getxattr(f"/proc/self/fd/{pinned}", name)
    finally:
        os.close(pinned)


def listxattr(nodes: Nodes, node: Node) -> list[str]:
    """Names of users' attributes."""
    pinned = nodes.pin(node)
    try:
        return [name for name in os.listxattr(f"/proc/self/fd/{pinned}") if name.startswith(_OWN_XATTRS)]
    finally:
        os.close(pinned)


def setxattr(nodes: Nodes, node: Node, name: str, value: bytes | None, flags: int = 0) -> None:
    """Set an attribute of users, or remove it: value None."""
    _check_name(name)
    _check_writable(node)
    need_up(nodes, node, by_chown)
    node.shown.changed = True
    pinned = nodes.pin(node)
    try:
        path = f"/proc/self/fd/{pinned}"
        if value is None:
            os.removexattr(path, name)
        else:
            os.setxattr(path, name, value, flags)
    finally:
        os.close(pinned)


def _check_name(name: str) -> None:
    if not name.startswith(_OWN_XATTRS):
        raise OSError(errno.EOPNOTSUPP, "not an attribute of users", name)
