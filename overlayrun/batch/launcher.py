"""The process of a worker that starts attempts: a sandbox is forked, which takes a process with one thread.

The worker itself runs Dask's threads. So before it loads Dask it forks this process, which has the local
engine, and they talk over a pair of sockets in lines of JSON. It ends when the worker ends: what runs is
ended and snapshotted then, within seconds, and by force after that.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, Final

from overlayrun.batch.attempt import Shared
from overlayrun.batch.engines.api import Ended, Event, Lost, Started
from overlayrun.batch.engines.local import LocalEngine
from overlayrun.batch.layout import BatchLayout
from overlayrun.batch.run_options import options_from_json
from overlayrun.batch.task import Attempt, AttemptKey
from overlayrun.errors import OverlayrunError
from overlayrun.store.location import find_repository
from overlayrun.supervisor import PASSED_ON
from overlayrun.workspace.layout import open_state

GONE: Final = "the worker's launcher is gone"
_LAST: Final = 30  # seconds for the snapshots of what ran when the worker ended
_PIECE: Final = 1 << 16
_LOOK: Final = 0.1  # seconds between looks at whether a command has started; its end is heard at once

Message = Mapping[str, Any]


def key_of(run: str, key: AttemptKey) -> str:
    """What coordinator, worker and launcher call an attempt."""
    return f"{run}/{key[0]}/{key[1]}"


@dataclass(frozen=True, slots=True)
class Order:
    """What a launcher is asked to start. work: the repository's working tree on this host."""

    work: str
    host: str
    attempt: Attempt
    options: Mapping[str, Any]

    @property
    def key(self) -> str:
        """What both sides call it; never used twice."""
        return key_of(self.attempt.run, self.attempt.key)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "work": self.work,
            "host": self.host,
            "attempt": self.attempt.to_json(),
            "options": self.options,
        }


