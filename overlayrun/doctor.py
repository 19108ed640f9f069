"""The doctor: tries every ability for real and says what is missing, why it matters, and the cure.

It changes nothing and leaves nothing behind.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from overlayrun.backends.registry import BACKENDS, try_all
from overlayrun.checks import DISK_CHECKS, KERNEL_CHECKS, Check, Finding, State, judge
from overlayrun.errors import OverlayrunError
from overlayrun.files import remove_tree, write_whole
from overlayrun.kernel.probe import Capabilities, file_system_of
from overlayrun.leftovers import leftovers
from overlayrun.refusals import ELSEWHERE, is_older
from overlayrun.store.git import git
from overlayrun.store.location import Repository
from overlayrun.workspace.layout import Layout, state_directory

_PYTHON: Final = (3, 11)
_GIT: Final = (2, 39)
_MACHINES: Final = ("x86_64", "aarch64")  # whose system call numbers kernel/abi.py knows
_MIB: Final = 1 << 20
_LEAST: Final = (16 * _MIB, 200)  # bytes and inodes without which no run can be recorded
_PLENTY: Final = (1024 * _MIB, 20_000)
_MAKE_ROOM: Final = "make room: overlayrun gc; overlayrun rm BRANCH"
_SKEW: Final = 2.0  # seconds
_TRIED: Final = 1 << 18  # bytes: more than all that is tried out writes
_FIRST_DATE: Final = 1_700_000_000  # seconds since the epoch; a clock before it was never set


def examine(repository: Repository | None) -> list[Finding]:
    """Every finding, in the order: machine, kernel, tools, state directory and its disk, leftovers.

    Without a repository what concerns its state is left out. Leaves nothing behind.
    """
    state = state_directory(repository.common_dir) if repository else None
    with _scratch(state) as (scratch, trouble):
        able = Capabilities(scratch)
        found = [_machine(), _kernel(), *(judge(check, able) for check in KERNEL_CHECKS)]
        found += [_python(), *_tools(repository), _clock(scratch)]
        if state is not None:
            found.append(_state(state, trouble))
        if scratch is not None:
            found += [_room(scratch), _backend(scratch), *(judge(check, able) for check in DISK_CHECKS)]
    if state is not None:
        found += _leftovers(state)
    return found


def explain(
    err: OSError | OverlayrunError | None, state: str | None = None, backend: str = "overlay"
) -> tuple[str, str]:
    """Why a sandbox could not be made, in one line, and what to type next.

    Goes through what a run needs in the order of its need and names the first thing that is missing.
    err: the failure that asks for it, for the words where nothing is missing. state: the state directory.
    backend: of the workspace.
    """
    with _scratch(state) as (scratch, trouble):
        for finding in _required(state, (scratch, trouble), overlay=backend == "overlay"):
            if finding.state is not State.OK:
                return f"the sandbox can't be made here: {finding.name}: {finding.found}", finding.cure
    hint = "overlayrun doctor tells what this machine lacks"
    if isinstance(err, OverlayrunError):
        return err.brief, err.hint or hint
    words = f": {err.strerror or err}" if err else ""
    where = f": {err.filename}" if err and err.filename else ""
    return f"the sandbox could not be made{words}{where}", hint


def _required(
    state: str | None, scratch: tuple[str | None, OSError | None], *, overlay: bool
) -> Iterator[Finding]:
    """What a run can't do without, where it is missing; each is tried when it is asked for."""
    place, trouble = scratch
    able = Capabilities(place)

    def lacking(checks: Sequence[Check]) -> Iterator[Finding]:
        needed = (check for check in checks if check.required and (overlay or not check.overlay))
        return (judge(check, able) for check in needed)

    yield _machine()
    yield from lacking(KERNEL_CHECKS)
    others = [] if state is None else [_state(state, trouble)]
    others += [] if place is None else [_room(place)]
    yield from (finding for finding in others if finding.state is State.MISSING)
    if place is not None:
        yield from lacking(DISK_CHECKS)


def _check_room(place: str) -> None:
    """Raise OSError where what is tried out there would only find that the disk is full."""
    write_whole(f"{place}/room", bytes(_TRIED), durable=True)
    os.unlink(f"{place}/room")


@contextmanager
def _scratch(state: str | None) -> Iterator[tuple[str | None, OSError | None]]:
    """An empty directory on the file system of the state, and why there is none; removed at the end."""
    if state is None:
        yield None, None
        return
    # The name by which `leftovers` knows one whose maker was killed.
    place = f"{_existing(state)}/.{os.getpid()}-doctor"
    try:
        os.mkdir(place, 0o700)
        _check_room(place)
    except OSError as err:
        remove_tree(place)
        yield None, err
        return
    try:
        yield place, None
    finally:
        remove_tree(place)


