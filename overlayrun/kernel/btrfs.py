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
_BTRFS_IOC_SUBVOL_SETFLAGS: Final = 0x4008941A
CHANGING: Final = (
    *(_BTRFS_IOC_SNAP_CREATE, _BTRFS_IOC_SUBVOL_CREATE, _BTRFS_IOC_SNAP_DESTROY, _BTRFS_IOC_SUBVOL_SETFLAGS),
    0x50009417,  # BTRFS_IOC_SNAP_CREATE_V2
    0x50009418,  # BTRFS_IOC_SUBVOL_CREATE_V2
    0x5000943F,  # BTRFS_IOC_SNAP_DESTROY_V2
)
"""Requests that make and remove subvolumes or let nobody write in them.

They ask who owns a subvolume, and no more: by number its owner removes one that no path of his leads to.
"""
_BTRFS_IOC_INO_LOOKUP: Final = 0xD0009412
_BTRFS_IOC_GET_SUBVOL_ROOTREF: Final = 0xD000943D  # since 4.18
_VOL_ARGS: Final = struct.Struct("=q4088s")  # struct btrfs_ioctl_vol_args: fd, name
_LOOKUP_ARGS: Final = struct.Struct("=QQ4080s")  # struct btrfs_ioctl_ino_lookup_args: treeid, objectid, name
_ROOTREF_ARGS: Final = struct.Struct("=Q4080sB7x")  # struct btrfs_ioctl_get_subvol_rootref_args
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
        _let_write(path)
        _request(_BTRFS_IOC_SNAP_DESTROY, path, 0)
    except OSError:
        return False
    return True


def _let_write(path: str) -> None:
    """In one that is read-only nobody may remove a file, nor the whole by rmdir(2)."""
    fd = os.open(path, _DIRECTORY)
    try:
        fcntl.ioctl(fd, _BTRFS_IOC_SUBVOL_SETFLAGS, bytes(8))
    finally:
        os.close(fd)


def subvolume_id(path: str) -> int:
    """Number of the subvolume that a directory belongs to. Raises OSError: ENOTTY where this is not btrfs."""
    answer = _asked(_BTRFS_IOC_INO_LOOKUP, path, _LOOKUP_ARGS.pack(0, SUBVOLUME_INODE, b""))
    return int(_LOOKUP_ARGS.unpack(answer)[0])


def is_lone_subvolume(path: str) -> bool:
    """Whether a directory is a subvolume with none in it, where a snapshot has empty directories."""
    try:
        if os.lstat(path).st_ino != SUBVOLUME_INODE:
            return False
        answer = _asked(_BTRFS_IOC_GET_SUBVOL_ROOTREF, path, _ROOTREF_ARGS.pack(0, b"", 0))
    except OSError:  # EOVERFLOW: more than it can tell of at once
        return False
    return not _ROOTREF_ARGS.unpack(answer)[2]


def _asked(request: int, path: str, question: bytes) -> bytes:
    fd = os.open(path, _DIRECTORY)
    try:
        answer = bytearray(question)
        fcntl.ioctl(fd, request, answer)
    finally:
        os.close(fd)
    return bytes(answer)


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
