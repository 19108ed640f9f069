"""A work tree that holds the .gitattributes files of one commit alone, for a git that merges by them.

In the user's work tree git would read his uncommitted .gitattributes, in a bare one none. What a source's
attributes say never chooses a merge driver.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Final

from overlayrun.errors import StoreError
from overlayrun.model import EMPTY_TREE, CommitId
from overlayrun.store.git import GitFailed, clean_environment, config_environment, git
from overlayrun.store.repo import Repo
from overlayrun.store.scratch import Scratch
from overlayrun.store.trees import EXECUTABLE, FILE

_ANY_RULES: Final = ":(glob)**/.gitattributes"
_ANY_DRIVER: Final = r"^merge\..*\.driver$"
_SETTINGS: Final = (
    ("core.fsmonitor", "false"),
    ("merge.conflictStyle", "zdiff3"),
    ("merge.renormalize", "false"),  # with it, git goes by the .gitattributes that the source brings
)
_NOTHING: Final[tuple[str, Mapping[bytes, bytes]]] = (EMPTY_TREE, {})
# By repository: the commit looked at last, and its files. The next one differs little from it.
_KNOWN: Final[dict[str, tuple[str, Mapping[bytes, bytes]]]] = {}


class RuleTree:
    """A directory with the .gitattributes files of one commit; environment: of a git that works there."""

    __slots__ = ("_files", "_git_dir", "_scratch", "environment", "path")

    def __init__(self, git_dir: str, rules: CommitId | None) -> None:
        self._git_dir = git_dir
        self._files = _rule_files(git_dir, rules) if rules else {}
        drivers = _quiet_drivers(git_dir)
        self._scratch: Scratch | None = None
        try:
            self._scratch = Scratch()
            self.path = f"{self._scratch.path}/tree"
            os.mkdir(self.path)
            for path, content in self._files.items():
                _place(os.path.join(os.fsencode(self.path), path), content)
        except OSError as err:
            self.remove()
            raise StoreError("there is no place to lay out attributes for a merge", details=str(err)) from err
        self.environment = {
            **clean_environment(),
            "GIT_WORK_TREE": self.path,
            # There is none: the user's is not for git to look into.
            "GIT_INDEX_FILE": f"{self._scratch.path}/index",
            **config_environment([*_SETTINGS, *drivers]),
        }

    def fits(self, commit: CommitId) -> bool:
        """Whether a commit has the same .gitattributes files. Raises StoreError."""
        return _rule_files(self._git_dir, commit) == self._files

    def remove(self) -> None:
        """Remove it; a second time does nothing."""
        if self._scratch:
            self._scratch.remove()


def _rule_files(git_dir: str, commit: CommitId) -> Mapping[bytes, bytes]:
    """Content of the .gitattributes files of a commit, by path."""
    try:
        found = _changed(git_dir, *_KNOWN.get(git_dir, _NOTHING), commit)
    except GitFailed:  # the commit known before may be gone
        found = _changed(git_dir, *_NOTHING, commit)
    _KNOWN[git_dir] = commit, found
    return found


def _changed(git_dir: str, old: str, files: Mapping[bytes, bytes], new: CommitId) -> Mapping[bytes, bytes]:
    """The files of `old` taken to `new`. Git compares with the pathspec faster than we read a list."""
    if old == new:
        return files
    command = ["diff-tree", "-r", "-z", "--raw", "--no-renames", old, new, "--", _ANY_RULES]
    words = git(command, git_dir=git_dir).split(b"\0")
    if len(words) < 2:
        return files
    repo, found = Repo(git_dir), dict(files)
    for meta, path in zip(words[::2], words[1::2], strict=False):
        _, mode, _, oid, _ = meta.split(b" ")
        found.pop(path, None)
        if mode in (FILE, EXECUTABLE) and _is_below(path):
            found[path] = repo.read_blob(oid.decode())
    return found


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
