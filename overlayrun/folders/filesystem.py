"""The file system of `overlayrun open`: one thread answers the kernel, others wait for who knows the trees.

Speaks the kernel's protocol itself. mfusepy, which would bring libfuse, loses rename's RENAME_NOREPLACE and
utimensat's UTIME_OMIT, gives one time of caching to all trees, and a first walk of 10,000 files took 17 times
the plain one's time and not 4 (no attributes with a listing, a call through ctypes for each).
"""

from __future__ import annotations

import errno
import queue
import resource
import subprocess
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from overlayrun.folders.api import Answers, Kind
from overlayrun.folders.device import Device, Looks, Request
from overlayrun.folders.moves import Pending
from overlayrun.folders.nodes import FIRST_NODE, LetGo, Moving, Nodes, Shown, Unbound
from overlayrun.folders.requests import Answer, Requests
from overlayrun.folders.slow import Below, Slow
from overlayrun.folders.top import Top
from overlayrun.folders.waiting import Waiting
from overlayrun.kernel import fuse

_WAITERS: Final = 16
_FLUSHERS: Final = 4
_WORKERS: Final = 32
_TELL_SECONDS: Final = 1.0
_FLUSH_SECONDS: Final = 2.0
_UNANSWERED: Final = (fuse.FORGET, fuse.BATCH_FORGET, fuse.INTERRUPT)


