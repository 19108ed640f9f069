"""Remove a workspace: its refs, then its directories. Whether its work is elsewhere, the caller knows."""

from __future__ import annotations

import os

from overlayrun.files import remove_tree
from overlayrun.store.git import git

TYPE_CHECKING = False
if TYPE_CHECKING:
    from overlayrun.workspace.layout import Layout
    from overlayrun.workspace.record import Record


def drop(layout: Layout, record: Record, *, branch: bool) -> None:
    """Remove a workspace whose lock the caller holds. branch: its git branch too.

    The directory is renamed first, so that a half-removed one is never taken for a workspace.
    """
    place = layout.workspace(record.id).root
    if not record.throwaway:
        refs = [f"refs/overlayrun/{kind}/{record.id}" for kind in ("snapshots", "base", "dirty")]
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
