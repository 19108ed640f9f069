"""Every kind of file that a snapshot must not trip over."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess

from inside import GIVEN, finish, probe

HOME = os.path.expanduser("~")


def write(name: str | bytes, data: bytes, mode: int = 0o644) -> None:
    with open(name, "wb") as file:
        file.write(data)
    os.chmod(name, mode)


@probe("26 27 links")
def _() -> object:
    os.mkdir("links")
    for number, path in enumerate(GIVEN["secret_paths"]):
        os.symlink(path, f"links/secret{number}")
    os.symlink("/proc/self/environ", "links/environ")
    os.symlink("../../../../../../../../etc", "links/up")
    os.symlink("..", "links/parent")
    os.symlink(".", "links/loop")
    os.symlink("loop/loop", "links/again")
    return len(GIVEN["secret_paths"])


@probe("32 fifos and sockets")
def _() -> object:
    os.mkdir("odd")
    os.mkfifo("odd/fifo")
    socket.socket(socket.AF_UNIX).bind("odd/socket")
    return "done"


@probe("33 devices")
def _() -> object:
    tries = (("b", 0o060600, (8, 0)), ("c", 0o020600, (1, 3)), ("k", 0o020600, (10, 200)))
    made = []
    for name, mode, number in tries:
        try:
            os.mknod(f"odd/{name}", mode, os.makedev(*number))
            made.append(name)
        except OSError:
            pass
    return made


@probe("40 42 43 names")
def _() -> object:
    os.mkdir("names")
    names = (
        "a\nb",
        "t\tb",
        "-rf",
        "--help",
        "*",
        "'",
        '"',
        "$(touch x)",
        "; touch x",
        " lead",
        "trail ",
        "\x1b]0;pwn\x07",
        "x\r",
        "\u202egpj.exe",
        "\x9b2J",
        "README",
        "readme",
        "e\u0301",
        "\u00e9",
        "CON",
        "a:b",
        "a\\b",
        "\udcff\udcfe",
        "n" * 255,
    )
    for name in names:
        write(b"names/" + os.fsencode(name), os.fsencode(name))
    return len(names)


@probe("45 setuid")
def _() -> object:
    shutil.copy("/bin/sh", "suid")
    os.chmod("suid", 0o6755)
    os.mkdir("sticky")
    os.chmod("sticky", 0o7777)
    write("sticky/f", b"f")
    return oct(os.stat("suid").st_mode & 0o7777)


@probe("46 attributes")
def _() -> object:
    write("marked", b"marked")
    tried = {}
    # A capability set in the form of the kernel's own user namespace version (VFS_CAP_REVISION_3, effective).
    capability = b"\x01\x00\x00\x03" + b"\xff" * 16 + b"\0" * 4
    for name, value in (("security.capability", capability), ("user.note", b"x"), ("trusted.x", b"x")):
        try:
            os.setxattr("marked", name, value)
            tried[name] = "ok"
        except OSError as err:
            tried[name] = str(err.errno)
    subprocess.run(["setfacl", "-m", "u:1:rwx", "marked"], capture_output=True, check=False)
    return tried


@probe("47 no permission")
def _() -> object:
    write("closed", b"closed")
    os.mkdir("shut")
    write("shut/f", b"in a closed directory")
    os.chmod("closed", 0)
    os.chmod("shut", 0)
    return "done"


@probe("48 hard links")
def _() -> object:
    tried = {}
    sources = ("/etc/passwd", "/usr/bin/env", "/proc/self/environ", f"{HOME}/.bashrc")
    for number, path in enumerate(sources):
        try:
            os.link(path, f"hard{number}")
            tried[path] = "ok"
        except OSError as err:
            tried[path] = str(err.errno)
    write("twin", b"twin")
    os.link("twin", "twin2")
    with open("twin2", "ab") as file:
        file.write(b"s")
    return tried


@probe("50 times")
def _() -> object:
    write("future", b"future")
    os.utime("future", (4070908800, 4070908800))
    write("past", b"past")
    os.utime("past", (-2177452800, -2177452800))
    return "done"


@probe("52 contents")
def _() -> object:
    os.mkdir("content")
    write("content/nul", b"\0a\0b\r\n")
    write("content/crlf", b"a\r\nb\r\n")
    write("content/bom", b"\xef\xbb\xbfa\n")
    write("content/line", b"x" * (1 << 21))
    write(
        "content/lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1\n"
    )
    return "done"


@probe("34 sparse")
def _() -> object:
    fd = os.open("sparse", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"begin")
    os.ftruncate(fd, 9 << 30)
    os.ftruncate(fd, 16 << 40)
    return os.stat("sparse").st_size


finish()
