"""The confined process that reads an upper: what it can reach, what it may say, where it stops."""

from __future__ import annotations

import ctypes  # noqa: TID251  # the attacker swaps names faster than any wrapper
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from snapshot_world import World

from overlayrun.collector import Limits
from overlayrun.errors import OverlayrunError, SnapshotError
from overlayrun.layers import wire
from overlayrun.layers.walk import Content, Opened, walk_upper
from overlayrun.layers.wire import Channel, FileInfo, LimitReached, Trouble
from overlayrun.model import SnapshotReason
from overlayrun.reader import Reader
from overlayrun.store import importer

if TYPE_CHECKING:
    from conftest import UserRepo

pytestmark = pytest.mark.shared  # what a reader may say

SECRET = b"a secret outside the layer\n"


class Seen:
    """A visitor that notes what it is told; a directory's state is its path."""

    def __init__(self) -> None:
        self.files: dict[bytes, bytes] = {}
        self.names: list[bytes] = []

    def top(self, _: Opened) -> bytes:
        return b""

    def wants(self, where: bytes, name: bytes, info: FileInfo) -> bool:
        self.names.append(name)
        return len(where) < 100 and info.size < 1 << 40

    def enter(self, where: bytes, name: bytes, _: Opened) -> bytes:
        return where + name + b"/"

    def file(self, where: bytes, name: bytes, content: Content, info: FileInfo) -> None:
        self.files[where + name] = b"".join(content)
        assert len(self.files[where + name]) <= info.size

    def link(self, where: bytes, name: bytes, text: bytes) -> None:
        self.files[where + name] = b"-> " + text

    def deleted(self, _: bytes, name: bytes) -> None:
        self.names.append(name)

    def trouble(self, _: bytes, name: bytes, what: Trouble) -> None:
        self.names.append(name + what.value.encode())


def read_all(upper: Path, largest: int = 1 << 20) -> Seen:
    seen = Seen()
    with Reader(str(upper), 30.0) as reader:
        walk_upper(reader.channel, seen.top, seen, largest=largest)
    return seen


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    """A directory to read, with one file."""
    place = tmp_path / "layer"
    place.mkdir()
    (place / "inside").write_text("mine\n")
    return place


@pytest.mark.by_both
def test_what_its_owner_closed_is_read_all_the_same(tmp_path: Path) -> None:
    world = World.make(tmp_path, {"f": "1\n", "d/g": "1\n"})
    world.sh("echo 2 > f; chmod 0 f; echo 2 > d/g; chmod 0 d/g d; mkdir n; echo 3 > n/new; chmod 0 n .")
    try:
        taken = world.snapshot()
        assert [world.content(taken.tree, path) for path in ("f", "d/g", "n/new")] == [b"2\n", b"2\n", b"3\n"]
        assert taken.left_out == ()
        assert world.files(taken.tree)[b"f"].startswith(b"100644")
    finally:
        for path in (world.upper, world.upper / "d", world.upper / "n"):
            path.chmod(0o700)


