from __future__ import annotations

import ctypes  # noqa: TID251  # renameat2, as a program calls it
import errno
import fcntl
import mmap
import os
import random
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from conftest import SHARE

from folders.world import Folders

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_NAMES: Final = (
    "a",
    "b",
    "dir",
    "dir/a",
    "dir/b",
    "dir/sub",
    "dir/sub/a",
    "other",
    "other/a",
    "odd\n\udcff ü",
)
_MODES: Final = (0o644, 0o600, 0o755, 0o444, 0o1777)
_NS: Final = 1_600_000_000_123_456_789
Operation = Callable[[Path], Any]


def _renameat2(old: Path, new: Path, flags: int) -> None:
    if _LIBC.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags):
        raise OSError(ctypes.get_errno(), "renameat2")


def _open(path: Path, flags: int, data: bytes, mode: int) -> int:
    fd = os.open(path, flags, mode)
    try:
        return os.write(fd, data)
    finally:
        os.close(fd)


def _punch(path: Path, offset: int) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        if _LIBC.fallocate(fd, 3, ctypes.c_long(offset), ctypes.c_long(5000)):
            raise OSError(ctypes.get_errno(), "fallocate")
    finally:
        os.close(fd)


def _operation(dice: random.Random) -> tuple[str, Operation]:
    name, other = dice.choice(_NAMES), dice.choice(_NAMES)
    mode, data = dice.choice(_MODES), dice.randbytes(dice.choice((0, 1, 5000, 30_000)))
    flags = dice.choice((0, 0, 1, 2))
    create = os.O_RDWR | os.O_CREAT | dice.choice((0, os.O_TRUNC, os.O_EXCL, os.O_APPEND, os.O_APPEND))
    length = dice.choice((0, 3, 4096, 100_000))
    operations: dict[str, Operation] = {
        f"open {name} {create:o} {mode:o} {len(data)}": lambda top: _open(top / name, create, data, mode),
        f"mkdir {name} {mode:o}": lambda top: os.mkdir(top / name, mode | 0o700),
        f"rmdir {name}": lambda top: os.rmdir(top / name),
        f"unlink {name}": lambda top: os.unlink(top / name),
        f"rename {name} {other} {flags}": lambda top: _renameat2(top / name, top / other, flags),
        f"link {name} {other}": lambda top: os.link(top / name, top / other, follow_symlinks=False),
        f"symlink {name} {other}": lambda top: os.symlink(name, top / other),
        f"chmod {name} {mode:o}": lambda top: os.chmod(top / name, mode | 0o700),
        f"utime {name}": lambda top: os.utime(top / name, ns=(_NS, _NS + len(data)), follow_symlinks=False),
        f"truncate {name} {length}": lambda top: os.truncate(top / name, length),
        f"xattr {name}": lambda top: os.setxattr(top / name, "user.test", data[:100]),
        f"no xattr {name}": lambda top: os.removexattr(top / name, "user.test"),
        f"punch {name} {length}": lambda top: _punch(top / name, length),
        f"mkfifo {name}": lambda top: os.mkfifo(top / name, mode),
        f"readlink {name}": lambda top: os.readlink(top / name),
        f"list {name}": lambda top: sorted(os.listdir(top / name)),
        f"access {name}": lambda top: [os.access(top / name, how) for how in (os.R_OK, os.W_OK, os.X_OK)],
    }
    words = dice.choice(list(operations))
    return words, operations[words]


def _outcome(operation: Operation, top: Path) -> object:
    try:
        return operation(top)
    except OSError as err:
        return errno.errorcode[err.errno or 0]


def _picture(top: Path) -> dict[str, tuple[object, ...]]:
    """Everything that can be seen of a tree, but for numbers and times that differ between two."""
    found: dict[str, tuple[object, ...]] = {}
    first: dict[int, str] = {}
    for directory, names, files in os.walk(top):
        for path in (Path(directory) / name for name in sorted([*names, *files])):
            info = path.lstat()
            kind = stat.S_IFMT(info.st_mode)
            told: object = None
            if kind == stat.S_IFLNK:
                told = os.readlink(path)
            elif kind == stat.S_IFREG:
                fd = os.open(path, os.O_RDONLY)
                told = (os.pread(fd, 1 << 20, 0), info.st_size)
                os.close(fd)
            xattrs = (
                {} if kind == stat.S_IFLNK else {name: os.getxattr(path, name) for name in os.listxattr(path)}
            )
            name = str(path.relative_to(top))
            same = first.setdefault(info.st_ino, name)
            is_pipe = kind == stat.S_IFIFO  # what is written to it never reaches the file system
            time = info.st_mtime_ns if not is_pipe and abs(info.st_mtime_ns - _NS) < 1 << 20 else None
            links = None if kind == stat.S_IFDIR else info.st_nlink
            found[name] = (info.st_mode, links, info.st_uid, info.st_gid, told, xattrs, same, time)
    return found


