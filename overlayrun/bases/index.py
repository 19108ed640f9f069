"""Stat data of a git index, rewritten so that git trusts the frozen files without reading them again.

Source: gitformat-index(5), "Index entry", version 2.
"""

from __future__ import annotations

import hashlib
import os
import struct

from overlayrun.errors import StoreError
from overlayrun.files import read_bytes, write_whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator
    from typing import Final, TypeAlias

    # inode, size, mtime and ctime in ns, each as far as an index keeps it
    Stamp: TypeAlias = tuple[int, int, int, int]

_STAT: Final = struct.Struct(">6I")  # ctime s, ns, mtime s, ns, device, inode; then mode, as git chose it
_OWNER: Final = struct.Struct(">3I")  # uid, gid, size
_FIXED: Final = 62
_ENTRY: Final = struct.Struct(">4I4xI12xI20xH")  # a whole one: times, inode, size, flags
_LONGEST: Final = 0xFFF  # bytes of a name that the flags tell; of a longer one they tell this
_LOW: Final = 0xFFFFFFFF
_ERA: Final = 10**9 << 32  # ns; times are kept as 32 bits of seconds
_VERSION: Final = 2


def stamp_of(inode: int, size: int, mtime_ns: int, ctime_ns: int) -> Stamp:
    """The stamp of a stat as `read_stamps` would give it."""
    return inode & _LOW, size & _LOW, mtime_ns % _ERA, ctime_ns % _ERA


def read_stamps(index: str) -> dict[bytes, Stamp]:
    """Stamps of every entry by path, as `restat` stored them; none for an index that is missing or torn."""
    try:
        data = read_bytes(index)
        return dict(_stamps(data))
    except (OSError, ValueError, struct.error):
        return {}


def _stamps(data: bytes) -> Iterator[tuple[bytes, Stamp]]:
    _, version, count = struct.unpack_from(">4s2I", data)
    if version != _VERSION or hashlib.sha1(data[:-20], usedforsecurity=False).digest() != data[-20:]:
        raise ValueError
    offset = 12
    for _ in range(count):
        changed, changed_ns, modified, modified_ns, inode, size, flags = _ENTRY.unpack_from(data, offset)
        length = flags & _LONGEST
        end = offset + _FIXED + length if length < _LONGEST else data.index(0, offset + _FIXED)
        times = modified * 10**9 + modified_ns, changed * 10**9 + changed_ns
        yield data[offset + _FIXED : end], (inode, size, *times)
        offset += (end - offset + 8) & ~7


def restat(index: str, tree: bytes, chosen: Container[bytes] | None, touch: Callable[[bytes], None]) -> int:
    """Call `touch(path)` for the chosen entries (None: all), then store what lstat(2) says of `tree`/path.

    Gives the bytes that the chosen files take on the disk. Entries whose file is missing keep what they had.
    Raises StoreError for an index that is not version 2.
    """
    data = bytearray(read_bytes(index))
    signature, version, count = struct.unpack_from(">4s2I", data)
    if signature != b"DIRC" or version != _VERSION:
        raise StoreError(f"git wrote an index of version {version}, not 2: {index}")
    offset, size = 12, 0
    for _ in range(count):
        end = data.index(0, offset + _FIXED)
        path = bytes(data[offset + _FIXED : end])
        if chosen is None or path in chosen:
            touch(path)
            size += _store(data, offset, tree + b"/" + path)
        offset += (end - offset + 8) & ~7
    body = memoryview(data)[:-20]
    data[-20:] = hashlib.sha1(body, usedforsecurity=False).digest()
    body.release()
    write_whole(index, bytes(data), durable=False)
    return size


def _store(data: bytearray, offset: int, path: bytes) -> int:
    try:
        info = os.lstat(path)
    except FileNotFoundError:  # a submodule that is not checked out
        return 0
    changed, modified = divmod(info.st_ctime_ns % _ERA, 10**9), divmod(info.st_mtime_ns % _ERA, 10**9)
    _STAT.pack_into(data, offset, *changed, *modified, info.st_dev & _LOW, info.st_ino & _LOW)
    _OWNER.pack_into(data, offset + 28, info.st_uid & _LOW, info.st_gid & _LOW, info.st_size & _LOW)
    return info.st_blocks * 512