class FileSystem:
    """A mounted tree of folders. fd: /dev/fuse. owner: (uid, gid) of the folders themselves."""

    def __init__(self, fd: int, answers: Answers, owner: tuple[int, int], mountpoint: str) -> None:
        self._mountpoint = mountpoint
        self._device = Device(fd)
        self._answers = answers
        self._lock = threading.Lock()
        self._moved = threading.Condition(self._lock)
        # Half of what may be open at all is for directories.
        self._nodes = Nodes(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        looks = Looks(owner)
        self._top = Top(self._nodes, answers, self._lock, looks)
        self._requests = Requests(self._nodes, self._device, looks)
        self._waiting = Waiting(self._device.refuse)
        self._waiters = ThreadPoolExecutor(_WAITERS, "waiter")
        # Of their own: a save is not to wait until somebody else's large commit is there.
        self._flushers = ThreadPoolExecutor(_FLUSHERS, "flusher")
        self._workers = ThreadPoolExecutor(_WORKERS, "worker")
        self._telling: list[Shown] = []
        self._dropped: queue.SimpleQueue[tuple[int, str, LetGo]] = queue.SimpleQueue()

    def run(self) -> None:
        """Answer until the file system is unmounted."""
        self._device.begin()
        for work in (self._tell, self._drop):
            threading.Thread(target=_repeat, args=(work,), daemon=True).start()
        while (request := self._device.read()) is not None:
            if request.opcode == fuse.DESTROY:
                return
            if request.opcode in _UNANSWERED:
                self._note(request)
            else:
                self._attempt(request.unique, partial(self._answer, request))

    def _note(self, request: Request) -> None:
        if request.opcode == fuse.INTERRUPT:
            self._waiting.disturb(*fuse.COUNT.unpack_from(request.body))
            return
        with self._lock:
            if request.opcode == fuse.FORGET:
                self._nodes.forget(request.node, *fuse.COUNT.unpack_from(request.body))
            else:
                for node, lookups in fuse.FORGET_ONE.iter_unpack(request.body[8:]):
                    self._nodes.forget(node, lookups)

    def _attempt(self, unique: int, work: Callable[[], None]) -> None:
        """Do what answers a request, or answer it with an errno."""
        try:
            work()
        except OSError as err:
            self._refuse(unique, err.errno or errno.EIO)
        except Exception:  # noqa: BLE001  # who asked can't be killed without an answer, and others go on
            traceback.print_exc()
            self._refuse(unique, errno.EIO)

    def _refuse(self, unique: int, error: int) -> None:
        self._waiting.end(unique)
        self._device.refuse(unique, error)

    def _answer(self, request: Request) -> None:
        try:
            with self._lock:
                answer = self._call(request)
        except Unbound as err:
            shown, kept = err.shown, _kept(request)
            self._wait(self._waiters, request, lambda: self._bind(shown, kept))
            return
        if answer is None:
            return
        if isinstance(answer, Pending):
            self._wait(self._waiters, request, lambda: self._move(request.unique, answer))
            return
        if isinstance(answer, Slow):
            self._do(request, answer)
            return
        if not callable(answer):
            self._device.answer(request.unique, answer)
            return
        waiters = self._waiters if request.node < FIRST_NODE else self._flushers
        self._wait(waiters, request, lambda: self._finish(request.unique, answer))

    def _call(self, request: Request) -> Answer | None:
        """None: a later answer, when its tree is whole again."""
        methods = self._top.methods if request.node < FIRST_NODE else self._requests.methods
        method = methods.get(request.opcode)
        if method is None:
            raise OSError(errno.ENOSYS, "no such request")
        self._nodes.trim()
        try:
            return method(request.node, request.body)
        except Below as err:
            return err.slow
        except Moving as err:
            kept = _kept(request)
            self._waiting.begin(kept.unique, kept.caller)
            err.waiting.append(lambda: self._attempt(kept.unique, lambda: self._resume(kept)))
            return None

    def _do(self, request: Request, slow: Slow) -> None:
        if slow.is_before:
            kept = _kept(request)
            self._wait(self._workers, kept, lambda: self._worked(kept, slow))
        else:  # nobody is told that it was in vain: it may be half done
            self._workers.submit(self._attempt, request.unique, partial(self._worked, request, slow))

    def _worked(self, request: Request, slow: Slow) -> None:
        try:
            given = slow.work()
        finally:
            with self._moved:
                slow.end()
                self._moved.notify_all()
        if given is not None:
            self._device.answer(request.unique, given)
        else:
            self._resume(request)

    def _resume(self, request: Request) -> None:
        if self._waiting.end(request.unique):
            self._answer(request)

    def _move(self, unique: int, pending: Pending) -> None:
        try:
            pending.prepare()
        finally:
            with self._moved:
                # Not for one who was killed: the kernel has forgotten that he wanted to rename.
                is_wanted = self._waiting.end(unique)
                numbers, waiting = pending.end(is_wanted=is_wanted)
                self._moved.notify_all()
            # They come first: the kernel waits for what they read or write to drop a page.
            for resume in waiting:
                resume()
        for number in numbers:
            self._device.drop_inode(number)
        if is_wanted and pending.error:
            self._device.refuse(unique, pending.error)
        elif is_wanted:
            self._device.answer(unique)

    def _wait(self, waiters: ThreadPoolExecutor, request: Request, work: Callable[[], None]) -> None:
        """Do what answers a request, and may take its time, in another thread."""
        self._waiting.begin(request.unique, request.caller)
        waiters.submit(self._attempt, request.unique, work)

    def _bind(self, shown: Shown, request: Request) -> None:
        self._top.bind(shown)
        self._resume(request)

    def _finish(self, unique: int, answer: Callable[[], bytes]) -> None:
        given = answer()
        if self._waiting.end(unique):
            self._device.answer(unique, given)

    def let_go(self, kind: Kind, name: str, unused: float) -> bool:
        """Close all descriptors of a tree; whether it was done. The next use opens it again.

        unused: do nothing if it was used in the last seconds, or if anything in it is open; 0 always does it.
        Not for the thread of `run`.
        """
        if not unused:
            # Pages of mappings: our own kernel writes them to us. Not for ever: one may need a tree that is
            # let go itself, and whoever could open it waits for this.
            flusher = threading.Thread(target=self._flush, args=(kind, name), daemon=True)
            flusher.start()
            flusher.join(_FLUSH_SECONDS)
        with self._moved:
            found = [pair for pair in self._top.shown() if pair[1].kind is kind and pair[1].name == name]
            if unused and any(self._is_used(shown, unused) for _, shown in found):
                return False
            for parent, shown in found:
                resumed = self._when_idle(shown)
                # Another thread tells the kernel: it may wait there for a request that waits for our caller.
                self._dropped.put((parent, f"{kind.value}/{name}", self._nodes.let_go(shown)))
                shown.waiting = None
                for resume in resumed:
                    self._waiters.submit(resume)
        return True

    def _is_used(self, shown: Shown, seconds: float) -> bool:
        if not shown.is_bound:
            return False
        is_new = time.monotonic() - shown.used < seconds
        return is_new or shown.is_moving or bool(shown.busy) or self._requests.has_open(shown)

    def _when_idle(self, shown: Shown) -> list[Callable[[], None]]:
        """Wait until nothing is done in a tree; what is asked from then on waits in the list given back."""
        self._moved.wait_for(lambda: not shown.is_moving)
        waiting: list[Callable[[], None]] = []
        shown.waiting = waiting  # else there would be new work for ever
        self._moved.wait_for(lambda: not shown.busy)
        return waiting

    def _flush(self, kind: Kind, name: str) -> None:
        with self._lock:
            written = self._requests.written(kind, name)
        for number in written:
            self._device.drop_inode(number)  # comes back when the pages are written; syncfs(2) does not

    def _drop(self) -> None:
        parent, path, gone = self._dropped.get()
        for number in gone.nodes:  # before all that waits for others: what they hold is what is read
            self._device.drop_inode(number)
        if self._device.can_expire:  # the tree's own name is doubted every second anyway
            for above, name in gone.entries:
                self._device.expire_entry(above, name)
            return
        self._device.drop_entry(parent, path.rpartition("/")[2])
        if gone.nodes:
            _look_up(f"{self._mountpoint}/{path}")

    def _tell(self) -> None:
        time.sleep(_TELL_SECONDS)
        with self._lock:
            self._telling = self._changed()
        while self._telling:
            self._told(self._telling[-1])
            self._telling.pop()

    def _told(self, shown: Shown) -> None:
        try:
            self._answers.touched(shown.name)
        except OSError as err:  # a full disk, for one; told until there is a snapshot of it, or it is gone
            shown.changed = err.errno != errno.ENOENT

    def changed(self) -> list[str]:
        """Branches in which somebody wrote since they were last told, or which are just being told."""
        with self._lock:
            return list({shown.name for shown in (*self._telling, *self._changed())})

    def _changed(self) -> list[Shown]:
        changed = [shown for _, shown in self._top.shown() if shown.changed]
        for shown in changed:
            shown.changed = False
        return changed


def _kept(request: Request) -> Request:
    """The same, for longer than until the next one."""
    return request._replace(body=memoryview(bytes(request.body)))


def _look_up(path: str) -> None:
    """Let the kernel know a name again, without which a shell's own directory there counts as removed.

    Where names can't be doubted: before Linux 6.2.

    By another process: this one could not be killed while it waits for itself.
    """
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(["test", "-d", path], stdin=quiet, stdout=quiet, stderr=quiet)
    threading.Thread(target=process.wait, daemon=True).start()


def _repeat(work: Callable[[], None]) -> None:
    """Do it again and again, whatever goes wrong."""
    while True:
        try:
            work()
        except Exception:  # noqa: BLE001  # without this thread no write would come into a snapshot
            traceback.print_exc()