def _numbers(top: Path) -> dict[str, tuple[int, ...]]:
    """What git's index compares, and what must be the same from both sides."""
    found: dict[str, tuple[int, ...]] = {}
    for directory, names, files in os.walk(top):
        for path in (Path(directory) / name for name in [*names, *files]):
            info = path.lstat()
            times = info.st_mtime_ns, info.st_ctime_ns
            found[str(path.relative_to(top))] = (
                info.st_ino,
                info.st_mode,
                info.st_size,
                info.st_nlink,
                *times,
            )
    return found


def _compare(folders: Folders, shown: Path, store: Path, plain: Path, dice: random.Random) -> None:
    """Do the same in both, one by one, while descriptors are closed now and then."""
    done: list[str] = []
    for _ in range(250):
        words, operation = _operation(dice)
        done.append(words)
        assert _outcome(operation, shown) == _outcome(operation, plain), done[-12:]
        if dice.random() < 0.02:
            done.append("let go")
            assert folders.say(f"let-go branches {shown.name}") == "done"
    assert _picture(shown) == _picture(plain), done
    assert _picture(store) == _picture(plain), done
    assert _numbers(shown) == _numbers(store), done


@pytest.mark.parametrize("seed", range(SHARE, 8, 2))
def test_random_operations_have_the_same_outcome_as_in_a_plain_directory(
    folders: Folders, tmp_path: Path, seed: int
) -> None:
    shown, store = folders.branch(f"random{seed}{'-live' if seed % 4 > 1 else ''}")
    _compare(folders, shown, store, tmp_path, random.Random(seed))


@pytest.mark.root
@pytest.mark.parametrize("name", ["overlay", "overlay-live"])
def test_random_operations_in_an_overlay_have_the_same_outcome_too(
    folders: Folders, tmp_path: Path, name: str
) -> None:
    dice = random.Random(name)
    shown, store = folders.branch(name)
    lower, upper, work, plain = (tmp_path / name for name in ("lower", "upper", "work", "plain"))
    for directory in (lower, upper, work, plain):
        directory.mkdir()
    for _ in range(60):
        words, operation = _operation(dice)
        if not words.startswith("link"):  # names that share a lower file part at the first write
            assert _outcome(operation, lower) == _outcome(operation, plain)
    layers = f"lowerdir={lower},upperdir={upper},workdir={work},redirect_dir=on,index=off"
    subprocess.run(["mount", "-t", "overlay", "-o", layers, "overlay", store], check=True)
    try:
        _compare(folders, shown, store, plain, dice)
    finally:
        subprocess.run(["umount", "--lazy", store], check=True)


def test_open_files_outlive_their_names_and_their_tree_s_descriptors(folders: Folders) -> None:
    shown, store = folders.branch("outlive")
    with (shown / "file").open("w+b") as file:
        file.write(b"one")
        file.flush()
        os.unlink(shown / "file")
        file.write(b"two")
        file.flush()
        os.ftruncate(file.fileno(), 5)
        assert (os.fstat(file.fileno()).st_nlink, os.fstat(file.fileno()).st_size) == (0, 5)
        assert os.pread(file.fileno(), 10, 0) == b"onetw"
    with (shown / "kept").open("wb", buffering=0) as file:
        file.write(b"before ")
        here = os.open(shown, os.O_RDONLY | os.O_DIRECTORY)
        assert folders.say("let-go branches outlive 5") == "kept"
        assert folders.say("let-go branches outlive") == "done"
        file.write(b"after")
        assert os.listdir(here) == ["kept"]
        os.close(here)
    assert (store / "kept").read_text() == "before after"


def test_mappings_appends_and_locks(folders: Folders) -> None:
    shown, store = folders.branch("map")
    live, live_store = folders.branch("map-live")
    for top, below in ((shown, store), (live, live_store)):
        (top / "file").write_bytes(bytes(10_000))
        with (top / "file").open("r+b") as file, (top / "file").open("ab", buffering=0) as appending:
            with mmap.mmap(file.fileno(), 10_000) as mapped:
                mapped[5000:5005] = b"hello"
                appending.write(b"tail")
                mapped[5005:5006] = b"!"
                if top is shown:
                    assert folders.say("let-go branches map") == "done"  # it takes what is in the mapping
                else:
                    mapped.flush()
                assert (below / "file").read_bytes()[5000:5006] == b"hello!"
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with (top / "file").open() as second, pytest.raises(BlockingIOError):
                fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.lockf(file, fcntl.LOCK_EX)
        expected = bytearray(10_004)
        expected[5000:5006] = b"hello!"
        expected[10_000:] = b"tail"
        assert (below / "file").read_bytes() == expected == (top / "file").read_bytes()


