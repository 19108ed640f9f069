"""A program that looks at the sandbox it runs in and tries to get out: `doctor --sandbox` starts it there.

It is handed to an interpreter as text, because overlayrun itself may lie where the sandbox shows nothing: the
standard library alone, nothing of the package. Its argument is the JSON of a `Questions`, its answer one
JSON object: `mounts` as [place, kind, note], `proofs` as [name, state, found].
"""

from __future__ import annotations

import ctypes  # noqa: TID251  # no module of the package is there to make the system calls
import errno
import fcntl
import json
import os
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_NUMBERS: Final = {  # asm/unistd.h of each machine
    "x86_64": {"keyctl": 250, "bpf": 321, "perf_event_open": 298, "setns": 308, "ptrace": 101},
    "aarch64": {"keyctl": 219, "bpf": 280, "perf_event_open": 241, "setns": 268, "ptrace": 117},
}
_EVERYWHERE: Final = {"io_uring_setup": 425, "open_tree": 428, "fsopen": 430, "clone3": 435}
_CLOSED: Final = (errno.EPERM, errno.EACCES, errno.ENOSYS)
_GONE: Final = (errno.ENOENT, errno.ENOTDIR, errno.EACCES)
_NOT_WRITTEN: Final = (errno.EROFS, errno.EACCES, errno.EPERM)
_CLONE_NEWUSER: Final = 0x10000000  # linux/sched.h
_TIOCSTI: Final = 0x5412  # asm-generic/ioctls.h
_PTRACE_TRACEME: Final = 0
_FAMILIES: Final = {"AF_VSOCK": 40, "AF_ALG": 38, "AF_PACKET": 17, "AF_BLUETOOTH": 31}
_PRIVILEGES: Final = {"CapEff": "0", "CapPrm": "0", "CapBnd": "0", "NoNewPrivs": "1", "Seccomp": "2"}

Proof = tuple[str, str, str]


def main() -> None:
    """Answer the questions of the command line."""
    ask = json.loads(sys.argv[1])
    mounts = list(_mounts())
    private = {place for place, kind, _ in mounts if kind == "private"}
    ask["read_only"] = [path for path in ask["read_only"] if path not in private]
    answer = {"mounts": mounts, "proofs": [*_files(ask), *_kernel(ask), *_others(ask)]}
    sys.stdout.write(json.dumps(answer))


def _mounts() -> Iterator[tuple[str, str, str]]:
    """Mounts that show, as (place, kind, type); source: proc_pid_mountinfo(5)."""
    found: dict[str, tuple[str, str, str, list[str]]] = {}
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields, _, kind = line.partition(" - ")
            number, _, _, root, place, options, *_ = fields.split(" ")
            place = place.encode("utf-8", "surrogateescape").decode("unicode_escape")
            place = place.encode("latin-1").decode("utf-8", "surrogateescape")
            found[place] = (number, kind.split(" ")[0], root, options.split(","))
    for place, (number, fstype, root, flags) in found.items():
        if _mount_at(place) == number:  # else another one lies over it
            yield place, _kind(fstype, root, flags), fstype


