"""Names that git would take for its own directory on some filesystem."""

from __future__ import annotations

import re
from typing import Final

# What HFS+ drops when it compares names; git-config(1), core.protectHFS.
_IGNORED_BY_HFS: Final = re.compile("[\u200c-\u200f\u202a-\u202e\u206a-\u206f\ufeff]")
# NTFS drops trailing dots and spaces, opens streams after a colon, and gives short names; core.protectNTFS.
_NTFS_GIT: Final = re.compile(rb"(?:\.git|git~1)[. ]*(?::.*)?", re.IGNORECASE | re.DOTALL)
_NTFS_MODULES: Final = re.compile(
    rb"(?:\.gitmodules|gitmod~[1-4]|gi7eba~[1-9]|gi7eb~[1-9][0-9])[. ]*(?::.*)?", re.IGNORECASE | re.DOTALL
)


def is_dotgit(name: bytes) -> bool:
    """Whether a checkout of `name` could end as `.git` on Linux, macOS or Windows."""
    return _is_like(name, b".git", _NTFS_GIT)


def is_dotgitmodules(name: bytes) -> bool:
    """The same for `.gitmodules`, which git refuses to track as a symlink."""
    return _is_like(name, b".gitmodules", _NTFS_MODULES)


def _is_like(name: bytes, wanted: bytes, ntfs: re.Pattern[bytes]) -> bool:
    if b"g" not in name and b"G" not in name:  # nearly every name ends here or at the next look
        return False
    if any(ntfs.fullmatch(part) for part in name.split(b"\\")):
        return True
    try:
        text = name.decode()
    except UnicodeDecodeError:
        return False
    return _IGNORED_BY_HFS.sub("", text).casefold().encode() == wanted
