"""The user's uncommitted changes: found by one `git status`, copied into a layer, recorded as a commit.

Nothing here touches the user's index or files: git works on a copy of the index, and on the copied files, so
that the commit and the layer hold the same bytes while the user goes on typing.
"""

from __future__ import annotations

import os
import stat

from overlayrun.errors import StoreError
from overlayrun.files import copy_file, remove_tree
from overlayrun.layers.marks import mark_deleted
from overlayrun.model import EMPTY_TREE, CommitId
from overlayrun.store.git import git

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from overlayrun.store.location import Repository

_STATUS: Final = (
    "status",
    "--porcelain=v2",
    "-z",
    "--untracked-files=all",
    "--ignored=matching",
    "--no-renames",
    "--ignore-submodules=dirty",
)


class UserTree:
    """What `git status` says of the user's tree; paths as bytes below the root.

    changed: tracked and different from HEAD, or untracked and not ignored. ignored: directories end in "/".
    left_out: untracked repositories, which no commit of ours can hold.
    """

    __slots__ = ("changed", "ignored", "left_out")

    def __init__(self) -> None:
        self.changed: list[bytes] = []
        self.ignored: list[bytes] = []
        self.left_out: list[bytes] = []


def look(repository: Repository) -> UserTree:
    """One `git status` of the user's tree, which leaves his index alone."""
    found = UserTree()
    for line in git(_STATUS, cwd=repository.root).split(b"\0"):
        kind, _, rest = line.partition(b" ")
        if kind == b"!":
            found.ignored.append(rest)
        elif kind == b"?":
            (found.left_out if rest.endswith(b"/") else found.changed).append(rest)
        elif kind in {b"1", b"u"}:
            fields = rest.split(b" ", 7 if kind == b"1" else 9)
            if not fields[1].startswith(b"S"):  # a submodule's own changes are its own repository's
                found.changed.append(fields[-1])
    return found


def record_dirty(repository: Repository, changed: list[bytes], layer: str, message: str) -> CommitId:
    """Copy the changed files into the directory `layer` and commit them on top of HEAD; nothing moves a ref.

    A path that is gone from the user's tree becomes a whiteout. Raises StoreError where a file can't be read.
    """
    remove_tree(layer)
    os.makedirs(f"{layer}/.git")
    source, target = os.fsencode(repository.root), os.fsencode(layer)
    copied = {path for path in changed if _copy(source, target, path)}
    gone = [path for path in changed if path not in copied]
    try:
        commit = _commit(repository, sorted(copied), gone, layer, message)
    finally:
        remove_tree(f"{layer}/.git")
    for path in gone:
        _mark(source, target, path)
    return commit


def _copy(source: bytes, target: bytes, path: bytes) -> bool:
    """Whether there was a file to copy."""
    here, there = os.path.join(source, path), os.path.join(target, path)
    if _has_link(source, path):
        return False
    try:
        info = os.lstat(here)
    except (FileNotFoundError, NotADirectoryError):
        return False
    if not stat.S_ISREG(info.st_mode) and not stat.S_ISLNK(info.st_mode):
        return False  # a file that became a directory: its files are listed themselves
    _make_parents(source, target, os.path.dirname(path))
    try:
        _copy_entry(here, there, info)
    except OSError as err:
        raise StoreError(
            f"an uncommitted file can't be read: {os.fsdecode(path)}: {err.strerror}",
            hint="or: --dirty ignore",
        ) from err
    return True


def _above(path: bytes) -> list[bytes]:
    """The directories that a path lies in, below the root."""
    parts = path.split(b"/")
    return [b"/".join(parts[:end]) for end in range(1, len(parts))]


def _has_link(root: bytes, path: bytes) -> bool:
    """Whether a directory of the path has become a symlink: what lies behind it is not the tree's."""
    return any(os.path.islink(os.path.join(root, name)) for name in _above(path))


def _copy_entry(here: bytes, there: bytes, info: os.stat_result) -> None:
    if stat.S_ISREG(info.st_mode):
        copy_file(here, there)
        return
    os.symlink(os.readlink(here), there)
    os.utime(there, ns=(info.st_atime_ns, info.st_mtime_ns), follow_symlinks=False)


def _make_parents(source: bytes, target: bytes, directory: bytes) -> None:
    """Directories of a layer hide those below: they keep the modes and times of the user's."""
    if not directory or os.path.isdir(os.path.join(target, directory)):
        return
    _make_parents(source, target, os.path.dirname(directory))
    place = os.path.join(target, directory)
    os.mkdir(place)
    try:
        info = os.stat(os.path.join(source, directory))
    except FileNotFoundError:  # the whole directory is gone; the layer has it to hold the whiteouts
        return
    os.chmod(place, stat.S_IMODE(info.st_mode))
    os.utime(place, ns=(info.st_atime_ns, info.st_mtime_ns))


def _mark(source: bytes, target: bytes, path: bytes) -> None:
    """Hide a path that is no file any more: by a whiteout, or by what came in its place."""
    if _has_link(target, path) or any(os.path.isfile(os.path.join(target, name)) for name in _above(path)):
        return
    _make_parents(source, target, os.path.dirname(path))
    place = os.path.join(target, path)
    if os.path.lexists(place):
        return
    if os.path.isdir(os.path.join(source, path)) and not os.path.islink(os.path.join(source, path)):
        os.mkdir(place)
    else:
        mark_deleted(None, place)


def _commit(
    repository: Repository, changed: list[bytes], gone: list[bytes], layer: str, message: str
) -> CommitId:
    index = f"{layer}/.git/index"
    own = f"{repository.git_dir}/index"
    if os.path.exists(own):
        copy_file(own, index)
    env = {"GIT_INDEX_FILE": index, "GIT_OPTIONAL_LOCKS": "1"}
    plain = ["-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "core.splitIndex=false"]
    plain += ["-c", "core.fsync=loose-object"]  # git flushes none by default, and a ref will name them

    def on_copy(*command: str, data: bytes = b"") -> str:
        words = [*plain, f"--work-tree={layer}", *command]
        answer = git(words, git_dir=repository.git_dir, cwd=layer, env=env, input=data)
        return answer.decode().strip()

    # Removal takes all stages of a conflicted path; --replace makes way where a directory became a file.
    on_copy("update-index", "--force-remove", "-z", "--stdin", data=b"".join(path + b"\0" for path in gone))
    on_copy(
        "update-index", "--add", "--replace", "-z", "--stdin", data=b"".join(path + b"\0" for path in changed)
    )
    tree = on_copy("write-tree")
    parents = ["-p", repository.head] if repository.head else []
    if tree == EMPTY_TREE and not parents:
        raise StoreError("there is nothing to record", hint="add a file first")
    return CommitId(on_copy("commit-tree", *parents, "-m", message, tree))