def _mount_at(place: str) -> str:
    """Number of the mount that a path leads to (proc_pid_fdinfo(5))."""
    try:
        fd = os.open(place, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
            return next(line.split()[1] for line in file if line.startswith("mnt_id:"))
    finally:
        os.close(fd)


def _kind(fstype: str, root: str, flags: list[str]) -> str:
    if fstype == "overlay" and root == "/":
        return "copy-on-write"
    if fstype == "tmpfs" and root in ("/file", "/directory"):
        return "masked"
    if "ro" in flags:
        return "read-only"
    if fstype in ("tmpfs", "proc", "devpts", "mqueue"):
        return "private"
    return "copy-on-write" if fstype == "overlay" else "shared"


def _files(ask: dict[str, Any]) -> Iterator[Proof]:
    for path in ask["hidden"]:
        yield f"hidden {path}", *_hidden(path)
    for path in ask["read_only"]:
        yield f"read-only {path}", *_refused(partial(_write, path, ask["mark"]), _NOT_WRITTEN)
    for path in ask["written"]:
        yield f"own {path}", *_works(partial(_write, path, ask["mark"]))
    for path in ask["sockets"]:
        yield f"socket {path}", *_refused(partial(_connect, path), (errno.ECONNREFUSED, *_GONE))


def _hidden(path: str) -> tuple[str, str]:
    try:
        info = os.lstat(path)
        if stat.S_ISDIR(info.st_mode):
            names = os.listdir(path)
            return ("FAIL", f"it shows {len(names)} names") if names else ("ok", "an empty directory")
        with open(path, "rb") as file:
            return ("FAIL", "it can be read") if file.read(1) else ("ok", "an empty file")
    except OSError as err:
        return ("ok" if err.errno in _GONE else "FAIL"), _words(err)


def _write(directory: str, mark: str) -> None:
    with open(f"{directory}/{mark}", "x", encoding="ascii"):
        pass


def _refused(attempt: Callable[[], object], expected: tuple[int, ...] = _CLOSED) -> tuple[str, str]:
    """A thing that must fail, and with one of these errors: another could mean that it was not tried."""
    try:
        attempt()
    except OSError as err:
        return ("ok" if err.errno in expected else "FAIL"), _words(err)
    return "FAIL", "it works"


def _works(attempt: Callable[[], object]) -> tuple[str, str]:
    try:
        attempt()
    except OSError as err:
        return "FAIL", _words(err)
    return "ok", "written"


def _words(err: OSError) -> str:
    return errno.errorcode.get(err.errno or 0, "?")


def _call(function: Callable[..., int], *arguments: Any) -> None:
    if function(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "")


def _kernel(ask: dict[str, Any]) -> Iterator[Proof]:
    """System calls with arguments that are wrong: only a filter says EPERM to those."""
    if not ask["userns"]:
        yield "new user namespace", *_in_child(lambda: _call(_LIBC.unshare, _CLONE_NEWUSER))
        yield "mount", *_refused(lambda: _call(_LIBC.mount, b"none", b"/", b"tmpfs", 0, None))
    numbers = {**_NUMBERS.get(os.uname().machine, {}), **_EVERYWHERE}
    for name, number in numbers.items():
        if (name == "ptrace" and ask["ptrace"]) or (
            name in ("clone3", "fsopen", "open_tree") and ask["userns"]
        ):
            continue
        attempt = [ctypes.c_long(value) for value in (number, 0, 0, 0, 0, 0)]
        if name == "ptrace":
            attempt[1] = ctypes.c_long(_PTRACE_TRACEME)
        yield name, *_in_child(partial(_call, _LIBC.syscall, *attempt))
    yield "typing into a terminal (TIOCSTI)", *_refused(_type, (*_CLOSED, errno.EIO))
    for name, family in _FAMILIES.items():
        yield (
            f"socket {name}",
            *_refused(
                partial(socket.socket, family, socket.SOCK_RAW),
                (*_CLOSED, errno.EAFNOSUPPORT),
            ),
        )
    yield from _privileges()


def _in_child(attempt: Callable[[], None]) -> tuple[str, str]:
    """The same in a process of its own, which it may change or end."""
    pid = os.fork()
    if pid == 0:
        try:
            attempt()
        except OSError as err:
            os._exit(err.errno or 0)
        finally:
            os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code < 0:
        return "ok", f"killed by signal {-code}"
    if not code:
        return "FAIL", "it works"
    return ("ok" if code in _CLOSED else "FAIL"), _words(OSError(code, ""))


def _type() -> None:
    master, slave = os.openpty()
    try:
        fcntl.ioctl(slave, _TIOCSTI, b"x")
    finally:
        os.close(master)
        os.close(slave)


def _privileges() -> Iterator[Proof]:
    with open("/proc/self/status", encoding="utf-8") as file:
        status = {name: value.strip() for name, _, value in (line.partition(":") for line in file)}
    for name, wanted in _PRIVILEGES.items():
        value = status.get(name, "").lstrip("0") or "0"
        yield f"status {name}", "ok" if value == wanted else "FAIL", value


def _others(ask: dict[str, Any]) -> Iterator[Proof]:
    """Processes, sockets and networks of the host."""
    for name in ("mem", "root", "environ"):
        yield f"/proc/1/{name}", *_refused(partial(_open, f"/proc/1/{name}"), _CLOSED)
    pid = ask["pid"]
    yield f"signal to process {pid} of the host", *_refused(lambda: os.kill(pid, 0), (errno.ESRCH,))
    yield "abstract socket of the host", *_abstract(ask)
    if not ask["network"]:
        state, found = _refused(
            lambda: socket.create_connection(("127.0.0.1", ask["port"]), 5).close(), (errno.ECONNREFUSED,)
        )
        yield "loopback of the host", state, found


def _open(path: str) -> None:
    os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))


def _abstract(ask: dict[str, Any]) -> tuple[str, str]:
    state, found = _refused(lambda: _connect("\0" + ask["abstract"]), (*_CLOSED, errno.ECONNREFUSED))
    if state == "FAIL" and not ask["scopes"]:
        return "limited", "it can be reached: this kernel's Landlock has no scopes (since Linux 6.12)"
    return state, found


def _connect(address: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(address)


if __name__ == "__main__":
    main()
