"""The kernel's requests about files of shown trees: records taken apart, a native call, records put together.

A method takes the node's number and the request's body; it gives the answer's body, or a function that gives
it and may take its time, or work that is done beside others, or a rename that is to be prepared. It raises
OSError, Unbound where the tree must be opened first, Below where a file must be copied up first, or Moving
where the request must wait for a rename.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from overlayrun.folders import passthrough
from overlayrun.folders.api import Kind
from overlayrun.folders.device import NOTHING, Device, Looks, attributes, listed
from overlayrun.folders.moves import Pending, may_be_prepared
from overlayrun.folders.nodes import FIRST_NODE, Handle, Moving, Node, Nodes, Shown
from overlayrun.folders.slow import FAR, Slow
from overlayrun.kernel import fuse, syscalls

Answer = bytes | bytearray | Callable[[], bytes] | Slow | Pending
Method = Callable[[int, memoryview], Answer]
HELD: Final = 3600
"""Seconds for which the kernel may keep what it knows of a tree that is changed through it alone."""
LIVE_NS: Final = 20_000_000
"""The same where an agent writes: for a walk that listed the directory just now. Data is never kept there.

It is less than any command takes to start. With none, each look at a file asked for every directory on its
way, and a walk took 33 times the plain one's time.
"""
_MOST_COPIED: Final = 64 << 20
_MOST_ABSENT: Final = 50_000
"""Names of one tree that the kernel may know to be nowhere; each is taken back when the tree is let go."""
_NO_ENTRY: Final = fuse.ENTRY_OUT.pack(*(0, 0, HELD, *(0,) * 19))


class Requests:
    """Answers about nodes. For one thread at a time."""

    def __init__(self, nodes: Nodes, device: Device, looks: Looks) -> None:
        self._nodes = nodes
        self._looks = looks
        self._device = device
        self._handles: dict[int, Handle] = {}
        self._numbers = itertools.count(1)
        self.methods: dict[int, Method] = {
            fuse.LOOKUP: self._lookup,
            fuse.GETATTR: self._getattr,
            fuse.SETATTR: self._setattr,
            fuse.READLINK: self._readlink,
            fuse.SYMLINK: self._symlink,
            fuse.MKNOD: self._mknod,
            fuse.MKDIR: self._mkdir,
            fuse.UNLINK: self._unlink,
            fuse.RMDIR: self._rmdir,
            fuse.RENAME: self._rename,
            fuse.RENAME2: self._rename2,
            fuse.LINK: self._link,
            fuse.OPEN: self._open,
            fuse.CREATE: self._create,
            fuse.READ: self._read,
            fuse.WRITE: self._write,
            fuse.RELEASE: self._release,
            fuse.FSYNC: self._fsync,
            fuse.FSYNCDIR: self._fsync,
            fuse.FALLOCATE: self._fallocate,
            fuse.LSEEK: self._lseek,
            fuse.COPY_FILE_RANGE: self._copy_file_range,
            fuse.OPENDIR: self._opendir,
            fuse.READDIR: self._readdir,
            fuse.READDIRPLUS: self._readdirplus,
            fuse.RELEASEDIR: self._release,
            fuse.STATFS: self._statfs,
            fuse.GETXATTR: self._getxattr,
            fuse.SETXATTR: self._setxattr,
            fuse.LISTXATTR: self._listxattr,
            fuse.REMOVEXATTR: self._removexattr,
        }

    def has_open(self, shown: Shown) -> bool:
        """Whether something of a tree is open."""
        return any(handle.node.shown is shown for handle in self._handles.values())

    def written(self, kind: Kind, name: str) -> set[int]:
        """Numbers of a tree's files that are open for writing; a mapping keeps its file open too."""
        handles = [handle for handle in self._handles.values() if handle.is_writer]
        found = [handle.node for handle in handles if handle.node.shown.kind is kind]
        return {node.number for node in found if node.shown.name == name}

    def _node(self, number: int) -> Node:
        if number < FIRST_NODE:
            raise OSError(errno.EXDEV, "not in a tree")
        node = self._nodes[number]
        return _unless_moving(node)

    def _lookup(self, number: int, body: memoryview) -> Answer:
        parent, name = self._node(number), os.fsdecode(bytes(body[:-1]))
        absent = parent.shown.absent
        try:
            found = self._found(passthrough.find(self._nodes, parent, name))
        except FileNotFoundError:
            if parent.shown.live or len(absent) >= _MOST_ABSENT:
                raise
            absent.add((number, name))
            return _NO_ENTRY
        absent.discard((number, name))
        return found

    def _found(self, found: passthrough.Found) -> bytes:
        node, info = found
        node.lookups += 1
        return fuse.ENTRY_OUT.pack(*_entry(node, info))

    def _getattr(self, number: int, body: memoryview) -> Answer:
        node = self._node(number)
        if node is node.shown.root and not node.shown.is_bound:
            return fuse.ATTR_OUT.pack(0, 0, 0, *self._looks.of(number, is_writable=True))
        flags, _, fh = fuse.GETATTR_IN.unpack_from(body)
        if flags and (handle := self._handles.get(fh)) and handle.fd >= 0:
            return _attributes_out(node, os.fstat(handle.fd))
        return _attributes_out(node, self._nodes.look(node))

    def _setattr(self, number: int, body: memoryview) -> Answer:
        valid, fh, size, atime, mtime, atime_ns, mtime_ns, mode, *owner = fuse.SETATTR_IN.unpack_from(body)
        wish = passthrough.Wish(valid, size, (atime, mtime, atime_ns, mtime_ns), mode, (owner[0], owner[1]))
        node = self._node(number)
        handle = self._handles[fh] if valid & fuse.FATTR_FH else None
        return _attributes_out(node, passthrough.set_attributes(self._nodes, node, handle, wish))

    def _readlink(self, number: int, _: memoryview) -> Answer:
        return passthrough.read_link(self._nodes, self._node(number))

    def _symlink(self, number: int, body: memoryview) -> Answer:
        name, target = (os.fsdecode(text) for text in bytes(body[:-1]).split(b"\0"))
        parent = self._node(number)
        how = lambda place: os.symlink(target, name, dir_fd=place)  # noqa: E731  # one call, twice a def's length
        return self._found(passthrough.make(self._nodes, parent, name, how))

    def _mknod(self, number: int, body: memoryview) -> Answer:
        mode, *_ = fuse.MKNOD_IN.unpack_from(body)
        name = _name(body, fuse.MKNOD_IN.size)
        return self._found(passthrough.mknod(self._nodes, self._node(number), name, mode))

    def _mkdir(self, number: int, body: memoryview) -> Answer:
        mode, _ = fuse.MKDIR_IN.unpack_from(body)
        name = _name(body, fuse.MKDIR_IN.size)
        parent = self._node(number)
        return self._found(
            passthrough.make(self._nodes, parent, name, lambda place: os.mkdir(name, mode, dir_fd=place))
        )

    def _unlink(self, number: int, body: memoryview) -> Answer:
        name = _name(body)
        passthrough.remove(self._nodes, self._node(number), name, lambda place: os.unlink(name, dir_fd=place))
        return b""

    def _rmdir(self, number: int, body: memoryview) -> Answer:
        name = _name(body)
        passthrough.remove(self._nodes, self._node(number), name, lambda place: os.rmdir(name, dir_fd=place))
        return b""

    def _rename(self, number: int, body: memoryview) -> Answer:
        (parent,) = fuse.COUNT.unpack_from(body)
        return self._renamed(number, parent, body[fuse.COUNT.size :], 0)

    def _rename2(self, number: int, body: memoryview) -> Answer:
        parent, flags = fuse.RENAME2_IN.unpack_from(body)
        return self._renamed(number, parent, body[fuse.RENAME2_IN.size :], flags)

    def _renamed(self, old_parent: int, new_parent: int, names: memoryview, flags: int) -> Answer:
        old, new = (os.fsdecode(name) for name in bytes(names[:-1]).split(b"\0"))
        places = (self._node(old_parent), old), (self._node(new_parent), new)
        try:
            passthrough.rename(self._nodes, *places, flags)
        except OSError as err:
            if err.errno != errno.EXDEV or not may_be_prepared(self._nodes, *places, flags):
                raise
            return Pending(self._nodes, *places, flags)
        return b""

    def _link(self, number: int, body: memoryview) -> Answer:
        (old,) = fuse.COUNT.unpack_from(body)
        name = _name(body, fuse.COUNT.size)
        return self._found(passthrough.link(self._nodes, self._node(old), self._node(number), name))

    def _open(self, number: int, body: memoryview) -> Answer:
        flags, _ = fuse.OPEN_IN.unpack_from(body)
        handle = passthrough.open_file(self._nodes, self._node(number), flags)
        return self._opened(handle, os.fstat(handle.fd))

    def _create(self, number: int, body: memoryview) -> Answer:
        flags, mode, _, _ = fuse.CREATE_IN.unpack_from(body)
        name = _name(body, fuse.CREATE_IN.size)
        handle, info = passthrough.create(self._nodes, self._node(number), name, flags, mode)
        return self._found((handle.node, info)) + self._opened(handle, info)

    def _opened(self, handle: Handle, info: os.stat_result) -> bytes:
        shown = handle.node.shown
        flags = 0
        if handle.node.kind == stat.S_IFDIR:
            flags = 0 if shown.live else fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_CACHE_DIR
        elif shown.live:
            # Else the kernel drops its pages where time or size changed, which an edit within a tick hides.
            flags = fuse.FOPEN_DIRECT_IO if self._device.can_map else 0
        elif _is_held(shown, info):
            flags = fuse.FOPEN_KEEP_CACHE
        handle.number = next(self._numbers)
        self._handles[handle.number] = handle
        return fuse.OPEN_OUT.pack(handle.number, flags, 0)

    def _read(self, number: int, body: memoryview) -> Answer:
        fh, offset, size, _ = fuse.READ_IN.unpack_from(body)
        handle = self._handles[fh]
        self._node(number)
        fd = passthrough.descriptor(self._nodes, handle)
        if size < FAR:
            return os.pread(fd, size, offset)
        own = os.dup(fd)
        return Slow(handle.node.shown, [own], lambda: os.pread(own, size, offset))

    def _write(self, number: int, body: memoryview) -> Answer:
        fh, offset, size, flags = fuse.READ_IN.unpack_from(body)
        handle, shown = self._handles[fh], self._node(number).shown
        data = body[fuse.READ_IN.size :][:size]
        is_page = bool(flags & fuse.WRITE_CACHE and handle.flags & os.O_APPEND)
        shown.changed = True
        fd = passthrough.descriptor(self._nodes, handle)
        if size < FAR:
            return fuse.WRITE_OUT.pack(passthrough.write(fd, data, offset, is_page=is_page))
        own, kept = os.dup(fd), bytes(data)

        def write() -> bytes:
            written = passthrough.write(own, kept, offset, is_page=is_page)
            shown.changed = True  # a snapshot may have been taken meanwhile
            return fuse.WRITE_OUT.pack(written)

        return Slow(shown, [own], write)

    def _release(self, _: int, body: memoryview) -> Answer:
        (fh,) = fuse.COUNT.unpack_from(body)
        passthrough.close(self._handles.pop(fh))
        return b""

    def _fsync(self, _: int, body: memoryview) -> Answer:
        fh, flags = fuse.FSYNC_IN.unpack_from(body)
        fd = os.dup(passthrough.descriptor(self._nodes, self._handles[fh]))

        def flush() -> bytes:
            try:
                (os.fdatasync if flags & fuse.FSYNC_FDATASYNC else os.fsync)(fd)
            finally:
                os.close(fd)
            return b""

        return flush

    def _fallocate(self, _: int, body: memoryview) -> Answer:
        fh, offset, length, mode = fuse.FALLOCATE_IN.unpack_from(body)
        handle = self._handles[fh]
        handle.node.shown.changed = True
        syscalls.fallocate(passthrough.descriptor(self._nodes, handle), mode, offset, length)
        return b""

    def _lseek(self, _: int, body: memoryview) -> Answer:
        fh, offset, whence = fuse.LSEEK_IN.unpack_from(body)
        fd = passthrough.descriptor(self._nodes, self._handles[fh])
        return fuse.COUNT.pack(os.lseek(fd, offset, whence))

    def _copy_file_range(self, _: int, body: memoryview) -> Answer:
        fh, offset, _, fh_out, offset_out, length, _ = fuse.COPY_IN.unpack_from(body)
        source, target = self._handles[fh], self._handles[fh_out]
        shown = target.node.shown
        shown.changed = True
        reader, writer = (os.dup(passthrough.descriptor(self._nodes, handle)) for handle in (source, target))

        def copy() -> bytes:
            copied = os.copy_file_range(reader, writer, min(length, _MOST_COPIED), offset, offset_out)
            shown.changed = True
            return fuse.WRITE_OUT.pack(copied)

        return Slow(shown, [reader, writer], copy)

    def _opendir(self, number: int, _: memoryview) -> Answer:
        handle = passthrough.open_directory(self._nodes, self._node(number))
        return self._opened(handle, os.fstat(handle.fd))

    def _readdir(self, _: int, body: memoryview) -> Answer:
        return listed(body, self._being_read(body).listing)

    def _readdirplus(self, _: int, body: memoryview) -> Answer:
        handle = self._being_read(body)
        return listed(body, handle.listing, partial(self._listed_entry, handle.node))

    def _being_read(self, body: memoryview) -> Handle:
        """A directory whose names are known; they are read anew at its beginning."""
        fh, offset, _, _ = fuse.READ_IN.unpack_from(body)
        handle = self._handles[fh]
        _unless_moving(handle.node)
        if not offset or not handle.listing:
            handle.listing = passthrough.listing(self._nodes, handle)
        return handle

    def _listed_entry(self, parent: Node, name: str) -> tuple[int, ...]:
        try:
            node, info = passthrough.find(self._nodes, parent, name)
        except OSError:  # gone since it was listed
            return NOTHING
        node.lookups += 1
        return _entry(node, info)

    def _statfs(self, number: int, _: memoryview) -> Answer:
        info = os.fstatvfs(self._nodes.directory(self._node(number).shown.root))
        blocks = info.f_blocks, info.f_bfree, info.f_bavail, info.f_files, info.f_ffree
        return fuse.STATFS_OUT.pack(*blocks, info.f_bsize, info.f_namemax, info.f_frsize)

    def _getxattr(self, number: int, body: memoryview) -> Answer:
        size, _ = fuse.GETXATTR_IN.unpack_from(body)
        name = _name(body, fuse.GETXATTR_IN.size)
        return _sized(passthrough.getxattr(self._nodes, self._node(number), name), size)

    def _listxattr(self, number: int, body: memoryview) -> Answer:
        size, _ = fuse.GETXATTR_IN.unpack_from(body)
        names = passthrough.listxattr(self._nodes, self._node(number))
        return _sized(b"".join(os.fsencode(name) + b"\0" for name in names), size)

    def _setxattr(self, number: int, body: memoryview) -> Answer:
        size, flags = fuse.SETXATTR_IN.unpack_from(body)
        name, _, value = bytes(body[fuse.SETXATTR_IN.size :]).partition(b"\0")
        passthrough.setxattr(self._nodes, self._node(number), os.fsdecode(name), value[:size], flags)
        return b""

    def _removexattr(self, number: int, body: memoryview) -> Answer:
        passthrough.setxattr(self._nodes, self._node(number), _name(body), None)
        return b""


