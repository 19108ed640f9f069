"""The floor of a start in a batch: fork, namespaces, one overlay, fork, exec, from a process that is there.

Run as `python -I -S _bench_forks.py SCRATCH` it measures one for each line that it reads.
"""

from __future__ import annotations

import ctypes  # noqa: TID251  # the floor is measured without the package
import os
import sys
import time

NOW = ("date", "+%s%N")
_NICE = 5  # as the sandbox's own commands
_FLAGS = 0x10000000 | 0x20000 | 0x20000000  # CLONE_NEWUSER, CLONE_NEWNS, CLONE_NEWPID (linux/sched.h)
_LIBC = ctypes.CDLL(None, use_errno=True)


def floor(place: str) -> float:
    """Milliseconds from a fork to a command in namespaces of its own, on one overlay."""
    layers = [f"{place}-{time.time_ns()}/{name}" for name in ("lower", "upper", "work")]
    for layer in layers:
        os.makedirs(layer)
    said, say = os.pipe()
    began = time.time_ns()
    pid = os.fork()
    if pid == 0:
        try:
            _become(layers, say)
        finally:
            os._exit(1)
    os.close(say)
    with open(said, encoding="ascii") as file:
        taken = (int(file.read()) - began) / 1e6
    os.waitpid(pid, 0)
    return taken


def _become(layers: list[str], say: int) -> None:
    lower, upper, work = layers
    uid, gid = os.geteuid(), os.getegid()
    if _LIBC.unshare(_FLAGS):
        raise OSError(ctypes.get_errno(), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        fd = os.open(f"/proc/self/{name}", os.O_WRONLY)
        os.write(fd, text.encode())
        os.close(fd)
    data = f"lowerdir={lower},upperdir={upper},workdir={work},userxattr,volatile"
    if _LIBC.mount(b"overlay", os.fsencode(lower), b"overlay", 0, os.fsencode(data)):
        raise OSError(ctypes.get_errno(), "mount")
    pid = os.fork()
    if pid == 0:
        os.nice(_NICE)
        os.chdir(lower)
        os.dup2(say, 1)
        os.execvp(NOW[0], NOW)
    os.waitpid(pid, 0)


def _main() -> None:
    for turn, _ in enumerate(sys.stdin):
        sys.stdout.write(f"{floor(f'{sys.argv[1]}/bare-{turn}')}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
