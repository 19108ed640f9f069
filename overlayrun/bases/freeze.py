"""Frozen trees: a full copy of one git tree, or a delta over one that is at hand. O(files) once, then O(diff).

The content comes from git's objects, so that it is right by construction while the user goes on editing; the times
come from his checkout where a file is clean there, so that incremental builds stay warm. (Copying the checkout in
Python took twice as long at 100,000 files, and every file had to be hashed to know what it was.)
"""

from __future__ import annotations

import os
import shutil

from overlayrun.bases.index import restat
from overlayrun.bases.stack import LONGEST_CHAIN, stack_of
from overlayrun.errors import StoreError
from overlayrun.files import remove_tree
from overlayrun.layers.marks import write_whiteout
from overlayrun.model import EMPTY_TREE, TreeId
from overlayrun.store.git import git

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final

    from overlayrun.store.location import Repository
    from overlayrun.workspace.layout import Layout

# Above this share of changed files a new base costs less than carrying the delta along.
_LARGEST_DELTA: Final = 20_000

# A checkout of ours runs no program that the user or the tree chose, and leaves no cache behind.
_SAFE: Final = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.splitIndex=false",
    "core.untrackedCache=false",
    "core.sparseCheckout=false",
    "feature.manyFiles=false",
    "index.version=2",
    "checkout.workers=0",
)


def freeze(layout: Layout, repository: Repository, tree: TreeId, tell: Callable[[str], None]) -> list[str]:
    """The stack of `tree`, made now where it is missing. tell: called with a line before anything slow."""
    if stack := stack_of(layout, tree):
        return stack
    nearest = None if tree == EMPTY_TREE else _nearest(layout)
    if nearest is not None:
        changes = _changes(repository, nearest, tree)
        if len(changes) <= _LARGEST_DELTA:
            _make(layout, repository, nearest, tree, changes)
            return stack_of(layout, tree)
    tell("first run on this tree: freezing it")
    _make(layout, repository, None, tree, [])
    return stack_of(layout, tree)


def _nearest(layout: Layout) -> TreeId | None:
    """The frozen tree that was made last, if another layer may lie on it."""
    made = [
        (os.stat(f"{directory}/{name}").st_mtime_ns, name.rpartition("-")[2])
        for directory in (layout.bases, layout.layers)
        for name in os.listdir(directory)
        if not name.startswith(".") and name != EMPTY_TREE
    ]
    for _, tree in sorted(made, reverse=True):
        if len(stack_of(layout, TreeId(tree))) < LONGEST_CHAIN:
            return TreeId(tree)
    return None


def _changes(repository: Repository, old: TreeId, new: TreeId) -> list[tuple[str, bytes]]:
    """(status letter, path) of everything that differs, directories that came or went included."""
    answer = git(["diff-tree", "-r", "-t", "-z", "--no-renames", "--name-status", old, new], git_dir=repository.git_dir)
    fields = answer.split(b"\0")
    return [(letter.decode(), path) for letter, path in zip(fields[::2], fields[1::2], strict=False)]


def _make(
    layout: Layout, repository: Repository, old: TreeId | None, new: TreeId, changes: Sequence[tuple[str, bytes]]
) -> None:
    place = layout.layer(old, new) if old else layout.base(new)
    aside = os.path.join(os.path.dirname(place), f".{os.getpid()}-{os.path.basename(place)}")
    remove_tree(aside)
    try:
        for directory in ("tree/.git", "git/objects/info", "git/objects/pack", "git/refs/heads", "git/info"):
            os.makedirs(f"{aside}/{directory}")
        _check_out(layout, repository, old, new, aside)
        _mark_deleted(f"{aside}/tree", changes)
        _keep_times(repository, new, aside, {path for letter, path in changes if letter != "D"} if old else None)
        os.rename(aside, place)
    except OSError as err:
        if not os.path.isdir(place):  # else another run was faster, with the same content
            raise StoreError(f"the base could not be frozen: {err.strerror}: {err.filename}") from err
    finally:
        remove_tree(aside)


