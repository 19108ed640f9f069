"""Make the mounts of a plan, inside a new mount namespace.

Sources are opened before anything is mounted: a layer may lie below a place that a later mount covers, and
by path it would then be refused or give ELOOP (tried with repository and state inside HOME).
"""

from __future__ import annotations

import errno
import os

from overlayrun.errors import MountError
from overlayrun.giving import give_to_nobody, require_open, take_back
from overlayrun.kernel import abi, syscalls
from overlayrun.sandbox.covers import cover, hiding_layer
from overlayrun.sandbox.limits import tmpfs_data
from overlayrun.sandbox.plan import (
    GIVE,
    READ,
    Bind,
    Devices,
    Masks,
    Overlay,
    Parts,
    Processes,
    ReadOnlyDisk,
    Tmpfs,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Final, Self

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


class Opened:
    """Detached mounts by the number of their layer, until they are put in place; a context manager.

    id_map: descriptor of the user namespace that says who root's files belong to in them, for a run by root.
    """

    __slots__ = ("descriptors", "id_map")

    def __init__(self, id_map: int | None = None) -> None:
        self.descriptors: dict[int, list[int]] = {}
        self.id_map = id_map

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in [fd for fds in self.descriptors.values() for fd in fds]:
            os.close(fd)
        if self.id_map is not None:
            os.close(self.id_map)


def apply(layers: Sequence[Layer], opened: Opened | None = None) -> None:
    """Make every mount; raises MountError that names the layer. The caller is alone in its namespace.

    opened: by `open_all`, where the caller has no right to what the mounts show.
    """
    with _Naming("private mounts"):
        syscalls.mount("none", "/", None, abi.MS_REC | abi.MS_PRIVATE)
    if opened is None:
        opened = Opened()
        open_all(layers, opened)
    for index, layer in enumerate(layers):
        with _Naming(layer.name):
            _attach(layer, opened.descriptors[index])


def open_all(layers: Sequence[Layer], opened: Opened) -> None:
    """Open what every layer shows. Raises MountError."""
    for index, layer in enumerate(layers):
        with _Naming(layer.name):
            opened.descriptors[index] = _open(layer, opened.id_map)


class _Naming:
    """Say which layer an OSError is about."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, err: BaseException | None, __: object) -> None:
        if isinstance(err, OSError):
            raise MountError(
                f"the sandbox could not be made: {self.name}: {err.strerror}"
                + (f": {err.filename}" if err.filename else ""),
                hint="overlayrun doctor tells what this machine lacks",
            ) from err


def _open(layer: Layer, id_map: int | None) -> list[int]:
    """Detached mounts that `_attach` will put in place."""
    if isinstance(layer, Overlay):
        return [open_overlay(layer, id_map)]
    if isinstance(layer, Parts):
        # The upper of each lies in the upper of one before it. In this order the kernel sees nothing in that,
        # and says nothing of it in its log.
        return [_open_part(part, id_map) for part in reversed(layer.overlays)][::-1]
    if isinstance(layer, Bind):
        return _open_bind(layer, id_map)
    if isinstance(layer, Devices):
        console = [layer.console] if layer.console else []
        paths = [*(f"/dev/{device}" for device in _DEVICES), *console]
        return [_clone_mount(path) for path in paths]
    return []


def _open_part(part: Overlay, id_map: int | None) -> int:
    """An overlay, or its lower, read-only, where something was mounted in that meanwhile.

    Or its upper alone, where the lower is gone.
    """
    try:
        return open_overlay(part, id_map)
    except OSError:
        if part.lowers != [part.target]:
            raise
    is_there = os.path.isdir(part.target)
    shown = Bind(part.name, part.target if is_there else part.upper, part.target, writable=not is_there)
    shown.submounts = True
    return _open_bind(shown, id_map)[0]


def _clone_mount(path: str, *, submounts: bool = False) -> int:
    # A mount that is made by who asks for it (autofs) may take for ever.
    flags = abi.OPEN_TREE_CLONE | abi.AT_NO_AUTOMOUNT
    return syscalls.open_tree(path, flags | (abi.AT_RECURSIVE if submounts else 0))


def _open_bind(bind: Bind, id_map: int | None) -> list[int]:
    try:
        fd = _clone_mount(bind.source, submounts=bind.submounts)
    except OSError as err:
        if bind.optional:
            return []
        # mount_namespaces(7): mounts of a more privileged namespace hold together, and what lies below shows.
        if err.errno == errno.EINVAL and not bind.submounts:
            raise MountError(
                f"{bind.source} can't be shown: other mounts lie in it; name a directory that holds none"
            ) from err
        raise
    attributes = (
        abi.MOUNT_ATTR_NOSUID | abi.MOUNT_ATTR_NODEV | (0 if bind.writable else abi.MOUNT_ATTR_RDONLY)
    )
    syscalls.mount_setattr(fd, attributes, recursive=True)
    if id_map is not None and bind.own:
        _map_bind(fd, bind, id_map)
    return [fd]


def take_back_all(layers: Sequence[Layer]) -> None:
    """For a command that is the host's root: what an earlier one that was nobody was given."""
    for layer in layers:
        if isinstance(layer, Bind) and layer.unmapped == GIVE:
            take_back(layer.source)


def _map_bind(fd: int, bind: Bind, id_map: int) -> None:
    try:
        _show_as_own(fd, id_map)
    except OSError as err:
        if err.errno != errno.EINVAL or not bind.unmapped:
            raise
    else:
        return
    if bind.unmapped == GIVE:
        give_to_nobody(bind.source)
    elif bind.unmapped == READ:
        require_open(bind.source)


def _show_as_own(fd: int, id_map: int) -> None:
    """Map the owners of a detached mount; private, or it would share events with the host's."""
    try:
        syscalls.mount_setattr(fd, 0, recursive=True, propagation=abi.MS_PRIVATE, id_map=id_map)
    except OSError as err:
        if err.errno == errno.EINVAL:
            err.strerror = "this file system has no id-mapped mounts, which a run by root needs"
        raise


def open_overlay(overlay: Overlay, id_map: int | None = None) -> int:
    """A detached overlay mount; raises OSError, also where overlayfs would silently be read-only."""
    try:
        fd = _overlay_by_descriptors(overlay, id_map)
    except OSError as err:
        # Before Linux 6.13 layers can't be named by descriptors.
        if err.errno not in _NO_DESCRIPTORS or id_map is not None:
            raise
        fd = _overlay_by_paths(overlay)
    if overlay.upper and os.fstatvfs(fd).f_flag & os.ST_RDONLY:
        os.close(fd)
        raise OSError(
            errno.EROFS, "overlayfs fell back to read-only: its work directory can't be used", overlay.work
        )
    return fd


def _overlay_by_descriptors(overlay: Overlay, id_map: int | None) -> int:
    context = syscalls.fsopen("overlay")
    opened = [context]
    try:
        for key, fd in _layer_descriptors(overlay, id_map, opened):
            syscalls.fsconfig(context, abi.FSCONFIG_SET_FD, key, aux=fd)
        # Without userxattr the mount succeeds and `rm -r` then gives EIO: trusted.* can't be written.
        for flag in ("userxattr", "volatile") if overlay.volatile else ("userxattr",):
            syscalls.fsconfig(context, abi.FSCONFIG_SET_FLAG, flag)
        if overlay.hidden:
            # The layer that hides is another file system: without this, files would seem to lie on another
            # device than the directories they are in, and `find -xdev` or `du -x` would leave them out.
            syscalls.fsconfig(context, abi.FSCONFIG_SET_STRING, "xino", "on")
        syscalls.fsconfig(context, abi.FSCONFIG_CMD_CREATE)
        return syscalls.fsmount(context, abi.MOUNT_ATTR_NOSUID | abi.MOUNT_ATTR_NODEV)
    finally:
        for fd in opened:
            os.close(fd)


def _layer_descriptors(overlay: Overlay, id_map: int | None, opened: list[int]) -> Iterator[tuple[str, int]]:
    """Keys of fsconfig(2) and directories; every descriptor is added to `opened` as well."""

    def keep(fd: int) -> int:
        opened.append(fd)
        return fd

    def directory(path: str, below: int | None = None) -> int:
        return keep(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=below))

    if overlay.hidden:
        hiding = keep(hiding_layer(overlay.hidden, overlay.lowers[-1]))
        if id_map is not None:
            _show_as_own(hiding, id_map)
        yield "lowerdir+", hiding
    if id_map is None:
        yield from (("lowerdir+", directory(path)) for path in overlay.lowers)
        if overlay.upper:
            yield from (("upperdir", directory(overlay.upper)), ("workdir", directory(overlay.work)))
        return
    for path in overlay.lowers:
        lower = keep(_clone_mount(path))
        _show_as_own(lower, id_map)
        yield "lowerdir+", lower
    above = os.path.commonpath([overlay.upper, overlay.work])
    both = keep(_clone_mount(above))  # upper and work must lie on one mount
    _show_as_own(both, id_map)
    yield "upperdir", directory(os.path.relpath(overlay.upper, above), both)
    yield "workdir", directory(os.path.relpath(overlay.work, above), both)


