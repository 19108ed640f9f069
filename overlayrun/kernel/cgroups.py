"""What is mounted, and whether control groups are ours to divide."""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def mounts() -> Iterator[tuple[str, str, str, str]]:
    """(root, mountpoint, type, superblock options) of every mount in sight; a cover comes after the covered.

    Source: proc_pid_mountinfo(5). A blank or backslash stands there as an octal escape.
    """
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            place, _, kind = line.partition(" - ")
            root, point = place.split(" ")[3:5]
            fstype, _, options = kind.rstrip("\n").split(" ", 2)
            yield _unescape(root), _unescape(point), fstype, options


def _unescape(text: str) -> str:
    first, *rest = text.split("\\")
    return first + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)


def try_control_groups() -> str:
    """Make a group, move a process into it, remove it: in the v2 tree, else in v1's memory and pids trees.

    Gives the tree and the limits that it has; raises OSError where none is ours.
    """
    with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        rows = [line.rstrip("\n").split(":", 2) for line in file]
    own = {name: path for _, names, path in rows for name in names.split(",")}
    trees = {}
    for root, point, fstype, options in mounts():
        if fstype.startswith("cgroup"):
            names = [""] if fstype == "cgroup2" else options.split(",")
            trees.update(dict.fromkeys(names, (root, point)))
    refusal = OSError(errno.ENODEV, "no tree of control groups is mounted")
    for version, needed in (("v2", ("",)), ("v1", ("memory", "pids"))):
        try:
            places = [_own_place(own, trees, name) for name in needed]
            limits = _limits_of(places[0]) if version == "v2" else needed
            for place in places:
                _divide(place)
        except OSError as err:
            # Of two refusals the one by a tree that is there says more.
            refusal = err if refusal.errno == errno.ENODEV else refusal
            continue
        return f"{version}: {' '.join(limits)}"
    raise refusal


def _own_place(own: Mapping[str, str], trees: Mapping[str, tuple[str, str]], name: str) -> str:
    """Directory of this process's group in one tree; the v2 tree's name is empty (cgroups(7))."""
    if name not in own or name not in trees:
        raise OSError(errno.ENODEV, "no tree of control groups is mounted")
    root, point = trees[name]
    return f"{point}/{own[name].removeprefix(root).lstrip('/')}".rstrip("/")


def _limits_of(place: str) -> tuple[str, ...]:
    with open(f"{place}/cgroup.controllers", encoding="utf-8") as file:
        limits = tuple(sorted({"cpu", "memory", "pids"} & set(file.read().split())))
    if not {"memory", "pids"} <= set(limits):
        raise OSError(errno.ENODEV, "the control group has no memory and pids limits to give", place)
    return limits


def _divide(place: str) -> None:
    group = f"{place}/overlayrun-probe-{os.getpid()}"
    os.mkdir(group)
    try:
        pid = os.fork()
        if pid == 0:
            try:
                os.write(os.open(f"{group}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC), b"0")
                os._exit(0)
            finally:
                os._exit(1)
        if os.waitpid(pid, 0)[1]:
            raise OSError(errno.EPERM, "no process can be moved into a group of our own", place)
    finally:
        os.rmdir(group)
