"""Bring files into the user's working trees so that no save of his is lost, even one made meanwhile.

Each file changes places with the new one in one step (renameat2(2), RENAME_EXCHANGE); what came out is looked
at, again after a moment for editors that write in place, and put back where it is not what git has. A journal
lets the next delivery finish or undo what was cut short. Git's hooks (post-merge) do not run.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from overlayrun.files import copy_file, flush_disk, remove_tree, write_new
from overlayrun.model import BranchName, CommitId
from overlayrun.reconcile.steps import Step, print_of, put
from overlayrun.reconcile.touched import GITLINK, Touched
from overlayrun.reconcile.works import (
    GRACE,
    Stop,
    Tell,
    Work,
    back_up_strangers,
    failed,
    finish,
    has_landed,
    scratch_directory,
    stamp_of,
    take_index,
    undo,
    write_journal,
)
from overlayrun.reconcile.worktrees import Held, WorkTree
from overlayrun.store.git import git
from overlayrun.store.refs import RefUpdate, branch_ref, update_refs
from overlayrun.workspace.layout import Layout

# File systems that can't exchange, and trees on another one than the state's: git's own merge has to do.
_UNABLE: Final = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
_PLAIN: Final = ("-c", "core.fsmonitor=false", "-c", "core.splitIndex=false")


@dataclass(frozen=True, slots=True)
class Seen:
    """How a tree looked before git was asked whether it is clean.

    stamp: identity of index and HEAD; empty where they are left alone. was: by path, print of the file; None
    where there is none.
    """

    tree: WorkTree
    stamp: list[object]
    was: dict[bytes, str | None]


@dataclass(frozen=True, slots=True)
class Order:
    """A branch to be moved, and what that changes.

    follows: it has moved or is to stay, only files change. uncommitted: nor does the index.
    """

    layout: Layout
    common_dir: str
    target: BranchName
    old: CommitId
    new: CommitId
    touched: Sequence[Touched]
    follows: bool = False
    uncommitted: bool = False


def see(tree: WorkTree, touched: Sequence[Touched], *, uncommitted: bool = False) -> Seen:
    """Look at what a delivery will displace. Raises OSError for what can't be read."""
    was = {each.path: print_of(_under(tree.path, each.path)) for each in touched if not each.is_added}
    return Seen(tree, [] if uncommitted else stamp_of(tree.git_dir), was)


def _under(root: str, path: bytes) -> str:
    return os.path.join(root, os.fsdecode(path))


# The way forward


def exchange(order: Order, seen: Sequence[Seen], tell: Tell) -> tuple[Held, ...] | None:
    """Move the branch with the files of trees in which nothing was found in the way; () means done.

    None means that a tree is one that can't be done so (other file system, sparse checkout, submodules):
    nothing was changed. Raises RefMoved, GitFailed where git can't make the new files; then too.
    """
    if not all(_is_able(order, each) for each in seen):
        return None
    try:
        works = _prepare_all(order, seen)
        with _uninterrupted():
            _carry_out(order, works, tell)
    except Stop as stop:
        return (stop.held,)
    except OSError as err:
        return None if err.errno in _UNABLE else (failed(seen[0].tree.path, err),)
    return ()


def _prepare_all(order: Order, seen: Sequence[Seen]) -> list[Work]:
    scratch = scratch_directory(order.layout)
    remove_tree(scratch)  # without a journal it holds nothing of the user's
    works = [_prepare(order, each, f"{scratch}/{number}") for number, each in enumerate(seen)]
    flush_disk(scratch)  # else a power cut could leave empty files in place of the user's
    _note(order, works, is_done=False)
    return works


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait, for us and for git, until the tree is whole."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _is_able(order: Order, seen: Seen) -> bool:
    tree = seen.tree
    if any(GITLINK in (each.old_mode, each.new_mode) for each in order.touched):
        return False
    if None in seen.was.values():  # left out of the tree, though the index has it
        return False
    if len({os.stat(path).st_dev for path in (order.layout.root, tree.path, tree.git_dir)}) > 1:
        return False
    sparse = git(["config", "--type=bool", "core.sparseCheckout"], cwd=tree.path, check=False)
    return sparse.strip() != b"true"


