"""The file system of `overlayrun open`: one thread answers the kernel, others wait for who knows the trees.

Speaks the kernel's protocol itself. mfusepy, which would bring libfuse, loses rename's RENAME_NOREPLACE and
utimensat's UTIME_OMIT, gives one time of caching to all trees, and a first walk of 10,000 files took 17 times
the plain one's time and not 4 (no attributes with a listing, a call through ctypes for each).
"""

from __future__ import annotations

import errno
import queue
import resource
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from overlayrun.folders.api import Answers, Kind
from overlayrun.folders.device import Device, Looks
from overlayrun.folders.nodes import FIRST_NODE, Nodes, Shown, Unbound
from overlayrun.folders.requests import Answer, Requests
from overlayrun.folders.top import Top
from overlayrun.kernel import fuse

_WAITERS: Final = 16
_TELL_SECONDS: Final = 1.0
_FLUSH_SECONDS: Final = 2.0
_UNANSWERED: Final = (fuse.FORGET, fuse.BATCH_FORGET, fuse.INTERRUPT)


class FileSystem:
    """A mounted tree of folders. fd: /dev/fuse. owner: (uid, gid) of the folders themselves."""

    def __init__(self, fd: int, answers: Answers, owner: tuple[int, int]) -> None:
        self._device = Device(fd)
        self._answers = answers
        self._lock = threading.Lock()
        self._nodes = Nodes(_most_open())
        looks = Looks(owner)
        self._top = Top(self._nodes, answers, self._lock, looks)
        self._requests = Requests(self._nodes, self._device, looks)
        self._waiters = ThreadPoolExecutor(_WAITERS, "waiter")
        self._dropped: queue.SimpleQueue[tuple[int, str, list[int]]] = queue.SimpleQueue()

    def run(self) -> None:
        """Answer until the file system is unmounted."""
        self._device.begin()
        for work in (self._tell, self._drop):
            threading.Thread(target=work, daemon=True).start()
        while (request := self._device.read()) is not None:
            opcode, unique, number, body = request
            if opcode in _UNANSWERED:
                self._forget(opcode, number, body)
            elif opcode == fuse.DESTROY:
                return
            else:
                self._answer(opcode, unique, number, body)

    def _forget(self, opcode: int, number: int, body: memoryview) -> None:
        with self._lock:
            if opcode == fuse.FORGET:
                self._nodes.forget(number, *fuse.COUNT.unpack_from(body))
            elif opcode == fuse.BATCH_FORGET:
                for node, lookups in fuse.FORGET_ONE.iter_unpack(body[8:]):
                    self._nodes.forget(node, lookups)

    def _answer(self, opcode: int, unique: int, number: int, body: memoryview) -> None:
        try:
            with self._lock:
                answer = self._call(opcode, number, body)
        except Unbound as err:
            self._waiters.submit(self._bind_and_answer, err.shown, opcode, unique, number, bytes(body))
        except OSError as err:
            self._device.refuse(unique, err.errno or errno.EIO)
        else:
            self._send(unique, answer)

    def _call(self, opcode: int, number: int, body: memoryview) -> Answer:
        methods = self._top.methods if number < FIRST_NODE else self._requests.methods
        method = methods.get(opcode)
        if method is None:
            raise OSError(errno.ENOSYS, "no such request")
        self._nodes.trim()
        return method(number, body)

    def _send(self, unique: int, answer: Answer) -> None:
        if callable(answer):
            self._waiters.submit(self._wait_and_answer, unique, answer)
        else:
            self._device.answer(unique, answer)

    def _wait_and_answer(self, unique: int, answer: Answer) -> None:
        try:
            while callable(answer):
                answer = answer()
        except OSError as err:
            self._device.refuse(unique, err.errno or errno.EIO)
        else:
            self._device.answer(unique, answer)

    def _bind_and_answer(self, shown: Shown, opcode: int, unique: int, number: int, body: bytes) -> None:
        try:
            self._top.bind(shown)
        except OSError as err:
            self._device.refuse(unique, err.errno or errno.EIO)
        else:
            self._answer(opcode, unique, number, memoryview(body))

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
        with self._lock:
            found = [pair for pair in self._top.shown() if pair[1].kind is kind and pair[1].name == name]
            for parent, shown in found:
                is_used = time.monotonic() - shown.used < unused or self._requests.has_open(shown)
                if unused and shown.is_bound and is_used:
                    return False
                # Another thread tells the kernel: it may wait there for a request that waits for our caller.
                self._dropped.put((parent, name.rpartition("/")[2], self._nodes.let_go(shown)))
        return True

    def _flush(self, kind: Kind, name: str) -> None:
        with self._lock:
            written = self._requests.written(kind, name)
        for number in written:
            self._device.drop_inode(number)  # comes back when the pages are written; syncfs(2) does not

    def _drop(self) -> None:
        while True:
            parent, name, numbers = self._dropped.get()
            self._device.drop_entry(parent, name)
            for number in numbers:
                self._device.drop_inode(number)

    def _tell(self) -> None:
        while True:
            time.sleep(_TELL_SECONDS)
            with self._lock:
                changed = [shown for _, shown in self._top.shown() if shown.changed]
                for shown in changed:
                    shown.changed = False
            for shown in changed:
                self._told(shown)

    def _told(self, shown: Shown) -> None:
        try:
            self._answers.touched(shown.name)
        except OSError:  # it is gone, or who answers is: nothing to tell then
            pass


def _most_open() -> int:
    """How many directories may stay open: half of what this process may have open at all."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted // 2
