"""Where the folders of a repository are shown: a directory that is fit, and ignored by git."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shlex
import stat
from contextlib import suppress
from typing import Any, Final

from overlayrun.control import ask
from overlayrun.errors import HostError, UsageError, WorkspaceBusy, WorkspaceError
from overlayrun.files import read_bytes, write_whole
from overlayrun.folders.server import is_mounted
from overlayrun.folders.users import users_of
from overlayrun.store.git import GitFailed, git
from overlayrun.store.location import Repository
from overlayrun.workspace.layout import Layout
from overlayrun.workspace.lock import is_locked

DEFAULT: Final = ".overlay"
_PATIENCE: Final = 5.0  # seconds; it may be in the middle of a snapshot, or be stopped
_MOUNTPOINT: Final = re.compile(r"/.*/overlayrun(-\d+)?/[0-9a-f]{16}")


def choose_place(repository: Repository, layout: Layout, text: str | None) -> str:
    """The absolute path that `text` names, or the default, as a directory that can be shown in.

    Raises UsageError for one that is not empty, or lies where the folders would show themselves.
    """
    above, name = os.path.split(os.path.abspath(text or f"{repository.root}/{DEFAULT}"))
    place = f"{os.path.realpath(above).rstrip('/')}/{name}"
    below = (repository.common_dir, layout.root)
    if f"{repository.root}/".startswith(f"{place}/") or any(
        f"{place}/".startswith(f"{path}/") for path in below
    ):
        raise UsageError(
            f"the folders can't be shown in {place}: the repository's own files are there",
            hint=f"leave it out, for {repository.root}/{DEFAULT}",
        )
    if git_tracks(repository, place):
        raise UsageError(f"git tracks files in {place}", hint="name an empty directory: overlayrun open DIR")
    return place


def git_tracks(repository: Repository, place: str) -> bool:
    """Whether the repository has files there."""
    if not place.startswith(f"{repository.root}/"):
        return False
    listed = git(["ls-files", "-z", "--", place], cwd=repository.root, env={"GIT_LITERAL_PATHSPECS": "1"})
    return bool(listed)


def mountpoint_of(layout: Layout) -> str:
    """Where the folders are mounted: outside HOME, since no user may make a view of HOME with a mount in it.

    Raises HostError where somebody else has the directory.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    base = f"{runtime}/overlayrun" if _is_fit(runtime) else f"/tmp/overlayrun-{os.geteuid()}"
    os.makedirs(base, mode=0o700, exist_ok=True)
    info = os.lstat(base)
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o077:
        raise HostError(f"{base} is not yours alone", hint=f"look at it, then: rm -r {base}")
    return f"{base}/{hashlib.sha256(os.fsencode(layout.root)).hexdigest()[:16]}"


def _is_fit(runtime: str) -> bool:
    """Whether mounts may be made there: outside HOME, and in nobody else's hands, as after `su` or `sudo -E`.

    Its owner could put another directory in the place of what is mounted.
    """
    if not runtime.startswith("/") or not os.access(runtime, os.W_OK | os.X_OK):
        return False
    info = os.stat(runtime)
    home = f"{os.path.realpath(os.path.expanduser('~'))}/"
    is_own = info.st_uid == os.geteuid() and not info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return is_own and not f"{os.path.realpath(runtime)}/".startswith(home)


def make_place(place: str, mountpoint: str) -> None:
    """Make the mountpoint, and the link to it; raises UsageError where something else has its place."""
    os.makedirs(mountpoint, mode=0o700, exist_ok=True)
    _drop_stale(place, mountpoint)
    try:
        os.rmdir(place)
    except FileNotFoundError:
        pass
    except OSError as err:
        why = "is no directory" if err.errno == errno.ENOTDIR else "is not empty"
        raise UsageError(f"{place} {why}", hint="name another directory: overlayrun open DIR") from err
    os.makedirs(os.path.dirname(place), exist_ok=True)
    os.symlink(mountpoint, place)


