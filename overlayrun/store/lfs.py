"""What git-lfs would put in the store instead of a large file. Source: git-lfs, docs/spec.md."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from contextlib import suppress
from typing import Final

_VERSION: Final = b"version https://git-lfs.github.com/spec/v1\n"
_LONGEST: Final = 1024  # bytes of a pointer
_POINTER: Final = re.compile(
    rb"version https?://[a-z.-]+/spec/(?:v1|1)\n(?:ext-[0-9]-\S+ \S+\n)*"
    rb"oid sha256:[0-9a-f]{64}\nsize [0-9]+\n?"
)


def store_for_lfs(storage: str, data: bytes | None, path: str | None) -> bytes:
    """Pointer text for a file given as bytes or by path; its content goes to `storage`, flushed.

    An empty file, and one that is a pointer already, stay as they are.
    """
    if data is None:
        assert path is not None
        return _store_file(storage, path)
    if not data or (len(data) < _LONGEST and _POINTER.fullmatch(data)):
        return data
    os.makedirs(storage, exist_ok=True)
    fd, aside = tempfile.mkstemp(prefix="tmp_", dir=storage)
    with open(fd, "wb") as file:
        file.write(data)
    return _move_in(storage, aside, hashlib.sha256(data).hexdigest(), len(data))


def _store_file(storage: str, path: str) -> bytes:
    os.makedirs(storage, exist_ok=True)
    fd, aside = tempfile.mkstemp(prefix="tmp_", dir=storage)
    with open(path, "rb") as source, open(fd, "wb") as copy:
        shutil.copyfileobj(source, copy)
    with open(aside, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return _move_in(storage, aside, digest, os.stat(aside).st_size)


def _move_in(storage: str, aside: str, digest: str, size: int) -> bytes:
    place = f"{storage}/objects/{digest[:2]}/{digest[2:4]}"
    try:
        os.makedirs(place, exist_ok=True)
        fd = os.open(aside, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fchmod(fd, 0o444)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(aside, f"{place}/{digest}")
    except OSError:
        with suppress(OSError):
            os.unlink(aside)
        raise
    return _VERSION + b"oid sha256:%b\nsize %d\n" % (digest.encode(), size)
