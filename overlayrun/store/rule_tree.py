"""A work tree that holds the .gitattributes files of one commit alone, for a git that merges by them.

In the user's work tree git would read his uncommitted .gitattributes, in a bare one none. What a source's
attributes say never chooses a merge driver.
"""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from functools import lru_cache
from typing import Final

from overlayrun.errors import StoreError
from overlayrun.files import remove_tree
from overlayrun.model import EMPTY_TREE, CommitId
from overlayrun.store.git import clean_environment, config_environment, git
from overlayrun.store.repo import Repo
from overlayrun.store.trees import EXECUTABLE, FILE

_ANY_RULES: Final = ":(glob)**/.gitattributes"
_ANY_DRIVER: Final = r"^merge\..*\.driver$"
_SETTINGS: Final = (("core.fsmonitor", "false"), ("merge.conflictStyle", "zdiff3"))


class RuleTree:
    """A directory with the .gitattributes files of one commit; environment: of a git that works there."""

    __slots__ = ("_lock", "_root", "environment", "path")

    def __init__(self, git_dir: str, rules: CommitId | None) -> None:
        files = _rule_files(git_dir, rules) if rules else ()
        drivers = _quiet_drivers(git_dir)
        self._root = tempfile.mkdtemp(prefix="overlayrun-merge-")
        self.path = f"{self._root}/tree"
        # What clears old files away leaves a directory alone that is locked. Source: tmpfiles.d(5), "Age".
        self._lock = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        try:
            os.mkdir(self.path)
            for path, content in files:
                _place(os.path.join(os.fsencode(self.path), path), content)
        except OSError as err:
            self.remove()
            raise StoreError(f"the attributes of commit {rules} can't be laid out", details=str(err)) from err
        self.environment = {
            **clean_environment(),
            "GIT_WORK_TREE": self.path,
            "GIT_INDEX_FILE": f"{self._root}/index",  # missing, or the user's would answer for absent files
            **config_environment([*_SETTINGS, *drivers]),
        }

    def remove(self) -> None:
        """Remove it; a second time does nothing."""
        if self._lock >= 0:
            remove_tree(self._root)
            os.close(self._lock)
            self._lock = -1


@lru_cache(maxsize=8)
def _rule_files(git_dir: str, commit: CommitId) -> tuple[tuple[bytes, bytes], ...]:
    """Path and content of the .gitattributes files of a commit. Git compares the pathspec faster than we."""
    command = ["diff-tree", "-r", "-z", "--raw", "--no-renames", EMPTY_TREE, commit, "--", _ANY_RULES]
    words = git(command, git_dir=git_dir).split(b"\0")
    found = [(path, meta.split(b" ")) for meta, path in zip(words[::2], words[1::2], strict=False)]
    chosen = [(path, meta[3].decode()) for path, meta in found if meta[1] in (FILE, EXECUTABLE)]
    repo = Repo(git_dir) if chosen else None
    return tuple((path, repo.read_blob(oid)) for path, oid in chosen if repo and _is_below(path))


def _quiet_drivers(git_dir: str) -> list[tuple[str, str]]:
    """The user's merge drivers, kept away from the pipes that git has its requests and answers in."""
    listed = git(["config", "--null", "--get-regexp", _ANY_DRIVER], git_dir=git_dir, check=False)
    pairs = [entry.partition("\n") for entry in os.fsdecode(listed).split("\0")]
    return [(key, f"{{ {line}\n}} </dev/null >&2") for key, _, line in pairs if line.strip()]


def _is_below(path: bytes) -> bool:
    """Whether a tree's path stays in the directory; trees that git did not make may hold any name."""
    return not {b"", b".", b".."} & set(path.split(b"/"))


def _place(path: bytes, content: bytes) -> None:
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
    except OSError as err:
        # A checkout could not have it either, so to git it is not there.
        if err.errno != errno.ENAMETOOLONG:
            raise