def _existing(path: str) -> str:
    """The nearest directory upward that is there: the doctor makes no state."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def _machine() -> Finding:
    name = os.uname().machine
    why = "system calls go by numbers that each machine has for itself"
    if name in _MACHINES:
        return Finding("machine", State.OK, name, why)
    return Finding("machine", State.MISSING, f"{name} is not known", why, f"use {' or '.join(_MACHINES)}")


def _kernel() -> Finding:
    release, why = os.uname().release, "older ones lack what the sandbox is made of"
    if is_older(5, 15):
        return Finding("kernel", State.LIMITED, f"Linux {release}", why, "use Linux 5.15 or newer")
    return Finding("kernel", State.OK, f"Linux {release}", why)


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    why = "overlayrun is written for 3.11"
    if sys.version_info[:2] < _PYTHON:
        return Finding("python", State.MISSING, version, why, "use Python 3.11 or newer")
    return Finding("python", State.OK, f"{version} ({sys.executable})", why)


def _tools(repository: Repository | None) -> Iterator[Finding]:
    why = "commits, merges and imports are git's work"
    try:
        version = git(["version"]).decode("utf-8", "replace").strip().removeprefix("git version ")
    except OverlayrunError as err:
        yield Finding(
            "git", State.MISSING, err.brief, why, "install git 2.39 or newer: sudo apt-get install git"
        )
        return
    if _numbers(version) < _GIT:
        yield Finding("git", State.MISSING, version, why, "install git 2.39 or newer")
    else:
        yield Finding("git", State.OK, version, why)
    if repository is not None and repository.head is not None:
        yield _merging(repository)
    yield _identity(repository)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())


def _merging(repository: Repository) -> Finding:
    why = "`overlayrun merge` joins a branch with its target by it"
    try:
        # HEAD with itself: its tree is there already, so nothing is written.
        git(["merge-tree", "--write-tree", "HEAD", "HEAD"], git_dir=repository.git_dir)
    except OverlayrunError as err:
        words = (err.details or err.brief).split("\n")[0]
        return Finding(
            "git merge-tree", State.LIMITED, words, why, "install git 2.39 or newer, then: git fsck"
        )
    return Finding("git merge-tree", State.OK, "works", why)


def _identity(repository: Repository | None) -> Finding:
    why = "snapshots carry your name"
    git_dir = repository.git_dir if repository else None
    values = [
        git(["config", "--get", f"user.{key}"], git_dir=git_dir, check=False) for key in ("name", "email")
    ]
    name, address = (value.decode("utf-8", "replace").strip() for value in values)
    if name and address:
        return Finding("git identity", State.OK, f"{name} <{address}>", why)
    cure = "git config --global user.name 'Your Name'; git config --global user.email you@example.org"
    return Finding("git identity", State.LIMITED, "user.name or user.email is not set", why, cure)


def _clock(scratch: str | None) -> Finding:
    why = "dates of commits, and files known by their times"
    now = time.time()
    if now < _FIRST_DATE:
        date = time.strftime("%Y-%m-%d", time.gmtime(now))
        return Finding(
            "clock", State.LIMITED, f"it says {date}", why, "set the clock: sudo timedatectl set-ntp true"
        )
    skew = _skew(scratch) if scratch else 0.0
    if skew > _SKEW:
        cure = "set the clocks of this machine and of the file server alike"
        return Finding("clock", State.LIMITED, f"the disk's differs by {skew:.0f} s", why, cure)
    return Finding("clock", State.OK, time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now)), why)


def _skew(scratch: str) -> float:
    """Seconds between this machine's clock and the one that stamps files of the disk, a server's perhaps."""
    os.mkdir(f"{scratch}/clock")
    return abs(os.stat(f"{scratch}/clock").st_mtime - time.time())


def _state(state: str, trouble: OSError | None) -> Finding:
    why = "branches, their layers and records are kept here"
    where = f"{state} on {file_system_of(_existing(state))}"
    if trouble is not None:
        cure = "make it writable, or: export OVERLAYRUN_STATE_DIR=~/.local/state/overlayrun/state"
        cure = _MAKE_ROOM if trouble.errno in (errno.ENOSPC, errno.EDQUOT) else cure
        return Finding("state directory", State.MISSING, f"{where}: {trouble.strerror}", why, cure)
    if os.path.lexists(state):
        info = os.lstat(state)
        ours = stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid() and not info.st_mode & 0o077
        if not ours:
            quoted = shlex.quote(state)
            cure = f"look at it, then: chown -R $USER {quoted} && chmod 700 {quoted}"
            return Finding("state directory", State.MISSING, f"{where} is not yours alone", why, cure)
    return Finding("state directory", State.OK, where, why)


def _room(scratch: str) -> Finding:
    why = "layers and snapshots are written here"
    info = os.statvfs(scratch)
    room = (info.f_bavail * info.f_frsize, info.f_favail)
    if not info.f_blocks:  # as ramfs and some servers do
        return Finding("free space", State.OK, "this file system does not tell", why)
    counts_inodes = info.f_files > 0  # btrfs makes them as they are needed
    found = f"{room[0] // _MIB} MiB" + (f", {room[1]} inodes" if counts_inodes else "")

    def less_than(limits: tuple[int, int]) -> bool:
        return room[0] < limits[0] or (counts_inodes and room[1] < limits[1])

    if not less_than(_PLENTY):
        return Finding("free space", State.OK, found, why)
    state = State.MISSING if less_than(_LEAST) else State.LIMITED
    return Finding("free space", state, found, why, _MAKE_ROOM)


def _backend(scratch: str) -> Finding:
    """What a new branch gets here, and why not better."""
    why = "how a branch gets its tree: " + ", ".join(BACKENDS)
    chosen = try_all(f"{scratch}/backend")
    if chosen.has_overlay:
        return Finding("backend", State.OK, str(chosen), why)
    return Finding("backend", State.LIMITED, str(chosen), f"{why}; starting takes longer", ELSEWHERE)


def _leftovers(state: str) -> list[Finding]:
    try:
        found = leftovers(Layout(state))
    except OSError as err:
        return [
            Finding("leftovers", State.LIMITED, f"{state}: {err.strerror}", "what is there can't be told")
        ]
    return found or [Finding("leftovers", State.OK, "none", "killed runs can leave some")]
