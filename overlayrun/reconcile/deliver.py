"""Move a branch forward together with the files of every working tree that has it checked out, or not at all.

Nothing of the user's is ever stashed, overwritten or marked: a file in the way means that the delivery is
held, with its name, and tried again later.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from overlayrun.errors import RefMoved
from overlayrun.files import remove_tree
from overlayrun.model import BranchName, CommitId
from overlayrun.reconcile.exchange import Order, exchange, see
from overlayrun.reconcile.touched import GITLINK, mode_of, strangers, touched_between
from overlayrun.reconcile.works import PATIENCE, PAUSE, Tell, alone, recover_exchange, scratch_directory
from overlayrun.reconcile.worktrees import Held, WorkTree, checked_out, every_tree, has_head
from overlayrun.store.commits import printable
from overlayrun.store.git import GitFailed, git
from overlayrun.store.refs import RefUpdate, branch_ref, flush_refs, update_refs
from overlayrun.workspace.layout import Layout

__all__ = ["Held", "deliver", "recover_delivery"]

_DIRTY: Final = "dirty"
_STAGED: Final = "staged"
_UNTRACKED: Final = "untracked and in the way"
_IGNORED: Final = "ignored and in the way"


def deliver(
    common_dir: str,
    layout: Layout,
    target: BranchName,
    old: CommitId,
    new: CommitId,
    tell: Tell = lambda _: None,
) -> tuple[Held, ...]:
    """Move refs/heads/`target` from `old` to `new`, a descendant, with the files of all its working trees.

    () means done everywhere; otherwise nothing was moved anywhere. A working tree whose directory is gone
    does not count. Where the branch is not checked out, the ref alone moves. No hook of the user's runs, save
    where the files can't be exchanged and `git merge` has to do it: then his post-merge does.
    tell: called with what the user must know, one sentence each: where something that he saved meanwhile is
    kept. Raises RefMoved where the branch is not at `old` any more.
    """
    with alone(layout) as lock:
        if not lock:
            return (Held(common_dir, "another delivery is under way"),)
        held = recover_exchange(common_dir, layout, tell)
        if held:
            return held
        trees, held = checked_out(common_dir, target)
        _check_ref(common_dir, target, old)
        if held:
            return held
        order = Order(layout, common_dir, target, old, new, touched_between(common_dir, old, new))
        return _deliver(order, trees, lock, tell) if trees else _movealone(order, tell)


def _movealone(order: Order, tell: Tell) -> tuple[Held, ...]:
    """Move a branch that no tree has checked out; a tree that is just being switched to it gets its files."""
    for tree in every_tree(order.common_dir):
        if os.path.lexists(f"{tree.git_dir}/index.lock"):
            return (Held(tree.path, "another git process is at work there"),)
    update_refs(order.common_dir, [RefUpdate(branch_ref(order.target), order.new, order.old)], why="merge")
    flush_refs(order.common_dir, [branch_ref(order.target)])
    time.sleep(PAUSE)  # git looks at a branch some moments before it takes its lock
    for tree in every_tree(order.common_dir):
        end = time.monotonic() + PATIENCE
        while os.path.lexists(f"{tree.git_dir}/index.lock") and time.monotonic() < end:
            time.sleep(PAUSE)
        if has_head(tree, order.target) and not _follow(replace(order, follows=True), tree, tell):
            tell(f"{tree.path} was being switched while its branch moved on: see git status")
    return ()


def _follow(order: Order, tree: WorkTree, tell: Tell) -> bool:
    """Bring a tree on that was switched to the branch with the files that it had before it moved.

    Whether it has them now. The user is at work in it, so that each file changes places as in a delivery.
    """
    try:
        if not _index_is_of(tree, order.old) or _index_is_of(tree, order.new):
            return True
        seen = [see(tree, order.touched)]
        done = _examine(order, tree) or exchange(order, seen, tell)
        if done is None:
            _move_files(tree, order.old, order.new)
    except (GitFailed, OSError):
        return False
    return not done


def _index_is_of(tree: WorkTree, commit: CommitId) -> bool:
    try:
        git(["diff-index", "--cached", "--quiet", commit], cwd=tree.path)
    except GitFailed as err:
        if err.code == 1:
            return False
        raise
    return True


def recover_delivery(common_dir: str, layout: Layout, tell: Tell = lambda _: None) -> tuple[Held, ...]:
    """Finish or undo a delivery that was killed, as the next one would; () when all is in order."""
    with alone(layout) as lock:
        return recover_exchange(common_dir, layout, tell) if lock else ()


def _deliver(order: Order, trees: Sequence[WorkTree], lock: int, tell: Tell) -> tuple[Held, ...]:
    try:
        seen = [see(tree, order.touched) for tree in trees]
    except OSError as err:
        return (Held(trees[0].path, f"{_shown(os.fsencode(err.filename))} can't be read"),)
    held = tuple(held for tree in trees for held in _examine(order, tree))
    if held:
        return held
    try:
        fcntl.fcntl(lock, fcntl.F_SETFD, 0)  # a git of ours that outlives us holds it on
        done = exchange(order, seen, tell)
    except GitFailed as err:
        return (_refused(trees[0], err),)
    finally:
        fcntl.fcntl(lock, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    return _merge_all(order, trees) if done is None else done


def _check_ref(common_dir: str, target: BranchName, old: CommitId) -> None:
    now = git(["rev-parse", "--verify", "-q", branch_ref(target)], git_dir=common_dir, check=False)
    if now.decode().strip() != old:
        raise RefMoved(f"{target} was moved by somebody else meanwhile")


def _examine(order: Order, tree: WorkTree) -> tuple[Held, ...]:
    """Why a tree can't take the change, or ()."""
    if os.path.lexists(f"{tree.git_dir}/index.lock"):
        return (Held(tree.path, "another git process holds index.lock"),)
    try:
        found = _obstacles(order, tree)
    except GitFailed as err:
        return (_refused(tree, err),)
    return (_held(tree, found),) if found else ()


