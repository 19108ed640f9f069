"""Run inside a workspace: renames of the base's directories, and what an agent may try with them.

Prints one line of JSON: what each story saw, by its name.
"""

from __future__ import annotations

import ctypes  # noqa: TID251  runs inside, where the package may not be
import errno
import json
import os
import shutil
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_RENAMEAT2 = 276 if os.uname().machine == "aarch64" else 316
_MARK = 0x6F76_6572_6C61_7972
_HERE = -100
TOLD: dict[str, Any] = {}


def story(tell: Callable[[], object]) -> None:
    """Run it, and keep what it gives."""
    try:
        TOLD[tell.__name__] = tell()
    except Exception as err:  # noqa: BLE001  the tests tell which story failed
        TOLD[tell.__name__] = repr(err)


def rename(old: str, new: str, flags: int = 0, mark: int = 0) -> str:
    """Name of the errno, "" for none."""
    arguments = [_HERE, old.encode(), _HERE, new.encode(), flags, mark]
    done = _libc.syscall(
        ctypes.c_long(_RENAMEAT2), *[ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    )
    return errno.errorcode[ctypes.get_errno()] if done < 0 else ""


def files(*places: str) -> int:
    return sum(len(names) for place in places for _, _, names in os.walk(place))


@story
def marked_calls_get_the_kernels_answer() -> object:
    return rename("plain", "other", mark=_MARK)


@story
def git_mv() -> object:
    moved = subprocess.run(["git", "mv", "tracked", "moved"], capture_output=True, text=True, check=False)
    status = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True)
    return [moved.stderr, sorted({line[:2] for line in status.stdout.splitlines()}), files("moved")]


@story
def python_and_mv() -> object:
    Path("plain").rename("plain2")
    subprocess.run(["mv", "-T", "plain2", "plain3"], check=True)
    return [files("plain3"), Path("plain").exists(), Path("plain2").exists()]


@story
def what_it_was_like_is_kept() -> object:
    place = Path("kept")
    os.setxattr(place / "inner", "user.mine", b"yes")
    (place / "inner/none").chmod(0)
    (place / "closed").chmod(0o555)
    os.utime(place, (1000, 2000))
    inode = (place / "inner/none").stat().st_ino
    with (place / "open").open("a") as file:
        refused = rename("kept", "kept2")
        file.write("late\n")
    place = Path("kept2")
    (place / "inner/none").chmod(0o600)
    return [
        refused,
        os.getxattr(place / "inner", "user.mine").decode(),
        oct((place / "closed").stat().st_mode),
        int(place.stat().st_mtime),
        (place / "inner/none").stat().st_ino == inode,
        (place / "open").read_text(),
        str((place / "link").readlink()),
        (place / "closed/empty").is_dir(),
    ]


@story
def over_an_empty_directory() -> object:
    Path("empty").mkdir()
    return [rename("over", "empty"), files("empty"), rename("over2", "emptied"), files("emptied")]


@story
def refused() -> object:
    Path("file").write_text("x")
    return {
        "no replace": rename("stays", "full", 1),
        "not empty": rename("stays", "full"),
        "a file": rename("stays", "file"),
        "over a directory": rename("file", "stays"),
        "into itself": rename("stays", "stays/sub"),
        "over what holds it": rename("stays/sub", "stays"),
        "dot": rename("stays/.", "x"),
        "no such": rename("nothing/", "x"),
        "parent": rename("stays", "nothing/x"),
        "git": rename(".git", "x"),
        "itself": rename("stays", "stays"),
        "whole": files("stays", "full"),
    }


@story
def flags_that_no_overlay_takes() -> object:
    """A whiteout left behind, contradictions, bits without a meaning; then it is no new directory yet."""
    return [*(rename("stays", "x", flags) for flags in (4, 5, 6, 3, 8)), rename("stays", "x", mark=_MARK)]


@story
def exchange() -> object:
    told = [rename("one", "two", 2), files("one"), files("two")]
    Path("single").write_text("single")
    return [*told, rename("one", "single", 2), Path("one").read_text(), files("single")]


