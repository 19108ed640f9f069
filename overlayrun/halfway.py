"""Forks that a killed process left halfway: finished where git has them already, else removed.

A fork is made whole in a directory whose name begins with a dot, by which nobody takes it for a workspace.
Then its refs are made, in one transaction; then it gets its name. What was left in between is told by the
file of the refs in it, and by its lock being free.
"""

from __future__ import annotations

import os

from overlayrun.errors import OverlayrunError, WorkspaceBusy
from overlayrun.files import read_bytes, remove_tree, write_whole
from overlayrun.model import CommitId
from overlayrun.store.git import git
from overlayrun.store.refs import RefUpdate, update_refs
from overlayrun.workspace.lock import lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from overlayrun.workspace.layout import Layout

_REFS: Final = "refs"


def note_refs(place: str, updates: Sequence[RefUpdate]) -> None:
    """Write down, in a workspace that has no name yet, the refs that are to be made for it."""
    lines = "".join(f"{update.new} {update.ref}\n" for update in updates)
    write_whole(f"{place}/{_REFS}", lines.encode(), durable=True)


def give_name(layout: Layout, workspace_id: str) -> None:
    """Let a workspace whose refs are made be one."""
    os.rename(f"{layout.workspaces}/.{workspace_id}", f"{layout.workspaces}/{workspace_id}")
    os.unlink(f"{layout.workspaces}/{workspace_id}/{_REFS}")


def settle(layout: Layout, common_dir: str) -> None:
    """Deal with all that killed processes left; what can't be finished now stays as it is."""
    try:
        names = [name for name in os.listdir(layout.workspaces) if name.startswith(".")]
    except FileNotFoundError:
        return
    for name in names:
        place = layout.workspace(name)
        if not os.path.exists(f"{place.root}/{_REFS}"):
            continue
        try:
            held = lock(place.lock)
        except (WorkspaceBusy, FileNotFoundError):
            continue
        try:
            _settle(layout, common_dir, name[1:])
        except OverlayrunError:
            continue
        finally:
            os.close(held)


def _settle(layout: Layout, common_dir: str, workspace_id: str) -> None:
    place = f"{layout.workspaces}/.{workspace_id}"
    try:
        text = read_bytes(f"{place}/{_REFS}").decode()
    except FileNotFoundError:  # it has its name meanwhile
        return
    wanted = [line.partition(" ")[::2] for line in text.split("\n") if line]
    asked = "".join(f"{ref}\n" for _, ref in wanted).encode()
    answer = git(["cat-file", "--batch-check=%(objectname)"], git_dir=common_dir, input=asked).decode()
    found = answer.split("\n")[:-1]
    missing = [
        RefUpdate(ref, CommitId(commit), None)
        for (commit, ref), now in zip(wanted, found, strict=True)
        if now.endswith(" missing")
    ]
    own = sum(now == commit for (commit, ref), now in zip(wanted, found, strict=True) if workspace_id in ref)
    if not own:  # no ref of its own was made: there is no such branch
        remove_tree(place)
        return
    if missing:
        update_refs(common_dir, missing, why="fork")
    give_name(layout, workspace_id)
