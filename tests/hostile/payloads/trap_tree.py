"""Run in a tree that is a directory of its own: traps for whoever copies, snapshots or removes it afterwards.

Arguments: a file and a directory of the user's outside. Prints one line of JSON: what was refused, and how.
"""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import shutil
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOLD: dict[str, Any] = {}
_GET_FLAGS, _SET_FLAGS = 0x80086601, 0x40086602  # FS_IOC_GETFLAGS, FS_IOC_SETFLAGS
_IMMUTABLE, _APPEND = 0x10, 0x20


def attempt(name: str, call: Callable[[], object]) -> None:
    try:
        call()
    except OSError as err:
        TOLD[name] = errno.errorcode[err.errno or 0]
    else:
        TOLD[name] = "done"


def set_flag(flag: int) -> None:
    fd = os.open("README", os.O_RDONLY)
    try:
        now = struct.unpack("=I", fcntl.ioctl(fd, _GET_FLAGS, bytes(4)))[0]
        fcntl.ioctl(fd, _SET_FLAGS, struct.pack("=I", now | flag))
    finally:
        os.close(fd)


def replace_git() -> None:
    attempt("git renamed", lambda: os.rename(".git", "gone"))
    os.symlink(sys.argv[2], "link-to-be")
    attempt("git replaced", lambda: os.rename("link-to-be", ".git"))
    attempt("git removed", lambda: os.rmdir(".git"))
    os.unlink("link-to-be")


def hold_open_over_a_fork() -> None:
    """What is written afterwards through what was opened before belongs to this tree alone."""
    held = os.open("held", os.O_RDWR)
    seen = mmap.mmap(held, 0)
    forked = subprocess.run(
        ["overlayrun", "fork", "-b", sys.argv[3]], capture_output=True, text=True, check=False
    )
    TOLD["fork"] = [forked.returncode, forked.stdout, forked.stderr]
    seen[:4] = b"late"
    seen.flush()
    os.pwrite(held, b"late", 4)


def write_in_place() -> None:
    """Files that came along may be links to the user's, or share blocks with them."""
    for name in ("README", "one-of-two", "node_modules/p/index.js", ".env"):
        with open(name, "r+b") as file:
            file.write(b"EVIL")
        os.chmod(name, 0o777)
        os.utime(name, (5, 5))


def lay_traps() -> None:
    outside = sys.argv[2]
    shutil.rmtree("src")
    os.symlink(outside, "src")  # a directory of the base leads out
    shutil.rmtree("node_modules/q")
    os.symlink(outside, "node_modules/q")  # and one that is carried
    os.unlink("tool.sh")
    os.symlink(sys.argv[1], "tool.sh")
    Path("shut/in").mkdir(parents=True)
    Path("shut/in/file").write_text("inside")
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    deep = os.open(".", os.O_RDONLY)
    for _ in range(25):  # longer than any path may be
        os.mkdir("d" * 200, dir_fd=deep)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
    os.close(deep)
    for name in ("shut/in", "shut"):
        os.chmod(name, 0)


def make_huge() -> None:
    """Nothing but a hole, almost: who copies it byte by byte fills the disk."""
    with open("huge", "wb") as file:
        file.truncate(1 << 33)
        file.seek(1 << 32)
        file.write(b"in the middle")


def main() -> None:
    attempt("link to the user's file", lambda: os.link(sys.argv[1], "linked"))
    attempt("write to the user's file", lambda: os.truncate(sys.argv[1], 0))
    attempt("device", lambda: os.mknod("device", stat.S_IFCHR | 0o666, os.makedev(1, 3)))
    attempt("whiteout", lambda: os.mknod("whiteout", stat.S_IFCHR, 0))
    attempt("set-uid", lambda: os.chmod("held", 0o4755))
    attempt("immutable", lambda: set_flag(_IMMUTABLE))
    attempt("append-only", lambda: set_flag(_APPEND))
    replace_git()
    lay_traps()
    hold_open_over_a_fork()
    write_in_place()
    make_huge()
    print(json.dumps(TOLD))


if __name__ == "__main__":
    main()