def _overlay_by_paths(overlay: Overlay) -> int:
    """The same through mount(2) and a place that nobody sees: the overlay's own work directory's parent."""
    if not overlay.hidden:
        return _mount_by_paths(overlay, overlay.lowers, "")
    above = f"{overlay.work}-above"
    os.mkdir(above)
    _move(hiding_layer(overlay.hidden, overlay.lowers[-1]), above)
    try:
        return _mount_by_paths(overlay, [above, *overlay.lowers], ",xino=on")
    finally:
        syscalls.umount2(above, abi.MNT_DETACH)


def _mount_by_paths(overlay: Overlay, lowers: Sequence[str], more: str) -> int:
    upper = f",upperdir={_escape(overlay.upper)},workdir={_escape(overlay.work)}" if overlay.upper else ""
    data = (
        f"lowerdir={':'.join(_escape(path) for path in lowers)}{upper},"
        f"userxattr{',volatile' if overlay.volatile else ''}{more}"
    )
    if len(os.fsencode(data)) > _DATA_LIMIT:
        raise OSError(
            errno.E2BIG, "the layers' paths are too long for mount(2) on a kernel before 6.13", overlay.target
        )
    place = os.path.dirname(overlay.work) or overlay.target
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
        _mount_tmpfs(layer.target, tmpfs_data(layer.mode, layer.kind, layer.memory))
    elif isinstance(layer, Devices):
        _attach_devices(opened, layer.memory)
    elif isinstance(layer, Processes):
        syscalls.mount("proc", "/proc", "proc", abi.MS_NOSUID | abi.MS_NODEV | abi.MS_NOEXEC)
    elif isinstance(layer, Masks):
        cover(layer.paths)
    elif isinstance(layer, Parts):
        _make_target(layer.overlays[0].target, directory=True)
        for part, fd in zip(layer.overlays, opened, strict=True):
            _move(fd, part.target)
    elif opened:
        directory = isinstance(layer, Overlay) or _is_directory(opened[0])
        _make_target(layer.target, directory=directory)
        _attach_opened(layer, opened[0])


