"""Commits in a file (git-bundle(1), gitformat-bundle(5)): written for another machine, taken in from one.

`git fetch` and `git bundle unbundle` do not check the objects of a bundle (git 2.39, whatever fsckObjects
says), so its header is read here and its pack goes through git-index-pack(1) in quarantine.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from typing import BinaryIO, Final

from overlayrun.errors import StoreError
from overlayrun.store.git import GitFailed, git
from overlayrun.store.quarantine import quarantined
from overlayrun.store.repo import Repo

LARGEST: Final = 256 << 20
"""Bytes of a bundle that is taken in, by default: it is held in memory."""
_HEADERS: Final = (b"# v2 git bundle\n", b"# v3 git bundle\n")
_LONGEST_LINE: Final = 4096
_MOST_LINES: Final = 1000
_REF: Final = re.compile(rb"([0-9a-f]{40}) [^\n]+\n")
_PREREQUISITE: Final = re.compile(rb"-[0-9a-f]{40}(?: [^\n]*)?\n")


def write_bundle(path: str, git_dir: str, base: str, ref: str) -> None:
    """Write what `ref` has above `base`, under that ref's name; `path` is whole or missing.

    Exact: nothing is masked. Raises StoreError.
    """
    aside = f"{path}.new"
    try:
        git(["bundle", "create", "-q", aside, f"^{base}", ref], git_dir=git_dir)
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(aside)


def take_bundle(repo: Repo, path: str, tip: str, base: str, *, limit: int = LARGEST) -> None:
    """Bring the commit `tip` and what it has above `base` from a file that anybody may have written.

    The file's refs are not made, their names not even read. Afterwards `tip` is in the store, for its caller
    to keep by a ref; where anything is not as it should be, nothing of it is. Raises StoreError.
    """
    pack = _read_pack(path, tip, limit)
    with quarantined(repo) as quarantine:
        try:
            quarantine.take_pack(pack, limit)
        except GitFailed as err:
            raise StoreError("what the bundle holds is not sound", details=err.details) from err
        quarantine.accept(tip, base)


def _read_pack(path: str, tip: str, limit: int) -> bytes:
    """The pack of a bundle that names `tip`. Raises StoreError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode) or info.st_size > limit:
                raise StoreError(f"the bundle is no file of at most {limit:,} bytes")
            if tip.encode() not in _tips(file):
                raise StoreError(f"the bundle is none, or does not name {tip[:10]}")
            pack = file.read(limit)
    except OSError as err:
        raise StoreError(f"the bundle can't be read: {err.strerror}") from err
    if pack[:4] != b"PACK" or len(pack) < 32:
        raise StoreError("the bundle has no pack in it")
    return pack


def _tips(file: BinaryIO) -> set[bytes]:
    """Commits that a bundle's header names, the file then standing at its pack; nothing where it is none."""
    found: set[bytes] = set()
    if file.readline(_LONGEST_LINE) not in _HEADERS:
        return set()
    for _ in range(_MOST_LINES):
        line = file.readline(_LONGEST_LINE)
        if line == b"\n":
            return found
        if named := _REF.fullmatch(line):
            found.add(named[1])
        elif not _PREREQUISITE.fullmatch(line) and line != b"@object-format=sha1\n":
            break
    return set()
