"""Copies of upper layers: marks, links, odd entries, and files that somebody goes on writing."""

from __future__ import annotations

import os
import stat
import threading
import time
from pathlib import Path

import pytest

from overlayrun.errors import SnapshotError
from overlayrun.layers.duplicate import Duplicate, bill

_OPAQUE = "user.overlay.opaque"


def _copied(source: Path, target: Path, *, is_quiet: bool = True) -> Duplicate:
    target.mkdir()
    copy = Duplicate(is_quiet=is_quiet, skips=lambda path: path == b"skipped")
    fd = os.open(source, os.O_RDONLY)
    try:
        copy.make(fd, str(target))
    finally:
        os.close(fd)
    return copy


def test_everything_a_layer_can_hold_is_kept(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    (old / "dir/sub").mkdir(parents=True)
    (old / "file").write_bytes(b"x" * 100_000)
    (old / "empty").touch(0o4711)
    (old / "empty").chmod(0o4711)
    os.link(old / "file", old / "dir/twin")
    (old / "skipped").write_text("not wanted")
    (old / "link").symlink_to("/nowhere/at all")
    os.mknod(old / "gone", stat.S_IFCHR, os.makedev(0, 0))
    os.mkfifo(old / "pipe", 0o600)
    for place in (old / "dir", old / "file"):
        os.setxattr(place, "user.note", b"kept")
    os.setxattr(old / "dir", _OPAQUE, b"y")
    os.utime(old / "dir/sub", ns=(1, 2))
    os.utime(old / "file", ns=(10**18, 10**18 + 5))
    (old / "dir").chmod(0o2750)
    (old / os.fsdecode(b"odd\n\xff")).touch()

    copy = _copied(old, new)

    assert copy.left_out == []
    names = sorted(path.relative_to(old) for path in old.rglob("*") if path.name != "skipped")
    assert sorted(path.relative_to(new) for path in new.rglob("*")) == names
    for name in names:
        was, now = os.lstat(old / name), os.lstat(new / name)
        facts = [
            (info.st_mode, info.st_mtime_ns, info.st_rdev)
            for info in (was, now)
            if not stat.S_ISFIFO(info.st_mode)
        ]
        assert len(set(facts)) <= 1 or str(name) == "gone", name
        assert was.st_nlink == now.st_nlink, name
    assert (new / "dir/twin").samefile(new / "file")
    assert not (new / "file").samefile(old / "file")
    assert (new / "file").read_bytes() == (old / "file").read_bytes()
    assert os.readlink(new / "link") == "/nowhere/at all"
    assert os.lstat(new / "gone").st_rdev == 0
    assert (os.getxattr(new / "dir", _OPAQUE), os.getxattr(new / "file", "user.note")) == (b"y", b"kept")


@pytest.mark.parametrize("is_quiet", [True, False])
def test_what_the_agent_has_closed(tmp_path: Path, *, is_quiet: bool) -> None:
    is_open = is_quiet or os.geteuid() == 0  # nothing is closed to root
    (tmp_path / "old/closed").mkdir(parents=True)
    (tmp_path / "old/closed/in").write_text("1")
    (tmp_path / "old/blind").write_text("2")
    (tmp_path / "old/blind").chmod(0)
    (tmp_path / "old/closed").chmod(0)
    copy = _copied(tmp_path / "old", tmp_path / "new", is_quiet=is_quiet)
    closed = [path for path in (tmp_path / "old/closed", tmp_path / "new/closed") if path.exists()]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0 for path in closed)
    assert sorted(copy.left_out) == ([] if is_open else [b"blind", b"closed"])
    for path in closed:
        path.chmod(0o700)
    if is_open:
        assert (tmp_path / "new/closed/in").read_text() == "1"
        assert (tmp_path / "new/blind").stat().st_size == 1


def test_a_file_that_is_always_being_written_is_left_out_and_others_are_whole(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    busy, calm = tmp_path / "old/busy", tmp_path / "old/calm"
    busy.write_bytes(b"a" * 1000)
    calm.write_bytes(b"c" * 1000)
    stop = threading.Event()

    def write() -> None:
        with busy.open("r+b") as file:
            while not stop.is_set():
                file.seek(0)
                file.write(b"b" * 1000)
                file.flush()
                time.sleep(0.0005)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        copy = _copied(tmp_path / "old", tmp_path / "new", is_quiet=False)
    finally:
        stop.set()
        writer.join()
    assert copy.left_out == [b"busy"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["calm"]
    assert (tmp_path / "new/calm").read_bytes() == b"c" * 1000


def test_what_moves_while_it_is_copied_is_found(tmp_path: Path) -> None:
    """From a directory that is not copied yet into one that is, and whatever else comes after the listing."""
    old, new = tmp_path / "old", tmp_path / "new"
    for name in ("a", "b"):
        (old / name / "sub").mkdir(parents=True)
        for file in ("kept", "moved", "gone", "replaced", "sub/in"):
            (old / name / file).write_text(name)
    began: list[str] = []

    def change(path: bytes) -> bool:
        top, _, name = os.fsdecode(path).partition("/")
        if name and top not in began:
            began.append(top)
            if len(began) == 2:
                done, now = (old / each for each in began)
                (now / "moved").rename(done / "came")
                (now / "sub").rename(done / "sub2")
                (done / "moved").rename(now / "sub")
                (done / "gone").unlink()
                (done / "new").write_text("new")
                (done / "new").rename(done / "replaced")
                (done / "fresh").mkdir(0o500)
                (done / "sub/in").unlink()
                (done / "sub/in").mkdir()
        return False

    new.mkdir()
    copy = Duplicate(is_quiet=False, skips=change)
    fd = os.open(old, os.O_RDONLY)
    copy.make(fd, str(new))
    os.close(fd)
    assert len(began) == 2

    def shown(top: Path) -> dict[str, tuple[int, str]]:
        return {
            str(path.relative_to(top)): (path.stat().st_mode, path.read_text() if path.is_file() else "")
            for path in top.rglob("*")
        }

    assert shown(new) == shown(old)
    assert copy.left_out == []
    assert set(copy.sources) == {os.fsencode(name) for name in shown(old) if (old / name).is_file()}
    for copied, facts in copy.sources.items():
        info = (old / os.fsdecode(copied)).stat()
        assert facts == (info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


def test_a_tree_that_is_too_deep_is_refused_and_can_be_counted(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    fd = os.open(tmp_path / "old", os.O_RDONLY)
    for _ in range(230):
        os.mkdir("d" * 30, dir_fd=fd)
        below = os.open("d" * 30, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    with pytest.raises(SnapshotError, match="deeper than 200 directories"):
        _copied(tmp_path / "old", tmp_path / "new")
    fd = os.open(tmp_path / "old", os.O_RDONLY)
    assert 200 <= bill(fd, entries=1000).entries <= 230
    assert bill(fd, entries=10).entries <= 12
    os.close(fd)
