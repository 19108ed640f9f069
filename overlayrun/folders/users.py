"""Who has something of the folders open, told by /proc: nothing is asked of the folders themselves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

_LINKS: Final = ("cwd", "root", "exe")


def users_of(mountpoint: str) -> list[str]:
    """Processes of this user that are in a directory, have files open there or mapped: `name (pid)`, sorted.

    Who runs as another user, or ends meanwhile, is left out.
    """
    found = (_user(f"/proc/{pid}", mountpoint) for pid in os.listdir("/proc") if pid.isdecimal())
    return sorted(filter(None, found))


def _user(process: str, mountpoint: str) -> str | None:
    with suppress(OSError):
        if any(_is_below(path, mountpoint) for path in _paths(process)):
            with open(f"{process}/comm", encoding="utf-8", errors="replace") as name:
                return f"{name.read().strip()} ({os.path.basename(process)})"
    return None


def _is_below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(f"{directory}/")


def _paths(process: str) -> Iterator[str]:
    for name in _LINKS:
        with suppress(FileNotFoundError):  # a kernel thread has none
            yield os.readlink(f"{process}/{name}")
    for fd in os.listdir(f"{process}/fd"):
        with suppress(FileNotFoundError):
            yield os.readlink(f"{process}/fd/{fd}")
    with open(f"{process}/maps", encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            yield "/" + line.rstrip("\n").partition("/")[2]
