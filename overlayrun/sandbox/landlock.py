"""A second barrier behind the mounts: Landlock rules on the joined tree, and no abstract sockets of the host.

The rules are about what the command opens by itself; what overlayfs does in the layers below is not judged
(Documentation/userspace-api/landlock.rst, "OverlayFS mounts").
"""

from __future__ import annotations

import errno
import os
import stat

from overlayrun.kernel import abi, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

# Every right that a version of the interface brought, by the version.
_BROUGHT: Final = (
    (
        1,
        abi.LANDLOCK_ACCESS_FS_EXECUTE
        | abi.LANDLOCK_ACCESS_FS_WRITE_FILE
        | abi.LANDLOCK_ACCESS_FS_READ_FILE
        | abi.LANDLOCK_ACCESS_FS_READ_DIR
        | abi.LANDLOCK_ACCESS_FS_REMOVE_DIR
        | abi.LANDLOCK_ACCESS_FS_REMOVE_FILE
        | abi.LANDLOCK_ACCESS_FS_MAKE_CHAR
        | abi.LANDLOCK_ACCESS_FS_MAKE_DIR
        | abi.LANDLOCK_ACCESS_FS_MAKE_REG
        | abi.LANDLOCK_ACCESS_FS_MAKE_SOCK
        | abi.LANDLOCK_ACCESS_FS_MAKE_FIFO
        | abi.LANDLOCK_ACCESS_FS_MAKE_BLOCK
        | abi.LANDLOCK_ACCESS_FS_MAKE_SYM,
    ),
    (2, abi.LANDLOCK_ACCESS_FS_REFER),
    (3, abi.LANDLOCK_ACCESS_FS_TRUNCATE),
    (5, abi.LANDLOCK_ACCESS_FS_IOCTL_DEV),
)
# The files of the disk are read-only; terminals and other devices want their requests wherever they are. To
# leave these out of the ruleset instead would save nothing: the kernel looks for TRUNCATE at every open(2).
_ANYWHERE: Final = (
    abi.LANDLOCK_ACCESS_FS_EXECUTE
    | abi.LANDLOCK_ACCESS_FS_READ_FILE
    | abi.LANDLOCK_ACCESS_FS_READ_DIR
    | abi.LANDLOCK_ACCESS_FS_IOCTL_DEV
)
# Nobody has a use for device files here, but one of them is overlayfs's mark of a deleted name.
_NOWHERE: Final = abi.LANDLOCK_ACCESS_FS_MAKE_CHAR | abi.LANDLOCK_ACCESS_FS_MAKE_BLOCK
_OF_FILES: Final = (
    abi.LANDLOCK_ACCESS_FS_EXECUTE
    | abi.LANDLOCK_ACCESS_FS_WRITE_FILE
    | abi.LANDLOCK_ACCESS_FS_READ_FILE
    | abi.LANDLOCK_ACCESS_FS_TRUNCATE
    | abi.LANDLOCK_ACCESS_FS_IOCTL_DEV
)
# Version 1 forbids every rename and link between directories.
_FIRST_WITH_FILES: Final = 2
_FIRST_WITH_SCOPES: Final = 6
_LACKING: Final = (errno.ENOSYS, errno.EOPNOTSUPP)


def has_landlock() -> bool:
    """Whether `restrict` has rules about files to lay down: a layer that is missed only where it lacks."""
    try:
        return syscalls.landlock_abi() >= _FIRST_WITH_FILES
    except OSError as err:  # another refusal is for `restrict` to raise
        return err.errno not in _LACKING


def restrict(writable: Sequence[str], *, files: bool = True, signals: bool = False) -> str:
    """Confine this thread and all that it starts; after every mount, with no_new_privs set.

    writable: directories and files that may be written to; all else may be read and executed.
    files: False leaves all files as they are, because a rule about any forbids every mount.
    signals: whether those to processes outside are cut off, for a command that shares its group with them.
    The pid namespace does it otherwise; and who joins a running sandbox, under rules of his own, can then
    signal the command.
    Gives what was applied, for the run's header, or "" where the kernel has nothing of it.
    Raises OSError where the kernel has Landlock and refuses, or a path of `writable` can't be opened.
    """
    version = _version()
    handled = _rights(version) if files and version >= _FIRST_WITH_FILES else 0
    scoped = _scopes(version, signals=signals)
    if not handled | scoped:
        return ""
    ruleset = syscalls.landlock_create_ruleset(handled, scoped)
    try:
        if handled:
            _add_rules(ruleset, handled, writable)
        syscalls.landlock_restrict_self(ruleset)
    finally:
        os.close(ruleset)
    return f"Landlock {version}" if handled else f"Landlock {version} (no rules about files)"


def read_only(directory: int) -> None:
    """Let this thread read what is below an open directory, and touch no other file; no_new_privs is set.

    Nothing happens where the kernel lacks it; raises OSError where it refuses.
    """
    version = _version()
    if not version:
        return
    ruleset = syscalls.landlock_create_ruleset(_rights(version), _scopes(version, signals=True))
    try:
        rights = abi.LANDLOCK_ACCESS_FS_READ_FILE | abi.LANDLOCK_ACCESS_FS_READ_DIR
        syscalls.landlock_add_rule(ruleset, directory, rights)
        syscalls.landlock_restrict_self(ruleset)
    finally:
        os.close(ruleset)


def _version() -> int:
    """Version of the interface; 0 where the kernel has none."""
    try:
        return syscalls.landlock_abi()
    except OSError as err:
        if err.errno in _LACKING:
            return 0
        raise


def _rights(version: int) -> int:
    """Every right about files that this version of the interface knows, and so do we."""
    return sum(rights for since, rights in _BROUGHT if since <= version)


def _scopes(version: int, *, signals: bool) -> int:
    if version < _FIRST_WITH_SCOPES:
        return 0
    return abi.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | (abi.LANDLOCK_SCOPE_SIGNAL if signals else 0)


def _add_rules(ruleset: int, handled: int, writable: Sequence[str]) -> None:
    _add_path(ruleset, handled & _ANYWHERE, "/")
    for path in writable:
        _add_path(ruleset, handled & ~_NOWHERE, path)
    for standard in range(3):
        # The user's terminal lies below the host's /dev, which is covered: by its name in /proc it could
        # otherwise be read only, and `echo > /dev/stderr` is in many a script.
        if os.isatty(standard):
            syscalls.landlock_add_rule(ruleset, standard, handled & _OF_FILES)


def _add_path(ruleset: int, rights: int, path: str) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        directory = stat.S_ISDIR(os.fstat(fd).st_mode)
        syscalls.landlock_add_rule(ruleset, fd, rights if directory else rights & _OF_FILES)
    finally:
        os.close(fd)
