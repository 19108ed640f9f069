"""Landlock on the real kernel: each story is a child that confines itself and then tries things."""

from __future__ import annotations

import errno
import json
import os
import pty
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any, Final

import pytest

from overlayrun.kernel import syscalls
from overlayrun.kernel.probe import Capabilities

REFUSED: Final = {errno.EACCES, errno.EPERM, errno.EXDEV}
VERSION: Final = syscalls.landlock_abi() if Capabilities()["landlock"].works else 0
WORDS: Final = f"Landlock {VERSION}"
pytestmark = pytest.mark.skipif(
    VERSION < 2, reason="this kernel has no Landlock, or version 1, which is not used"
)

_PRELUDE: Final = """
import errno, fcntl, json, os, socket, subprocess, sys, termios, threading
from overlayrun.kernel import abi, namespaces, syscalls
from overlayrun.sandbox import landlock
def confine(*writable, **options):
    syscalls.prctl(abi.PR_SET_NO_NEW_PRIVS, 1)
    return landlock.restrict(writable, **options)
def attempt(action, *arguments, **options):
    "0, or the errno of the refusal."
    try:
        action(*arguments, **options)
    except OSError as err:
        return err.errno
    return 0
def put(path, flags=os.O_CREAT | os.O_WRONLY):
    fd = os.open(path, flags, 0o644)
    os.write(fd, b"x")
    os.close(fd)
def read(path):
    os.close(os.open(path, os.O_RDONLY))
def answer(value):
    print(json.dumps(value))
"""


def child(text: str, cwd: Path, *arguments: str, **options: Any) -> Any:
    """What a process of its own prints as JSON."""
    command = [sys.executable, "-c", _PRELUDE + text, *arguments]
    done = subprocess.run(
        command, cwd=cwd, stdout=subprocess.PIPE, text=True, check=False, timeout=60, **options
    )
    assert done.returncode == 0
    return json.loads(done.stdout)


def layout(root: Path) -> Path:
    """Two directories and a file that may be written to, and one that may not."""
    for name in ("ws/a/deep", "ws/b", "home/c", "out/d"):
        (root / name).mkdir(parents=True)
    for name in ("ws/a/f", "ws/a/deep/f", "ws/b/f", "home/c/f", "out/f", "out/d/f", "one", "two"):
        (root / name).write_text("old")
    tool = root / "out/tool"
    tool.write_text("#!/bin/sh\necho ran")
    tool.chmod(0o755)
    return root


_INSIDE: Final = """
words = confine("ws", "home", "one", "/dev", "/proc")
unix = socket.socket(socket.AF_UNIX)
tries = {
    "create": attempt(put, "ws/new"),
    "overwrite": attempt(put, "ws/a/f", os.O_WRONLY | os.O_TRUNC),
    "append": attempt(put, "home/c/f", os.O_WRONLY | os.O_APPEND),
    "truncate": attempt(os.truncate, "ws/a/f", 0),
    "mkdir": attempt(os.mkdir, "ws/dir"),
    "symlink": attempt(os.symlink, "/etc/passwd", "ws/link"),
    "fifo": attempt(os.mkfifo, "ws/fifo"),
    "socket": attempt(unix.bind, "ws/socket"),
    "link": attempt(os.link, "ws/b/f", "ws/a/linked"),
    "link between roots": attempt(os.link, "ws/b/f", "home/linked"),
    "rename": attempt(os.rename, "ws/b/f", "ws/a/renamed"),
    "rename directory": attempt(os.rename, "ws/a/deep", "ws/b/deep"),
    "rename between roots": attempt(os.rename, "ws/b/deep", "home/deep"),
    "exchange": attempt(syscalls.renameat2, "ws/new", "home/c/f", abi.RENAME_EXCHANGE),
    "unlink": attempt(os.unlink, "ws/a/f"),
    "rmdir": attempt(os.rmdir, "ws/dir"),
    "chmod": attempt(os.chmod, "ws/new", 0o755),
    "utime": attempt(os.utime, "ws/new"),
    "one file": attempt(put, "one", os.O_WRONLY | os.O_TRUNC),
    "null": attempt(put, "/dev/null", os.O_WRONLY),
    "own name": attempt(put, "/proc/self/comm", os.O_WRONLY),
    "terminal": attempt(os.openpty),
    "read the disk": attempt(read, "out/d/f"),
    "list the disk": attempt(os.listdir, "/"),
    "run from the disk": attempt(subprocess.run, ["out/tool"], stdout=subprocess.DEVNULL, check=True),
}
answer([words, tries])
"""

