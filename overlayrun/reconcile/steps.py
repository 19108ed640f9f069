"""One file of a delivery: it changes places with the user's, and comes back, by what the two hold."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from typing import Final

from overlayrun.kernel import abi, syscalls

_NOREPLACE: Final = 0x1  # linux/fs.h, RENAME_NOREPLACE


@dataclass(frozen=True, slots=True)
class Step:
    """One path. side: the file in scratch that it changes places with. was, now: prints, None for no file.

    roof: topmost directory that has to be made for it.
    """

    place: str
    side: str
    was: str | None
    now: str | None
    roof: str


def print_of(path: str) -> str | None:
    """What tells a file from another: kind, whether it is executable, hash of the bytes."""
    try:
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode):
            return f"link {hashlib.sha1(os.fsencode(os.readlink(path)), usedforsecurity=False).hexdigest()}"
        if not stat.S_ISREG(mode):
            return "directory" if stat.S_ISDIR(mode) else "special"
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha1").hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as err:
        return f"unreadable {err.errno}"
    return f"{'program' if mode & stat.S_IXUSR else 'file'} {digest}"


def put(step: Step) -> None:
    """Put the new file in its place. Raises OSError where something else lies there."""
    if step.now is None:
        syscalls.renameat2(step.place, step.side, _NOREPLACE)
        return
    parent = os.path.dirname(step.place)
    if step.was is None:
        os.makedirs(parent, exist_ok=True)
        _clear(step.place)
    info = os.stat(parent)
    if info.st_mode & stat.S_ISGID:
        os.chown(step.side, -1, info.st_gid, follow_symlinks=False)
    syscalls.renameat2(step.side, step.place, abi.RENAME_EXCHANGE if step.was else _NOREPLACE)


def _clear(place: str) -> None:
    """Remove the directories, empty by now, that lie where a file comes."""
    if os.path.isdir(place) and not os.path.islink(place):
        for directory, _, _ in os.walk(place, topdown=False):
            prune(directory, directory)


def put_back(step: Step) -> None:
    """Undo `put`, as far as it was done; may be done again."""
    if step.was is None:
        _take_away(step)
    elif os.path.lexists(step.side) and print_of(step.side) != step.now:
        _swap_back(step)


def _take_away(step: Step) -> None:
    """Undo an addition, unless the user has saved over it."""
    if not os.path.lexists(step.side):
        _rename(step.place, step.side)
        if print_of(step.side) != step.now:
            _rename(step.side, step.place)
    if step.roof:
        prune(os.path.dirname(step.place), step.roof)


def _swap_back(step: Step) -> None:
    if step.now is None or print_of(step.place) != step.now:  # a deletion, or the user has saved over it
        _rename(step.side, step.place)
        return
    syscalls.renameat2(step.side, step.place, abi.RENAME_EXCHANGE)
    if print_of(step.side) != step.now:  # he saved in that very moment
        syscalls.renameat2(step.side, step.place, abi.RENAME_EXCHANGE)


def put_late_save(step: Step) -> None:
    """Give back what was written into a file of ours just after it had been taken away."""
    if is_ours(step) or print_of(step.place) != step.was:
        return
    if step.was is None:
        _rename(step.side, step.place)
    else:
        syscalls.renameat2(step.side, step.place, abi.RENAME_EXCHANGE)


def _rename(source: str, target: str) -> None:
    """Rename where that displaces nothing."""
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        syscalls.renameat2(source, target, _NOREPLACE)
    except (FileNotFoundError, FileExistsError, NotADirectoryError):
        pass


def is_ours(step: Step) -> bool:
    """Whether what was displaced is in git, or is gone."""
    return print_of(step.side) in {step.was, step.now, None}


def prune(directory: str, top: str) -> None:
    """Remove empty directories upward, `top` the last; the root of a tree holds `.git` and stays."""
    while directory.startswith(top):
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            pass
        except OSError:  # not empty
            return
        directory = os.path.dirname(directory)
