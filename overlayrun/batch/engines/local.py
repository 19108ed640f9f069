"""Attempts on this machine: a fork of this process for each, which is the supervisor of its runs."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import replace
from typing import Final

# What an attempt would import late is there before it is forked.
from overlayrun import answers, control, durable, finish, fork, guests, watchdog  # noqa: F401
from overlayrun.bases.gitdir import configuration
from overlayrun.bases.ignored import known_ignored
from overlayrun.batch.attempt import Shared
from overlayrun.batch.engines.api import Ended, Event, Host, Lost, Started
from overlayrun.batch.engines.nursery import BEGUN, Child, Nursery, Order
from overlayrun.batch.result import Result
from overlayrun.batch.task import Attempt, AttemptKey
from overlayrun.errors import HostError
from overlayrun.files import read_bytes
from overlayrun.prepare import frozen_tree
from overlayrun.report import printable
from overlayrun.sandbox.confinement import Confinement, filter_program
from overlayrun.store.location import Known, resolve_commit
from overlayrun.store.repo import Repo
from overlayrun.store.settings import read_settings
from overlayrun.workspace.catalogue import records
from overlayrun.workspace.lock import share
from overlayrun.workspace.record import Record

HOST: Final = "local"
_TAIL: Final = 1 << 12  # bytes of a log in which its last line is looked for
_FLUSH_EVERY: Final = 30.0  # seconds


class LocalEngine:
    """Runs attempts as children of this process; they die with the thread that made it."""

    def __init__(self, shared: Shared, slots: int, tell: Callable[[str], None] = lambda _: None) -> None:
        """slots: attempts at a time. tell: called with a line before anything slow."""
        self._known = _look_up(shared)
        self._shared = replace(shared, repository=copy(shared.repository))
        self._shared.repository.known = self._known
        self._slots = slots
        self._tell = tell
        self._children: dict[AttemptKey, Child] = {}
        self._by_fd: dict[int, Child] = {}
        self._spare: Child | None = None
        self._branches: set[str] = {record.branch for record in records(shared.layout)}
        self._unflushed: list[str] = []
        self._flushed = time.monotonic()
        self._waiting = select.poll()
        self._nursery = Nursery(self._shared)

    def submit(self, attempt: Attempt, host: str) -> None:
        """Start an attempt. Raises HostError where no process can be started, UsageError for a bad base."""
        assert host == self._shared.host
        self._prepare(attempt)
        place = self._shared.place.attempt(attempt.key).root
        try:
            os.makedirs(place, mode=0o700)
        except OSError as err:
            raise HostError(f"no folder can be made for an attempt: {place}: {err.strerror}") from err
        child, self._spare = self._spare or self._nursery.child(), None
        branch = attempt.task.branch
        new_branch = None if branch in self._branches else branch
        child.take(Order(attempt, new_branch, self._known.trees[attempt.base]))
        self._children[attempt.key] = child
        self._branches.add(branch)
        for fd in (child.news, child.pidfd):
            self._by_fd[fd] = child
            self._waiting.register(fd, select.POLLIN)

    def _prepare(self, attempt: Attempt) -> None:
        """Freeze a base before the first attempt that starts from it: many at once would all do it."""
        shared = self._shared
        if attempt.base in self._known.trees:
            return
        _, tree = resolve_commit(shared.repository, attempt.base)
        choosing = share(shared.layout.lock)
        try:
            frozen_tree(shared.repository, shared.layout, tree, self._tell)
        finally:
            os.close(choosing)
        self._known.trees[attempt.base] = tree

    def poll(self, seconds: float) -> Sequence[Event]:
        """What happened since the last call; waits for something for at most so long."""
        events: list[Event] = []
        dead = []
        for fd, _ in self._waiting.poll(max(0.0, seconds) * 1000):
            child = self._by_fd[fd]
            if fd == child.news:
                events += self._hear(child)
            else:
                dead.append(child)
        for child in dead:
            events += self._bury(child)
        if self._unflushed and time.monotonic() - self._flushed > _FLUSH_EVERY:
            self._flush()
        if self._spare is None and self._children:  # while others work: to fork takes milliseconds
            with suppress(HostError):
                self._spare = self._nursery.child()
        return events

    def _hear(self, child: Child) -> list[Event]:
        """The first that a child says: that its command runs; of one that ends before it does, nothing."""
        self._forget(child.news)
        said = os.read(child.news, len(BEGUN))
        return [Started(child.key, self._shared.host)] if said == BEGUN else []

    def _bury(self, child: Child) -> list[Event]:
        events = self._hear(child) if child.news in self._by_fd else []
        self._unflushed += _rest(child.news).split()
        os.close(child.news)
        _, status = os.waitpid(child.pid, 0)
        self._forget(child.pidfd)
        os.close(child.pidfd)
        del self._children[child.key]
        place = self._shared.place.attempt(child.key)
        try:
            result = Result.from_json(json.loads(read_bytes(place.result)))
        except FileNotFoundError:
            why = f"{_how(status)}; its last line: {_last_line(place.overlayrun)}"
            return [*events, Lost(child.key, self._shared.host, why)]
        return [*events, Ended(child.key, result)]

    def _forget(self, fd: int) -> None:
        self._waiting.unregister(fd)
        del self._by_fd[fd]

    def _flush(self) -> None:
        """Bring what volatile mounts left to the page cache to the disk: once for many attempts."""
        layout = self._shared.layout
        found = [layout.workspace(one).record for one in self._unflushed]
        durable.sync_in_background(layout, [Record.load(path) for path in found if os.path.exists(path)])
        self._unflushed = []
        self._flushed = time.monotonic()

    def cancel(self, key: AttemptKey) -> None:
        """End an attempt; nothing happens to one that is over."""
        child = self._children.get(key)
        if child is not None:
            signal.pidfd_send_signal(child.pidfd, signal.SIGTERM)

    def hosts(self) -> Sequence[Host]:
        """This machine."""
        return (Host(self._shared.host, self._slots),)

    def close(self) -> None:
        """End whatever runs, and wait for it."""
        for key in list(self._children):
            self.cancel(key)
        while self._children:
            self.poll(1.0)
        if self._spare is not None:
            self._spare.dismiss()
            self._spare = None
        self._nursery.close()
        if self._unflushed:
            self._flush()


def _look_up(shared: Shared) -> Known:
    """What every attempt would ask anew."""
    repository = shared.repository
    # These two are remembered there: the first for as long as git's files stay as they are.
    read_settings(repository.common_dir)
    filter_program(Confinement(), heard=True)
    ignored = known_ignored(repository, shared.layout)
    return Known(ignored, configuration(repository), Repo(repository.common_dir).make_refs)


def _rest(news: int) -> str:
    """What is left in a dead child's pipe; another process may still hold its end for a moment."""
    try:
        return os.read(news, 1 << 12).decode()
    except BlockingIOError:
        return ""


def _how(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"its process was killed by signal {-code}" if code < 0 else f"its process ended with {code}"


def _last_line(log: str) -> str:
    """The last line of a log, for a message."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
    except FileNotFoundError:
        lines = []
    return printable(lines[-1]) if lines else "it said nothing"
