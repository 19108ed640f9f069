"""What reconcilers are doing at this moment, for `queue` in another terminal. Gone with the process."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass

from overlayrun.files import write_whole
from overlayrun.model import BranchName
from overlayrun.workspace.layout import Layout
from overlayrun.workspace.lock import is_locked, lock


@dataclass(frozen=True, slots=True)
class Work:
    """What is being done with a branch. since: seconds since the epoch."""

    branch: str
    target: str
    what: str
    since: float


class Board:
    """One reconciler's work, in a file that counts while the process holds the lock beside it."""

    def __init__(self, layout: Layout, target: BranchName) -> None:
        self._path = f"{layout.boards}/{os.getpid()}-{time.monotonic_ns()}"
        self._target = target
        self._work: dict[str, Work] = {}
        os.makedirs(layout.boards, mode=0o700, exist_ok=True)
        self._lock = lock(f"{self._path}.lock")

    def close(self) -> None:
        """Take the board away."""
        _remove(self._path)
        os.close(self._lock)

    def begin(self, branch: str, what: str) -> None:
        """Say what is done with a branch from now on."""
        self._work[branch] = Work(branch, self._target, what, time.time())
        self._write()

    def end(self, branch: str) -> None:
        """Say that it is over."""
        if self._work.pop(branch, None):
            self._write()

    def _write(self) -> None:
        data = [asdict(work) for work in self._work.values()]
        with suppress(OSError):  # a full disk is no reason to stop
            write_whole(f"{self._path}.json", json.dumps(data).encode(), durable=False)


def boards(layout: Layout) -> Iterator[Work]:
    """The work of every reconciler that lives; what dead ones left is removed."""
    try:
        names = [name.removesuffix(".lock") for name in os.listdir(layout.boards) if name.endswith(".lock")]
    except FileNotFoundError:
        return
    for name in names:
        path = f"{layout.boards}/{name}"
        if is_locked(f"{path}.lock"):
            yield from _read(f"{path}.json")
        else:
            _remove(path)


def _read(path: str) -> list[Work]:
    try:
        with open(path, encoding="utf-8") as file:
            return [Work(**work) for work in json.load(file)]
    except (OSError, ValueError, TypeError):
        return []


def _remove(path: str) -> None:
    for name in (f"{path}.json", f"{path}.lock"):
        with suppress(FileNotFoundError):
            os.unlink(name)
