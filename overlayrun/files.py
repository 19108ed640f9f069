"""Files that must be whole or gone: write then rename, remove a tree. On the launch path."""

from __future__ import annotations

import errno
import os
import stat

from overlayrun.kernel import btrfs, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

_DEEPEST: Final = 64
_PIECE: Final = 1 << 30


def write_whole(path: str, data: bytes, *, durable: bool, mode: int = 0o600) -> None:
    """Write `data` to `path` so that a reader sees the old bytes or the new ones, never a part.

    durable: flush the file before it is renamed into place and the directory after, so that it survives a
    power cut.
    """
    aside = f"{path}.{os.getpid()}.new"
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        if durable:
            os.fsync(fd)
    except OSError:
        os.unlink(aside)  # a full disk must not keep the half
        raise
    finally:
        os.close(fd)
    os.replace(aside, path)
    if durable:
        flush_directory(os.path.dirname(path))


def write_new(path: str, data: bytes, *, mode: int = 0o600) -> None:
    """Write a file that is not there, in a directory that nobody looks into yet."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    finally:
        os.close(fd)


def flush_directory(path: str) -> None:
    """Make renames in a directory survive a power cut (fsync(2), "does not necessarily ensure the entry")."""
    _flush(path, os.O_DIRECTORY, os.fsync)


def flush_file(path: str | bytes) -> None:
    """Flush what a file holds; its name is the directory's to flush."""
    _flush(path, os.O_NOFOLLOW, os.fsync)


def flush_disk(path: str | bytes) -> None:
    """Flush the whole file system that a directory lies on: cheaper than many files one by one."""
    _flush(path, os.O_DIRECTORY, syscalls.syncfs)


def _flush(path: str | bytes, flags: int, flush: Callable[[int], None]) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        flush(fd)
    finally:
        os.close(fd)


def read_bytes(path: str) -> bytes:
    """Whole content of a small file of ours."""
    with open(path, "rb") as file:
        return file.read()


def copy_file(source: str | bytes, target: str | bytes) -> None:
    """Copy a regular file with mode and times, sharing blocks where the disk can (copy_file_range(2)).

    shutil does the same, but its import costs the launch path 8 ms.
    """
    reader = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        info = os.fstat(reader)
        writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            copy_content(reader, writer)
            os.fchmod(writer, stat.S_IMODE(info.st_mode))
            os.utime(writer, ns=(info.st_atime_ns, info.st_mtime_ns))
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def copy_content(reader: int, writer: int) -> None:
    """Copy from one descriptor's place to another's, sharing blocks where the disk can."""
    try:
        while os.copy_file_range(reader, writer, _PIECE):
            pass
    except OSError as err:
        if err.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        while os.sendfile(writer, reader, None, _PIECE):
            pass


def remove_tree(path: str) -> None:
    """Remove a directory and all below it, whatever its modes; nothing happens where there is none.

    Overlayfs leaves `work/work` with mode 000 behind, an agent may leave anything. Links are never followed.
    """
    try:
        _remove(path, 0)
    except FileNotFoundError:
        return
    except (OSError, RecursionError) as err:
        if isinstance(err, OSError) and err.errno == errno.EROFS:
            return  # rm could do no more, and would say so for each file
        # Too deep for paths, or names that fight back: rm goes by descriptors.
        _spawn("chmod", "-R", "u+rwX", "--", path)
        _spawn("rm", "-rf", "--", path)


def _remove(path: str, depth: int) -> None:
    if depth > _DEEPEST:
        raise RecursionError
    if btrfs.is_removed_whole(path):
        return
    try:
        entries = list(os.scandir(path))
    except PermissionError:
        os.chmod(path, stat.S_IRWXU)
        entries = list(os.scandir(path))
    if entries and not os.access(path, os.W_OK | os.X_OK):
        os.chmod(path, stat.S_IRWXU)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            _remove(entry.path, depth + 1)
        else:
            os.unlink(entry.path)
    os.rmdir(path)


def _spawn(*command: str) -> None:
    os.waitpid(os.posix_spawnp(command[0], command, os.environ), 0)


def identity_of(path: str) -> int:
    """What tells a directory from every copy of it: its inode; of a subvolume the negative of its id."""
    inode = os.stat(path).st_ino
    if inode == btrfs.SUBVOLUME_INODE:
        try:
            return -btrfs.subvolume_id(path)
        except OSError:  # another file system's inode of that number
            pass
    return inode


def disk_usage(path: str) -> int:
    """Bytes a directory takes on the disk; a file with several names counts once, unreadable parts never."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for directory, names, files in os.walk(path):
        for name in [*names, *files]:
            try:
                info = os.lstat(os.path.join(directory, name))
            except OSError:
                continue
            if (info.st_dev, info.st_ino) not in seen:
                seen.add((info.st_dev, info.st_ino))
                total += info.st_blocks * 512
    return total
