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
    from collections.abc import Callable, Container
    from typing import Final

_STAT: Final = struct.Struct(">6I")  # ctime s, ns, mtime s, ns, device, inode; then mode, as git chose it
_OWNER: Final = struct.Struct(">3I")  # uid, gid, size
_FIXED: Final = 62
_LOW: Final = 0xFFFFFFFF


def restat(index: str, tree: bytes, chosen: Container[bytes] | None, touch: Callable[[bytes], None]) -> None:
    """Call `touch(path)` for the chosen entries (None: all), then store what lstat(2) says of `tree`/path.

    Entries whose file is missing keep what they had. Raises StoreError for an index that is not version 2.
    """
    data = bytearray(read_bytes(index))
    signature, version, count = struct.unpack_from(">4s2I", data)
    if signature != b"DIRC" or version != 2:
        raise StoreError(f"git wrote an index of version {version}, not 2: {index}")
    offset = 12
    for _ in range(count):
        end = data.index(0, offset + _FIXED)
        path = bytes(data[offset + _FIXED : end])
        if chosen is None or path in chosen:
            touch(path)
            _store(data, offset, tree + b"/" + path)
        offset += (end - offset + 8) & ~7
    body = memoryview(data)[:-20]
    data[-20:] = hashlib.sha1(body, usedforsecurity=False).digest()
    body.release()
    write_whole(index, bytes(data), durable=False)


def _store(data: bytearray, offset: int, path: bytes) -> None:
    try:
        info = os.lstat(path)
    except FileNotFoundError:  # a submodule that is not checked out
        return
    changed, modified = divmod(info.st_ctime_ns, 10**9), divmod(info.st_mtime_ns, 10**9)
    _STAT.pack_into(data, offset, *changed, *modified, info.st_dev & _LOW, info.st_ino & _LOW)
    _OWNER.pack_into(data, offset + 28, info.st_uid & _LOW, info.st_gid & _LOW, info.st_size & _LOW)