def _drop_stale(place: str, mountpoint: str) -> None:
    """Remove a link that a reboot, a kill or a move of the repository left: to where folders once were.

    Each way to log in may have another directory for them, so any of ours will do.
    """
    if not os.path.islink(place):
        return
    target = os.readlink(place)
    if target != mountpoint and is_mounted(target):
        raise UsageError(
            f"{place} shows the folders of another repository",
            hint=f"end them there, or: rm {shlex.quote(place)}",
        )
    if target == mountpoint or _MOUNTPOINT.fullmatch(target):
        os.unlink(place)


def drop_link(place: str, mountpoint: str) -> None:
    """Remove the link to the folders, if it is that."""
    if os.path.islink(place) and os.readlink(place) == mountpoint:
        os.unlink(place)


def keep_link(place: str, mountpoint: str) -> None:
    """Make the link again where it was removed, as `git clean -x` does."""
    with suppress(OSError):  # it is there, or something else is; or there is no room: another time
        os.symlink(mountpoint, place)


class Stand:
    """Whether a repository's state is still where it was, and is still that state."""

    def __init__(self, layout: Layout) -> None:
        self._path = f"{layout.folders}/lock"
        self._found = self._look()

    def is_there(self) -> bool:
        """Looked at now: a move, a removal, or another one in its place."""
        return self._look() == self._found

    def _look(self) -> tuple[int, int] | None:
        try:
            info = os.stat(self._path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return info.st_dev, info.st_ino


def ignore_place(repository: Repository, place: str) -> str | None:
    """Let git ignore a place in the working tree; the file that says so now, None where it was so before."""
    if not place.startswith(f"{repository.root}/"):
        return None
    name = place[len(repository.root) :]
    try:
        git(["check-ignore", "-q", place], cwd=repository.root)
    except GitFailed:
        pass
    else:
        return None
    path = f"{repository.common_dir}/info/exclude"
    try:
        known = read_bytes(path)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        known = b""
    escaped = "".join(f"\\{letter}" if letter in "\\*?[ " else letter for letter in name)
    gap = b"" if not known or known.endswith(b"\n") else b"\n"
    write_whole(path, known + gap + os.fsencode(f"{escaped}\n"), durable=False, mode=0o644)
    return path


def is_open(layout: Layout) -> bool:
    """Whether the folders are shown now: a lock says it, which goes with who holds it."""
    return is_locked(f"{layout.folders}/lock")


def status_of(layout: Layout) -> dict[str, Any] | None:
    """What the daemon says of itself: pid, place, branches; None where there is none, or no answer."""
    if not is_open(layout):
        return None
    try:
        return ask(layout.folders, "control", {"op": "status"}, wait=1.0, patience=_PATIENCE)[0]
    except WorkspaceError:
        return None


def stop_daemon(layout: Layout) -> dict[str, Any]:
    """Have the daemon take the last snapshots, unmount and end; give what it says.

    users: processes that have something open there still, as `users_of` tells them.
    Raises UsageError where there is none, WorkspaceError where a snapshot failed.
    """
    if not is_open(layout):
        raise UsageError("no folders are open", hint="overlayrun open")
    told = status_of(layout)
    users = users_of(told["mountpoint"]) if told else []
    answer, _ = ask(layout.folders, "control", {"op": "stop"})
    answer["users"] = users
    if answer.get("failed"):
        raise WorkspaceError(
            f"no last snapshot of {', '.join(map(shlex.quote, answer['failed']))}",
            hint="nothing is lost; once there is room, it is taken by: overlayrun ls",
        )
    return answer


def open_already(layout: Layout) -> WorkspaceBusy:
    """The error of a second daemon."""
    told = status_of(layout)
    where = told["place"] if told else "a directory"
    return WorkspaceBusy(f"the folders are open in {where}", hint="end it first: overlayrun open --stop")
