"""A disk that fills up before, during and at the end of a run: said plainly, nothing lost."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Done, Mounter, UserRepo


def _clean(repo: UserRepo) -> None:
    assert [
        line for line in repo.git("fsck", "--strict", "--full").splitlines() if "dangling" not in line
    ] == []


@contextlib.contextmanager
def _filled(disk: Path, *, leave: int = 0) -> Iterator[None]:
    """A disk with no room left but for `leave` bytes; room again at the end."""
    ballast, spare = disk / "ballast", disk / "spare"
    spare.write_bytes(b"x" * leave)
    os.sync()
    fd = os.open(ballast, os.O_WRONLY | os.O_CREAT | os.O_SYNC)
    for size in (1 << 20, 1 << 16, 1 << 12):
        with contextlib.suppress(OSError):
            while True:
                os.write(fd, b"x" * size)
    os.close(fd)
    spare.unlink()
    os.sync()
    try:
        yield
    finally:
        ballast.unlink()


@pytest.fixture
def small(repo: UserRepo, loop_disk: Mounter) -> UserRepo:
    """The repository on a small file system of its own."""
    disk = loop_disk("ext4", 24)
    there = repo.at(disk / "repo")
    subprocess.run(["cp", "-a", str(repo.root), str(there.root)], check=True)
    there.git("config", "overlayrun.without", "watchdog")  # it would end the run before the disk is full
    return there


def _plain(done: Done) -> None:
    assert "Traceback" not in done.err, str(done)
    assert [line for line in done.ours if "room" in line or "space" in line.lower() or "full" in line], str(
        done
    )


@pytest.mark.root
def test_disk_full_before_the_start(small: UserRepo) -> None:
    before, refs = small.picture(), small.refs()
    with _filled(small.root.parent):
        done = small.sh("true")
        _plain(done)
        assert done.code == 125
    assert (small.picture(), small.refs()) == (before, refs)
    assert small.inside("echo x >new; cat README") == "read me\n"


@pytest.mark.root
@pytest.mark.parametrize(
    "room",
    [
        4 << 10,
        40 << 10,
        100 << 10,
        200 << 10,
        400 << 10,
    ],
)
def test_disk_full_somewhere_on_the_way(small: UserRepo, room: int) -> None:
    """Whatever step it hits: said plainly, and all is well once there is room."""
    repo = small
    with _filled(repo.root.parent, leave=room):
        done = repo.sh("echo x >new && sync new && cat new")
        if done.code:
            _plain(done)
        wrote = "x" in done.out
    again = repo.sh("cat new 2>/dev/null || echo none")
    assert again.code == 0, str(again)
    if wrote and "b" in repo.records():
        assert again.out == "x\n", f"{done}\n{again}"
    _clean(repo)


@pytest.mark.root
def test_disk_full_during_the_run_fails_the_command_alone(small: UserRepo) -> None:
    script = (
        "echo early >early; echo ready; read a; head -c 60000000 /dev/zero >big; "
        "echo status $?; rm -f big; echo late >late"
    )
    with small.started("-b", "b", "--every", "0.1", "--", "sh", "-c", script) as run:
        run.expect("ready")
        run.type("")
        run.end()
    assert "Traceback" not in run.text(), run.text()
    assert "status 1" in run.text()
    assert small.inside("cat early late") == "early\nlate\n"
    assert small.show("b", "late") == "late\n"
    _clean(small)


@pytest.mark.root
def test_disk_full_at_the_end_keeps_the_upper_and_says_where(small: UserRepo) -> None:
    script = (
        "for i in 1 2 3 4; do head -c 400000 /dev/urandom >f$i; done; sha1sum f* >sums; echo ready; read a"
    )
    with small.started("-b", "b", "--every", "0", "--", "sh", "-c", script) as run:
        run.expect("ready")
        with _filled(small.root.parent):
            run.type("")
            assert run.end() == 125, run.text()
            assert "Traceback" not in run.text(), run.text()
            assert str(small.workspace()) in run.text()
            assert "overlayrun snapshot" in run.text() or "next" in run.text()
    done = small.overlayrun("snapshot", "b")
    assert done.code == 0, str(done)
    assert "f4" in small.files("b")
    assert small.inside("sha1sum --quiet -c sums && echo fine") == "fine\n"
    _clean(small)


@pytest.mark.root
def test_disk_full_of_inodes(repo: UserRepo, tmp_path: Path) -> None:
    image, place = tmp_path / "i.img", tmp_path / "i"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-N", "160", str(image)], check=True)
    place.mkdir()
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
    try:
        there = repo.at(place / "repo")
        subprocess.run(["cp", "-a", str(repo.root), str(there.root)], check=True)
        done = there.sh("for i in $(seq 400); do echo $i >n$i || exit 9; done")
        assert "Traceback" not in done.err, str(done)
        assert done.code != 0
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
