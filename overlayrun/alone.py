"""Bytes on the disk that a workspace has alone: where its tree was cloned, most blocks are shared.

The disk is asked about each file that is not as it was made. Each costs 20 µs, and `ls` is to be quick.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from overlayrun.bases.index import read_stamps, stamp_of
from overlayrun.files import disk_usage
from overlayrun.kernel.extents import unshared_bytes
from overlayrun.model import BackendKind
from overlayrun.workspace.layout import WorkspaceLayout
from overlayrun.workspace.record import Record

if TYPE_CHECKING:
    from overlayrun.bases.index import Stamp

_CLONED: Final = (BackendKind.BTRFS.value, BackendKind.REFLINK.value)
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_DIRECTORY: Final = _FILE | os.O_DIRECTORY
_MOST: Final = 10_000  # files that the disk is asked about
_BLOCK: Final = 512  # of st_blocks


@dataclass(slots=True)
class Alone:
    """size: in bytes. is_bound: it may be less, because files were counted that share blocks."""

    size: int = 0
    is_bound: bool = False


def alone(place: WorkspaceLayout, record: Record) -> Alone:
    """What a workspace has alone; parts that can't be read count nothing."""
    if record.backend not in _CLONED:
        return Alone(disk_usage(place.root))
    made = read_stamps(f"{place.whole}/index")
    tree = os.fsencode(place.upper) + b"/"
    found, asked = Alone(), 0
    seen: set[tuple[int, int]] = set()
    for path, directory, name in _entries(os.fsencode(place.root)):
        try:
            info = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except OSError:
            continue
        key = (info.st_dev, info.st_ino)
        if key in seen or (path.startswith(tree) and _is_made(made, path[len(tree) :], info)):
            continue
        seen.add(key)
        if not stat.S_ISREG(info.st_mode) or not info.st_blocks:
            found.size += info.st_blocks * _BLOCK
            continue
        asked += 1
        found.is_bound |= asked > _MOST
        found.size += info.st_blocks * _BLOCK if asked > _MOST else _unshared(directory, name, info)
    return found


def _entries(top: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """(path, descriptor of its directory, name) of all below. No link is followed: a command may run."""
    for path, names, files, directory in os.fwalk(top, follow_symlinks=False):
        for name in [*names, *files]:
            yield path + b"/" + name, directory, name


def _is_made(made: dict[bytes, Stamp], path: bytes, info: os.stat_result) -> bool:
    known = made.get(path)
    return known == stamp_of(info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


def _unshared(directory: int, name: bytes, info: os.stat_result) -> int:
    try:
        fd = os.open(name, _FILE, dir_fd=directory)
    except OSError:
        return info.st_blocks * _BLOCK
    try:
        return unshared_bytes(fd)
    except OSError:
        return info.st_blocks * _BLOCK
    finally:
        os.close(fd)
