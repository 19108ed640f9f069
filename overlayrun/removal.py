"""Remove a workspace: its refs, then its directories. Whether its work is elsewhere, the caller knows."""

from __future__ import annotations

import os
import time

from overlayrun.files import read_bytes, remove_tree
from overlayrun.store.git import git
from overlayrun.store.refs import QUEUE, base_ref, dirty_ref
from overlayrun.workspace.lock import is_locked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from overlayrun.workspace.layout import Layout, WorkspaceLayout
    from overlayrun.workspace.record import Record

_PATIENCE: Final = 5.0  # seconds for a killed process to be gone, which may be far into a copy
_PAUSE: Final = 0.02


def clear_half_made(layout: Layout, common_dir: str) -> None:
    """Free the names that killed processes took for workspaces they never finished; these ran nothing."""
    for name in os.listdir(layout.workspaces):
        place = layout.workspace(name)
        finished = os.path.exists(place.record) or os.path.exists(place.throwaway)
        if name.startswith(".") or finished or is_locked(place.lock) or _holds_work(place):
            continue
        try:
            branch = read_bytes(place.claim).decode()
        except FileNotFoundError:
            branch = ""
        base = (
            git(["rev-parse", "-q", "--verify", base_ref(name)], git_dir=common_dir, check=False)
            .decode()
            .strip()
        )
        if branch and base:
            # Only from where it began: a branch that somebody has moved since is his.
            lines = f"delete refs/heads/{branch} {base}\n"
            git(["update-ref", "--stdin"], git_dir=common_dir, input=lines.encode(), check=False)
        lines = "".join(f"delete {ref}\n" for ref in (base_ref(name), dirty_ref(name)))
        git(["update-ref", "--stdin"], git_dir=common_dir, input=lines.encode(), check=False)
        remove_tree(place.root)


def await_maker(layout: Layout, branch: str, own: str) -> bool:
    """Wait while somebody makes a workspace of this branch; whether he has made it, or was killed at it.

    own: identifier of the workspace that the caller makes.
    """
    others = [layout.workspace(name) for name in os.listdir(layout.workspaces) if name != own]
    makers = [place for place in others if _is_being_made(place, branch)]
    end = time.monotonic() + _PATIENCE
    while any(_is_being_made(place, branch) for place in makers):
        if time.monotonic() > end:
            return False
        time.sleep(_PAUSE)
    return bool(makers)


def _is_being_made(place: WorkspaceLayout, branch: str) -> bool:
    try:
        is_claimed = not os.path.exists(place.record) and read_bytes(place.claim) == branch.encode()
    except FileNotFoundError:
        return False
    return is_claimed and is_locked(place.lock)


def _holds_work(place: WorkspaceLayout) -> bool:
    try:
        return bool(os.listdir(place.upper)) and not os.path.exists(place.unfinished)
    except FileNotFoundError:
        return False


def drop(layout: Layout, record: Record, *, branch: bool) -> None:
    """Remove a workspace whose lock the caller holds. branch: its git branch too.

    The directory is renamed first, so that a half-removed one is never taken for a workspace.
    """
    place = layout.workspace(record.id).root
    if not record.throwaway:
        refs = [f"refs/overlayrun/{kind}/{record.id}" for kind in ("snapshots", "base", "dirty")]
        refs += _queue_notes(record)
        if branch:
            refs.append(f"refs/heads/{record.branch}")
        lines = "".join(f"delete {ref}\n" for ref in refs)
        settings = ["-c", "core.hooksPath=/dev/null"]
        git(
            [*settings, "update-ref", "-m", "overlayrun: rm", "--stdin"],
            git_dir=record.common_dir,
            input=lines.encode(),
        )
    gone = f"{os.path.dirname(place)}/.gone-{record.id}"
    try:
        os.rename(place, gone)
    except FileNotFoundError:
        return
    remove_tree(gone)


def _queue_notes(record: Record) -> list[str]:
    """Refs in which the reconciler keeps what it knows of a workspace."""
    patterns = [f"{QUEUE}*/{record.id}", f"{QUEUE}*/{record.id}/**"]
    listed = git(["for-each-ref", "--format=%(refname)", *patterns], git_dir=record.common_dir)
    return os.fsdecode(listed).split("\n")[:-1]
