"""Layers joined into one tree by copying: bottom first, then what each layer above changes.

The bottom goes by cp(1), at the kernel's speed: in Python a file costs half as much again.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from contextlib import suppress

from overlayrun.bases.index import restat
from overlayrun.errors import HostError
from overlayrun.files import copy_file, disk_usage, remove_tree, write_whole
from overlayrun.giving import give_where_unmapped
from overlayrun.layers.marks import is_opaque, is_whiteout, is_xattr_whiteout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from overlayrun.backends.api import Place, Start
    from overlayrun.workspace.layout import Layout

_COARSE: Final = 5  # CLOCK_REALTIME_COARSE of linux/time.h: the clock that stamps files
_TICK: Final = 0.001  # seconds
# Of a frozen tree: it is ours, and no file of it has a second name or an attribute. A tenth less than -a.
_PLAIN: Final = (b"-dR", b"--preserve=mode,timestamps")
_MOST: Final = 4  # processes that copy at the same time
_ENOUGH: Final = 32  # subtrees that are worth a process's while to be divided into
_WORDS: Final = 100_000  # bytes of names on a command line (execve(2): 128 KiB at least)
_NEW: Final = b".overlayrun-new"


def make_by_copying(layout: Layout, start: Start, place: Place, share: str) -> None:
    """The work of `Backend.make` without any help of the file system's. share: as for `copy_bottom`."""
    os.mkdir(place.whole, 0o700)
    *above, bottom = (f"{layout.root}/{layer}/tree" for layer in start.frozen)
    copy_bottom(bottom, place.tree, share)
    for layer in reversed(above):
        join(layer, place.tree)
    if start.for_nobody:  # now: a new owner is a new stamp
        give_where_unmapped(place.tree)
    size = write_index(f"{layout.root}/{start.frozen[0]}/git/index", place)
    for name in reversed(start.carried):
        size += join_carried(f"{layout.root}/{name}", place.tree, share)
    finish(start, place, size)


def finish(start: Start, place: Place, size: int) -> None:
    """Put the uncommitted changes on top, and see that no later write can look like what is there.

    size: bytes of all but these changes.
    """
    if start.dirty:
        join(start.dirty, place.tree)
        size += disk_usage(start.dirty)
    os.chmod(place.tree, start.mode)
    write_whole(place.size, b"%d" % size, durable=False)
    outlive_tick()


def outlive_tick() -> None:
    """Return when no file that is written from now on can have a stamp that one has already."""
    made = time.clock_gettime_ns(_COARSE)
    while time.clock_gettime_ns(_COARSE) == made:
        time.sleep(_TICK)


def write_index(index: str, place: Place) -> int:
    """Let the place's index say how the files of `index` lie in its tree; the bytes that they take."""
    copy_file(index, place.index)
    return restat(place.index, os.fsencode(place.tree), None, lambda _: None)


def copy_bottom(layer: str, tree: str, share: str) -> None:
    """Copy a layer that has no marks. share: for cp(1)'s --reflink: always, auto or never.

    By several processes, of which each takes a share of the subtrees: two take two thirds of the time of one.
    """
    source, target = os.fsencode(layer), os.fsencode(tree)
    opened, parts = _divide(source)
    count = min(len(os.sched_getaffinity(0)), _MOST)
    if count == 1 or sum(len(part) + 1 for part in parts) > _WORDS:
        _wait([_cp([*_PLAIN, b"-T"], [source, target], share)])
        return
    for directory in opened:
        os.makedirs(os.path.join(target, directory), 0o700, exist_ok=True)
    shares = [parts[number::count] for number in range(count)]
    _wait([_cp([*_PLAIN, b"--parents", b"-t", target], part, share, cwd=source) for part in shares if part])
    for directory in reversed(opened):
        shutil.copystat(os.path.join(source, directory), os.path.join(target, directory))


def _divide(source: bytes) -> tuple[list[bytes], list[bytes]]:
    """Directories that are looked into, parents first, and what lies in them: files and whole subtrees."""
    opened: list[bytes] = []
    parts: list[bytes] = []
    waiting = [b""]
    while waiting and len(waiting) < _ENOUGH and len(opened) < _ENOUGH:
        directory = waiting.pop(0)
        opened.append(directory)
        with os.scandir(os.path.join(source, directory)) as entries:
            for entry in entries:
                into = waiting if entry.is_dir(follow_symlinks=False) else parts
                into.append(os.path.join(directory, entry.name))
    return opened, [*waiting, *parts]


