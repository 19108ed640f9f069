"""One tree's part of a delivery, written down: the next one finishes or undoes what was cut short."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final

from overlayrun.files import flush_disk, read_bytes, remove_tree, write_whole
from overlayrun.model import BranchName, CommitId
from overlayrun.reconcile.backup import record
from overlayrun.reconcile.steps import Step, is_ours, prune, put_back, put_late_save
from overlayrun.reconcile.worktrees import Held
from overlayrun.store.commits import printable
from overlayrun.store.refs import branch_ref
from overlayrun.store.repo import Repo
from overlayrun.workspace.layout import Layout

GRACE: Final = 0.02
"""Seconds in which a process that has the old file open may still write to it; editors take under one ms."""
PAUSE: Final = 0.02
PATIENCE: Final = 30.0
"""Seconds to wait for another delivery."""

Tell = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Work:
    """One tree's part of a delivery. scratch: `index` to be installed, `lock`, `side/`.

    stamp: of the index that is to be replaced; empty where the user's index stays as it is.
    """

    path: str
    git_dir: str
    scratch: str
    stamp: list[object]
    steps: list[Step]

    def relative(self, path: str) -> bytes:
        """A path of the tree, below its root."""
        return os.fsencode(os.path.relpath(path, self.path))

    def name(self, step: Step) -> str:
        """The file of a step, for people."""
        return printable(os.fsdecode(self.relative(step.place)), one_line=True)


class Stop(Exception):
    """The user was at work in a tree."""

    def __init__(self, work: Work, why: str, path: str | None = None) -> None:
        super().__init__(why)
        self.held = Held(work.path, why, (work.relative(path),) if path else ())


@contextmanager
def alone(layout: Layout) -> Iterator[int]:
    """Hold the flock that makes deliveries come one at a time; 0 where another's takes too long."""
    fd = os.open(f"{layout.root}/deliver.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield fd if _wait_for(fd) else 0
    finally:
        os.close(fd)


def _wait_for(fd: int) -> bool:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(PAUSE)
        else:
            return True


def scratch_directory(layout: Layout) -> str:
    """Where a delivery has what it needs, on the trees' own file system; kept until the next one."""
    return f"{layout.root}/delivery"


def stamp_of(git_dir: str) -> list[object]:
    """What tells an index and HEAD from later ones."""
    info = os.stat(f"{git_dir}/index")
    return [info.st_ino, info.st_size, info.st_mtime_ns, read_bytes(f"{git_dir}/HEAD").hex()]


def failed(worktree: str, err: OSError) -> Held:
    """A tree that could not be written to."""
    name = printable(os.fsdecode(err.filename or "a file"), one_line=True)
    return Held(worktree, f"{name} can't be written: {os.strerror(err.errno or 0)}")


def has_landed(common_dir: str, target: BranchName, new: CommitId) -> bool:
    """Whether a branch has a commit."""
    repo = Repo(common_dir)
    tip = repo.ref(branch_ref(target))
    return tip is not None and repo.is_ancestor(new, tip)


# Git's lock of the index


def take_index(work: Work) -> None:
    """Lock the index and see that it is as it was. Raises Stop, OSError."""
    if not work.stamp:
        return
    _lock(work)
    if stamp_of(work.git_dir) != work.stamp:
        raise Stop(work, "another git process was at work")


def _lock(work: Work) -> None:
    """By a link: its inode says after a crash whose it was."""
    try:
        os.link(f"{work.scratch}/lock", f"{work.git_dir}/index.lock")
    except FileExistsError:
        raise Stop(work, "another git process holds index.lock") from None
    except PermissionError as err:  # link(2): EPERM where the file system has no hard links
        raise OSError(errno.EOPNOTSUPP, err.strerror) from err


def _unlock(work: Work) -> None:
    if _is_locked(work):
        os.unlink(f"{work.git_dir}/index.lock")


def _is_locked(work: Work) -> bool:
    try:
        return os.path.samefile(f"{work.git_dir}/index.lock", f"{work.scratch}/lock")
    except FileNotFoundError:
        return False


# The end, and the way back


def finish(work: Work) -> None:
    """The part after the branch has moved; may be done again."""
    if os.path.lexists(f"{work.scratch}/index"):
        os.replace(f"{work.scratch}/index", f"{work.git_dir}/index")
        flush_disk(work.git_dir)
    _unlock(work)
    for step in work.steps:
        if step.now is None:
            prune(os.path.dirname(step.place), work.path)


def undo(works: Sequence[Work]) -> None:
    """Put every file back by what it holds; may be done again at any point."""
    for work in works:
        for step in reversed(work.steps):
            put_back(step)
    time.sleep(GRACE)
    for work in works:
        for step in work.steps:
            put_late_save(step)
        _unlock(work)


def back_up_strangers(common_dir: str, works: Sequence[Work], tell: Tell) -> None:
    """Record in a ref what was displaced, is not in git and could not be put back."""
    for work in works:
        strange = [step for step in work.steps if not is_ours(step)]
        if not strange:
            continue
        displaced = [(step.side, work.relative(step.place)) for step in strange]
        ref = record(common_dir, f"{work.scratch}/strange", displaced)
        for step in strange:
            remove_tree(step.side) if os.path.isdir(step.side) else os.unlink(step.side)
        names = ", ".join(map(work.name, strange))
        tell(f"what you saved meanwhile is kept: git show {ref} ({names})")


# After a crash


def write_journal(layout: Layout, works: Sequence[Work], data: Mapping[str, object]) -> None:
    """Say what is done where. data: `target`, `new`, `follows` of the order, and whether it is `done`."""
    text = json.dumps({**data, "works": [asdict(work) for work in works]})
    write_whole(_journal(layout), text.encode(), durable=True)


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
    works = [Work(**{**work, "steps": [Step(**step) for step in work["steps"]]}) for work in data["works"]]
    try:
        held = () if data["done"] else _resume(common_dir, data, works, tell)
    except OSError as err:
        return (failed(common_dir, err),)
    if not held:
        back_up_strangers(common_dir, works, tell)
        os.unlink(_journal(layout))
        remove_tree(scratch_directory(layout))
    return held


def _resume(common_dir: str, data: Mapping[str, Any], works: Sequence[Work], tell: Tell) -> tuple[Held, ...]:
    there = [work for work in works if os.path.isdir(work.git_dir) and os.path.isdir(work.path)]
    target, new = BranchName(data["target"]), CommitId(data["new"])
    if not data["follows"] and has_landed(common_dir, target, new):
        return tuple(held for work in there for held in _finish_late(work, tell))
    undo(there)
    return ()


def _finish_late(work: Work, tell: Tell) -> tuple[Held, ...]:
    if os.path.lexists(f"{work.scratch}/index"):
        try:
            if not _is_locked(work):
                _lock(work)
        except Stop as stop:
            return (stop.held,)
        if stamp_of(work.git_dir) != work.stamp:
            os.unlink(f"{work.scratch}/index")  # it would undo what the user did with his own meanwhile
            tell(f"the index of {work.path} is older than its branch: see git status")
    finish(work)
    return ()
