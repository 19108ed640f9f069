"""Loose objects and refs that a power cut has torn: put out of git's way.

Git flushes no loose object by default (git-config(1), core.fsync), and never writes one whose name is there,
be it an empty file: the next commit of the same content would name a broken object. An empty ref makes it
refuse whole commands.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from overlayrun.files import read_bytes
from overlayrun.store.refs import clear_dead_locks

_REF: Final = re.compile(rb"[0-9a-f]{40,64}|ref: .+")
_UNFLUSHED: Final = (
    900.0  # seconds; the kernel writes after 30 (vm.dirty_expire_centisecs), to save power after 600
)
_MOST: Final = (
    5000  # objects that are read, a second of work; more were written by one command, flushed or not
)
_LONGEST: Final = 1 << 24  # bytes compressed; what is longer is known by its size alone


def put_torn_aside(common_dir: str, aside: str) -> int:
    """Move what is torn to the directory `aside`, which is made for it; how many files that were.

    Locks of refs from before the boot go: nobody holds them.
    """
    clear_dead_locks(
        common_dir, (name.removesuffix(".lock") for name in _files(common_dir) if _is_lock(name))
    )
    moves = [(path, f"{aside}/{_name(path)}") for path in _torn_objects(f"{common_dir}/objects")]
    for ref in _torn_refs(common_dir):
        moves += [(f"{common_dir}/{name}", f"{aside}/{name}") for name in (ref, f"logs/{ref}")]
    count = 0
    for source, target in moves:
        with suppress(FileNotFoundError):  # another command does the same
            os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
            shutil.move(source, target)
            count += 1
    return count


def _files(common_dir: str) -> Iterator[str]:
    """Files of refs, and their locks."""
    for directory, _, names in os.walk(f"{common_dir}/refs"):
        yield from (os.path.relpath(f"{directory}/{name}", common_dir) for name in names)


def _is_lock(name: str) -> bool:
    return name.endswith(".lock")


def _torn_refs(common_dir: str) -> Iterator[str]:
    """Names of refs whose file holds neither an id nor another ref's name."""
    for name in _files(common_dir):
        with suppress(OSError):
            if not _is_lock(name) and not _REF.fullmatch(read_bytes(f"{common_dir}/{name}").strip()):
                yield name


def _torn_objects(objects: str) -> list[str]:
    """Looked at is what was written in the minutes before the last: nothing older waited for the disk."""
    young = enumerate(_youngest(objects))
    return [path for number, (path, size) in young if _is_torn(path, size, is_read=number < _MOST)]


def _youngest(objects: str) -> Iterator[tuple[str, int]]:
    """Path and size, the youngest first."""
    found = []
    for directory in os.scandir(objects):
        if len(directory.name) != 2:
            continue
        with suppress(FileNotFoundError), os.scandir(directory.path) as entries:
            stats = [(entry.stat(follow_symlinks=False), entry.path) for entry in entries]
            found += [(info.st_ctime, path, info.st_size) for info, path in stats if "tmp_" not in path]
    found.sort(reverse=True)
    for changed, path, size in found:
        if changed < found[0][0] - _UNFLUSHED:
            return
        yield path, size


def _name(path: str) -> str:
    directory, name = os.path.split(path)
    return os.path.basename(directory) + name


def _is_torn(path: str, size: int, *, is_read: bool) -> bool:
    if not size or not is_read or size > _LONGEST:
        return not size
    try:
        with open(path, "rb") as file:
            data = zlib.decompress(file.read())
    except FileNotFoundError:
        return False
    except (OSError, zlib.error):
        return True
    return hashlib.sha1(data, usedforsecurity=False).hexdigest() != _name(path)