_OUTSIDE: Final = """
confine("ws", "home", "one")
os.symlink(os.path.abspath("out/f"), "ws/way-out")
held = os.open("out/f", os.O_RDONLY)
answer({
    "write": attempt(put, "out/f", os.O_WRONLY),
    "append": attempt(put, "out/d/f", os.O_WRONLY | os.O_APPEND),
    "truncate": attempt(os.truncate, "out/f", 0),
    "create": attempt(put, "out/new"),
    "other file": attempt(put, "two", os.O_WRONLY),
    "mkdir": attempt(os.mkdir, "out/dir"),
    "symlink": attempt(os.symlink, "x", "out/link"),
    "fifo": attempt(os.mkfifo, "out/fifo"),
    "socket": attempt(socket.socket(socket.AF_UNIX).bind, "out/socket"),
    "unlink": attempt(os.unlink, "out/f"),
    "rmdir": attempt(os.rmdir, "out/d"),
    "unlink the one file": attempt(os.unlink, "one"),
    "move out": attempt(os.rename, "ws/a/f", "out/moved"),
    "move in": attempt(os.rename, "out/f", "ws/moved"),
    "link out": attempt(os.link, "ws/a/f", "out/linked"),
    "link in": attempt(os.link, "out/f", "ws/linked"),
    "through a link": attempt(put, "ws/way-out", os.O_WRONLY),
    "through a descriptor": attempt(put, f"/proc/self/fd/{held}", os.O_WRONLY),
    "whiteout": attempt(os.mknod, "ws/whiteout", 0o020666, 0),
    "character device": attempt(os.mknod, "ws/null", 0o020666, os.makedev(1, 3)),
    "block device": attempt(os.mknod, "ws/disk", 0o060666, os.makedev(8, 0)),
})
"""


def test_where_it_may_be_written_everything_works_as_without(tmp_path: Path) -> None:
    words, tries = child(_INSIDE, layout(tmp_path))
    assert words == WORDS
    assert {name: number for name, number in tries.items() if number} == {}
    assert (tmp_path / "home/deep/f").read_text() == "old"
    assert (tmp_path / "home/c/f").read_text() == "x"


def test_what_lies_elsewhere_can_be_read_and_not_changed(tmp_path: Path) -> None:
    layout(tmp_path)
    before = {path: path.read_text() for path in sorted(tmp_path.rglob("out/**/*")) if path.is_file()}
    tries = child(_OUTSIDE, tmp_path)
    assert {name: number for name, number in tries.items() if number not in REFUSED} == {}
    assert before == {path: path.read_text() for path in sorted(tmp_path.rglob("out/**/*")) if path.is_file()}
    assert (tmp_path / "two").read_text() == "old"


_WORK: Final = """
set -e
mkdir -p ws/x/y home/z; cd ws
git init -q . ; git config user.name t; git config user.email t@example.invalid
echo 1 >f; mkdir d; echo 2 >d/g; git add -A; git commit -qm one; git mv d e; git mv f e/f; git commit -qm two
git stash list; git checkout -q -b other HEAD~1; git checkout -q -; git gc -q; git log --format=%s >../home/log
mv e/g x/y/g; mv x/y ../home/z/; cp -a ../home/z .; ln z/y/g e/linked; ln -s z/y/g soft; mkfifo pipe
sed -i s/1/3/ e/f; rm -r x; tar cf all.tar e; mkdir t; tar xf all.tar -C t; mv t/e/f t/; find . -name g -exec touch {} +
python3 - <<END
import sqlite3
base = sqlite3.connect("base")
print(base.execute("pragma journal_mode=wal").fetchone())
base.execute("create table t (a)"); base.execute("insert into t values (1)"); base.commit()
print(base.execute("select * from t").fetchall()); base.close()
END
cd ..; find ws home \\! -path '*/.git/*' \\! -name all.tar -printf '%p %y %n\\n' | sort; cat home/log ws/e/f
"""


def test_ordinary_work_gives_what_it_gives_without(tmp_path: Path) -> None:
    text = (
        "words = confine('ws', 'home', '/dev', '/proc') if sys.argv[2] == 'confined' else ''\n"
        "done = subprocess.run(['sh', '-c', sys.argv[1]], capture_output=True, text=True)\n"
        "answer([words, done.returncode, done.stdout, done.stderr])"
    )
    results = []
    for name in ("confined", "free"):
        (tmp_path / name / "ws").mkdir(parents=True)
        (tmp_path / name / "home").mkdir()
        results.append(child(text, tmp_path / name, _WORK, name))
    assert results[0] == [WORDS, *results[1][1:]]
    assert results[0][1] == 0, results[0]