def test_a_large_file_with_holes_and_copies(folders: Folders) -> None:
    shown, store = folders.branch("large")
    data = random.Random(1).randbytes(3 << 20)
    with (shown / "large").open("wb") as file:
        file.write(data)
        file.seek(5 << 30)
        file.write(b"end")
        file.flush()
        os.fsync(file.fileno())
        os.posix_fallocate(file.fileno(), 0, 4 << 20)
    with (shown / "large").open("rb") as source, (shown / "copy").open("wb") as copy:
        assert os.lseek(source.fileno(), 100 << 20, os.SEEK_DATA) == 5 << 30
        os.copy_file_range(source.fileno(), copy.fileno(), 3 << 20, 0)
        assert os.pread(source.fileno(), 3, 5 << 30) == b"end"
    with (store / "large").open("rb") as large:
        assert (store / "copy").read_bytes() == data == large.read(3 << 20)
    assert (store / "large").stat().st_blocks == (shown / "large").stat().st_blocks < 1 << 15
    assert os.statvfs(shown).f_blocks == os.statvfs(store).f_blocks > 0


def test_what_would_run_as_another_or_reach_a_device_is_refused(folders: Folders) -> None:
    shown, _ = folders.branch("special")
    (shown / "file").touch()
    changes: tuple[Callable[[], object], ...] = (
        lambda: os.chmod(shown / "file", 0o4755),
        lambda: os.close(os.open(shown / "new", os.O_CREAT | os.O_WRONLY, 0o2755)),
        lambda: os.mknod(shown / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3)),
    )
    for refused in changes:
        with pytest.raises(PermissionError):
            refused()
    with pytest.raises(OSError, match=r"not (supported|permitted)"):
        os.setxattr(shown / "file", "trusted.overlay.opaque", b"y")
    assert sorted(os.listdir(shown)) == ["file"]
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(shown)
        try:
            server.bind("socket")
        finally:
            os.chdir("/")
    assert stat.S_ISSOCK((shown / "socket").stat().st_mode)
    with pytest.raises(OSError, match="Invalid cross-device") as raised:
        os.rename(shown / "file", folders.branch("elsewhere")[0] / "file")
    assert raised.value.errno == errno.EXDEV


