"""An eye on disk and memory where no control group holds them."""

from __future__ import annotations

import itertools
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from overlayrun.sandbox.limits import LimitOptions
from overlayrun.watchdog import Watchdog, _by_parent, _children, size_on_disk

if TYPE_CHECKING:
    from conftest import Mounter, UserRepo

Until = Callable[..., None]


def _used(place: Path) -> int:
    words = subprocess.check_output(["du", "--summarize", "--block-size=1", str(place)], text=True).split()
    return int(words[0]) - os.lstat(place).st_blocks * 512


def test_the_size_is_what_the_files_take(tmp_path: Path) -> None:
    place = tmp_path / "place"
    (place / "a/b").mkdir(parents=True)
    (place / "a/big").write_bytes(b"x" * 300_000)
    for number in range(5):
        os.link(place / "a/big", place / f"a/b/{number}")
    os.truncate(place / "a/big", 1 << 40)  # sparse: takes nothing
    (tmp_path / "outside").write_bytes(b"x" * 5_000_000)
    (place / "link").symlink_to(tmp_path)
    os.mkfifo(place / "fifo")
    assert abs(size_on_disk(str(place)) - _used(place)) < 6  # a remainder of each name


def test_no_depth_is_too_deep(tmp_path: Path) -> None:
    start = os.getcwd()
    os.chdir(tmp_path)
    try:
        for _ in range(60):
            os.mkdir("d" * 250)
            os.chdir("d" * 250)
        Path("bottom").write_bytes(b"x" * 100_000)
        assert size_on_disk(str(tmp_path)) > 100_000
    finally:
        os.chdir(start)
        subprocess.run(["rm", "-rf", str(tmp_path / ("d" * 250))], check=True)


def test_it_measures_when_the_disk_has_lost_what_is_left(tmp_path: Path) -> None:
    dog = Watchdog(os.getpid(), str(tmp_path), LimitOptions(disk=4 << 20))
    assert dog.look() is None
    with (tmp_path / "big").open("wb") as file:
        file.write(os.urandom(6 << 20))
        os.fsync(file.fileno())
    assert dog.look() == "ended: its changes take more than 4M of disk (--disk)"


def _write_for_ever(fd: int) -> None:
    while True:
        os.write(fd, b"x" * (1 << 18))


@pytest.mark.root
def test_a_disk_that_is_nearly_full_ends_the_run(loop_disk: Mounter) -> None:
    disk = loop_disk("ext4", 40)
    dog = Watchdog(os.getpid(), str(disk), LimitOptions())
    assert dog.look() is None
    fd = os.open(disk / "x", os.O_CREAT | os.O_WRONLY | os.O_SYNC)
    with pytest.raises(OSError, match="No space left"):
        _write_for_ever(fd)
    os.close(fd)
    assert str(dog.look()).startswith("ended: the disk is nearly full (")
    # A run that starts there may use half of what is left.
    (disk / "x").unlink()
    fd = os.open(disk / "x", os.O_CREAT | os.O_WRONLY)
    os.posix_fallocate(fd, 0, os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - (1 << 20))
    os.close(fd)
    assert Watchdog(os.getpid(), str(disk), LimitOptions()).look() is None


def _touch_for_ever(place: Path) -> None:
    for number in itertools.count():
        (place / str(number)).touch()


@pytest.mark.root
def test_a_disk_without_room_for_files_ends_the_run(loop_disk: Mounter) -> None:
    disk = loop_disk("ext4", 8)
    dog = Watchdog(os.getpid(), str(disk), LimitOptions())
    assert dog.look() is None
    with pytest.raises(OSError, match="No space left"):
        _touch_for_ever(disk)
    assert "no room for more files" in str(dog.look())


# A parent whose children each do the same work: a process of its own, because a fork of the test's shows in its
# memory how much pytest has gathered so far. Each child says when it is done; all wait, to be killed together.
_FAMILY: Final = """
import mmap, os, signal, sys
shared, taken = mmap.mmap(-1, 64 << 20), []
for _ in range(int(sys.argv[1])):
    if not os.fork():
        {work}
        os.write(1, b"x")
        signal.pause()
os.wait()
os.killpg(0, signal.SIGKILL)
"""
_LOOK_AT_SHARED: Final = "assert not any(shared[at] for at in range(0, len(shared), mmap.PAGESIZE))"
_TAKE: Final = "taken.append(os.urandom(1 << 20) * 150)"


@contextmanager
def _family(work: str, children: int) -> Iterator[int]:
    """A process with so many children, each of which has done some work and waits."""
    words = [sys.executable, "-I", "-S", "-c", _FAMILY.format(work=work), str(children)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True) as parent:
        try:
            assert parent.stdout is not None
            assert parent.stdout.read(children) == b"x" * children
            yield parent.pid
        finally:
            os.killpg(parent.pid, signal.SIGKILL)


def _resident(pid: int) -> int:
    pages = [int(Path(f"/proc/{child}/statm").read_text().split()[1]) for child in _children(pid)]
    return sum(pages) * mmap.PAGESIZE


def test_memory_is_what_all_take_together_and_what_they_share_counts_once(tmp_path: Path) -> None:
    with _family(_LOOK_AT_SHARED, 4) as pid:
        assert _resident(pid) > 200 << 20
        assert Watchdog(pid, str(tmp_path), LimitOptions(memory=200 << 20)).look() is None
        assert len(_children(pid)) == 4
        assert sorted(_by_parent()(pid)) == sorted(_children(pid))


def test_too_much_memory_ends_the_run_unless_a_group_holds_it(tmp_path: Path) -> None:
    limits = LimitOptions(memory=100 << 20)
    with _family(_TAKE, 1) as pid:
        dog = Watchdog(pid, str(tmp_path), limits)
        assert dog.look() == "ended: memory limit of 100M reached (--memory)"
        limits.held = ("memory",)
        assert dog.look() is None


def test_a_run_that_takes_too_much_disk_is_ended_and_kept(repo: UserRepo) -> None:
    script = "mkdir hidden; head -c 12M /dev/urandom >hidden/big; chmod 0 hidden; echo small >small; sleep 60"
    done = repo.sh(script, "--disk", "6M")
    assert done.code == 128 + signal.SIGKILL
    assert "ended: its changes take more than 6M of disk (--disk)" in done.ours
    assert repo.show("b", "small") == "small\n"


def test_a_run_that_takes_too_much_memory_is_ended(repo: UserRepo) -> None:
    hog = "x = []\nwhile True: x.append(bytearray(1 << 20))"
    repo.write("hog.py", hog)
    done = repo.sh("python3 hog.py & wait; sleep 60", "--memory", "150M", "--without", "cgroup")
    assert done.code == 128 + signal.SIGKILL
    assert "ended: memory limit of 150M reached (--memory)" in done.ours


def test_switched_off_it_looks_at_nothing(repo: UserRepo) -> None:
    script = "head -c 12M /dev/urandom >big; sleep 0.5; echo done"
    assert repo.inside(script, "--disk", "6M", "--without", "watchdog", "--without", "rlimits") == "done\n"


def test_it_does_not_outlive_a_supervisor_that_is_killed(repo: UserRepo, until: Until) -> None:
    with repo.started("-b", "b", "--", "sh", "-c", f"echo ready; {repo.sleeper()}") as run:
        run.expect("ready")
        until(lambda: len([pid for pid in repo.marked() if pid != run.process.pid]) > 2, "the watcher")
        run.process.kill()
        until(lambda: set(repo.marked()) <= {run.process.pid}, "all are gone")
