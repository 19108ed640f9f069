"""Make the mounts of a plan, inside a new mount namespace.

Sources are opened before anything is mounted: a layer may lie below a place that a later mount covers, and
by path it would then be refused or give ELOOP (tried with repository and state inside HOME).
"""

from __future__ import annotations

import errno
import os

from overlayrun.errors import MountError
from overlayrun.kernel import abi, syscalls
from overlayrun.sandbox.plan import Bind, Devices, Overlay, Processes, ReadOnlyDisk, Tmpfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from overlayrun.sandbox.plan import Layer

_DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty")
_LINKS: Final = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
)
# One page holds mount(2)'s data; the kernel cuts the rest off without a word (MOUNT_DATA of namespace.c).
_DATA_LIMIT: Final = 4095
_NO_DESCRIPTORS: Final = (errno.EBADF, errno.EINVAL, errno.ENOSYS)


def apply(layers: Sequence[Layer]) -> None:
    """Make every mount; raises MountError that names the layer. The caller is alone in its namespace."""
    name = "private mounts"
    opened: dict[int, list[int]] = {}
    try:
        syscalls.mount("none", "/", None, abi.MS_REC | abi.MS_PRIVATE)
        for index, layer in enumerate(layers):
            name = layer.name
            opened[index] = _open(layer)
        for index, layer in enumerate(layers):
            name = layer.name
            _attach(layer, opened[index])
    except OSError as err:
        raise MountError(
            f"the sandbox could not be made: {name}: {err.strerror}"
            + (f": {err.filename}" if err.filename else ""),
            hint="overlayrun doctor tells what this machine lacks",
        ) from err


def _open(layer: Layer) -> list[int]:
    """Detached mounts that `_attach` will put in place."""
    if isinstance(layer, Overlay):
        return [open_overlay(layer)]
    if isinstance(layer, Bind):
        return _open_bind(layer)
    if isinstance(layer, Devices):
        console = [layer.console] if layer.console else []
        paths = [*(f"/dev/{device}" for device in _DEVICES), *console]
        return [syscalls.open_tree(path, abi.OPEN_TREE_CLONE) for path in paths]
    return []


def _open_bind(bind: Bind) -> list[int]:
    flags = abi.OPEN_TREE_CLONE | (abi.AT_RECURSIVE if bind.submounts else 0)
    try:
        fd = syscalls.open_tree(bind.source, flags)
    except OSError:
        if bind.optional:
            return []
        raise
    attributes = (
        abi.MOUNT_ATTR_NOSUID | abi.MOUNT_ATTR_NODEV | (0 if bind.writable else abi.MOUNT_ATTR_RDONLY)
    )
    syscalls.mount_setattr(fd, attributes, recursive=True)
    return [fd]


def open_overlay(overlay: Overlay) -> int:
    """A detached overlay mount; raises OSError, also where overlayfs would silently be read-only."""
    try:
        fd = _overlay_by_descriptors(overlay)
    except OSError as err:
        # Before Linux 6.13 layers can't be named by descriptors.
        if err.errno not in _NO_DESCRIPTORS:
            raise
        fd = _overlay_by_paths(overlay)
    if os.fstatvfs(fd).f_flag & os.ST_RDONLY:
        os.close(fd)
        raise OSError(
            errno.EROFS, "overlayfs fell back to read-only: its work directory can't be used", overlay.work
        )
    return fd


def _overlay_by_descriptors(overlay: Overlay) -> int:
    context = syscalls.fsopen("overlay")
    opened = [context]
    try:
        keys = [("lowerdir+", path) for path in overlay.lowers]
        for key, path in [*keys, ("upperdir", overlay.upper), ("workdir", overlay.work)]:
            fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            opened.append(fd)
            syscalls.fsconfig(context, abi.FSCONFIG_SET_FD, key, aux=fd)
        # Without userxattr the mount succeeds and `rm -r` then gives EIO: trusted.* can't be written.
        for flag in ("userxattr", "volatile") if overlay.volatile else ("userxattr",):
            syscalls.fsconfig(context, abi.FSCONFIG_SET_FLAG, flag)
        syscalls.fsconfig(context, abi.FSCONFIG_CMD_CREATE)
        return syscalls.fsmount(context, abi.MOUNT_ATTR_NOSUID | abi.MOUNT_ATTR_NODEV)
    finally:
        for fd in opened:
            os.close(fd)


def _overlay_by_paths(overlay: Overlay) -> int:
    """The same through mount(2) and a place that nobody sees: the overlay's own work directory's parent."""
    data = (
        f"lowerdir={':'.join(_escape(path) for path in overlay.lowers)},upperdir={_escape(overlay.upper)},"
        f"workdir={_escape(overlay.work)},userxattr{',volatile' if overlay.volatile else ''}"
    )
    if len(os.fsencode(data)) > _DATA_LIMIT:
        raise OSError(
            errno.E2BIG, "the layers' paths are too long for mount(2) on a kernel before 6.13", overlay.target
        )
    place = os.path.dirname(overlay.work)
    syscalls.mount("overlay", place, "overlay", abi.MS_NOSUID | abi.MS_NODEV, data)
    try:
        return syscalls.open_tree(place, abi.OPEN_TREE_CLONE)
    finally:
        syscalls.umount2(place, abi.MNT_DETACH)


def _escape(path: str) -> str:
    """Escape a path for overlayfs mount data (backslash, colon, comma)."""
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def _attach(layer: Layer, opened: list[int]) -> None:
    if isinstance(layer, ReadOnlyDisk):
        syscalls.mount_setattr("/", abi.MOUNT_ATTR_RDONLY | abi.MOUNT_ATTR_NOSUID, recursive=True)
    elif isinstance(layer, Tmpfs):
        _make_target(layer.target, directory=True)
        _mount_tmpfs(layer.target, f"mode={layer.mode:o}")
    elif isinstance(layer, Devices):
        _attach_devices(opened)
    elif isinstance(layer, Processes):
        syscalls.mount("proc", "/proc", "proc", abi.MS_NOSUID | abi.MS_NODEV | abi.MS_NOEXEC)
    elif opened:
        directory = isinstance(layer, Overlay) or os.path.isdir(f"/proc/self/fd/{opened[0]}")
        _make_target(layer.target, directory=directory)
        _move(opened[0], layer.target)


def _mount_tmpfs(target: str, data: str) -> None:
    syscalls.mount("tmpfs", target, "tmpfs", abi.MS_NOSUID | abi.MS_NODEV, data)


def _move(fd: int, target: str) -> None:
    syscalls.move_mount(fd, target)
    os.close(fd)


def _make_target(target: str, *, directory: bool) -> None:
    """A place to mount on, where an emptied directory above has taken it away."""
    if os.path.lexists(target):
        return
    if directory:
        os.makedirs(target)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_CLOEXEC, 0o600))


def _attach_devices(opened: list[int]) -> None:
    _mount_tmpfs("/dev", "mode=755")
    for device, fd in zip((*_DEVICES, "console"), opened, strict=False):  # the console only if there is one
        _make_target(f"/dev/{device}", directory=False)
        _move(fd, f"/dev/{device}")
    for directory in ("pts", "shm"):
        os.mkdir(f"/dev/{directory}", 0o755)
    syscalls.mount(
        "devpts", "/dev/pts", "devpts", abi.MS_NOSUID | abi.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620"
    )
    _mount_tmpfs("/dev/shm", "mode=1777")
    for name, target in _LINKS:
        os.symlink(target, f"/dev/{name}")