@story
def from_a_thread_with_descriptors() -> object:
    fd = os.open("threads", os.O_PATH)
    threads = [
        threading.Thread(target=lambda n=n: os.rename(f"t{n}", f"r{n}", src_dir_fd=fd, dst_dir_fd=fd))
        for n in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [sorted(os.listdir("threads")), files("threads")]


@story
def signals_repeat_nothing() -> object:
    caught = []
    signal.signal(signal.SIGALRM, lambda *_: caught.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    # Interrupted before anybody heard of it: then nothing has happened.
    while (told := rename("signals", "signals2")) == "EINTR" and not os.path.lexists("signals2"):
        pass
    signal.setitimer(signal.ITIMER_REAL, 0)
    return [told, files("signals2"), bool(caught)]


@story
def in_the_home() -> object:
    home = Path.home()
    (home / "settings").rename(home / "settings2")
    return (home / "settings2/sub/file").read_text()


@story
def out_of_the_workspace() -> object:
    return [
        rename("stays", "/usr/share/stays"),
        rename("/usr/share/doc", "doc"),
        rename("/usr/share", "/usr/x"),
    ]


@story
def bad_arguments() -> object:
    def raw(old: int, new: int) -> str:
        arguments = (_RENAMEAT2, _HERE, old, _HERE, new, 0, 0)
        done = _libc.syscall(*[ctypes.c_long(one) for one in arguments])
        return errno.errorcode[ctypes.get_errno()] if done < 0 else ""

    name = ctypes.create_string_buffer(b"stays")
    good = ctypes.addressof(name)
    bad = [raw(8, good), raw(good, 8), raw(-1, good), raw(good, -4096), raw(2**62, 2**62)]
    return [
        bad,
        rename("a/" * 3000, "x"),
        rename("stays", "a" * 5000),
        rename("stays", "a" * 300),
        files("stays"),
    ]


@story
def a_sandbox_of_its_own_is_not_widened() -> object:
    """A child that may make and remove no directory by Landlock's rules."""
    pid = os.fork()
    if pid == 0:
        every = sum(1 << bit for bit in range(14))
        ruleset = _libc.syscall(444, struct.pack("QQQ", every, 0, 0), ctypes.c_long(8), ctypes.c_long(0))
        _libc.syscall(446, ctypes.c_long(ruleset), ctypes.c_long(0))
        os._exit(getattr(errno, rename("landlocked", "landlocked2") or "EDOM"))
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return [errno.errorcode[status], files("landlocked"), Path("landlocked2").exists()]


@story
def many_wait_at_once() -> object:
    told: list[str] = []
    threads = [
        threading.Thread(target=lambda n=n: told.append(rename(f"many/d{n % 10}", f"many/n{n}")))
        for n in range(200)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [told.count(""), files("many")]


@story
def paths_that_change_meanwhile() -> object:
    """Directories and links to others change places all the time; every file is somewhere in the end."""
    stop = threading.Event()
    os.symlink("swap/y", "where")

    def swap() -> None:
        while not stop.is_set():
            rename("swap/x", "swap/y", 2)
            with suppress(OSError):
                os.unlink("where2")
            with suppress(OSError):
                os.symlink("swap/x", "where2")
            rename("where2", "where")

    thread = threading.Thread(target=swap)
    thread.start()
    for n in range(40):
        rename("where/d", f"swap/{n}")
        rename(f"swap/{n}", "where/d")
    stop.set()
    thread.join()
    return files("swap")


@story
def made_again() -> object:
    """As npm does: of the new directories only the topmost hides what was there."""
    Path("again").rename("away")
    shutil.rmtree("again2")
    for name in ("again", "again2"):
        Path(name, "sub/deep").mkdir(parents=True)
        Path(name, "sub/deep/new").write_text("new")
    shutil.rmtree("away")
    return files("again", "again2")


@story
def the_helper_is_killed() -> object:
    """Everything else in the sandbox is killed again and again while a large directory is renamed."""
    me, parent = os.getpid(), os.getppid()
    stop = threading.Event()
    killed = []

    def kill() -> None:
        while not stop.is_set():
            for name in os.listdir("/proc"):
                if name.isdecimal() and int(name) not in (1, me, parent):
                    with suppress(OSError):
                        os.kill(int(name), signal.SIGKILL)
                        killed.append(name)
            time.sleep(0.03)

    thread = threading.Thread(target=kill)
    thread.start()
    told = rename("large", "large2")
    stop.set()
    thread.join()
    return [told, files("large", "large2", ".overlayrun-moving"), bool(killed)]


print(json.dumps(TOLD))