def _held(tree: WorkTree, found: dict[bytes, str]) -> Held:
    """found: by path, what is wrong with it; not empty."""
    paths = sorted(found)
    name, kinds = _shown(paths[0]), set(found.values())
    if len(paths) == 1:
        why = f"{name} is {found[paths[0]]}"
    else:
        why = f"{name} and {len(paths) - 1} more are {kinds.pop() if len(kinds) == 1 else 'in the way'}"
    return Held(tree.path, why, tuple(paths))


def _shown(path: bytes) -> str:
    return printable(os.fsdecode(path), one_line=True)


def _obstacles(order: Order, tree: WorkTree) -> dict[bytes, str]:
    """What lies in the way of the touched paths, by path."""
    deleted = {each.path for each in order.touched if each.is_deleted}
    added = [each for each in order.touched if each.is_added]
    strange = {path for each in added for path in strangers(tree.path, each, deleted)}
    ignored = _ignored(tree, strange)
    found = {path: _IGNORED if path in ignored else _UNTRACKED for path in strange}
    found |= dict.fromkeys(
        _staged(tree, order.old).intersection(each.path for each in order.touched), _STAGED
    )
    return found | dict.fromkeys(_edited(order, tree), _DIRTY)


def _ignored(tree: WorkTree, paths: Iterable[bytes]) -> set[bytes]:
    data = b"".join(path + b"\0" for path in paths)
    if not data:
        return set()
    return set(git(["check-ignore", "-z", "--stdin"], cwd=tree.path, input=data, check=False).split(b"\0"))


