"""Three-way merges by git's own engine (ort), in no working tree and with no attributes but the target's.

In the user's work tree git would read his uncommitted .gitattributes, in a bare one none; so it gets a
directory that holds the target's alone. A source's attributes never choose a merge driver.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from overlayrun.errors import StoreError
from overlayrun.model import CommitId, TreeId
from overlayrun.store.commits import format_commit
from overlayrun.store.git import config_environment, git
from overlayrun.store.repo import Repo
from overlayrun.store.trees import EXECUTABLE, FILE, is_tree

_PREFIX: Final = "CONFLICT ("
_RULES: Final = b".gitattributes"


@dataclass(frozen=True, slots=True)
class Conflict:
    """A path whose merge has more than one answer left. kind: git's word, as `contents`, `modify/delete`."""

    path: bytes
    kind: str


@dataclass(frozen=True, slots=True)
class Merged:
    """A merge. tree: None while `conflicts` are left. messages: git's, in English."""

    tree: TreeId | None
    conflicts: tuple[Conflict, ...]
    messages: tuple[str, ...]


def merge_trees(git_dir: str, base: CommitId, target: CommitId, source: CommitId) -> Merged:
    """Combine what `source` changed since `base` with `target`. Writes objects, moves nothing.

    base: need not be the commits' own merge base. Conflicts are sorted by path. Raises StoreError.
    """
    repo = Repo(git_dir)
    if not _is_own_base(git_dir, base, target, source):
        target_, source_ = _related(repo, base, target, source)
    else:
        target_, source_ = target, source
    with _target_rules(repo, base, target, source) as environment:
        command = ["merge-tree", "--write-tree", "-z", "--messages", target_, source_]
        place = environment["GIT_WORK_TREE"]
        answer = git(command, git_dir=git_dir, cwd=place, env=environment, check=False)
    return _parse(answer)


def _is_own_base(git_dir: str, base: CommitId, target: CommitId, source: CommitId) -> bool:
    answer = git(["merge-base", "--all", target, source], git_dir=git_dir, check=False)
    return answer.split() == [base.encode()]


def _related(repo: Repo, base: CommitId, target: CommitId, source: CommitId) -> tuple[CommitId, CommitId]:
    """Commits of the same trees whose merge base is `base`'s tree; nothing refers to them."""

    def write(of: CommitId, parents: list[CommitId]) -> CommitId:
        tree = bytes.fromhex(repo.tree_of(of))
        return repo.write_commit(format_commit(tree, parents, b"overlayrun <>", 0, "for one merge\n"))

    root = write(base, [])
    return write(target, [root]), write(source, [root])


@contextmanager
def _target_rules(repo: Repo, base: CommitId, target: CommitId, source: CommitId) -> Iterator[dict[str, str]]:
    """Environment of a work tree with the target's .gitattributes, for directories that the merge meets."""
    with tempfile.TemporaryDirectory(prefix="overlayrun-merge-") as place:
        for directory in _met_directories(repo.git_dir, base, target, source):
            _place_rules(os.path.join(os.fsencode(place), directory), _rules_of(repo, target, directory))
        yield {
            "GIT_WORK_TREE": place,
            "GIT_INDEX_FILE": f"{place}/.git/index",  # missing, or the user's would answer for absent files
            **config_environment([("core.fsync", "loose-object"), ("core.fsmonitor", "false")]),
        }


def _place_rules(directory: bytes, content: bytes | None) -> None:
    if content is not None:
        os.makedirs(directory, exist_ok=True)
        with open(os.path.join(directory, _RULES), "wb") as file:
            file.write(content)


def _met_directories(git_dir: str, base: CommitId, target: CommitId, source: CommitId) -> set[bytes]:
    """Directories, with all above them, of every path that either side changed."""
    found = {b""}
    for side in (target, source):
        command = ["diff-tree", "-r", "-z", "--name-only", "--no-renames", base, side]
        for path in git(command, git_dir=git_dir).split(b"\0"):
            directory = path.rpartition(b"/")[0]
            while directory not in found:
                found.add(directory)
                directory = directory.rpartition(b"/")[0]
    return found


def _rules_of(repo: Repo, commit: CommitId, directory: bytes) -> bytes | None:
    tree = bytes.fromhex(repo.tree_of(commit))
    for name in directory.split(b"/") if directory else []:
        entry = repo.read_tree(tree).get(name)
        if entry is None or not is_tree(entry):
            return None
        tree = entry[1]
    rules = repo.read_tree(tree).get(_RULES)
    return repo.read_blob(rules[1].hex()) if rules and rules[0] in (FILE, EXECUTABLE) else None


def _parse(answer: bytes) -> Merged:
    """Source: git-merge-tree(1), "OUTPUT", with -z."""
    words = answer.split(b"\0")
    if len(words[0]) != 40:
        raise StoreError("git could not merge", details=os.fsdecode(answer) or None)
    end = words.index(b"", 1)
    paths = sorted({word.partition(b"\t")[2] for word in words[1:end]})
    kinds: dict[bytes, str] = {}
    messages: list[str] = []
    at = end + 1
    while at < len(words) and words[at]:
        count = int(words[at])
        concerned, kind, text = words[at + 1 : at + 1 + count], words[at + 1 + count], words[at + 2 + count]
        messages.append(text.decode("utf-8", "replace").strip())
        if kind.startswith(_PREFIX.encode()):
            # The machine-readable word calls this one "contents" as well.
            is_double = text.startswith(b"CONFLICT (add/add)")
            word = "add/add" if is_double else kind.decode().removeprefix(_PREFIX).rstrip(")")
            kinds |= {path: kinds.get(path, word) for path in concerned}
        at += 3 + count
    # A conflict may name only the path a file had before a rename; both count.
    conflicts = tuple(Conflict(path, kinds.get(path, "contents")) for path in sorted({*paths, *kinds}))
    return Merged(None if conflicts else TreeId(words[0].decode()), conflicts, tuple(messages))
