"""The tries that ask a file system whether it can hold layers. Each is an action for `attempt`.

Each fills a directory of its own, which the caller removes. Layers are named from inside it, so that no path
needs escaping.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from overlayrun.kernel import abi, namespaces, syscalls
from overlayrun.kernel.attempt import confirm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Final, TypeAlias

    OnDisk: TypeAlias = tuple[int, Callable[[str], str]]

_IN_MOUNTS: Final = abi.CLONE_NEWUSER | abi.CLONE_NEWNS
_LAYERS: Final = "lowerdir=lower,upperdir=upper,workdir=work,userxattr"


def _mount(place: str, data: str) -> None:
    os.chdir(place)
    syscalls.mount("overlay", "mountpoint", "overlay", abi.MS_NOSUID | abi.MS_NODEV, data)


def _mount_writable(place: str, data: str = _LAYERS) -> None:
    _mount(place, data)
    # Overlayfs says no word when it can't use its work directory.
    if os.statvfs("mountpoint").f_flag & os.ST_RDONLY:
        raise OSError(errno.EROFS, "overlayfs fell back to read-only")


def _write(path: str, content: str = "") -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(content)


def _is_whiteout(path: str) -> bool:
    info = os.lstat(path)
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


def try_disk(name: str, scratch: str) -> str:
    """Do the try `name` in `scratch`, whose directory it makes."""
    place = f"{scratch}/{name}"
    for directory in ("lower", "upper", "work", "mountpoint"):
        os.makedirs(f"{place}/{directory}")
    return STORAGE[name][1](place)


def _upper(place: str) -> str:
    """Change, delete, replace a directory: the upper must hold the copy, a whiteout, an opaque mark."""
    os.makedirs(f"{place}/lower/directory/below")
    for name in ("changed", "deleted", "directory/file"):
        _write(f"{place}/lower/{name}", "lower")
    _mount_writable(place)
    _write("mountpoint/changed", "upper")
    os.unlink("mountpoint/deleted")
    os.unlink("mountpoint/directory/file")
    os.rmdir("mountpoint/directory/below")
    os.rmdir("mountpoint/directory")
    os.mkdir("mountpoint/directory")
    confirm(_is_whiteout("upper/deleted"), "a deletion leaves no whiteout")
    confirm(os.getxattr("upper/directory", "user.overlay.opaque") == b"y", "a new directory is not opaque")
    confirm(os.listdir("mountpoint/directory") == [], "a deleted directory shows through")
    with open("lower/changed", encoding="utf-8") as file:
        return confirm(file.read() == "lower", "a write reached the lower layer")


def _volatile(place: str) -> str:
    _mount_writable(place, f"{_LAYERS},volatile")
    _write("mountpoint/new")
    return confirm(os.path.exists("upper/new"), "a write did not reach the upper layer")


def _hides(place: str, mark: Callable[[str], None]) -> str:
    """Whether a layer that was made by hand hides a name of the one below."""
    os.mkdir(f"{place}/lower/directory")
    for name in ("gone", "kept"):
        _write(f"{place}/lower/directory/{name}")
    os.mkdir(f"{place}/upper/directory")
    mark(f"{place}/upper/directory")
    _mount(place, "lowerdir=upper:lower,userxattr")
    return confirm(os.listdir("mountpoint/directory") == ["kept"], "the layer below shows through")


def _whiteout(place: str) -> str:
    return _hides(place, lambda directory: os.mknod(f"{directory}/gone", stat.S_IFCHR, 0))


def _xattr_whiteout(place: str) -> str:
    """Linux 6.7: an empty file with an attribute, in a directory that says so."""

    def mark(directory: str) -> None:
        _write(f"{directory}/gone")
        os.setxattr(f"{directory}/gone", "user.overlay.whiteout", b"")
        os.setxattr(directory, "user.overlay.opaque", b"x")

    return _hides(place, mark)


def _opaque(place: str) -> str:
    def mark(directory: str) -> None:
        _write(f"{directory}/kept")
        os.setxattr(directory, "user.overlay.opaque", b"y")

    return _hides(place, mark)


def _reflink(place: str) -> str:
    _write(f"{place}/lower/file", "x" * 8192)
    with open(f"{place}/lower/file", "rb") as source, open(f"{place}/upper/file", "wb") as target:
        fcntl.ioctl(target.fileno(), abi.FICLONE, source.fileno())
    return confirm(os.path.getsize(f"{place}/upper/file") == 8192, "the clone is empty")


def _hard_link(place: str) -> str:
    _write(f"{place}/lower/file")
    os.link(f"{place}/lower/file", f"{place}/upper/file")
    return confirm(os.path.samefile(f"{place}/lower/file", f"{place}/upper/file"), "the link is a copy")


def _id_map(place: str) -> str:
    """Root's directory shall be nobody's in a mount of it; for root alone."""
    fd = syscalls.open_tree(f"{place}/lower", abi.OPEN_TREE_CLONE)
    syscalls.mount_setattr(fd, 0, recursive=True, id_map=namespaces.id_map_namespace())
    return confirm(os.fstat(fd).st_uid == namespaces.NOBODY, "the owner stayed root")


def _lock(place: str) -> str:
    """A second holder must be refused; some network file systems let everybody have it."""
    fds = [os.open(f"{place}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC) for _ in range(2)]
    fcntl.flock(fds[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        fcntl.flock(fds[1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "works"
    raise OSError(errno.ENOLCK, "two processes can hold one lock")


STORAGE: Final[Mapping[str, OnDisk]] = {
    "upper": (_IN_MOUNTS, _upper),
    "volatile": (_IN_MOUNTS, _volatile),
    "whiteout": (_IN_MOUNTS, _whiteout),
    "opaque": (_IN_MOUNTS, _opaque),
    "xattr_whiteout": (_IN_MOUNTS, _xattr_whiteout),
    "lock": (0, _lock),
    "id_map": (0, _id_map),
    "reflink": (0, _reflink),
    "hard_link": (0, _hard_link),
}
