"""Frozen trees: a full copy of one git tree, or a delta over one at hand. O(files) once, then O(diff).

The content comes from git's objects, so that it is right by construction while the user goes on editing; the
times come from his checkout where a file is clean there, so that incremental builds stay warm. (Copying the
checkout in Python took twice as long at 100,000 files, and every file had to be hashed to know what it was.)
"""

from __future__ import annotations

import os

from overlayrun.bases.index import restat
from overlayrun.bases.stack import BOOT, LONGEST_CHAIN, birth_mark, stack_of
from overlayrun.errors import StoreError
from overlayrun.files import copy_file, remove_tree, write_whole
from overlayrun.layers.marks import mark_deleted
from overlayrun.model import EMPTY_TREE, TreeId
from overlayrun.store.git import git, git_shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final

    from overlayrun.store.location import Repository
    from overlayrun.workspace.layout import Layout

# Above this share of changed files a new base costs less than carrying the delta along.
_LARGEST_DELTA: Final = 20_000
# Paths that fit on a command line for certain (execve(2): 128 KiB an argument, at least as much for all).
_FEW: Final = 200

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


def remake(layout: Layout, repository: Repository, layer: str) -> None:
    """Make a layer again under its name: a power cut may have torn it."""
    old, _, new = os.path.basename(layer).rpartition("-")
    remove_tree(f"{layout.root}/{layer}")
    below = TreeId(old) if old else None
    _make(layout, repository, below, TreeId(new), _changes(repository, below, TreeId(new)) if below else [])


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
    command = ["diff-tree", "-r", "-t", "-z", "--no-renames", "--name-status", old, new]
    fields = git(command, git_dir=repository.git_dir).split(b"\0")
    return [(letter.decode(), path) for letter, path in zip(fields[::2], fields[1::2], strict=False)]


def write_layer(repository: Repository, old: TreeId, new: TreeId, place: str, scratch: str) -> None:
    """Fill the directory `place` with the layer that turns `old` into `new`; neither tree need be frozen.

    scratch: a directory of ours for git's index, on the same file system.
    """
    index = f"{scratch}/index"
    if os.path.exists(index):
        os.unlink(index)
    env = {"GIT_INDEX_FILE": index, "GIT_OPTIONAL_LOCKS": "1"}
    git(["-c", "index.version=2", "read-tree", old], git_dir=repository.git_dir, env=env)
    _check_out(repository, [old, new], place, index)
    _mark_deleted(place, _changes(repository, old, new))
    os.unlink(index)


def _make(
    layout: Layout,
    repository: Repository,
    old: TreeId | None,
    new: TreeId,
    changes: Sequence[tuple[str, bytes]],
) -> None:
    place = layout.layer(old, new) if old else layout.base(new)
    aside = os.path.join(os.path.dirname(place), f".{os.getpid()}-{os.path.basename(place)}")
    remove_tree(aside)
    try:
        for directory in ("tree/.git", "git/objects/info", "git/objects/pack", "git/refs/heads", "git/info"):
            os.makedirs(f"{aside}/{directory}")
        if old:
            copy_file(f"{layout.root}/{stack_of(layout, old)[0]}/git/index", f"{aside}/git/index")
        _check_out(repository, [old, new] if old else [new], f"{aside}/tree", f"{aside}/git/index")
        _mark_deleted(f"{aside}/tree", changes)
        written = {path for letter, path in changes if letter != "D"} if old else None
        _keep_times(repository, new, aside, written)
        write_whole(f"{aside}/{BOOT}", birth_mark(f"{aside}/tree"), durable=False)
        os.rename(aside, place)
    except OSError as err:
        if not os.path.isdir(place):  # else another run was faster, with the same content
            raise StoreError(f"the base could not be frozen: {err.strerror}: {err.filename}") from err
    finally:
        remove_tree(aside)


def _check_out(repository: Repository, trees: Sequence[TreeId], place: str, index: str) -> None:
    """Let git write a tree, or what differs between two, and their index.

    With two trees the index is that of the first; its stat data of everything that is the same in both is
    kept.
    """
    settings = [word for setting in (*_SAFE, *_no_filters(repository)) for word in ("-c", setting)]
    verbose = ["-v"] if os.isatty(2) else []
    command = [*settings, f"--work-tree={place}", "read-tree", "--reset", "-u", *verbose, *trees]
    env = {"GIT_INDEX_FILE": index, "GIT_OPTIONAL_LOCKS": "1", "GIT_PROGRESS_DELAY": "1"}
    try:
        # git's own progress, "Updating files:  42% (…)", once it has worked for a second.
        git_shown(command, git_dir=repository.git_dir, cwd=place, env=env, show=_show)
    except StoreError as err:
        raise StoreError(
            f"git could not check the tree out: {err.details or err.brief}",
            hint="a partial clone needs its server once, a damaged one: git fsck",
        ) from err


def _show(piece: bytes) -> None:
    if os.isatty(2):
        os.write(2, piece)


def _no_filters(repository: Repository) -> list[str]:
    """Settings that empty every filter driver of the user's: none runs outside the sandbox."""
    names = git(
        ["config", "-z", "--name-only", "--get-regexp", r"^filter\."], git_dir=repository.git_dir, check=False
    )
    known = names.decode("utf-8", "surrogateescape").split("\0")
    drivers = sorted({name.rpartition(".")[0] for name in known if name})
    return [
        f"{driver}.{key}" for driver in drivers for key in ("smudge=", "clean=", "process=", "required=false")
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
        mark_deleted(fd, os.path.basename(path))
    finally:
        os.close(fd)


def _keep_times(repository: Repository, tree: TreeId, aside: str, paths: set[bytes] | None) -> None:
    """Give files the times of the checkout's where that holds the same content, and tell the index.

    Content of a filter driver's files (LFS) comes from the checkout too: no filter ran.
    """
    source, target = os.fsencode(repository.root), os.fsencode(f"{aside}/tree")
    if not os.path.exists(f"{repository.git_dir}/index"):  # nothing was ever checked out here
        restat(f"{aside}/git/index", target, paths, lambda _: None)
        return
    # The porcelain, because it looks into files whose stat data alone differs; a plumbing diff-index does
    # not. On a copy of the index, because it would write the user's.
    copy = f"{aside}/git/user-index"
    copy_file(f"{repository.git_dir}/index", copy)
    comparison = ["diff", "--name-only", "-z", "--no-renames", "--no-ext-diff", "--ignore-submodules", tree]
    if paths is not None and len(paths) <= _FEW:  # else git looks at every file: 150 ms at 100,000
        comparison += ["--", *map(os.fsdecode, sorted(paths))] if paths else ["--", ".git"]
    listed = git(comparison, cwd=repository.root, env={"GIT_INDEX_FILE": copy, "GIT_LITERAL_PATHSPECS": "1"})
    os.unlink(copy)
    changed = set(listed.split(b"\0"))
    filtered = _filtered(repository)

    def touch(path: bytes) -> None:
        if path in changed:
            return
        try:
            info = os.lstat(source + b"/" + path)
            if path in filtered:
                copy_file(source + b"/" + path, target + b"/" + path)
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
