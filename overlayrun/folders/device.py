"""Requests of the kernel from /dev/fuse, and answers to them."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from overlayrun.kernel import fuse, namespaces

_MOST: Final = 1 << 20
"""Bytes of one write or read; the kernel's own limit is 256 pages unless root raised it."""
_WANTED: Final = (
    fuse.ASYNC_READ
    | fuse.ATOMIC_O_TRUNC
    | fuse.BIG_WRITES
    | fuse.AUTO_INVAL_DATA
    | fuse.DO_READDIRPLUS
    | fuse.PARALLEL_DIROPS
    | fuse.MAX_PAGES
    # No file of ours runs as its owner, so a write need not ask first whether it does.
    | fuse.HANDLE_KILLPRIV_V2
    | fuse.INIT_EXT
)
_SECOND: Final = 10**9
_IS_ROOT: Final = os.geteuid() == 0


class Request(NamedTuple):
    """What the kernel asks. caller: thread that waits for it, 0 if unknown. body: until the next one."""

    opcode: int
    unique: int
    node: int
    caller: int
    body: memoryview


class Device:
    """A mounted file system's end in this process.

    can_map: whether direct I/O leaves mmap possible. can_expire: whether a name can be doubted, not dropped.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.can_map = self.can_expire = False
        self._buffer = bytearray(_MOST + 4096)
        self._view = memoryview(self._buffer)

    def read(self) -> Request | None:
        """The next request, until the next call; None at the unmount."""
        while True:
            try:
                length = os.readv(self.fd, [self._buffer])
            except OSError as err:
                if err.errno == errno.ENODEV:
                    return None
                if err.errno not in (errno.ENOENT, errno.EAGAIN):  # a request that was taken back
                    raise
            else:
                _, opcode, unique, node, _, _, caller, *_ = fuse.IN_HEADER.unpack_from(self._buffer)
                return Request(opcode, unique, node, caller, self._view[fuse.IN_HEADER.size : length])

    def begin(self) -> None:
        """Agree with the kernel on the protocol: its first request."""
        request = self.read()
        if request is None or request.opcode != fuse.INIT:
            raise OSError(errno.EPROTO, "the kernel's first request is not INIT")
        body = request.body
        _, minor, readahead, offered = fuse.INIT_IN.unpack_from(body)
        more = 0
        if offered & fuse.INIT_EXT:
            more = int.from_bytes(body[16:20], "little")
        self.can_expire = bool(more & fuse.HAS_EXPIRE_ONLY)
        more &= fuse.DIRECT_IO_ALLOW_MMAP
        self.can_map = bool(more)
        pages = min(_MOST // os.sysconf("SC_PAGE_SIZE"), 0xFFFF)
        agreed = (
            fuse.MAJOR,
            min(minor, fuse.MINOR),
            readahead,
            offered & _WANTED,
            16,
            12,
            _MOST,
            1,
            pages,
            0,
        )
        self.answer(request.unique, fuse.INIT_OUT.pack(*agreed, more))

    def answer(self, unique: int, body: bytes | bytearray = b"") -> None:
        """Answer a request."""
        header = fuse.OUT_HEADER.pack(16 + len(body), 0, unique)
        self._write(header + body if len(body) < 4096 else (header, body))

    def refuse(self, unique: int, error: int) -> None:
        """Answer a request with an errno."""
        self._write(fuse.OUT_HEADER.pack(16, -error, unique))

    def drop_entry(self, parent: int, name: str) -> None:
        """Make the kernel forget a name and all below it. Waits for whoever changes that directory."""
        self._tell_of(parent, name, 0)

    def expire_entry(self, parent: int, name: str) -> None:
        """Make the kernel ask for a name at its next use; who is in it stays there. Waits as above."""
        self._tell_of(parent, name, fuse.EXPIRE_ONLY)

    def _tell_of(self, parent: int, name: str, flags: int) -> None:
        encoded = os.fsencode(name)
        body = fuse.INVAL_ENTRY.pack(parent, len(encoded), flags) + encoded + b"\0"
        self._write(fuse.OUT_HEADER.pack(16 + len(body), fuse.NOTIFY_INVAL_ENTRY, 0) + body)

    def drop_inode(self, number: int) -> None:
        """Make the kernel forget attributes and data of a file."""
        body = fuse.INVAL_INODE.pack(number, 0, 0)
        self._write(fuse.OUT_HEADER.pack(16 + len(body), fuse.NOTIFY_INVAL_INODE, 0) + body)

    def _write(self, data: bytes | tuple[bytes, bytes | bytearray]) -> None:
        try:
            if isinstance(data, tuple):
                os.writev(self.fd, data)
            else:
                os.write(self.fd, data)
        except OSError as err:
            # Nobody waits any more, the kernel never knew it, or the mount is gone: the next read says so.
            if err.errno not in (errno.ENOENT, errno.ENODEV, errno.ENOTDIR):
                raise


def attributes(info: os.stat_result, ino: int = 0) -> tuple[int, ...]:
    """Struct fuse_attr of a file. ino: another inode number than its own."""
    atime, atime_ns = divmod(info.st_atime_ns, _SECOND)
    mtime, mtime_ns = divmod(info.st_mtime_ns, _SECOND)
    ctime, ctime_ns = divmod(info.st_ctime_ns, _SECOND)
    # In the tree of a run by root the command is nobody, and its files are root's again when it is over.
    uid, gid = info.st_uid, info.st_gid
    if _IS_ROOT:
        uid, gid = (0 if owner == namespaces.NOBODY else owner for owner in (uid, gid))
    return (
        *(ino or info.st_ino, info.st_size, info.st_blocks),
        *(atime, mtime, ctime, atime_ns, mtime_ns, ctime_ns),
        *(info.st_mode, info.st_nlink, uid, gid, info.st_rdev & 0xFFFFFFFF, info.st_blksize, 0),
    )


class Looks:
    """How directories look that are nowhere on the disk. owner: (uid, gid)."""

    def __init__(self, owner: tuple[int, int]) -> None:
        self._owner = owner
        self._began = divmod(time.time_ns(), _SECOND)

    def of(self, number: int, *, is_writable: bool) -> tuple[int, ...]:
        """Struct fuse_attr of such a directory."""
        seconds, ns = self._began
        mode = stat.S_IFDIR | (0o755 if is_writable else 0o555)
        return (number, 0, 0, *(seconds,) * 3, *(ns,) * 3, mode, 2, *self._owner, 0, 4096, 0)


Listing = list[tuple[str, int, int]]
"""Names in the order of their offsets, with inodes and types as st_mode has them; . and .. first."""

NOTHING: Final = (0,) * 22
"""Of ENTRY_OUT, for a name whose attributes the kernel shall ask for."""


def listed(
    body: memoryview, listing: Listing, entry: Callable[[str], tuple[int, ...]] | None = None
) -> bytearray:
    """The answer to a READDIR, or with `entry`, which gives a name's attributes, to a READDIRPLUS."""
    _, offset, room, _ = fuse.READ_IN.unpack_from(body)
    form = fuse.DIRENTPLUS if entry else fuse.DIRENT
    answer = bytearray()
    for index in range(offset, len(listing)):
        name, ino, kind = listing[index]
        encoded = os.fsencode(name)
        if len(answer) + form.size + (len(encoded) + 7 & ~7) > room:
            break
        looks = (entry(name) if index > 1 else NOTHING) if entry else ()
        answer += form.pack(*looks, ino, index + 1, len(encoded), kind >> 12)
        answer += encoded + bytes(-len(encoded) % 8)
    return answer
