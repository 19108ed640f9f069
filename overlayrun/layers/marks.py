"""Marks by which an overlayfs layer says "deleted" and "nothing below shows". On the launch path.

Source: Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories". Only the `user.` names
count:
every mount of ours has `userxattr`, and an agent's own `user.overlay.*` arrive escaped as
`user.overlay.overlay.*`.
"""

from __future__ import annotations

import errno
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

OPAQUE: Final = "user.overlay.opaque"
WHITEOUT: Final = "user.overlay.whiteout"
# No such attribute, none on this filesystem, none on this kind of file: all mean "not marked".
_UNMARKED: Final = (errno.ENODATA, errno.ENOTSUP, errno.EPERM)


def is_whiteout(info: os.stat_result) -> bool:
    """Whether an lstat result is the device that stands for a deleted name."""
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


def is_xattr_whiteout(target: int | str, info: os.stat_result) -> bool:
    """Whether an empty regular file stands for a deleted name (the form for layers that hold no devices)."""
    return stat.S_ISREG(info.st_mode) and not info.st_size and _attribute(target, WHITEOUT) is not None


def is_opaque(target: int | str) -> bool:
    """Whether nothing of the layers below shows through a directory, given by descriptor or path."""
    return _attribute(target, OPAQUE) == b"y"


def write_whiteout(dir_fd: int | None, name: str | bytes) -> None:
    """Delete `name` for all who look through this layer. Device 0/0 needs no privilege (since 5.8)."""
    os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=dir_fd)


def mark_deleted(dir_fd: int | None, name: str | bytes) -> None:
    """`write_whiteout`, or its other form where a disk takes no such device, as a container's overlay.

    For layers that are copied from and not mounted: in a mount this form asks for more (overlayfs.rst).
    """
    try:
        write_whiteout(dir_fd, name)
    except PermissionError:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=dir_fd)
        try:
            os.setxattr(fd, WHITEOUT, b"y")
        finally:
            os.close(fd)


def set_opaque(target: int | str) -> None:
    """Hide what lies below a directory of this layer."""
    os.setxattr(target, OPAQUE, b"y")


def _attribute(target: int | str, name: str) -> bytes | None:
    try:
        return os.getxattr(target, name)
    except OSError as err:
        if err.errno in _UNMARKED:
            return None
        raise
