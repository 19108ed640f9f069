"""Bring files into the user's working trees so that no save of his is lost, even one made meanwhile.

Each file changes places with the new one in one step (renameat2(2), RENAME_EXCHANGE); what came out is looked
at, again after a moment for editors that write in place, and put back where it is not what git has. A journal
lets the next delivery finish or undo what was cut short. Git's hooks (post-merge) do not run.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final

from overlayrun.files import copy_file, flush_disk, read_bytes, remove_tree, write_new, write_whole
from overlayrun.model import BranchName, CommitId
from overlayrun.reconcile.backup import record
from overlayrun.reconcile.steps import Step, is_ours, print_of, prune, put, put_back, put_late_save
from overlayrun.reconcile.worktrees import Held, WorkTree
from overlayrun.store.commits import printable
from overlayrun.store.git import git
from overlayrun.store.refs import RefUpdate, branch_ref, update_refs
from overlayrun.store.repo import Repo
from overlayrun.workspace.layout import Layout

_GRACE: Final = 0.02
"""Seconds in which a process that has the old file open may still write to it; editors take under one ms."""
_GITLINK: Final = "160000"
_ABSENT: Final = "000000"
# File systems that can't exchange, and trees on another one than the state's: git's own merge has to do.
_UNABLE: Final = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
_PLAIN: Final = ("-c", "core.fsmonitor=false", "-c", "core.splitIndex=false")

Tell = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Touched:
    """A path that differs between two commits; modes and ids as git's raw diff has them."""

    path: bytes
    old_mode: str
    new_mode: str
    old: str
    new: str

    @property
    def is_added(self) -> bool:
        """Whether the old commit does not have it."""
        return self.old_mode == _ABSENT

    @property
    def is_deleted(self) -> bool:
        """Whether the new commit does not have it."""
        return self.new_mode == _ABSENT


@dataclass(frozen=True, slots=True)
class Seen:
    """How a tree looked before git was asked whether it is clean.

    stamp: identity of index and HEAD. was: by path, print of the file; None where there is none.
    """

    tree: WorkTree
    stamp: list[object]
    was: dict[bytes, str | None]


@dataclass(frozen=True, slots=True)
class Order:
    """A branch to be moved, and what that changes. follows: it has moved, only the files come after it."""

    layout: Layout
    common_dir: str
    target: BranchName
    old: CommitId
    new: CommitId
    touched: Sequence[Touched]
    follows: bool = False


@dataclass(frozen=True, slots=True)
class _Work:
    """One tree's part of a delivery. scratch: `index` to be installed, `lock`, `side/`."""

    path: str
    git_dir: str
    scratch: str
    stamp: list[object]
    steps: list[Step]


class _Stop(Exception):
    """The user was at work in a tree."""

    def __init__(self, work: _Work, why: str, path: str | None = None) -> None:
        super().__init__(why)
        self.held = Held(work.path, why, (_relative(work, path),) if path else ())


def _relative(work: _Work, path: str) -> bytes:
    return os.fsencode(os.path.relpath(path, work.path))


def see(tree: WorkTree, touched: Sequence[Touched]) -> Seen:
    """Look at what a delivery will displace. Raises OSError for what can't be read."""
    was = {each.path: print_of(_under(tree.path, each.path)) for each in touched if not each.is_added}
    return Seen(tree, _stamp(tree.git_dir), was)


def _under(root: str, path: bytes) -> str:
    return os.path.join(root, os.fsdecode(path))


def _stamp(git_dir: str) -> list[object]:
    info = os.stat(f"{git_dir}/index")
    return [info.st_ino, info.st_size, info.st_mtime_ns, read_bytes(f"{git_dir}/HEAD").hex()]


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
    except _Stop as stop:
        return (stop.held,)
    except OSError as err:
        return None if err.errno in _UNABLE else (_failed(seen[0].tree.path, err),)
    return ()


def _failed(worktree: str, err: OSError) -> Held:
    name = printable(os.fsdecode(err.filename or "a file"), one_line=True)
    return Held(worktree, f"{name} can't be written: {os.strerror(err.errno or 0)}")


def _prepare_all(order: Order, seen: Sequence[Seen]) -> list[_Work]:
    scratch = scratch_directory(order.layout)
    remove_tree(scratch)  # without a journal it holds nothing of the user's
    works = [_prepare(order, each, f"{scratch}/{number}") for number, each in enumerate(seen)]
    flush_disk(scratch)  # else a power cut could leave empty files in place of the user's
    _write_journal(order, works, is_done=False)
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
    if any(_GITLINK in (each.old_mode, each.new_mode) for each in order.touched):
        return False
    if None in seen.was.values():  # left out of the tree, though the index has it
        return False
    if len({os.stat(path).st_dev for path in (order.layout.root, tree.path, tree.git_dir)}) > 1:
        return False
    sparse = git(["config", "--type=bool", "core.sparseCheckout"], cwd=tree.path, check=False)
    return sparse.strip() != b"true"


