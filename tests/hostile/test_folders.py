"""Folders whose trees an agent writes in: what he leaves there, and what programs of the host ask of them."""

from __future__ import annotations

import ctypes  # noqa: TID251  # renameat2, as a program calls it
import errno
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NoReturn

import pytest
from folders.world import Folders

from overlayrun.folders import channel
from overlayrun.folders.api import Kind, Tree
from overlayrun.folders.filesystem import FileSystem

pytestmark = pytest.mark.shared
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LEASE: Final = """
import fcntl, os, signal, sys, time
signal.signal(signal.SIGIO, signal.SIG_IGN)
fcntl.fcntl(os.open(sys.argv[1], os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_RDLCK)
print("held", flush=True)
time.sleep(600)
"""
_TICKED: Final = """
import os, signal, sys
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
print("begun", flush=True)
try:
    os.stat(sys.argv[1])
except OSError as err:
    print(err.errno)
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folders]:
    made = Folders(tmp_path_factory.mktemp("folders"))
    yield made
    made.close()


def _error(act: Callable[[], object]) -> str:
    try:
        act()
    except OSError as err:
        return errno.errorcode[err.errno or 0]
    return ""


def _fail(*_: object) -> NoReturn:
    raise KeyError


def test_no_request_of_a_program_ends_the_file_system(folders: Folders) -> None:
    shown, store = folders.branch("requests")
    (store / "file").write_text("text")
    os.setxattr(store / "file", "user.x", b"1")
    fd = os.open(shown / "file", os.O_RDWR)
    for offset in (-1, -(1 << 63), 1 << 40):
        assert _error(lambda at=offset: os.lseek(fd, at, os.SEEK_DATA)) == "ENXIO"  # type: ignore[misc]
    assert _error(lambda: os.truncate(shown / "file", (1 << 63) - 1)) == "EFBIG"
    os.close(fd)
    # An answer about the folders must not be taken for one about all files.
    for above in (folders.mount, folders.mount / "branches"):
        assert _error(lambda at=above: os.getxattr(at, "user.x")) == "ENODATA"  # type: ignore[misc]
        assert os.listxattr(above) == []
    assert os.getxattr(shown / "file", "user.x") == b"1"
    assert os.listxattr(shown / "file") == ["user.x"]


def test_a_bug_is_one_caller_s_trouble(folders: Folders, capfd: pytest.CaptureFixture[str]) -> None:
    """Of either process; without an answer the caller could not even be killed."""
    assert _error((folders.mount / "branches/broken").mkdir) == "EIO"
    assert (folders.mount / "branches").is_dir()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end, _ = channel.pair()
    file_system = FileSystem(theirs.fileno(), channel.FolderEnd(end), (0, 0), "")
    file_system._attempt(77, _fail)
    assert struct.unpack("=IiQ", ours.recv(100)) == (16, -errno.EIO, 77)
    assert "KeyError" in capfd.readouterr().err
    for one in (ours, theirs, end, _):
        one.close()


class _Names:
    """Answers that are names as long as git's may be."""

    names_of: Final = [f"{number:03}" + "é" * 1100 for number in range(60)]

    def names(self, _: Kind, above: str) -> list[str]:
        return self.names_of

    def tree(self, kind: Kind, name: str) -> Tree:
        fds = [os.open("/", os.O_PATH) for _ in range(20)]
        return Tree(fds[0], writable=False, key="", replaced=tuple((str(fd), fd) for fd in fds[1:]))

    def make(self, name: str) -> Tree:
        raise AssertionError

    def remove(self, name: str) -> None:
        raise AssertionError

    def touched(self, name: str) -> None:
        raise AssertionError


def test_long_names_of_tags_come_over_and_the_end_is_told_to_all() -> None:
    """A server from which the user fetched may have called its tags as it liked."""
    ours, theirs = channel.pair()
    control, end = channel.ControlEnd(ours), channel.FolderEnd(theirs)
    threading.Thread(target=end.listen, args=(_fail,), daemon=True).start()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(end.names, Kind.COMMITS, "")
        while not asked.done():
            assert control.serve(_Names())
        assert asked.result() == _Names.names_of
    assert not control.let_go(Kind.COMMITS, "x")  # and it listens still
    ours.close()
    for _ in range(2):  # the second comes when nobody listens
        assert _error(lambda: end.names(Kind.COMMITS, "")) in ("EIO", "EPIPE", "ECONNRESET")
    theirs.close()


