"""How the file system's process asks the one that knows the trees, and is told to let one go.

A pair of SOCK_SEQPACKET sockets: a message is one packet of JSON, at most `_MOST` bytes, with the descriptors
of a tree beside it (SCM_RIGHTS, unix(7)). The file system asks from many threads; who answers has one.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import queue
import socket
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from overlayrun.errors import HostError
from overlayrun.folders.api import Answers, Kind, Later, Tree
from overlayrun.kernel.passed import receive

_MOST: Final = 32 << 10
_MOST_DESCRIPTORS: Final = 200  # the kernel's SCM_MAX_FD is 253
_NAMES: Final = _MOST // 2
"""Bytes of names in one packet, or one name: git's are below 4096, which JSON makes six times as long."""
Value = None | str | bool | int | float | list[str] | list[int]
Message = dict[str, Value]


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends: of who answers, of the file system."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    return one, other


def _send(end: socket.socket, message: Message, fds: tuple[int, ...] = ()) -> None:
    data = json.dumps(message).encode()
    if len(data) > _MOST or len(fds) > _MOST_DESCRIPTORS:
        raise OSError(errno.EMSGSIZE, "too long a message")
    socket.send_fds(end, [data], list(fds))


def _receive(end: socket.socket) -> tuple[Message, list[int]]:
    """One message and its descriptors; EOFError at the end."""
    data, fds, flags = receive(end, _MOST, _MOST_DESCRIPTORS)
    if not data:
        raise EOFError("the other end is gone")
    message = json.loads(data)
    assert isinstance(message, dict), message
    if flags & socket.MSG_CTRUNC:  # as many descriptors are open as may be
        _close(fds)
        return message | {"errno": errno.EMFILE}, []
    return message, fds


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


class ControlEnd:
    """The end of who answers. For one thread."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._waiting: deque[Message] = deque()
        self._late: list[Message] = []
        self._numbers = itertools.count(1)

    def fileno(self) -> int:
        """To be watched for input."""
        return self._end.fileno()

    @property
    def has_waiting(self) -> bool:
        """Whether `serve` has work that no more input announces: what came in while `let_go` waited."""
        return bool(self._waiting)

    def serve(self, answers: Answers) -> bool:
        """Answer what is waiting, after input or `has_waiting`; whether the file system still lives."""
        while True:
            try:
                message = self._waiting.popleft() if self._waiting else self._next()
            except BlockingIOError:
                return True
            except (EOFError, ConnectionError):
                return False
            if not self._answer(message, answers):
                return False

    def wait_until_mounted(self) -> None:
        """Wait for the file system's first word. Raises HostError where it could not be mounted."""
        try:
            message, _ = _receive(self._end)
        except (EOFError, ConnectionError):
            raise HostError("the process of the folders' file system died at its start") from None
        if message.get("failed"):
            raise HostError(str(message["failed"]), hint=str(message.get("hint") or "") or None)

    def let_go(self, kind: Kind, name: str, *, unused: float = 0) -> bool:
        """Have every descriptor of a tree closed; whether that is done (and the tree can be unmounted).

        What is open in it goes on: at its next use `Answers.tree` is asked again. unused: seconds; leave a
        tree alone that was used since, or in which something is open; 0 always lets go.
        """
        done = self._order({"kind": kind.value, "name": name, "unused": unused}, "let_go")
        return True if done is None else bool(done["done"])  # its descriptors are gone with it

    def hear(self) -> None:
        """Have every write told that was not told yet; `serve` then answers that."""
        self._order({}, "tell")

    def ask_again(self) -> None:
        """Let `serve` answer what was for later."""
        self._waiting.extend(self._late)
        self._late.clear()

    def _order(self, message: Message, what: str) -> Message | None:
        """What the file system says to an order; None where it is gone."""
        number = next(self._numbers)
        try:
            _send(self._end, {what: number, **message})
            while True:
                answer, _ = _receive(self._end)
                if answer.get("gone") == number:
                    return answer
                self._waiting.append(answer)
        except (EOFError, ConnectionError):
            return None

    def _next(self) -> Message:
        """A message that is there already; BlockingIOError without."""
        self._end.settimeout(0)
        try:
            message, _ = _receive(self._end)  # it has no descriptors to send
        finally:
            self._end.settimeout(None)
        return message

    def _answer(self, message: Message, answers: Answers) -> bool:
        try:
            try:
                for reply, fds in _called(message, answers):
                    self._reply(message, reply, fds)
            except ConnectionError:
                raise
            except Later:
                self._late.append(message)
            except OSError as err:
                self._reply(message, {"errno": err.errno or errno.EIO}, ())
            except Exception:  # noqa: BLE001  # who asked waits, and what others wrote needs its snapshots
                traceback.print_exc()
                self._reply(message, {"errno": errno.EIO}, ())
        except ConnectionError:
            return False
        return True

    def _reply(self, message: Message, reply: Message, fds: tuple[int, ...]) -> None:
        try:
            _send(self._end, {"id": message.get("id"), **reply}, fds)
        finally:
            _close(fds)


def _called(message: Message, answers: Answers) -> list[tuple[Message, tuple[int, ...]]]:
    name = message.get("name")
    if not isinstance(name, str):
        raise OSError(errno.EINVAL, "no name")
    match message.get("call"):
        case "names":
            names = answers.names(Kind(message["kind"]), name)
            pieces = list(_pieces(names))
            return [({"names": piece, "more": piece is not pieces[-1]}, ()) for piece in pieces]
        case "tree":
            return [_packed(answers.tree(Kind(message["kind"]), name))]
        case "make":
            return [_packed(answers.make(name))]
        case "remove":
            answers.remove(name)
        case "touched":
            answers.touched(name)
        case _:
            raise OSError(errno.EINVAL, "no such call")
    return [({}, ())]


