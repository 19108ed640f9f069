"""Which blocks of a file nobody else has: ioctl(2) FS_IOC_FIEMAP (Documentation/filesystems/fiemap.rst)."""

from __future__ import annotations

import fcntl
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_FS_IOC_FIEMAP: Final = 0xC020660B  # linux/fs.h
_FIEMAP: Final = struct.Struct("=QQIIII")  # start, length, flags, mapped_extents, extent_count, reserved
_EXTENT: Final = struct.Struct("=QQQ16xI12x")  # logical, physical, length, flags
_FIEMAP_EXTENT_LAST: Final = 0x1
_FIEMAP_EXTENT_SHARED: Final = 0x2000
_END: Final = (1 << 64) - 1
_AT_ONCE: Final = 64  # extents


def unshared_bytes(fd: int) -> int:
    """Bytes of a file's extents that no other file shares. Raises OSError where the disk can't tell."""
    total, start = 0, 0
    room = bytes(_AT_ONCE * _EXTENT.size)
    while True:
        answer = bytearray(_FIEMAP.pack(start, _END - start, 0, 0, _AT_ONCE, 0) + room)
        fcntl.ioctl(fd, _FS_IOC_FIEMAP, answer)
        count = _FIEMAP.unpack_from(answer)[3]
        flags = _FIEMAP_EXTENT_LAST
        for number in range(count):
            logical, _, length, flags = _EXTENT.unpack_from(answer, _FIEMAP.size + number * _EXTENT.size)
            total += 0 if flags & _FIEMAP_EXTENT_SHARED else length
            start = logical + length
        if flags & _FIEMAP_EXTENT_LAST:
            return total
