"""Which target a command means, and the settings in force there."""

from __future__ import annotations

from overlayrun.cli.opened import Opened
from overlayrun.errors import UsageError
from overlayrun.model import BranchName
from overlayrun.store.refs import parse_branch_name
from overlayrun.workspace.catalogue import records


def target_of(opened: Opened, into: str | None) -> BranchName:
    """The target that is meant: named, or checked out, or that of most workspaces. Raises UsageError."""
    if into:
        return parse_branch_name(into)
    if opened.repository.branch:
        return opened.repository.branch
    known = [record.target for record in records(opened.layout) if record.target]
    if not known:
        raise UsageError("no branch is checked out here to merge into", hint="name one: --into BRANCH")
    return max(set(known), key=known.count)
