"""The command's own `.git` for another branch: a copy of all that is in it, with HEAD on the new name.

Nobody opens either as a repository here, and no link in them is followed: the command may have made them.
"""

from __future__ import annotations

import os

from overlayrun.layers.duplicate import Duplicate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LARGEST: Final = 64 << 20  # bytes of packed-refs that are looked through
_AREAS: Final = (("refs", "heads"), ("logs", "refs", "heads"))


def copy_git_directory(source: int, target: str, old: str, new: str, *, is_quiet: bool) -> list[bytes]:
    """Fill `target`, an empty directory, from the upper layer of a `.git`, with branch `old` called `new`.

    HEAD, refs, index, stash and what is half done come along, locks do not. is_quiet: nobody writes to the
    source. What could not be copied is given, as by `Duplicate`. Raises OSError, SnapshotError.
    """
    # Objects last: git writes them before what names them, and so what was copied names what is there.
    rest = Duplicate(is_quiet=is_quiet, skips=lambda path: path == b"objects" or path.endswith(b".lock"))
    rest.make(source, target)
    left_out = rest.left_out + _copy_objects(source, target, is_quiet=is_quiet)
    top = os.open(target, _DIRECTORY)
    try:
        _rename_branch(top, old, new)
    finally:
        os.close(top)
    return [b".git/" + path for path in left_out]


def _copy_objects(source: int, target: str, *, is_quiet: bool) -> list[bytes]:
    try:
        objects = os.open("objects", _DIRECTORY, dir_fd=source)
    except OSError:  # it has removed or replaced them
        return []
    copy = Duplicate(is_quiet=is_quiet, skips=lambda path: path.rpartition(b"/")[2].startswith(b"tmp_"))
    try:
        os.mkdir(f"{target}/objects", 0o700)
        copy.make(objects, f"{target}/objects")
    finally:
        os.close(objects)
    return [b"objects/" + path for path in copy.left_out]


def _rename_branch(top: int, old: str, new: str) -> None:
    """Where the command has put anything else in the way, its HEAD stays on the old name."""
    try:
        packed = _read(top, "packed-refs").split(b"\n")
    except OSError:
        packed = []
    lines = [line for line in packed if line.endswith(f" refs/heads/{old}".encode())]
    try:
        for area in _AREAS:
            _move(top, area, old, new)
        if lines:
            named = f" refs/heads/{new}".encode()
            rest = [line for line in packed if line not in lines and not line.endswith(named)]
            # No header that says "sorted" is ours, and git sorts what has none.
            lines = [line.replace(f" refs/heads/{old}".encode(), named) for line in lines]
            plain = [line for line in (*rest, *lines) if line and not line.startswith(b"#")]
            _write(top, "packed-refs", b"\n".join([*plain, b""]))
        if _read(top, "HEAD").strip() == f"ref: refs/heads/{old}".encode():
            _write(top, "HEAD", f"ref: refs/heads/{new}\n".encode())
    except OSError:
        return


def _move(top: int, area: Sequence[str], old: str, new: str) -> None:
    """Rename a file below `area`, if it is there, by way of a name that is in nobody's way."""
    *above, name = (*area, *old.split("/"))
    try:
        directory = _walk(top, above, make=False)
    except OSError:
        return
    aside = f".{os.path.basename(new)}.fork"
    try:
        os.rename(name, aside, src_dir_fd=directory, dst_dir_fd=top)
    except FileNotFoundError:
        return
    finally:
        os.close(directory)
    *above, name = (*area, *new.split("/"))
    directory = _walk(top, above, make=True)
    try:
        os.rename(aside, name, src_dir_fd=top, dst_dir_fd=directory)
    finally:
        os.close(directory)


def _walk(top: int, names: Sequence[str], *, make: bool) -> int:
    """Descriptor of a directory below `top`, no link followed on the way."""
    at = os.dup(top)
    for name in names:
        try:
            if make:
                _make(at, name)
            below = os.open(name, _DIRECTORY, dir_fd=at)
        finally:
            os.close(at)
        at = below
    return at


def _make(directory: int, name: str) -> None:
    try:
        os.mkdir(name, 0o755, dir_fd=directory)
    except FileExistsError:
        pass


def _read(top: int, name: str) -> bytes:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=top)
    with open(fd, "rb") as file:
        return file.read(_LARGEST)


def _write(top: int, name: str, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    os.unlink(name, dir_fd=top)
    with open(os.open(name, flags, 0o644, dir_fd=top), "wb") as file:
        file.write(data)