def join_carried(layer: str, tree: str, share: str) -> int:
    """Copy a layer of ignored files, which has no marks; the bytes that it takes."""
    waiting = [(os.fsencode(layer), os.fsencode(tree))]
    while waiting:
        source, target = waiting.pop()
        if not _is_directory(target):
            _remove(target)
            _wait([_cp([b"-a", b"-T"], [source, target], share)])
            continue
        for name in os.listdir(source):
            here, there = source + b"/" + name, target + b"/" + name
            if _is_directory(here):
                waiting.append((here, there))
            else:
                _replace(here, there)
        shutil.copystat(source, target)
    return disk_usage(layer)


class _Copying:
    """A cp(1) that runs. errors: what it says."""

    __slots__ = ("errors", "pid")

    def __init__(self, pid: int, errors: int) -> None:
        self.pid = pid
        self.errors = errors


def _cp(options: list[bytes], paths: list[bytes], share: str, cwd: bytes = b"/") -> _Copying:
    """Start to copy. share: see `copy_bottom`. cwd: where relative paths begin."""
    command = [b"env", b"-C", cwd, b"cp", b"--reflink=" + share.encode(), *options, b"--", *paths]
    read_fd, write_fd = os.pipe()
    try:
        pid = os.posix_spawnp("env", command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, write_fd, 2)])
    finally:
        os.close(write_fd)
    return _Copying(pid, read_fd)


def _wait(copies: list[_Copying]) -> None:
    """Wait for all. Raises HostError."""
    said = []
    for copying in copies:
        with open(copying.errors, "rb") as errors:
            text = os.fsdecode(errors.read()).strip()
        if os.waitstatus_to_exitcode(os.waitpid(copying.pid, 0)[1]):
            said += text.splitlines()[:1] or ["cp failed"]
    if said:
        raise HostError(
            f"the tree can't be copied: {said[0].removeprefix('cp: ')}",
            hint="make room: overlayrun gc; overlayrun rm BRANCH",
        )


def join(layer: str, tree: str) -> None:
    """Let a tree show what a layer changes: files, deleted names, directories that hide what was there.

    A replaced file is a new one under the old name, so that its stamp is another than before.
    """
    times: list[tuple[bytes, bytes]] = []
    waiting = [(os.fsencode(layer), os.fsencode(tree))]
    while waiting:
        source, target = waiting.pop()
        times.append((source, target))
        for name in os.listdir(source):
            here, there = source + b"/" + name, target + b"/" + name
            info = os.lstat(here)
            if is_whiteout(info) or is_xattr_whiteout(os.fsdecode(here), info):
                _remove(there)
            elif stat.S_ISDIR(info.st_mode):
                _make_directory(here, there)
                waiting.append((here, there))
            else:
                _replace(here, there)
    for source, target in reversed(times):
        info = os.stat(source)
        os.chmod(target, stat.S_IMODE(info.st_mode))
        os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))


def _make_directory(source: bytes, target: bytes) -> None:
    is_there = _is_directory(target)
    if is_there and not is_opaque(os.fsdecode(source)):
        return
    _remove(target)
    os.mkdir(target, 0o700)


def _replace(source: bytes, target: bytes) -> None:
    """Put a copy of a file or a link in the place of whatever is there."""
    aside = os.path.dirname(target) + b"/" + _NEW
    with suppress(FileNotFoundError):
        os.unlink(aside)
    info = os.lstat(source)
    if stat.S_ISLNK(info.st_mode):
        os.symlink(os.readlink(source), aside)
        os.utime(aside, ns=(info.st_atime_ns, info.st_mtime_ns), follow_symlinks=False)
    else:
        copy_file(source, aside)
    if _is_directory(target):
        remove_tree(os.fsdecode(target))
    os.rename(aside, target)


def _remove(path: bytes) -> None:
    if _is_directory(path):
        remove_tree(os.fsdecode(path))
        return
    with suppress(FileNotFoundError):
        os.unlink(path)


def _is_directory(path: bytes) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)