def _pieces(names: list[str]) -> Iterator[list[str]]:
    """Names in the same order, as many at a time as one packet holds; at least one piece."""
    piece: list[str] = []
    size = 0
    for name in names:
        size += len(json.dumps(name)) + 2
        if size > _NAMES and piece:
            yield piece
            piece, size = [], len(json.dumps(name)) + 2
        piece.append(name)
    yield piece


def _packed(tree: Tree) -> tuple[Message, tuple[int, ...]]:
    about: Message = {"writable": tree.writable, "key": tree.key, "live": tree.live}
    about["replaced"] = [path for path, _ in tree.replaced]
    return about, (tree.fd, *(fd for _, fd in tree.replaced))


Reply = tuple[Message, list[int]]


class FolderEnd:
    """The file system's end: `Answers` for any thread. let_go: called in a thread of this end."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._asked: dict[int, queue.SimpleQueue[Reply | None]] | None = {}  # None: nobody listens any more

    def mounted(self) -> None:
        """Say that the file system is there."""
        _send(self._end, {"mounted": True})

    def failed(self, reason: str, hint: str | None) -> None:
        """Say why it is not there."""
        _send(self._end, {"failed": reason, "hint": hint})

    def listen(
        self, let_go: Callable[[Kind, str, float], bool], changed: Callable[[], Iterable[str]] = list
    ) -> None:
        """Hand answers to who waits for them, and obey; returns when the other end is gone.

        changed: branches in which somebody wrote, each once.
        """
        try:
            while True:
                message, fds = _receive(self._end)
                if "let_go" in message:
                    _send(self._end, {"gone": message["let_go"], "done": _is_let_go(let_go, message)})
                elif "tell" in message:
                    self._tell(changed())
                    _send(self._end, {"gone": message["tell"]})
                else:
                    self._hand_over(message, fds)
        except (EOFError, OSError):
            with self._lock:
                asked, self._asked = self._asked, None
            for waiting in (asked or {}).values():
                waiting.put(None)

    def _tell(self, names: Iterable[str]) -> None:
        for name in names:  # who ordered it answers nothing before it is done
            self.forget(self.ask({"call": "touched", "name": name})[0])

    def _hand_over(self, message: Message, fds: list[int]) -> None:
        with self._lock:
            waiting = (self._asked or {}).get(int(str(message.get("id"))))
        if waiting is None:
            _close(fds)
        else:
            waiting.put((message, fds))

    def names(self, kind: Kind, above: str) -> list[str]:
        """As `Answers.names`."""
        found: list[str] = []
        with _Question(self, {"call": "names", "kind": kind.value, "name": above}) as question:
            while True:
                message, _ = question.reply()
                names = message["names"]
                assert isinstance(names, list), names
                found += map(str, names)
                if not message["more"]:
                    return found

    def tree(self, kind: Kind, name: str) -> Tree:
        """As `Answers.tree`."""
        return self._tree({"call": "tree", "kind": kind.value, "name": name})

    def make(self, name: str) -> Tree:
        """As `Answers.make`."""
        return self._tree({"call": "make", "name": name})

    def remove(self, name: str) -> None:
        """As `Answers.remove`."""
        self._do({"call": "remove", "name": name})

    def touched(self, name: str) -> None:
        """As `Answers.touched`."""
        self._do({"call": "touched", "name": name})

    def _do(self, message: Message) -> None:
        with _Question(self, message) as question:
            question.reply()

    def _tree(self, message: Message) -> Tree:
        with _Question(self, message) as question:
            reply, fds = question.reply()
        paths = reply["replaced"]
        assert isinstance(paths, list), reply
        replaced = tuple(zip(map(str, paths), fds[1:], strict=True))
        return Tree(fds[0], bool(reply["writable"]), str(reply["key"]), replaced, bool(reply["live"]))

    def ask(self, message: Message) -> tuple[int, queue.SimpleQueue[Reply | None]]:
        """Send a question; its number, and where the answer comes."""
        waiting: queue.SimpleQueue[Reply | None] = queue.SimpleQueue()
        with self._lock:
            if self._asked is None:
                raise _gone()
            number = next(self._numbers)
            self._asked[number] = waiting
            try:
                _send(self._end, message | {"id": number})
            except OSError:
                self._asked.pop(number)
                raise
        return number, waiting

    def forget(self, number: int) -> None:
        """No answer to that question is waited for any more."""
        with self._lock:
            if self._asked is not None:
                self._asked.pop(number, None)


def _is_let_go(let_go: Callable[[Kind, str, float], bool], message: Message) -> bool:
    try:
        return let_go(Kind(message["kind"]), str(message["name"]), float(str(message["unused"])))
    except Exception:  # noqa: BLE001  # all questions would go without an answer from now on
        traceback.print_exc()
        return False


def _gone() -> OSError:
    return OSError(errno.EIO, "nobody answers any more")


class _Question:
    """One question and its answers."""

    def __init__(self, end: FolderEnd, message: Message) -> None:
        self._end = end
        self._message = message

    def __enter__(self) -> _Question:
        self._number, self._waiting = self._end.ask(self._message)
        return self

    def __exit__(self, *_: object) -> None:
        self._end.forget(self._number)

    def reply(self) -> Reply:
        """The next answer. Raises OSError as the other end did, EIO where it is gone."""
        reply = self._waiting.get()
        if reply is None:
            raise _gone()
        number = reply[0].get("errno")
        if isinstance(number, int):
            raise OSError(number, os.strerror(number))
        return reply