def scratch_directory(layout: Layout) -> str:
    """Where a delivery has what it needs, on the trees' own file system; kept until the next one."""
    return f"{layout.root}/delivery"


def _prepare(order: Order, seen: Seen, scratch: str) -> _Work:
    """New files and new index of a tree, made by git where the user does not look."""
    tree, made = seen.tree, f"{scratch}/tree"
    os.makedirs(made)
    os.mkdir(f"{scratch}/side")
    write_new(f"{scratch}/lock", b"")
    copy_file(f"{tree.git_dir}/index", f"{scratch}/index")
    env = {"GIT_INDEX_FILE": f"{scratch}/index"}
    git([*_PLAIN, "read-tree", "-i", "-m", order.old, order.new], cwd=tree.path, env=env)
    paths = b"".join(each.path + b"\0" for each in order.touched if not each.is_deleted)
    checkout = [*_PLAIN, f"--work-tree={made}", "checkout-index", "-z", "--stdin"]
    git(checkout, git_dir=tree.git_dir, cwd=made, env=env, input=paths)
    # Deletions first: a file may come where a directory goes, and the other way round.
    ordered = sorted(order.touched, key=lambda each: (not each.is_deleted, each.path))
    steps = [_step(seen, each, scratch, number) for number, each in enumerate(ordered)]
    remove_tree(made)
    return _Work(tree.path, tree.git_dir, scratch, seen.stamp, steps)


def _step(seen: Seen, each: Touched, scratch: str, number: int) -> Step:
    place, side = _under(seen.tree.path, each.path), f"{scratch}/side/{number}"
    if not each.is_deleted:
        os.rename(_under(f"{scratch}/tree", each.path), side)
    roof = directory = os.path.dirname(place)
    while not os.path.isdir(directory):
        roof, directory = directory, os.path.dirname(directory)
    return Step(place, side, seen.was.get(each.path), print_of(side), roof if roof != directory else "")


def _carry_out(order: Order, works: Sequence[_Work], tell: Tell) -> None:
    is_whole = False
    try:
        for work in works:
            _lock(work)
            if _stamp(work.git_dir) != work.stamp:
                raise _Stop(work, "another git process was at work")
        for work in works:
            _move(work)
        _let_settle(works)
        flush_disk(order.layout.root)  # where the branch has moved, what was displaced is not kept
        if not order.follows:
            move = RefUpdate(branch_ref(order.target), order.new, order.old)
            update_refs(works[0].git_dir, [move], why="merge")
        is_whole = True
    finally:
        if is_whole or (not order.follows and _has_landed(order.common_dir, order.target, order.new)):
            for work in works:
                _finish(work)
        else:
            _undo(works)
            _back_up_strangers(order.common_dir, works, tell)
        _write_journal(order, works, is_done=True)


def _has_landed(common_dir: str, target: BranchName, new: CommitId) -> bool:
    repo = Repo(common_dir)
    tip = repo.ref(branch_ref(target))
    return tip is not None and repo.is_ancestor(new, tip)


def _lock(work: _Work) -> None:
    """Take git's lock of the index, by a link: its inode says after a crash whose it was."""
    try:
        os.link(f"{work.scratch}/lock", f"{work.git_dir}/index.lock")
    except FileExistsError:
        raise _Stop(work, "another git process holds index.lock") from None
    except PermissionError as err:  # link(2): EPERM where the file system has no hard links
        raise OSError(errno.EOPNOTSUPP, err.strerror) from err


def _unlock(work: _Work) -> None:
    if _is_locked(work):
        os.unlink(f"{work.git_dir}/index.lock")


def _is_locked(work: _Work) -> bool:
    try:
        return os.path.samefile(f"{work.git_dir}/index.lock", f"{work.scratch}/lock")
    except FileNotFoundError:
        return False


def _move(work: _Work) -> None:
    for step in work.steps:
        try:
            put(step)
        except OSError as err:
            if err.errno in _UNABLE:
                raise
            why = f"{_name(work, step)} can't be replaced: {os.strerror(err.errno or 0)}"
            raise _Stop(work, why, step.place) from err
        _check(work, step)


