"""Ports of each run's own, so that the servers of several agents don't clash. On the launch path."""

from __future__ import annotations

import fcntl
import os
import struct
import zlib

from overlayrun.kernel import abi, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

COUNT: Final = 10  # ports of one run
_FIRST: Final = 20_000
_RANGES: Final = 1_000  # up to 29,999: below the kernel's own choices (ip_local_port_range, from 32,768)
_NAME_LENGTH: Final = 40


def claim_ports(workspace_id: str, *, most: int = _RANGES) -> tuple[int, int] | None:
    """The first of `COUNT` ports for a run, and a descriptor that holds them; None where none can be had.

    The same for a workspace each time, where they are free. most: ranges to be tried. They are held while the
    descriptor is open, here or in the keeper. Locks keep this user's runs apart; what others use is tried.
    """
    try:
        fd = _open_table()
    except OSError:  # an unwritable HOME is no reason to stop
        return None
    # The user's id too: the table is the user's own, and two users' runs seldom begin at the same place.
    start = zlib.crc32(f"{workspace_id} {os.geteuid()}".encode())
    for turn in range(most):
        number = (start + turn) % _RANGES
        first = _FIRST + number * COUNT
        if _is_locked_by_us(fd, number) and _is_free(first):
            return first, fd
    os.close(fd)
    return None


def _open_table() -> int:
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    place = f"{state}/overlayrun"
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(f"{place}/ports", flags, 0o600)
    except FileNotFoundError:
        os.makedirs(place, mode=0o700, exist_ok=True)
        return os.open(f"{place}/ports", flags, 0o600)


def _is_locked_by_us(fd: int, number: int) -> bool:
    """Take the lock of a range if nobody has it: one byte of an empty file each.

    Such a lock belongs to the open file, not to the process: it passes to the keeper by clone(2) and ends
    with its last descriptor, and no stale file is left. Source: fcntl(2), "Open file description locks".
    """
    lock = struct.pack("hh4xqqi4x", fcntl.F_WRLCK, os.SEEK_SET, number, 1, 0)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
    except OSError:  # held by another run, or a disk without locks
        return False
    return True


def _is_free(first: int) -> bool:
    """Whether no server of anybody's, which knows nothing of our locks, listens on the first port now."""
    fd = syscalls.socket(abi.AF_INET, abi.SOCK_STREAM)
    try:
        syscalls.bind_loopback(fd, first)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def port_environment(first: int | None, workspace_id: str, branch: str) -> dict[str, str]:
    """Variables by which servers and `docker compose` of several runs keep apart; first: of `claim_ports`."""
    own = {"COMPOSE_PROJECT_NAME": _project_name(workspace_id, branch)}
    if first is None:
        return own
    return {**own, "OVERLAYRUN_PORT": str(first), "OVERLAYRUN_PORTS": f"{first}-{first + COUNT - 1}"}


def _project_name(workspace_id: str, branch: str) -> str:
    """As Compose wants it, `[a-z0-9][a-z0-9_-]*`; with the id, as two repositories may have a branch `a`."""
    letters = (letter if letter.isascii() and letter.isalnum() else "-" for letter in branch.lower())
    stem = "".join(letters).strip("-")[:_NAME_LENGTH].strip("-")
    return f"{stem}-{workspace_id}" if stem else f"run-{workspace_id}"
