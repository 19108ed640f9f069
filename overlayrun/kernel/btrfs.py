"""Requests of ioctl(2) that btrfs knows for subvolumes (linux/btrfs.h); none needs a privilege.

Removing a subvolume does, or the mount option user_subvol_rm_allowed.
"""

from __future__ import annotations

import fcntl
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

SUBVOLUME_INODE: Final = 256
"""Inode of every subvolume's root (BTRFS_FIRST_FREE_OBJECTID of linux/btrfs_tree.h)."""
_BTRFS_IOC_SNAP_DESTROY: Final = 0x5000940F
_BTRFS_IOC_SUBVOL_CREATE: Final = 0x5000940E
_BTRFS_IOC_SNAP_CREATE: Final = 0x50009401
_BTRFS_IOC_INO_LOOKUP: Final = 0xD0009412
_VOL_ARGS: Final = struct.Struct("=q4088s")  # struct btrfs_ioctl_vol_args: fd, name
_LOOKUP_ARGS: Final = struct.Struct("=QQ4080s")  # struct btrfs_ioctl_ino_lookup_args: treeid, objectid, name
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def create_subvolume(path: str) -> None:
    """Make an empty subvolume. Raises OSError: ENOTTY where this is not btrfs."""
    _request(_BTRFS_IOC_SUBVOL_CREATE, path, 0)


def snapshot(source: str, path: str) -> None:
    """Make `path` a writable snapshot of the subvolume `source`. Raises OSError."""
    fd = os.open(source, _DIRECTORY)
    try:
        _request(_BTRFS_IOC_SNAP_CREATE, path, fd)
    finally:
        os.close(fd)


def is_removed_whole(path: str) -> bool:
    """Remove a directory if it is a subvolume and we may remove it in one step; whether it was removed."""
    try:
        if os.lstat(path).st_ino != SUBVOLUME_INODE:
            return False
        _request(_BTRFS_IOC_SNAP_DESTROY, path, 0)
    except OSError:
        return False
    return True


def subvolume_id(path: str) -> int:
    """Number of the subvolume that a directory belongs to. Raises OSError: ENOTTY where this is not btrfs."""
    fd = os.open(path, _DIRECTORY)
    try:
        answer = bytearray(_LOOKUP_ARGS.pack(0, SUBVOLUME_INODE, b""))
        fcntl.ioctl(fd, _BTRFS_IOC_INO_LOOKUP, answer)
    finally:
        os.close(fd)
    return int(_LOOKUP_ARGS.unpack(answer)[0])


def _request(request: int, path: str, fd: int) -> None:
    parent, name = os.path.split(path)
    above = os.open(parent, _DIRECTORY)
    try:
        fcntl.ioctl(above, request, bytearray(_VOL_ARGS.pack(fd, os.fsencode(name))))
    except OSError as err:
        err.filename = path
        raise
    finally:
        os.close(above)