def _staged(tree: WorkTree, old: CommitId) -> set[bytes]:
    """Paths where the user's index differs from a commit; those of an unfinished merge too."""
    command = [
        "diff-index",
        "--cached",
        "--name-only",
        "-z",
        "--no-renames",
        "--ignore-submodules=none",
        old,
        "--",
    ]
    return set(git(command, cwd=tree.path).split(b"\0")[:-1])


def _edited(order: Order, tree: WorkTree) -> set[bytes]:
    """Paths whose file is not what the old commit has, whatever the index claims about them.

    Git compares them by an index of these paths alone, in which nothing is assumed and nothing is known yet:
    O(touched), with the user's own filters. What differs and yet is clean for the user's index (a file that
    was committed with other line ends than its attributes ask for) is not edited.
    """
    files = [each for each in order.touched if not each.is_added and each.old_mode != GITLINK]
    lines = b"".join(f"{each.old_mode} {each.old}\t".encode() + each.path + b"\0" for each in files)
    scratch = scratch_directory(order.layout)
    remove_tree(scratch)
    os.mkdir(scratch)
    env = {"GIT_INDEX_FILE": f"{scratch}/index"}
    git(["update-index", "-z", "--index-info"], cwd=tree.path, env=env, input=lines)
    git(["update-index", "-q", "--refresh"], cwd=tree.path, env=env, check=False)
    differs = _diff_files(tree, env)
    return differs - _trusted(tree) if differs else differs


def _diff_files(tree: WorkTree, env: dict[str, str]) -> set[bytes]:
    command = ["-c", "core.fsmonitor=false", "diff-files", "--name-only", "-z", "--ignore-submodules=all"]
    return set(git(command, cwd=tree.path, env=env).split(b"\0")[:-1])


def _trusted(tree: WorkTree) -> set[bytes]:
    """Paths that the user's index knows to be clean, and those that a sparse checkout leaves out."""
    tagged = git(["ls-files", "-z", "-v"], cwd=tree.path).split(b"\0")[:-1]
    root = os.fsencode(tree.path)
    left_out = {
        line[2:] for line in tagged if line[:1] in b"Ss" and mode_of(os.path.join(root, line[2:])) is None
    }
    # A lower-case letter: the file is assumed to be unchanged, which nobody has looked at.
    return ({line[2:] for line in tagged if line[:1] == b"H"} - _diff_files(tree, {})) | left_out


def _merge_all(order: Order, trees: Sequence[WorkTree]) -> tuple[Held, ...]:
    """Let git move ref and files of one tree, after the files of the others, whose HEAD follows the ref."""
    first, *others = trees
    moved: list[WorkTree] = []
    failed: tuple[WorkTree, GitFailed] | None = None
    for tree in (*others, first):
        try:
            _merge(tree, order.new) if tree is first else _move_files(tree, order.old, order.new)
        except GitFailed as err:
            failed = tree, err
            break
        moved.append(tree)
    if failed is None:
        return ()
    for tree in moved:
        _move_files(tree, order.new, order.old)
    _check_ref(order.common_dir, order.target, order.old)
    return (_refused(*failed),)


def _merge(tree: WorkTree, new: CommitId) -> None:
    # Each of these could be turned round by merge.autoStash or branch.<name>.mergeOptions.
    against = ["--no-autostash", "--no-squash", "--commit", "--no-stat"]
    git(["merge", "--ff-only", "--no-overwrite-ignore", "-q", *against, new], cwd=tree.path)


def _move_files(tree: WorkTree, old: CommitId, new: CommitId) -> None:
    """Files and index of a tree from one commit to another, without its HEAD."""
    git(["read-tree", "-m", "-u", old, new], cwd=tree.path)


def _refused(tree: WorkTree, err: GitFailed) -> Held:
    if os.path.lexists(f"{tree.git_dir}/index.lock"):
        return Held(tree.path, "another git process holds index.lock")
    words = (err.details or err.brief).partition("\n")[0]
    return Held(tree.path, f"git refuses: {printable(words, one_line=True)}")