def test_too_many_open_files_are_the_caller_s_trouble(tmp_path: Path) -> None:
    made = Folders(tmp_path, "prlimit", "--nofile=200:200")
    shown, store = made.branch("many")
    for number in range(250):
        (store / f"f{number}").write_text("x")
        (store / f"d{number}").mkdir()
    (made.store / "commits/c/in").mkdir(parents=True)
    fds: list[int] = []

    def open_all() -> None:
        for number in range(250):
            fds.append(os.open(shown / f"f{number}", os.O_RDONLY))

    assert _error(open_all) == "EMFILE"
    assert len(fds) > 100
    with ThreadPoolExecutor(4) as pool:  # what can't be handed over either
        told = [pool.submit(_error, lambda: os.listdir(made.mount / "commits/c")) for _ in range(4)]
        assert {one.result() for one in told} <= {"EMFILE", ""}
    for fd in fds:
        os.close(fd)
    assert (shown / "f249").read_text() == "x"
    assert os.listdir(made.mount / "commits/c") == ["in"]
    assert sum(len(os.listdir(shown / f"d{number}")) for number in range(250)) == 0
    made.close()


def test_who_waits_can_be_killed_and_others_go_on(folders: Folders, until: Callable[..., None]) -> None:
    """While who knows the trees is stopped; a signal that ends nobody is no reason to fail."""
    shown, store = folders.branch("waits")
    (store / "file").write_text("text")
    assert (shown / "file").read_text() == "text"
    folders.process.send_signal(signal.SIGSTOP)
    try:
        new = folders.mount / "commits"
        readers = [_started("stat", str(new / f"n{number}")) for number in range(3)]
        ticked = _started(sys.executable, "-c", _TICKED, str(new / "ticked"))
        assert ticked.stdout is not None
        assert ticked.stdout.readline() == "begun\n"
        until(lambda: all(_waits_for_fuse(one.pid) for one in [*readers, ticked]), "that they wait")
        for reader, number in zip(readers, (signal.SIGKILL, signal.SIGTERM, signal.SIGINT), strict=True):
            reader.send_signal(number)
            reader.communicate(timeout=30)
            assert reader.returncode == -number
        with (shown / "file").open("w") as file:
            file.write("written")
            file.flush()
            os.fsync(file.fileno())
        time.sleep(0.2)  # some ticks more
        assert ticked.poll() is None
    finally:
        folders.process.send_signal(signal.SIGCONT)
    assert ticked.communicate(timeout=30)[0] == f"{errno.ENOENT}\n"
    assert (store / "file").read_text() == "written"


def _started(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def _waits_for_fuse(pid: int) -> bool:
    return Path(f"/proc/{pid}/syscall").read_text() != "running\n" and Path(
        f"/proc/{pid}/wchan"
    ).read_text() not in ("0", "")


def test_a_lease_keeps_nobody_waiting(folders: Folders) -> None:
    """truncate(2) would wait for the agent, and with the one thread that answers all folders would."""
    shown, store = folders.branch("lease")
    (store / "file").write_text("text")
    holder = _started(sys.executable, "-c", _LEASE, str(store / "file"))
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    try:
        assert _error(lambda: os.truncate(shown / "file", 1)) == "EAGAIN"
        assert _error(lambda: (shown / "file").write_text("x")) == "EAGAIN"
        assert (shown / "file").read_text() == "text"
    finally:
        holder.kill()
        holder.communicate()
    os.truncate(shown / "file", 1)
    assert (store / "file").read_text() == "t"


def test_files_that_are_swapped_for_links_and_pipes_lead_nowhere(folders: Folders) -> None:
    """The link's target is there from the store alone: who changes it followed it there, in our process."""
    shown, store = folders.branch("swap-live")
    victim = folders.store / "victim"
    victim.write_text("mine")
    victim.chmod(0o640)
    before = victim.stat()
    (store / "file").write_text("plain")
    (store / "link").symlink_to("../../victim")
    os.mkfifo(store / "pipe")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for other in (b"link", b"pipe"):
                _LIBC.renameat2(-100, os.fsencode(store / "file"), -100, os.fsencode(store) + b"/" + other, 2)

    swapper = threading.Thread(target=swap)
    swapper.start()
    path = shown / "file"
    acts: tuple[Callable[[], object], ...] = (
        lambda: os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_TRUNC)),
        lambda: os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CREAT, 0o600)),
        lambda: os.chmod(path, 0o777),
        lambda: os.truncate(path, 0) if path.is_file() else None,
        lambda: os.utime(path, (1, 1)),
        lambda: os.setxattr(path, "user.x", b"x"),
        lambda: os.link(path, shown / "hard", follow_symlinks=False),
        (shown / "hard").unlink,
    )
    try:
        for _ in range(250):
            for act in acts:
                _error(act)
    finally:
        stop.set()
        swapper.join()
    after = victim.stat()
    assert (victim.read_text(), os.listxattr(victim)) == ("mine", [])
    assert (after.st_mode, after.st_nlink, after.st_mtime_ns) == (before.st_mode, 1, before.st_mtime_ns)