_OVERLAY: Final = """
ids = os.geteuid(), os.getegid()
syscalls.unshare(abi.CLONE_NEWUSER | abi.CLONE_NEWNS)
namespaces.map_identity(*ids)
syscalls.mount("none", "/", None, abi.MS_REC | abi.MS_PRIVATE)
syscalls.mount("overlay", "at", "overlay", 0, "lowerdir=lower,upperdir=upper,workdir=work,userxattr")
confine("at")
answer({
    "copy up": attempt(put, "at/d/f", os.O_WRONLY | os.O_TRUNC),
    "copy up by chmod": attempt(os.chmod, "at/g", 0o600),
    "whiteout": attempt(os.unlink, "at/d/gone"),
    "rename": attempt(os.rename, "at/h", "at/d/h"),
    "opaque": attempt(subprocess.run, ["sh", "-c", "rm -r at/o && mkdir at/o && echo 1 >at/o/new"], check=True),
    "fifo": attempt(os.mkfifo, "at/fifo"),
    "upper": attempt(put, "upper/x"),
    "lower": attempt(put, "lower/g", os.O_WRONLY),
    "device": attempt(os.mknod, "at/w", 0o020666, 0),
})
"""


def test_an_overlay_is_judged_where_it_is_seen_and_not_in_its_layers(tmp_path: Path) -> None:
    for name in ("lower/d", "lower/o", "upper", "work", "at"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("d/f", "d/gone", "g", "h", "o/old"):
        (tmp_path / "lower" / name).write_text("old")
    tries = child(_OVERLAY, tmp_path)
    refused = {name: tries.pop(name) for name in ("upper", "lower", "device")}
    assert set(tries.values()) == {0}, tries
    assert refused == {"upper": errno.EACCES, "lower": errno.EACCES, "device": errno.EACCES}
    assert (tmp_path / "upper/d/f").read_text() == "x"
    assert (tmp_path / "lower/d/f").read_text() == "old"


_MOUNT: Final = """
words = confine("/", files=sys.argv[1] == "files")
ids = os.geteuid(), os.getegid()
syscalls.unshare(abi.CLONE_NEWUSER | abi.CLONE_NEWNS)
namespaces.map_identity(*ids)
answer([words, attempt(syscalls.mount, "tmpfs", ".", "tmpfs", 0), attempt(put, "x")])
"""


def test_rules_about_files_forbid_every_mount_and_scopes_do_not(tmp_path: Path) -> None:
    assert child(_MOUNT, tmp_path, "files") == [WORDS, errno.EPERM, 0]
    words, mounted, written = child(_MOUNT, tmp_path, "no files")
    assert (mounted, written) == (0, 0)
    assert words == (f"{WORDS} (no rules about files)" if VERSION >= 6 else "")


_SOCKETS: Final = """
words = confine(".", files=sys.argv[2] == "files")
inside = socket.socket(socket.AF_UNIX)
inside.bind(b"\\0" + sys.argv[1].encode() + b"-inside")
inside.listen()
def connect(name):
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(name.encode("latin-1"))
answer({
    "host": attempt(connect, "\\0" + sys.argv[1]),
    "own": attempt(connect, "\\0" + sys.argv[1] + "-inside"),
    "path": attempt(connect, "path"),
    "signal": attempt(os.kill, os.getppid(), 0),
})
"""


@pytest.mark.skipif(VERSION < 6, reason="Landlock has scopes since version 6")
@pytest.mark.parametrize("files", ["files", "no files"])
def test_abstract_sockets_of_the_host_are_cut_off_and_nothing_else(tmp_path: Path, files: str) -> None:
    name = f"overlayrun-test-{uuid.uuid4()}"
    with socket.socket(socket.AF_UNIX) as abstract, socket.socket(socket.AF_UNIX) as by_path:
        abstract.bind(b"\0" + name.encode())
        abstract.listen()
        by_path.bind(str(tmp_path / "path"))
        by_path.listen()
        tries = child(_SOCKETS, tmp_path, name, files)
    assert tries == {"host": errno.EPERM, "own": 0, "path": 0, "signal": 0}


_TERMINALS: Final = """
confine(".")
size = os.get_terminal_size(2)
other = os.ttyname(int(sys.argv[1]))
answer({
    "by number": attempt(put, "/proc/self/fd/2", os.O_WRONLY | os.O_NOCTTY),
    "by name": attempt(put, os.ttyname(2), os.O_RDWR | os.O_NOCTTY),
    "request": attempt(fcntl.ioctl, 2, termios.TIOCGWINSZ, bytes(8)),
    "pipe": attempt(put, "/dev/stdin", os.O_WRONLY),
    "other": attempt(put, other, os.O_WRONLY | os.O_NOCTTY),
    "request to other": attempt(fcntl.ioctl, os.open(other, os.O_RDONLY | os.O_NOCTTY), termios.TIOCGWINSZ, bytes(8)),
})
"""


def test_the_users_terminal_can_be_opened_again_and_no_other(tmp_path: Path) -> None:
    """It need not lie below a writable directory: /dev of the sandbox does not show the host's."""
    (master, mine), (other_master, other) = pty.openpty(), pty.openpty()
    read, write = os.pipe()
    try:
        tries = child(_TERMINALS, tmp_path, str(other), stdin=write, stderr=mine, pass_fds=(other,))
    finally:
        for fd in (master, mine, other_master, other, read, write):
            os.close(fd)
    assert tries.pop("other") == errno.EACCES
    assert set(tries.values()) == {0}, tries


_FILE_STREAM: Final = """
confine(".")
answer(attempt(put, "/proc/self/fd/2", os.O_WRONLY | os.O_TRUNC))
"""


def test_a_log_of_the_host_is_appended_to_and_never_opened_again(tmp_path: Path) -> None:
    (tmp_path / "ws").mkdir()
    log = tmp_path / "log"
    log.write_text("before\n")
    with log.open("a") as stream:
        assert child(_FILE_STREAM, tmp_path / "ws", stderr=stream) == errno.EACCES
    assert log.read_text() == "before\n"


_UNDO: Final = """
confine("ws", "/dev")
tries = {"again": attempt(put, "out/f", os.O_WRONLY)}
confine("/")
tries["second ruleset"] = attempt(put, "out/f", os.O_WRONLY)
thread = threading.Thread(target=lambda: tries.update({"thread": attempt(put, "out/f", os.O_WRONLY)}))
thread.start()
thread.join()
tries["exec"] = subprocess.run(["sh", "-c", "echo x >out/f"], stderr=subprocess.DEVNULL).returncode
layers = 2
while not (last := attempt(confine, "/")):
    layers += 1
tries["many"] = attempt(put, "out/f", os.O_WRONLY)
tries["still"] = attempt(put, "ws/a/f", os.O_WRONLY)
answer([tries, layers, last])
"""


def test_more_rules_never_give_more_rights(tmp_path: Path) -> None:
    tries, layers, last = child(_UNDO, layout(tmp_path))
    assert tries.pop("still") == 0
    assert tries.pop("exec") != 0
    assert set(tries.values()) == {errno.EACCES}, tries
    assert (layers, last) == (16, errno.E2BIG)  # landlock_restrict_self(2)
    assert (tmp_path / "out/f").read_text() == "old"


# A ruleset of an older version is legal on every later kernel, so old kernels are tried on this one.
_VERSIONS: Final = """
syscalls.landlock_abi = lambda: int(sys.argv[1])
words = confine("ws", "/dev")
answer([words, attempt(put, "out/f", os.O_WRONLY), attempt(os.truncate, "out/f", 3), attempt(os.rename, "ws/a/f", "ws/b/g")])
"""


@pytest.mark.parametrize("version", range(1, VERSION + 1))
def test_each_version_of_the_interface_gives_what_it_can(tmp_path: Path, version: int) -> None:
    words, write, truncate, rename = child(_VERSIONS, layout(tmp_path), str(version))
    assert rename == 0
    assert words == (f"Landlock {version}" if version > 1 else "")
    assert write == (errno.EACCES if version > 1 else 0)
    assert truncate == (errno.EACCES if version > 2 else 0)


_LACKING: Final = """
import struct
rows = ((abi.BPF_LOAD, 0, 0, 0), (abi.BPF_IF_EQUAL, 0, 1, abi.NR_LANDLOCK_CREATE_RULESET),
    (abi.BPF_RETURN, 0, 0, abi.SECCOMP_RET_ERRNO | int(sys.argv[1])), (abi.BPF_RETURN, 0, 0, abi.SECCOMP_RET_ALLOW))
syscalls.prctl(abi.PR_SET_NO_NEW_PRIVS, 1)
syscalls.seccomp(b"".join(struct.pack(abi.SOCK_FILTER, *row) for row in rows))
try:
    answer(confine("."))
except OSError as err:
    answer(err.errno)
"""


@pytest.mark.parametrize(
    ("number", "outcome"), [(errno.ENOSYS, ""), (errno.EOPNOTSUPP, ""), (errno.EPERM, errno.EPERM)]
)
def test_only_a_kernel_without_landlock_is_done_without(tmp_path: Path, number: int, outcome: object) -> None:
    assert child(_LACKING, tmp_path, str(number)) == outcome


def test_a_writable_path_that_is_missing_is_an_error(tmp_path: Path) -> None:
    assert child("answer(attempt(confine, 'nowhere'))", tmp_path) == errno.ENOENT


def test_no_rules_without_no_new_privileges(tmp_path: Path) -> None:
    text = "os.geteuid() or os.setresuid(65534, 65534, 65534)\nanswer(attempt(landlock.restrict, ['/']))"
    assert child(text, Path("/")) == errno.EPERM
