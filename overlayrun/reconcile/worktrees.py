"""Working trees that have a branch checked out, and those of them that are in the middle of something."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from overlayrun.model import BranchName
from overlayrun.store.git import git
from overlayrun.store.refs import branch_ref

# What lies in a working tree's git directory meanwhile; git's wt-status.c looks for the same.
_UNDER_WAY: Final = (
    ("rebase-apply/applying", "git am"),
    ("rebase-apply", "a rebase"),
    ("rebase-merge", "a rebase"),
    ("MERGE_HEAD", "a merge"),
    ("CHERRY_PICK_HEAD", "a cherry-pick"),
    ("REVERT_HEAD", "a revert"),
    ("sequencer", "a cherry-pick or revert"),
    ("BISECT_START", "a bisect"),
)
# Files that name the branch that a rebase or bisect will come back to.
_RETURNS: Final = (
    "rebase-merge/head-name rebase-merge/update-refs rebase-apply/head-name BISECT_START".split()
)


@dataclass(frozen=True, slots=True)
class Held:
    """Why a working tree can't take the change now.

    why: part of a sentence, as "a.py is dirty". paths: what is in the way, sorted; () where it is no file.
    """

    worktree: str
    why: str
    paths: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkTree:
    """A working tree of the user's and its own git directory; both absolute."""

    path: str
    git_dir: str


def checked_out(common_dir: str, target: BranchName) -> tuple[list[WorkTree], tuple[Held, ...]]:
    """Working trees that have a branch checked out, and those that can't let it be moved now."""
    trees, held = [], []
    for tree, has_branch in _every(common_dir, target):
        if tree and (has_branch or _comes_back(tree, target)):
            trees.append(tree)
            held += [Held(tree.path, f"{what} is under way") for what in _under_way(tree)[:1]]
        elif has_branch:
            held.append(Held(common_dir, "git can't say where its working tree is"))
    return trees, tuple(held)


def every_tree(common_dir: str) -> list[WorkTree]:
    """Every working tree of the repository that is there."""
    return [tree for tree, _ in _every(common_dir, BranchName("")) if tree]


def has_head(tree: WorkTree, target: BranchName) -> bool:
    """Whether the tree has a branch checked out now."""
    return _lines(f"{tree.git_dir}/HEAD")[0] == f"ref: {branch_ref(target)}"


def _every(common_dir: str, target: BranchName) -> Iterator[tuple[WorkTree | None, bool]]:
    """Each working tree (None: the main one, which can't be found), and whether it has a branch."""
    for number, lines in enumerate(_listed(common_dir)):
        path, attributes = lines[0].removeprefix("worktree "), lines[1:]
        has_branch = f"branch {branch_ref(target)}" in attributes
        if "bare" in attributes or (number and not os.path.isdir(path)):
            continue
        tree = _linked(common_dir, path) if number else _main_tree(common_dir, path)
        if tree or not number:
            yield tree, has_branch


def _listed(common_dir: str) -> list[list[str]]:
    """Lines of each working tree as git lists them, the main one first."""
    listed = git(["worktree", "list", "--porcelain", "-z"], git_dir=common_dir)
    return [part.split("\0") for part in os.fsdecode(listed).split("\0\0") if part]


def _linked(common_dir: str, path: str) -> WorkTree | None:
    """The working tree at `path`, if it is one of this repository's."""
    dot = f"{path}/.git"
    try:
        if os.path.isdir(dot):
            git_dir = dot
        else:
            with open(dot, encoding="utf-8", errors="surrogateescape") as file:
                git_dir = os.path.join(path, file.read().strip().removeprefix("gitdir: "))
        shared = (
            common_dir if os.path.samefile(git_dir, common_dir) else os.path.dirname(os.path.dirname(git_dir))
        )
        is_ours = os.path.samefile(shared, common_dir)
    except OSError:
        return None
    return WorkTree(path, os.path.realpath(git_dir)) if is_ours else None


def _main_tree(common_dir: str, path: str) -> WorkTree | None:
    """The main working tree; git lists the git directory where that lies elsewhere (--separate-git-dir)."""
    usual = _linked(common_dir, path)
    if usual:
        return usual
    set_to = os.fsdecode(git(["config", "--null", "core.worktree"], git_dir=common_dir, check=False)).rstrip(
        "\0"
    )
    here = os.getcwd()
    above = ["/".join(here.split("/")[:end]) or "/" for end in range(here.count("/") + 1, 0, -1)]
    for place in [*([os.path.normpath(os.path.join(common_dir, set_to))] if set_to else []), *above]:
        tree = _linked(common_dir, place)
        if tree and os.path.samefile(tree.git_dir, common_dir):
            return tree
    return None


def _comes_back(tree: WorkTree, target: BranchName) -> bool:
    """Whether a rebase or bisect that is under way in the tree will come back to the branch."""
    names = {branch_ref(target), target}
    return any(not names.isdisjoint(_lines(f"{tree.git_dir}/{name}")) for name in _RETURNS)


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read().split("\n")
    except OSError:
        return [""]


def _under_way(tree: WorkTree) -> list[str]:
    """What keeps the tree from being moved, most important first."""
    return [what for name, what in _UNDER_WAY if os.path.lexists(f"{tree.git_dir}/{name}")]