class Launcher:
    """The worker's side; any thread may call it."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self._pid = pid
        self._connection = connection
        self._sending = Lock()
        self._waiting: dict[str, SimpleQueue[Message]] = {}
        self._reader: Thread | None = None

    @classmethod
    def start(cls, slots: int) -> Launcher:
        """Fork the launcher. Only a process with a single thread may do so."""
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            _become(ours, theirs, slots)
        theirs.close()
        return cls(pid, ours)

    def listen(self, at_end: Callable[[], object]) -> None:
        """Begin to hear what it says, in a thread of its own. Before this nothing is to be submitted.

        at_end: called there when the launcher has ended.
        """
        self._reader = Thread(target=self._read, args=(at_end,), name="launcher", daemon=True)
        self._reader.start()

    def submit(self, order: Order) -> SimpleQueue[Message]:
        """Start an attempt; what becomes of it arrives in the queue: `started`, then `ended` or `lost`."""
        news: SimpleQueue[Message] = SimpleQueue()
        self._waiting[order.key] = news
        self._send({"do": "submit", **order.to_json()}, news)
        return news

    def cancel(self, key: str) -> None:
        """End an attempt in good order; nothing happens to one that is over."""
        self._send({"do": "cancel", "key": key}, None)

    def close(self) -> None:
        """End all attempts in good order, and the launcher."""
        self._connection.shutdown(socket.SHUT_WR)
        os.waitpid(self._pid, 0)
        if self._reader is not None:
            self._reader.join()
        self._connection.close()

    def _send(self, message: Message, news: SimpleQueue[Message] | None) -> None:
        try:
            with self._sending:
                self._connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            if news is not None:
                news.put({"event": "lost", "why": GONE})

    def _read(self, at_end: Callable[[], object]) -> None:
        for message in _messages(self._connection):
            news = self._waiting.get(str(message["key"]))
            if news is None:
                continue
            if message["event"] != "started":
                del self._waiting[str(message["key"])]
            news.put(message)
        for news in list(self._waiting.values()):
            news.put({"event": "lost", "why": GONE})
        at_end()


def _become(ours: socket.socket, theirs: socket.socket, slots: int) -> None:
    """In the child: be the launcher until the worker closes its side."""
    status = 1
    try:
        ours.close()
        os.setsid()  # a Ctrl-C at the worker's terminal is the worker's to handle
        for number in PASSED_ON:
            signal.signal(number, signal.SIG_IGN)
        _Serving(theirs, slots).until_closed()
        status = 0
    except BaseException:  # noqa: BLE001  # a forked child must not return into its parent's code
        traceback.print_exc()
    finally:
        os._exit(status)


class _Serving:
    """The launcher's own side: one engine for each run of a batch in a repository."""

    def __init__(self, connection: socket.socket, slots: int) -> None:
        self._connection = connection
        self._slots = slots
        self._engines: dict[tuple[str, str], LocalEngine] = {}
        self._running: dict[str, LocalEngine] = {}

    def until_closed(self) -> None:
        lines = _Lines()
        ended = _child_ends()
        while True:
            sources = [self._connection, ended]
            ready, _, _ = select.select(sources, [], [], _LOOK if self._running else None)
            if ended in ready:
                ended.recv(_PIECE)
            if self._connection in ready:
                data = self._connection.recv(_PIECE)
                if not data:
                    break
                for message in lines.of(data):
                    self._obey(message)
            self._tell_news()
        # A hang must not keep an agent alive whose worker is gone: attempts die with us.
        signal.alarm(_LAST)
        for key in self._running:
            self._cancel(key)
        while self._running:
            select.select([ended], [], [], _LOOK)
            self._tell_news()

    def _obey(self, message: Message) -> None:
        if message["do"] == "cancel":
            self._cancel(message["key"])
            return
        order = Order(
            work=message["work"],
            host=message["host"],
            attempt=Attempt.from_json(message["attempt"]),
            options=message["options"],
        )
        try:
            engine = self._engine(order)
            engine.submit(order.attempt, order.host)
            self._running[order.key] = engine
        except (OverlayrunError, OSError) as err:
            self._send(order.key, "lost", why=f"it could not be started: {_words(err)}")

    def _cancel(self, key: str) -> None:
        engine = self._running.get(key)
        if engine is not None:
            _, task, number = key.split("/")
            engine.cancel((task, int(number)))

    def _engine(self, order: Order) -> LocalEngine:
        """The engine of an order's run; engines of other runs that have nothing to do any more are closed."""
        name = (order.work, order.attempt.run)
        if name not in self._engines:
            busy = set(map(id, self._running.values()))
            self._engines = {key: each for key, each in self._engines.items() if id(each) in busy}
            repository = find_repository(order.work)
            layout = open_state(repository.common_dir)
            place = BatchLayout(layout, order.attempt.run)
            options = options_from_json(order.options)
            shared = Shared(repository, layout, options, place, order.host)
            self._engines[name] = LocalEngine(shared, self._slots)
        return self._engines[name]

    def _tell_news(self) -> None:
        for (_, run), engine in self._engines.items():
            for event in engine.poll(0):
                key = key_of(run, event.key)
                self._send(key, **_told(event))
                if not isinstance(event, Started):
                    del self._running[key]

    def _send(self, key: str, event: str, **more: Any) -> None:
        try:
            self._connection.sendall(json.dumps({"key": key, "event": event, **more}).encode() + b"\n")
        except OSError:
            pass  # the worker is gone: the end of its side says so


def _child_ends() -> socket.socket:
    """Readable when a child has ended."""
    heard, said = socket.socketpair()
    said.settimeout(0)  # a full pair is one that will be read
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(said.detach(), warn_on_full_buffer=False)
    return heard


def _told(event: Event) -> dict[str, Any]:
    if isinstance(event, Ended):
        return {"event": "ended", "result": event.result.to_json()}
    if isinstance(event, Lost):
        return {"event": "lost", "why": event.why}
    return {"event": "started"}


class _Lines:
    """Pieces of a stream, as messages."""

    def __init__(self) -> None:
        self._rest = b""

    def of(self, data: bytes) -> Iterator[Message]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        return map(json.loads, lines)


def _messages(connection: socket.socket) -> Iterator[Message]:
    """Messages until the other side closes."""
    lines = _Lines()
    receive: Callable[[], bytes] = lambda: connection.recv(_PIECE)  # noqa: E731
    try:
        for data in iter(receive, b""):
            yield from lines.of(data)
    except OSError:
        return


def _words(err: OverlayrunError | OSError) -> str:
    return err.brief if isinstance(err, OverlayrunError) else str(err)
