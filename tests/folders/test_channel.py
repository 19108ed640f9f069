from __future__ import annotations

import errno
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from overlayrun.errors import HostError
from overlayrun.folders import channel
from overlayrun.folders.api import Kind, Tree

_ODD = "\udcff\n" + "é" * 126


class Known:
    """Answers; `x/during` is let go in the middle of its removal, as a daemon does."""

    def __init__(self, place: Path, end: channel.ControlEnd) -> None:
        self.place = place
        self.end = end
        self.touches: list[str] = []

    def names(self, kind: Kind, above: str) -> list[str]:
        if above == "none":
            raise FileNotFoundError(errno.ENOENT, "none")
        return [f"{kind.value}{above}{number}{_ODD}" for number in range(0 if above == "no" else 1000)]

    def tree(self, kind: Kind, name: str) -> Tree:
        fds = [os.open(self.place / "file", os.O_RDONLY) for _ in range(len(name) % 3)]
        replaced = tuple((f"{number}{_ODD}", fd) for number, fd in enumerate(fds))
        return Tree(
            os.open(self.place, os.O_PATH), kind is Kind.BRANCHES, f"{kind.value} {name}", replaced, live=True
        )

    def make(self, name: str) -> Tree:
        return self.tree(Kind.BRANCHES, name)

    def remove(self, name: str) -> None:
        if not self.end.let_go(Kind.BRANCHES, name):
            raise OSError(errno.EBUSY, "busy")

    def touched(self, name: str) -> None:
        self.touches.append(name)


class Linked:
    """Both ends in one process: answers are given in a thread."""

    def __init__(self, place: Path) -> None:
        (place / "file").write_text("given")
        ours, theirs = channel.pair()
        self.sockets = ours, theirs
        self.control = channel.ControlEnd(ours)
        self.known = Known(place, self.control)
        self.folders = channel.FolderEnd(theirs)
        self.let_go: list[tuple[Kind, str, float]] = []
        self.threads = [threading.Thread(target=work) for work in (self._serve, self._listen)]
        for thread in self.threads:
            thread.start()

    def _serve(self) -> None:
        while self.control.has_waiting or select.select([self.control], [], [], 60)[0]:
            if not self.control.serve(self.known):
                return

    def _listen(self) -> None:
        def obey(kind: Kind, name: str, unused: float) -> bool:
            self.let_go.append((kind, name, unused))
            return name != "busy"

        self.folders.listen(obey)

    def close(self) -> None:
        self.sockets[1].shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(60)
        for end in self.sockets:
            end.close()


@pytest.fixture
def linked(tmp_path: Path) -> Iterator[Linked]:
    made = Linked(tmp_path)
    yield made
    made.close()


def test_names_trees_and_errors_come_over_whole(linked: Linked, until: Callable[..., None]) -> None:
    folders, known = linked.folders, linked.known
    for kind in Kind:
        assert folders.names(kind, _ODD) == known.names(kind, _ODD)
    assert folders.names(Kind.COMMITS, "no") == []
    with pytest.raises(FileNotFoundError):
        folders.names(Kind.COMMITS, "none")
    before = len(os.listdir("/proc/self/fd"))
    for name in ("x", "xx", "xxx"):
        tree = folders.make(name)
        assert (tree.writable, tree.live, tree.key) == (True, True, f"branches {name}")
        assert [path for path, _ in tree.replaced] == [f"{number}{_ODD}" for number in range(len(name) % 3)]
        assert os.fstat(tree.fd).st_ino == known.place.stat().st_ino
        assert [os.pread(fd, 9, 0) for _, fd in tree.replaced] == [b"given"] * len(tree.replaced)
        assert not any(os.get_inheritable(fd) for fd in (tree.fd, *(fd for _, fd in tree.replaced)))
        for fd in (tree.fd, *(fd for _, fd in tree.replaced)):
            os.close(fd)
    until(lambda: len(os.listdir("/proc/self/fd")) == before, "descriptors closed")
    folders.touched(_ODD)
    assert known.touches == [_ODD]
    with pytest.raises(OSError, match="too long a message"):
        folders.touched("x" * 40_000)
    assert folders.names(Kind.BRANCHES, "")


def test_many_threads_ask_while_trees_are_let_go(linked: Linked) -> None:
    def ask(number: int) -> object:
        if number % 7 == 0:
            linked.folders.remove(f"b{number}")
            return None
        if number % 3 == 0:
            tree = linked.folders.tree(Kind.COMMITS, f"c{number}")
            for fd in (tree.fd, *(fd for _, fd in tree.replaced)):
                os.close(fd)
            return tree.key
        return len(linked.folders.names(Kind.SNAPSHOTS, str(number)))

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(200)))
    for number, answer in enumerate(answers):
        expected = None if number % 7 == 0 else f"commits c{number}" if number % 3 == 0 else 1000
        assert answer == expected
    assert sorted(linked.let_go) == sorted((Kind.BRANCHES, f"b{number}", 0.0) for number in range(0, 200, 7))
    with pytest.raises(OSError, match="busy"):
        linked.folders.remove("busy")


def test_who_waits_hears_of_the_other_s_end(tmp_path: Path, until: Callable[..., None]) -> None:
    ours, theirs = channel.pair()
    folders = channel.FolderEnd(theirs)
    listener = threading.Thread(target=folders.listen, args=(lambda kind, name, unused: True,))
    listener.start()
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(folders.names, Kind.BRANCHES, "") for _ in range(4)]
        until(lambda: select.select([ours], [], [], 0)[0])
        ours.close()
        assert {question.exception().__class__ for question in asked} <= {
            OSError,
            BrokenPipeError,
            ConnectionResetError,
        }
    listener.join(60)
    with pytest.raises(OSError, match=r"Broken pipe|reset|any more"):
        folders.touched("x")
    theirs.close()

    ours, theirs = channel.pair()
    end = channel.ControlEnd(ours)
    channel.FolderEnd(theirs).failed("no device", "get one")
    with pytest.raises(HostError, match="no device") as raised:
        end.wait_until_mounted()
    assert raised.value.hint == "get one"
    theirs.send(b'{"call": "names", "kind": "branches", "id": 1}')
    theirs.send(b'{"call": "format", "name": "disk", "id": 2}')
    assert end.serve(Known(tmp_path, end))
    assert b'"errno": 22' in theirs.recv(1000)
    theirs.close()
    with pytest.raises(HostError, match="died at its start"):
        end.wait_until_mounted()
    assert not end.serve(Known(tmp_path, end))
    assert end.let_go(Kind.BRANCHES, "x")
    ours.close()