def _is_directory(fd: int) -> bool:
    """Whether a mount shows a directory; nothing is asked of its file system, whose server may be dead."""
    try:
        os.close(os.open(f"/proc/self/fd/{fd}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    except NotADirectoryError:
        return False
    return True


def _attach_opened(layer: Overlay | Bind, fd: int) -> None:
    kept = []
    for name in layer.kept if isinstance(layer, Bind) else ():
        place = f"{layer.target}/{name}"
        _make_target(place, directory=os.path.isdir(f"/proc/self/fd/{fd}/{name}"))
        kept.append((_clone_mount(place), place))
    _move(fd, layer.target)
    for own, place in kept:
        _move(own, place)


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


def _attach_devices(opened: list[int], memory: int | None) -> None:
    _mount_tmpfs("/dev", tmpfs_data(0o755, "small"))
    for device, fd in zip((*_DEVICES, "console"), opened, strict=False):  # the console only if there is one
        _make_target(f"/dev/{device}", directory=False)
        _move(fd, f"/dev/{device}")
    for directory in ("pts", "shm"):
        os.mkdir(f"/dev/{directory}", 0o755)
    syscalls.mount(
        "devpts", "/dev/pts", "devpts", abi.MS_NOSUID | abi.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620"
    )
    _mount_tmpfs("/dev/shm", tmpfs_data(0o1777, "shm", memory))
    for name, target in _LINKS:
        os.symlink(target, f"/dev/{name}")