@pytest.mark.shared
def test_git_editors_builds_and_searches(folders: Folders) -> None:
    shown, store = folders.branch("work")
    own = folders.store / "own.git"
    subprocess.run(["git", "init", "-q", f"--separate-git-dir={own}", str(store)], check=True)
    (store / ".git").rename(folders.store / "work.git")  # given in its place, as a folder's own is
    script = r"""
set -e
printf 'int main(void){return 0;}\n' >main.c
printf 'main: main.c\n\tcc -o main main.c\nclean:\n\trm main\n' >Makefile
for n in $(seq 300); do mkdir -p d$((n % 7)); echo "line $n" >d$((n % 7))/f$n; done
git add . ; git commit -qm first
make -s; ./main; test "$(make)" = "make: 'main' is up to date."; make -s clean
test -z "$(git status --porcelain)"
sed -i 's/line 7$/LINE/' d0/f7
cp d1/f8 d1/f8~; echo new >d1/.f8.swp; mv d1/.f8.swp d1/f8; rm d1/f8~          # write aside, rename
mv d2/f9 d2/f9~; echo again >d2/f9; chmod --reference=d2/f9~ d2/f9; rm d2/f9~  # vim's backup
test "$(git status --porcelain | tr -d '\n')" = ' M d0/f7 M d1/f8 M d2/f9'
git mv d3 e3; git commit -qam second; git stash list; git gc -q; git fsck --strict
git checkout -q HEAD~1; test -d d3; git checkout -q -; test ! -e d3
test "$(grep -rl 'line 2[0-9]$' . --exclude-dir=.git | wc -l)" = 10
tar cf - . | tar tf - >/dev/null
cp -a e3 copy; diff -r e3 copy; rm -r copy
test -z "$(git status --porcelain)"
"""
    done = subprocess.run(["sh", "-c", script], cwd=shown, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = subprocess.run(["rg", "-l", "LINE"], cwd=shown, capture_output=True, text=True, check=True)
    assert found.stdout == "d0/f7\n"
    numbers = _numbers(shown)
    del numbers[".git"]
    assert numbers == _numbers(store)
    # It compares the index's numbers alone, and has the same ones on the other side.
    there = [f"--git-dir={own}", f"--work-tree={store}"]
    subprocess.run(["git", *there, "diff-files", "--quiet"], cwd=store, check=True)


_WRITER: Final = r"""
import os, sys
top, number = sys.argv[1:]
for n in range(25):
    with open(f"{top}/{number}.new", "w") as file:
        file.write(f"{number} {n}\n" * 50)
    os.rename(f"{top}/{number}.new", f"{top}/{number}-{n}")
    with open(f"{top}/log", "a") as log:
        log.write(f"{number} {n}\n")
"""


@pytest.mark.shared
def test_twenty_writers_in_one_branch_and_one_in_each_of_twenty(
    folders: Folders, until: Callable[..., None]
) -> None:
    _, store = folders.branch("all")
    tops = [folders.mount / "branches/all"] * 20 + [folders.branch(f"own{n}")[0] for n in range(20)]
    writers = [
        subprocess.Popen([sys.executable, "-I", "-S", "-c", _WRITER, str(top), str(number)])
        for number, top in enumerate(tops)
    ]
    assert [writer.wait(60) for writer in writers] == [0] * 40
    expected = {(number, n) for number in range(20) for n in range(25)}
    for number, n in expected:
        assert (store / f"{number}-{n}").read_text() == f"{number} {n}\n" * 50
        own = folders.store / f"branches/own{number}/{number + 20}-{n}"
        assert own.read_text() == f"{number + 20} {n}\n" * 50
    lines = (store / "log").read_text().splitlines()
    assert sorted(lines) == sorted(f"{number} {n}" for number, n in expected)
    told: set[str] = set()

    def is_told() -> bool:
        told.update(folders.say("touched").split())
        return told >= {"all", "own0", "own19"}

    until(is_told, "touched")


def test_what_an_agent_does_on_the_other_side_shows(folders: Folders, until: Callable[..., None]) -> None:
    shown, store = folders.branch("agent-live")
    (store / "file").write_text("old")
    (store / "dir").mkdir()
    with (shown / "file").open("rb", buffering=0) as file:
        for text in (b"new", b"NEW", b"and longer"):
            with (store / "file").open("r+b") as other:
                other.write(text)
            assert os.pread(file.fileno(), 100, 0) == text
    assert not (shown / "made").exists()
    (store / "made").write_text("x")
    assert (shown / "made").read_text() == "x"
    with (shown / "log").open("ab", buffering=0) as ours, (store / "log").open("ab", buffering=0) as theirs:
        for n in range(3):
            theirs.write(b"agent %d\n" % n)
            ours.write(b"user %d\n" % n)
    assert (store / "log").read_text() == "".join(f"agent {n}\nuser {n}\n" for n in range(3))
    (shown / "dir/below").touch()
    (store / "dir").rename(store / "moved")
    (store / "moved/below").unlink()
    until(
        lambda: not (shown / "dir").exists() and sorted(os.listdir(shown)) == ["file", "log", "made", "moved"]
    )
    until(lambda: not os.listdir(shown / "moved"))


def test_no_link_that_is_swapped_in_leads_out(folders: Folders) -> None:
    """The link's target is found from the store alone: who reads or changes it followed it there, in our process."""
    shown, store = folders.branch("race-live")
    secret = folders.store / "secret"
    secret.mkdir()
    (secret / "file").write_text("secret")
    (store / "real").mkdir()
    (store / "real/file").write_text("plain")
    link = store / "link"
    link.symlink_to("../../secret")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            _renameat2(store / "real", link, 2)

    swapper = threading.Thread(target=swap)
    swapper.start()
    seen: set[object] = set()
    try:
        for _ in range(1500):
            for operation in (
                lambda top: (top / "file").read_text(),
                lambda top: os.chmod(top / "file", 0o600),
                lambda top: _open(top / "made", os.O_CREAT | os.O_WRONLY, b"x", 0o600),
                os.listdir,
            ):
                seen.add(str(_outcome(operation, shown / "real")))
    finally:
        stop.set()
        swapper.join()
    assert "plain" in seen
    assert "secret" not in seen
    assert sorted(os.listdir(secret)) == ["file"]
    assert (secret / "file").stat().st_mode & 0o777 == 0o644
