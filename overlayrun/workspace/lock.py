"""One flock a workspace: held by the supervisor and the keeper, free again only when both are gone."""

from __future__ import annotations

import fcntl
import os
import time

from overlayrun.errors import WorkspaceBusy, WorkspaceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_TRIES: Final = 3
# Directories of the workspaces that this process shows as folders: it can't ask itself for them.
shown_here: Final[set[str]] = set()


def lock(path: str) -> int:
    """Take the lock at once and return its descriptor; raises WorkspaceBusy if somebody holds it.

    An flock and no pid file: it can't be forged, goes with its holders, and a reused pid means nothing
    (flock(2)). A workspace that is shown as a folder is given back first: its last changes are in a snapshot
    then.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for attempt in range(_TRIES):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            if attempt == _TRIES - 1:
                os.close(fd)
                raise WorkspaceBusy("another run holds this workspace") from err
            time.sleep(0.01)  # `is_locked` holds it for microseconds
        else:
            break
    workspace, name = os.path.split(path)
    if name == "lock" and is_locked(f"{workspace}/folder.lock"):
        try:
            _take_from_folder(workspace)
        except BaseException:
            os.close(fd)
            raise
    return fd


def unlock(held: int) -> None:
    """Let go of a lock for everybody: a child that has just been forked may hold it open still."""
    fcntl.flock(held, fcntl.LOCK_UN)
    os.close(held)


def _take_from_folder(workspace: str) -> None:
    """Let `overlayrun open` give a workspace back, which it shows as a folder."""
    if workspace in shown_here:
        raise WorkspaceBusy("this process shows the branch as a folder")
    from overlayrun.control import ask  # sockets cost 3 ms

    state = os.path.dirname(os.path.dirname(workspace))
    try:
        answer, _ = ask(f"{state}/open", "control", {"op": "let go", "id": os.path.basename(workspace)})
    except WorkspaceError as err:
        answer = {"error": err.brief}
    if "error" in answer:
        raise WorkspaceBusy(
            f"the branch is open as a folder and is not given back: {answer['error']}",
            hint="overlayrun open --stop",
        )


def is_locked(path: str) -> bool:
    """Whether a run holds the lock now."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # enough for a look, also on a disk that is read-only
    except FileNotFoundError:
        return False
    return _is_refused(fd, fcntl.LOCK_SH)


def share(path: str, *, waits: bool = True) -> int:
    """Hold a lock together with others; returns its descriptor.

    waits: for one who has it alone; else BlockingIOError is raised.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH if waits else fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BaseException:
        os.close(fd)
        raise
    return fd


def hold(directory: str) -> int:
    """Keep a directory from `gc`; ends with the descriptor that is returned, or with its process."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(fd, fcntl.LOCK_SH)
    return fd


def is_held(path: str) -> bool:
    """Whether somebody holds a directory."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # nobody could
        return False
    return _is_refused(fd, fcntl.LOCK_EX)


def _is_refused(fd: int, kind: int) -> bool:
    """Whether another's lock is in the way of one of ours; the descriptor is closed."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