def _tries(layer: Path, parent: int) -> dict[str, Callable[[], object]]:
    """What a reader that was taken over could try; each works for a process that is not confined."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
    return {
        "read by an absolute path": lambda: os.open(f"{layer}/inside", os.O_RDONLY),
        "read the host's files": lambda: os.open("/etc/passwd", os.O_RDONLY),
        "go up": lambda: os.open(f"{'../' * 30}etc/passwd", os.O_RDONLY),
        "look at processes": lambda: os.open("/proc/self/status", os.O_RDONLY),
        "make a file": lambda: os.open("made", os.O_WRONLY | os.O_CREAT, 0o600),
        "write to a file": lambda: os.open("inside", os.O_WRONLY),
        "make a directory": lambda: os.mkdir("directory"),
        "rename": lambda: os.rename("inside", "outside"),
        "change a mode": lambda: os.chmod(".", 0o700),
        "make a socket": lambda: socket.socket().close(),
        "make a local socket": socket.socketpair,
        "signal": lambda: os.kill(parent, 0),
        "start a process": lambda: os.posix_spawn("/bin/true", ["true"], {}),
        "change its user": lambda: os.setresuid(-1, -1, -1),
    }


@pytest.mark.by_both
def test_it_reads_below_the_layer_and_does_nothing_else(layer: Path) -> None:
    tries = _tries(layer, os.getpid())

    def probe(root: int, asked: int, said: int) -> None:
        worked = []
        for name, attempt in tries.items():
            with suppress(OSError):
                attempt()
                worked.append(name)
        open_now = [fd for fd in range(1024) if _is_open(fd)]
        worked += [] if sorted((root, asked, said)) == open_now else [f"descriptors {open_now}"]
        inside = os.read(os.open("/inside", os.O_RDONLY), 10)
        words = f"{worked} {inside!r}".encode()
        os.write(said, wire.HEADER.pack(wire.FAILED, len(words), 0, 0, 0, 0, 0) + words)

    with Reader(str(layer), 30.0, probe) as reader, pytest.raises(SnapshotError) as raised:
        reader.channel.frame()
    assert raised.value.details == ascii("[] b'mine\\n'")[1:-1]
    assert os.listdir(layer) == ["inside"]


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_the_tries_would_work_outside(layer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(layer)
    for attempt in _tries(layer, os.getpid()).values():
        made = attempt()
        if isinstance(made, int) and made > 2:
            with suppress(OSError):
                os.close(made)
        elif isinstance(made, tuple):
            for one in made:
                one.close()
        if not (layer / "inside").exists():
            os.rename(layer / "outside", layer / "inside")
    with suppress(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.mark.by_both
@pytest.mark.parametrize("end", [lambda: os._exit(0), lambda: os.kill(os.getpid(), signal.SIGSEGV), None])
def test_a_reader_that_dies_or_hangs_is_an_error(layer: Path, end: Callable[[], object] | None) -> None:
    def work(*_: int) -> None:
        ctypes.string_at(0) if end is None else end()

    with Reader(str(layer), 30.0, work) as reader, pytest.raises(SnapshotError, match=r"died.*kept"):
        walk_upper(reader.channel, Seen().top, Seen(), largest=10)


def test_a_reader_that_hangs_or_never_ends_is_cut_off(layer: Path) -> None:
    def hang(_: int, asked: int, __: int) -> None:
        while os.read(asked, 100):
            pass

    def chatter(_: int, asked: int, said: int) -> None:
        os.read(asked, 100)
        os.write(said, wire.HEADER.pack(wire.OPENED, 0, 0, 0, -1, 0, 0))
        while True:
            os.write(said, wire.HEADER.pack(wire.GONE, 1, 0, 0, 0, 0, 0) + b"x")

    for work in (hang, chatter):
        with Reader(str(layer), 0.3, work) as reader, pytest.raises(LimitReached, match=r"more than 0\.3 s"):
            walk_upper(reader.channel, Seen().top, Seen(), largest=10)


_NUMBERS = st.integers(-(1 << 63), (1 << 63) - 1)
_SMALL = st.integers(-1, 300)
_FRAMES = st.builds(
    lambda letter, mode, size, payload, length: (
        wire.HEADER.pack(letter, len(payload) if length is None else length, mode, 1, size, 0, 0) + payload
    ),
    st.sampled_from([b"o", b"e", b"e", b"w", b"t", b".", b".", b"f", b"d", b"l", b"x", b"?"]),
    st.sampled_from([0, 1, 2, 3, 0o40755, 0o100644, 0o120777, 0o20000, 0xFFFFFFFF]),
    st.one_of(_SMALL, _NUMBERS),
    st.one_of(st.sampled_from([b"", b"a", b"b", b"..", b"a/b", b".git", b"n\0"]), st.binary(max_size=300)),
    st.one_of(st.none(), st.none(), st.integers(0, 0xFFFFFFFF)),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.one_of(st.binary(max_size=4000), st.lists(_FRAMES, max_size=30).map(b"".join)))
def test_whatever_a_reader_says_is_an_answer_or_an_error(data: bytes) -> None:
    asked, questions = os.pipe()
    answers, said = os.pipe()
    os.write(said, data)
    os.close(said)
    seen = Seen()
    try:
        with suppress(SnapshotError):
            walk_upper(Channel(questions, answers, 30.0), seen.top, seen, largest=1000)
    finally:
        for fd in (asked, questions, answers):
            os.close(fd)
    assert not [name for name in seen.names if b"/" in name or name in (b"", b".", b"..")]
    assert all(len(content) <= 4095 + 3 for content in seen.files.values())


@pytest.mark.parametrize(
    "name", [b"..", b".", b"", b"/etc/passwd", b"a/b", b"a\0b", b"x" * 256], ids=lambda name: repr(name)[:12]
)
def test_no_name_leads_out(name: bytes) -> None:
    asked, questions = os.pipe()
    answers, said = os.pipe()
    frames = [(wire.OPENED, 0, -1, b""), (wire.ENTRY, 0o100644, 1, name), (wire.END, 0, 0, b"")]
    for letter, mode, size, payload in frames:
        os.write(said, wire.HEADER.pack(letter, len(payload), mode, 0, size, 0, 0) + payload)
    seen = Seen()
    with pytest.raises(SnapshotError, match="wrong answer"):
        walk_upper(Channel(questions, answers, 30.0), seen.top, seen, largest=1000)
    for fd in (asked, questions, answers, said):
        os.close(fd)


@contextmanager
def swapped(directory: Path, one: str, other: str) -> Iterator[None]:
    """Let an attacker exchange two names all the time."""
    pid = os.fork()
    if pid == 0:
        os.chdir(directory)
        exchange = ctypes.CDLL(None).renameat2
        while True:
            exchange(-100, one.encode(), -100, other.encode(), 2)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _naive(layer: Path) -> bool:
    """Whether a reader that looks first and opens afterwards got hold of the secret."""
    with suppress(OSError):
        path = layer / "one"
        return not path.is_symlink() and path.is_file() and path.read_bytes() == SECRET
    return False


@pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
def test_a_file_that_turns_into_something_else_leads_nowhere(layer: Path, kind: str) -> None:
    outside = layer.parent / "secret"
    outside.write_bytes(SECRET)
    (layer / "one").write_text("mine\n")
    makers: dict[str, Callable[[str], object]] = {
        "link": partial(os.symlink, outside),
        "fifo": os.mkfifo,
        "directory": os.mkdir,
    }
    makers[kind](f"{layer}/two")
    with swapped(layer, "one", "two"):
        for _ in range(30):
            found = read_all(layer).files
            assert set(found.values()) <= {b"mine\n", b"-> " + os.fsencode(outside)}
        end = time.monotonic() + 30
        while kind == "link" and not _naive(layer):
            assert time.monotonic() < end, "the race was never lost: this test proves nothing"


def test_a_large_file_comes_in_pieces_and_whole(layer: Path) -> None:
    data = os.urandom(3 * wire.BLOCK + 5)
    (layer / "large").write_bytes(data)
    assert read_all(layer, len(data)).files == {b"large": data, b"inside": b"mine\n"}
    assert b"large" + Trouble.RACED.value.encode() in read_all(layer, len(data) - 1).names


def test_thousands_of_files_in_one_directory_come_in_many_questions(layer: Path) -> None:
    for number in range(3000):
        (layer / f"a rather long name of a file, number {number}").write_text(f"{number}\n")
    found = read_all(layer).files
    assert len(found) == 3001
    assert found[b"a rather long name of a file, number 2999"] == b"2999\n"


_FEW = Limits(entries=3, total_bytes=100, seconds=600)


@pytest.mark.parametrize(
    ("script", "limits", "says"),
    [
        ("for n in 1 2 3 4; do echo $n > $n; done", _FEW, "more than 3 files changed"),
        ("for n in 1 2 3 4; do mkdir $n; done", _FEW, "more than 3 directories changed"),
        ("for n in 1 2 3 4; do mkfifo $n; done", _FEW, "more than 3 paths can't be taken"),
        ("printf %080d 1 > a; printf %080d 2 > b", _FEW, "have 16[02] bytes or more, the limit is 100 bytes"),
        ("echo 1 > a", Limits(seconds=0.0), "took more than 0 s"),
    ],
)
def test_a_limit_says_what_to_type_and_the_last_snapshot_stays(
    tmp_path: Path, script: str, limits: Limits, says: str
) -> None:
    world = World.make(tmp_path, {"x": "1\n"})
    world.sh("echo 2 > x")
    before = world.snapshot(SnapshotReason.REQUEST)
    world.sh(script)
    world.job = replace(world.job, limits=limits)
    with pytest.raises(SnapshotError) as raised:
        world.snapshot(SnapshotReason.INTERVAL)
    assert re.search(says, raised.value.brief)
    assert "the files are kept, and so is the last snapshot" in raised.value.brief
    assert (raised.value.hint or "").endswith("overlayrun snapshot agent/one --force-large")
    assert world.git("rev-parse", "refs/overlayrun/snapshots/w1") == before.commit
    world.job = replace(world.job, limits=replace(limits, force_large=True))
    assert world.snapshot(SnapshotReason.REQUEST).changes.total >= 1


def test_a_file_over_the_limit_is_told_and_stays_once_it_was_forced(tmp_path: Path) -> None:
    world = World.make(tmp_path, {"x": "1\n"})
    world.sh("printf %02000d 1 > large")
    world.job = replace(world.job, limits=Limits(file_bytes=1000))
    assert world.snapshot(SnapshotReason.REQUEST).notes == (
        "a file has 1.95 KiB, the limit is 1000 bytes; to take it: overlayrun snapshot agent/one --force-large",
    )
    time.sleep(0.1)  # the clock of file times ticks more slowly than this goes on
    world.job = replace(world.job, limits=Limits(file_bytes=1000, force_large=True))
    assert world.names(world.snapshot(SnapshotReason.REQUEST).tree) == {"x", "large"}
    world.job = replace(world.job, limits=Limits(file_bytes=1000))
    world.sh("echo 2 > x")
    assert world.names(world.snapshot(SnapshotReason.INTERVAL).tree) == {"x", "large"}


def test_the_limits_are_lifted_from_outside_only(repo: UserRepo) -> None:
    done = repo.overlayrun(
        "-b", "b", "--", "sh", "-c", "echo 1 >one; overlayrun snapshot --force-large; true"
    )
    assert "from outside only" in done.err
    assert repo.overlayrun("snapshot", "b", "--force-large", "-m", "All of it").code == 0
    assert repo.git("log", "-1", "--format=%s", "b") == "All of it"


def test_links_among_the_agents_refs_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").touch()
    heads = tmp_path / "git/refs/heads"
    heads.mkdir(parents=True)
    (heads / "main").write_text("0\n")
    (heads / "link").symlink_to(outside)
    marks: Any = importer._ref_marks(str(tmp_path / "git"))
    assert {mark[0] for mark in marks} == {"refs/heads", "refs/heads/main", "refs/heads/link"}
    assert marks == importer._ref_marks(str(tmp_path / "git"))
    shutil.rmtree(tmp_path / "git/refs")
    (tmp_path / "git/refs").symlink_to(outside)
    assert importer._ref_marks(str(tmp_path / "git")) == ()


def test_refs_without_end_are_looked_at_no_further(tmp_path: Path) -> None:
    (tmp_path / "/".join(["refs"] + ["d"] * 60)).mkdir(parents=True)
    assert importer._ref_marks(str(tmp_path)) != importer._ref_marks(str(tmp_path))


def test_a_carried_file_is_never_put_back_through_a_link(repo: UserRepo, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    repo.commit("start", **{".gitignore": ".env\n", "sub/kept": "1\n"})
    repo.write("sub/.env", "host\n")
    repo.inside(f"rm -r sub; ln -s {outside} sub")
    repo.inside("rm sub; mkdir sub; echo planted >sub/.env; echo 2 >sub/kept")
    repo.overlayrun("restore", "b", "@{1}")
    assert os.listdir(outside) == []
    assert repo.inside("readlink sub").strip() == str(outside)


@pytest.mark.by_both
def test_an_error_of_the_reader_has_words() -> None:
    with pytest.raises(OverlayrunError) as raised:
        read_all(Path("/nowhere/at/all"))
    assert "could not be confined" in (raised.value.details or "")
