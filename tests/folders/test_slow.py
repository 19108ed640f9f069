"""What takes long in one folder holds nobody up in another: the disk of one is frozen, so that it takes for ever."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from conftest import Mounter

from folders.world import Folders

_FREEZE, _THAW = 0xC0045877, 0xC0045878  # FIFREEZE, FITHAW of linux/fs.h
_LARGE: Final = bytes(2 << 20)
_SLOW: Final = {
    "chmod": "os.chmod('mode', 0o600)",
    "rename": "os.rename('old', 'new')",
    "link": "os.link('one', 'two')",
    "truncate": "os.truncate('cut', 3)",
    "xattr": "os.setxattr('named', 'user.name', b'value')",
    "write": "os.write(file.fileno(), b'x' * (1 << 20))",
    "copy": "os.copy_file_range(whole.fileno(), file.fileno(), 1 << 20)",
}
_PROGRAM: Final = """
import os, sys
file, whole = open(sys.argv[2] + ".out", "wb"), open("whole", "rb")
print("ready", flush=True)
sys.stdin.readline()
eval(sys.argv[1])
"""
_FILES: Final = ("mode", "old", "one", "cut", "named", "whole")


@contextlib.contextmanager
def _frozen(disk: Path) -> Iterator[None]:
    fd = os.open(disk, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(fd, _FREEZE, 0)
        yield
    finally:
        fcntl.ioctl(fd, _THAW, 0)
        os.close(fd)


@pytest.mark.root
def test_others_go_on_while_something_slow_is_done_in_a_folder(folders: Folders, loop_disk: Mounter) -> None:
    disk = loop_disk("ext4", 64)
    (disk / "slow").mkdir()
    for name in _FILES:
        (disk / "slow" / name).write_bytes(_LARGE)
    (folders.store / "branches/slow").symlink_to(disk / "slow")
    shown, (other, _) = folders.mount / "branches/slow", folders.branch("beside")
    (other / "file").write_text("0")
    programs = {
        name: subprocess.Popen(
            [sys.executable, "-ISc", _PROGRAM, code, name],
            cwd=shown,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for name, code in _SLOW.items()
    }
    for program in programs.values():
        assert program.stdout is not None
        assert program.stdout.readline() == b"ready\n"
    with contextlib.ExitStack() as stack:
        with _frozen(disk):
            for program in programs.values():
                assert program.stdin is not None
                program.stdin.write(b"\n")
                program.stdin.flush()
            for number in range(20):  # by another process: it can be waited for with a limit
                script = 'cd "$2"; echo "$1" >file; cat file; ls . | wc -l; mkdir d$1'
                argv = ["sh", "-ec", script, "sh", str(number), str(other)]
                done = subprocess.run(argv, capture_output=True, timeout=30, check=True)
                assert done.stdout.split() == [b"%d" % number, b"%d" % (number + 1)]
            assert {name for name, program in programs.items() if program.poll() is not None} == set()
            stack.callback(folders.read)  # it is not let go before all is done
            assert folders.process.stdin is not None
            folders.process.stdin.write("let-go branches slow\n")
            folders.process.stdin.flush()
        ends = {name: (program.communicate(), program.returncode)[1] for name, program in programs.items()}
    assert ends == dict.fromkeys(_SLOW, 0)
    left = {path.name: path.stat().st_size for path in (disk / "slow").iterdir()}
    assert (disk / "slow/mode").stat().st_mode & 0o777 == 0o600
    assert os.getxattr(disk / "slow/named", "user.name") == b"value"
    assert left["cut"] == 3
    assert left["new"] == left["two"] == len(_LARGE)
    assert left["write.out"] == left["copy.out"] == 1 << 20


@pytest.mark.root
def test_the_first_change_of_a_large_file_of_a_lower_is_made_to_it(folders: Folders, tmp_path: Path) -> None:
    """Also where it has several names there, which part then, and their numbers change."""
    lower, upper, work = (tmp_path / name for name in ("lower", "upper", "work"))
    for directory in (lower, upper, work):
        directory.mkdir()
    changes: dict[str, Callable[[Path], object]] = {
        "write": lambda path: _by_descriptor(path, lambda fd: os.write(fd, b"new"), os.O_WRONLY),
        "mode": lambda path: _by_descriptor(path, lambda fd: os.fchmod(fd, 0o600)),
        "xattr": lambda path: _by_descriptor(path, lambda fd: os.setxattr(fd, "user.name", b"value")),
        "times": lambda path: os.utime(path, (1, 2)),
        "cut": lambda path: os.truncate(path, 3),
        "link": lambda path: os.link(path, path.with_name("linked")),
        "move": lambda path: path.rename(path.with_name("moved")),
    }
    for name in changes:
        (lower / name).write_bytes(_LARGE)
        os.link(lower / name, lower / f"{name}-2")
    (lower / "running").write_bytes(Path("/bin/sleep").read_bytes() + _LARGE)
    (lower / "running").chmod(0o755)
    shown, store = folders.branch("large-lower")
    layers = f"lowerdir={lower},upperdir={upper},workdir={work},index=off"
    subprocess.run(["mount", "-t", "overlay", "-o", layers, "overlay", store], check=True)
    try:
        for name, change in changes.items():
            change(shown / name)
        with subprocess.Popen([shown / "running", "60"]) as running:
            (shown / "running").chmod(0o700)
            running.kill()
        assert folders.say("let-go branches large-lower") == "done"
        assert (store / "write").read_bytes() == b"new" + _LARGE[3:]
        assert (store / "mode").stat().st_mode & 0o777 == 0o600
        assert (store / "running").stat().st_mode & 0o777 == 0o700
        assert os.getxattr(store / "xattr", "user.name") == b"value"
        assert (store / "times").stat().st_mtime == 2
        assert (store / "cut").stat().st_size == 3
        assert (store / "link").samefile(store / "linked")
        assert (store / "moved").read_bytes() == _LARGE
        assert not (store / "move").exists()
        assert all((shown / f"{name}-2").read_bytes() == _LARGE for name in changes)
    finally:
        subprocess.run(["umount", "--lazy", store], check=True)


def _by_descriptor(path: Path, change: Callable[[int], object], flags: int = os.O_RDONLY) -> None:
    fd = os.open(path, flags)
    change(fd)
    os.close(fd)