def _unless_moving(node: Node) -> Node:
    """A node that is used now."""
    if node.shown.waiting is not None:
        raise Moving(node.shown.waiting)
    node.shown.used = time.monotonic()
    return node


def _name(body: memoryview, offset: int = 0) -> str:
    return os.fsdecode(bytes(body[offset:-1]))


def _sized(data: bytes, room: int) -> bytes:
    if not room:
        return fuse.GETXATTR_IN.pack(len(data), 0)
    if len(data) > room:
        raise OSError(errno.ERANGE, "too small")
    return data


def _is_held(shown: Shown, info: os.stat_result) -> bool:
    """Whether what is known of a file stays true: nobody changes it by another name or from another side."""
    if shown.live:
        return False
    return not shown.writable or info.st_nlink == 1 or stat.S_ISDIR(info.st_mode)


def hold(shown: Shown, info: os.stat_result) -> tuple[int, int]:
    """(seconds, nanoseconds) for which the kernel may keep a file's attributes."""
    if shown.live:
        return 0, LIVE_NS
    return (HELD if _is_held(shown, info) else 0), 0


def _entry(node: Node, info: os.stat_result) -> tuple[int, ...]:
    seconds, ns = hold(node.shown, info)
    is_live = node.shown.live
    return (node.number, 0, 0 if is_live else HELD, seconds, ns if is_live else 0, ns, *attributes(info))


def _attributes_out(node: Node, info: os.stat_result) -> bytes:
    ino = node.number if node is node.shown.root else 0
    return fuse.ATTR_OUT.pack(*hold(node.shown, info), 0, *attributes(info, ino))
