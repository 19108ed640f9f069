"""One try for each layer of the sandbox, and a few for the walls behind it: true where it worked."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import socket
import stat
import sys
import termios
from collections.abc import Callable

from inside import GIVEN, LIBC, call, in_child, raw, read_some

MARK: str = GIVEN["mark"]
WORKED: dict[str, bool] = {}


def tried(name: str) -> Callable[[Callable[[], bool]], None]:
    """Run the function at once: true is a success, an error is none."""

    def run(function: Callable[[], bool]) -> None:
        try:
            WORKED[name] = bool(function())
        except (OSError, ValueError):
            WORKED[name] = False

    return run


def shows(path: str, text: str) -> bool:
    return text in read_some(path)


@tried("write to the disk")
def _() -> bool:
    wrote = []
    for place in ("/", "/usr", "/etc", "/var", "/opt", "/srv", "/mnt", GIVEN["outside"]):
        try:
            with open(f"{place}/olr-{MARK}", "w", encoding="ascii"):
                wrote.append(place)
        except OSError:
            continue
    return bool(wrote)


@tried("find the disk writable")
def _() -> bool:
    return not all(os.statvfs(place).f_flag & os.ST_RDONLY for place in ("/", "/usr", "/etc"))


@tried("see /tmp of the host")
def _() -> bool:
    return shows(f"/tmp/olr-{MARK}", "OLRSECRET")


@tried("see /dev of the host")
def _() -> bool:
    return shows(f"/dev/shm/olr-{MARK}", "OLRSECRET")


@tried("see processes of the host")
def _() -> bool:
    return read_some(f"/proc/{GIVEN['pid']}/comm") == GIVEN["comm"]


@tried("look into processes of the host")
def _() -> bool:
    os.close(os.open(f"/proc/{GIVEN['pid']}/mem", os.O_RDWR))
    return not os.path.samefile(f"/proc/{GIVEN['pid']}/ns/pid", "/proc/self/ns/pid")


@tried("leave through a process of the host")
def _() -> bool:
    with open(f"/proc/{GIVEN['pid']}/root{GIVEN['outside']}/through", "w", encoding="ascii") as file:
        file.write("x")
    return True


@tried("read secrets of HOME")
def _() -> bool:
    found = False
    for path in GIVEN["secret_paths"]:
        try:
            found = found or shows(path, "OLRSECRET")
        except OSError:
            continue
    return found


@tried("see shared memory of the host")
def _() -> bool:
    with open("/proc/sysvipc/shm", encoding="ascii") as lines:
        return any(line.split()[0] == str(GIVEN["shm"]) for line in lines)


@tried("share the host's name")
def _() -> bool:
    return os.stat("/proc/self/ns/uts").st_ino == GIVEN["uts"]


@tried("write core files")
def _() -> bool:
    return resource.getrlimit(resource.RLIMIT_CORE)[1] != 0


@tried("write files of any size")
def _() -> bool:
    return resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY


@tried("read secret variables")
def _() -> bool:
    return any("OLRSECRET" in value for value in os.environ.values())


@tried("open what stdout is")
def _() -> bool:
    again = os.open("/proc/self/fd/1", os.O_RDONLY | os.O_NONBLOCK)
    return stat.S_ISREG(os.fstat(again).st_mode) and b"before" in os.read(again, 100)


@tried("write over what stdout is")
def _() -> bool:
    again = os.open("/proc/self/fd/1", os.O_WRONLY | os.O_NONBLOCK)
    return stat.S_ISREG(os.fstat(again).st_mode)


@tried("see keys of the user")
def _() -> bool:
    with open("/proc/keys", encoding="utf-8", errors="replace") as lines:
        return any(MARK in line for line in lines)


@tried("take keys of the user")
def _() -> bool:
    return raw("keyctl", 10, -3, b"user", f"olr-{MARK}".encode(), 0) > 0  # KEYCTL_SEARCH


@tried("allow itself namespaces")
def _() -> bool:
    return int(read_some("/proc/sys/user/max_user_namespaces")) > 0


@tried("make a namespace")
def _() -> bool:
    return in_child(lambda: call("unshare", 0x10000000)) == "ok"


@tried("mount in a namespace of its own")
def _() -> bool:
    def nested() -> str:
        if raw("unshare", 0x10000000 | 0x00020000) < 0:
            return "no"
        return call("mount", b"none", b"/tmp", b"tmpfs", 0, None)

    return in_child(nested) == "ok"


@tried("gain by set-uid programs")
def _() -> bool:
    return "NoNewPrivs:\t0" in read_some("/proc/self/status")


@tried("keep privileges")
def _() -> bool:
    return f"CapBnd:\t{'0' * 16}" not in read_some("/proc/self/status")


@tried("change the mounts")
def _() -> bool:
    return call("umount2", b"/dev/shm", 2) == "ok" or call("mount", b"n", b"/tmp", b"tmpfs", 0, None) == "ok"


@tried("own pid 1")
def _() -> bool:
    return os.stat("/proc/1/environ").st_uid == os.stat("/proc/self/environ").st_uid


@tried("look into pid 1")
def _() -> bool:
    os.close(os.open("/proc/1/mem", os.O_RDWR))
    return True


@tried("talk to abstract sockets of the host")
def _() -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"\0olr-host-{MARK}")
    return True


@tried("use io_uring")
def _() -> bool:
    return call("io_uring_setup", 8, b"\0" * 256) == "ok"


@tried("run calls of 32 bits")
def _() -> bool:
    return in_child(lambda: LIBC.syscall(0x40000000 | 39)) not in {f"signal {int(signal.SIGSYS)}"}


@tried("push keys")
def _() -> bool:
    def push() -> str:
        _, slave = os.openpty()
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        fcntl.ioctl(slave, termios.TIOCSTI, b"x")
        return "ok"

    return in_child(push) == "ok"


@tried("use a descriptor of the user's")
def _() -> bool:
    return os.pread(GIVEN["descriptor"], 100, 0).startswith(b"OLRSECRET")


sys.stdout.write(f"\n{json.dumps(WORKED)}\n")
sys.stdout.flush()