def _check(work: _Work, step: Step) -> None:
    if step.was is not None and print_of(step.side) != step.was:
        raise _Stop(work, f"{_name(work, step)} was saved just now", step.place)


def _name(work: _Work, step: Step) -> str:
    return printable(os.fsdecode(_relative(work, step.place)), one_line=True)


def _let_settle(works: Sequence[_Work]) -> None:
    """Let the index know the new files, then see that nobody wrote into the old ones since."""
    end = time.monotonic() + _GRACE
    for work in works:
        env = {"GIT_INDEX_FILE": f"{work.scratch}/index"}
        git([*_PLAIN, "update-index", "-q", "--refresh"], cwd=work.path, env=env, check=False)
    time.sleep(max(0.0, end - time.monotonic()))
    for work in works:
        for step in work.steps:
            _check(work, step)


def _finish(work: _Work) -> None:
    """The part after the branch has moved; may be done again."""
    if os.path.lexists(f"{work.scratch}/index"):
        os.replace(f"{work.scratch}/index", f"{work.git_dir}/index")
        flush_disk(work.git_dir)
    _unlock(work)
    for step in work.steps:
        if step.now is None:
            prune(os.path.dirname(step.place), work.path)


# The way back


def _undo(works: Sequence[_Work]) -> None:
    """Put every file back by what it holds; may be done again at any point."""
    for work in works:
        for step in reversed(work.steps):
            put_back(step)
    time.sleep(_GRACE)
    for work in works:
        for step in work.steps:
            put_late_save(step)
        _unlock(work)


def _back_up_strangers(common_dir: str, works: Sequence[_Work], tell: Tell) -> None:
    """Record in a ref what was displaced, is not in git and could not be put back."""
    for work in works:
        strange = [step for step in work.steps if not is_ours(step)]
        if not strange:
            continue
        displaced = [(step.side, _relative(work, step.place)) for step in strange]
        ref = record(common_dir, f"{work.scratch}/strange", displaced)
        for step in strange:
            remove_tree(step.side) if os.path.isdir(step.side) else os.unlink(step.side)
        names = ", ".join(_name(work, step) for step in strange)
        tell(f"what you saved meanwhile is kept: git show {ref} ({names})")


# After a crash


def _write_journal(order: Order, works: Sequence[_Work], *, is_done: bool) -> None:
    data = {name: getattr(order, name) for name in ("target", "new", "follows")}
    data |= {"done": is_done, "works": [asdict(work) for work in works]}
    write_whole(_journal(order.layout), json.dumps(data).encode(), durable=True)


def _journal(layout: Layout) -> str:
    return f"{layout.root}/delivery.json"


def recover_exchange(common_dir: str, layout: Layout, tell: Tell) -> tuple[Held, ...]:
    """Finish or undo an earlier delivery that was cut short; () when all is in order.

    Where the branch has moved, forward; else, and where files only followed it, back. Files that were
    displaced then are looked at once more: an editor may have held one open all the time. The caller holds
    the lock of deliveries.
    """
    try:
        data: dict[str, Any] = json.loads(read_bytes(_journal(layout)))
    except FileNotFoundError:
        return ()
    works = [_Work(**{**work, "steps": [Step(**step) for step in work["steps"]]}) for work in data["works"]]
    try:
        held = () if data["done"] else _resume(common_dir, data, works, tell)
    except OSError as err:
        return (_failed(common_dir, err),)
    if not held:
        _back_up_strangers(common_dir, works, tell)
        os.unlink(_journal(layout))
        remove_tree(scratch_directory(layout))
    return held


def _resume(common_dir: str, data: Mapping[str, Any], works: Sequence[_Work], tell: Tell) -> tuple[Held, ...]:
    there = [work for work in works if os.path.isdir(work.git_dir) and os.path.isdir(work.path)]
    target, new = BranchName(data["target"]), CommitId(data["new"])
    if not data["follows"] and _has_landed(common_dir, target, new):
        return tuple(held for work in there for held in _finish_late(work, tell))
    _undo(there)
    return ()


def _finish_late(work: _Work, tell: Tell) -> tuple[Held, ...]:
    if os.path.lexists(f"{work.scratch}/index"):
        try:
            if not _is_locked(work):
                _lock(work)
        except _Stop as stop:
            return (stop.held,)
        if _stamp(work.git_dir) != work.stamp:
            os.unlink(f"{work.scratch}/index")  # it would undo what the user did with his own meanwhile
            tell(f"the index of {work.path} is older than its branch: see git status")
    _finish(work)
    return ()