def _check_out(layout: Layout, repository: Repository, old: TreeId | None, new: TreeId, aside: str) -> None:
    trees = [new]
    if old:
        trees = [old, new]
        # The index of the tree below keeps the stat data of everything that the delta does not touch.
        shutil.copyfile(f"{layout.root}/{stack_of(layout, old)[0]}/git/index", f"{aside}/git/index")
    settings = [word for setting in (*_SAFE, *_no_filters(repository)) for word in ("-c", setting)]
    command = [*settings, f"--work-tree={aside}/tree", "read-tree", "--reset", "-u", *trees]
    try:
        git(
            command,
            git_dir=repository.git_dir,
            cwd=f"{aside}/tree",
            env={"GIT_INDEX_FILE": f"{aside}/git/index", "GIT_OPTIONAL_LOCKS": "1"},
        )
    except StoreError as err:
        raise StoreError(
            f"git could not check the tree out: {err.details or err.brief}",
            hint="a partial clone needs its server once, a damaged one: git fsck",
        ) from err


def _no_filters(repository: Repository) -> list[str]:
    """Settings that empty every filter driver the user's configuration defines: none runs outside the sandbox."""
    names = git(
        ["config", "-z", "--name-only", "--get-regexp", r"^filter\."], git_dir=repository.git_dir, check=False
    )
    drivers = {name.rpartition(".")[0] for name in names.decode("utf-8", "surrogateescape").split("\0") if name}
    return [
        f"{driver}.{key}" for driver in sorted(drivers) for key in ("smudge=", "clean=", "process=", "required=false")
    ]


def _mark_deleted(tree: str, changes: Sequence[tuple[str, bytes]]) -> None:
    root = os.fsencode(tree)
    gone: bytes | None = None
    for letter, path in changes:
        if letter != "D" or (gone is not None and path.startswith(gone + b"/")):
            continue
        gone = path
        place = os.path.join(root, path)
        if not os.path.lexists(place):
            _write_mark(root, path)


def _write_mark(root: bytes, path: bytes) -> None:
    parent = os.path.dirname(os.path.join(root, path))
    os.makedirs(parent, exist_ok=True)
    fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        write_whiteout(fd, os.path.basename(path))
    finally:
        os.close(fd)


def _keep_times(repository: Repository, tree: TreeId, aside: str, paths: set[bytes] | None) -> None:
    """Give files the times of the checkout's where that holds the same content, and tell the index.

    Content of a filter driver's files (LFS) comes from the checkout too: no filter ran.
    """
    source, target = os.fsencode(repository.root), os.fsencode(f"{aside}/tree")
    # The porcelain, because it looks into files whose stat data alone differs; a plumbing diff-index does not.
    comparison = ["diff", "--name-only", "-z", "--no-renames", "--no-ext-diff", "--ignore-submodules", tree]
    listed = git(comparison, cwd=repository.root)
    changed = set(listed.split(b"\0"))
    filtered = _filtered(repository)

    def touch(path: bytes) -> None:
        if path in changed:
            return
        try:
            info = os.lstat(source + b"/" + path)
            if path in filtered:
                shutil.copyfile(source + b"/" + path, target + b"/" + path)
            os.utime(target + b"/" + path, ns=(info.st_atime_ns, info.st_mtime_ns), follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return

    restat(f"{aside}/git/index", target, paths, touch)


def _filtered(repository: Repository) -> set[bytes]:
    drivers = {setting.split(".", 1)[1].rpartition(".")[0] for setting in _no_filters(repository)}
    if not drivers:
        return set()
    specs = [f":(attr:filter={driver})" for driver in sorted(drivers)]
    return set(git(["ls-files", "-z", "--", *specs], cwd=repository.root).split(b"\0"))