def _prepare(order: Order, seen: Seen, scratch: str) -> Work:
    """New files and new index of a tree, made by git where the user does not look."""
    tree, made = seen.tree, f"{scratch}/tree"
    os.makedirs(made)
    os.mkdir(f"{scratch}/side")
    write_new(f"{scratch}/lock", b"")
    env = {"GIT_INDEX_FILE": f"{scratch}/index"}
    if order.uncommitted:
        git([*_PLAIN, "read-tree", order.new], git_dir=tree.git_dir, env=env)
    else:
        copy_file(f"{tree.git_dir}/index", f"{scratch}/index")
        git([*_PLAIN, "read-tree", "-i", "-m", order.old, order.new], cwd=tree.path, env=env)
    paths = b"".join(each.path + b"\0" for each in order.touched if not each.is_deleted)
    checkout = [*_PLAIN, f"--work-tree={made}", "checkout-index", "-z", "--stdin"]
    git(checkout, git_dir=tree.git_dir, cwd=made, env=env, input=paths)
    # Deletions first: a file may come where a directory goes, and the other way round.
    ordered = sorted(order.touched, key=lambda each: (not each.is_deleted, each.path))
    steps = [_step(seen, each, scratch, number) for number, each in enumerate(ordered)]
    remove_tree(made)
    if order.uncommitted:
        os.unlink(f"{scratch}/index")
    return Work(tree.path, tree.git_dir, scratch, seen.stamp, steps)


def _note(order: Order, works: Sequence[Work], *, is_done: bool) -> None:
    data = {"target": order.target, "new": order.new, "follows": order.follows, "done": is_done}
    write_journal(order.layout, works, data)


def _step(seen: Seen, each: Touched, scratch: str, number: int) -> Step:
    place, side = _under(seen.tree.path, each.path), f"{scratch}/side/{number}"
    if not each.is_deleted:
        os.rename(_under(f"{scratch}/tree", each.path), side)
    roof = directory = os.path.dirname(place)
    while not os.path.isdir(directory):
        roof, directory = directory, os.path.dirname(directory)
    return Step(place, side, seen.was.get(each.path), print_of(side), roof if roof != directory else "")


def _carry_out(order: Order, works: Sequence[Work], tell: Tell) -> None:
    is_whole = False
    try:
        for work in works:
            take_index(work)
        for work in works:
            _move(work)
        _let_settle(works)
        flush_disk(order.layout.root)  # where the branch has moved, what was displaced is not kept
        if not order.follows:
            _move_branch(order, works[0])
        is_whole = True
    finally:
        if is_whole or (not order.follows and has_landed(order.common_dir, order.target, order.new)):
            for work in works:
                finish(work)
        else:
            undo(works)
            back_up_strangers(order.common_dir, works, tell)
        _note(order, works, is_done=True)


def _move_branch(order: Order, work: Work) -> None:
    move = RefUpdate(branch_ref(order.target), order.new, order.old)
    update_refs(work.git_dir, [move], why="merge")


def _move(work: Work) -> None:
    for step in work.steps:
        try:
            put(step)
        except OSError as err:
            if err.errno in _UNABLE:
                raise
            why = f"{work.name(step)} can't be replaced: {os.strerror(err.errno or 0)}"
            raise Stop(work, why, step.place) from err
        _check(work, step)


def _check(work: Work, step: Step) -> None:
    if step.was is not None and print_of(step.side) != step.was:
        raise Stop(work, f"{work.name(step)} was saved just now", step.place)


def _let_settle(works: Sequence[Work]) -> None:
    """Let the index know the new files, then see that nobody wrote into the old ones since."""
    end = time.monotonic() + GRACE
    for work in works:
        if not work.stamp:
            continue
        env = {"GIT_INDEX_FILE": f"{work.scratch}/index"}
        git([*_PLAIN, "update-index", "-q", "--refresh"], cwd=work.path, env=env, check=False)
    time.sleep(max(0.0, end - time.monotonic()))
    for work in works:
        for step in work.steps:
            _check(work, step)