def test_no_repository_of_an_agent_s_shows_in_a_folder(folders: Folders, tmp_path: Path) -> None:
    """Of a submodule's place git asks the repository that is there, and that one's configuration names programs."""
    shown, store = folders.branch("nested-live")
    own, pwned = tmp_path / "own.git", tmp_path / "pwned"
    run = ["git", "-c", "user.name=x", "-c", "user.email=x@x"]

    def git(*words: str) -> None:
        subprocess.run([*run, *words], check=True, capture_output=True)

    git("init", "-q", f"--separate-git-dir={own}", str(store))
    (store / ".git").rename(folders.store / "nested-live.git")  # given in its place, as a folder's own is
    (store / "file").write_text("1\n")
    empty = "--git-dir", str(own), "--work-tree", str(shown)
    git(*empty, "add", "file")
    commit = "1" * 40
    git(*empty, "update-index", "--add", "--cacheinfo", f"160000,{commit},sub")
    git(*empty, "commit", "-qm", "1")
    for name in ("sub", "deep/other"):
        git("init", "-q", str(store / name))
        git("-C", str(store / name), "commit", "-q", "--allow-empty", "-m", "x")
        git("-C", str(store / name), "config", "core.fsmonitor", f"touch {pwned};false")
    for words in (["status"], ["diff"], ["add", "-A"], ["status"], ["stash"], ["log", "-p"]):
        done = subprocess.run([*run, *words], cwd=shown, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    inner = subprocess.run([*run, "status"], cwd=shown / "sub", check=True, capture_output=True, text=True)
    assert not pwned.exists(), inner.stdout
    for place in (shown / "sub", shown / "deep/other"):
        assert os.listdir(place) == []
        assert not os.path.lexists(place / ".git")
        (place / "x").mkdir()
        refused: tuple[Callable[[], object], ...] = (
            (place / ".git").mkdir,
            (place / ".git").touch,
            lambda at=place: (at / ".git").symlink_to("x"),  # type: ignore[misc]
            lambda at=place: (at / "x").rename(at / ".git"),  # type: ignore[misc]
            lambda at=place: os.link(shown / "file", at / ".git"),  # type: ignore[misc]
        )
        assert {_error(act) for act in refused} == {"EPERM"}
        (place / "x").rmdir()
        assert _error(place.rmdir) == "ENOTEMPTY"  # what the agent has there is not lost unseen
    assert (store / "sub/.git/config").is_file()
    known = os.open(shown / ".git", os.O_PATH)
    assert folders.say("let-go branches nested-live") == "done"
    again = os.open(f"/proc/self/fd/{known}", os.O_RDONLY)  # by the number that the kernel knows
    assert os.read(again, 100) == f"gitdir: {own}\n".encode()
    os.close(again)
    os.close(known)


def test_a_large_listing_that_changes_meanwhile_holds_what_stays(folders: Folders) -> None:
    shown, store = folders.branch("listed-live")
    kept = {f"{'n' * 200}{number}" for number in range(3000)}
    for name in kept:
        (store / name).touch()
    stop = threading.Event()

    def change() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            (store / f"gone{number % 50}").touch()
            (store / f"gone{(number + 7) % 50}").unlink(missing_ok=True)

    changer = threading.Thread(target=change)
    changer.start()
    try:
        for _ in range(5):
            listed = os.listdir(shown)
            assert kept <= set(listed)
            assert len(listed) == len(set(listed))
    finally:
        stop.set()
        changer.join()
