"""Errors that a user reads: what happened, details, and what to type next."""

from __future__ import annotations


class OverlayrunError(Exception):
    """An expected failure, shown as one sentence and a hint; exit 125 from a run, 3 from other commands."""

    def __init__(self, brief: str, *, details: str | None = None, hint: str | None = None) -> None:
        super().__init__(brief)
        self.brief = brief
        self.details = details
        self.hint = hint


class UsageError(OverlayrunError):
    """What was typed can't be done: bad branch name, unknown workspace, no command."""


class HostError(OverlayrunError):
    """This machine can't: no overlayfs, no user namespaces, no room."""


class MountError(HostError):
    """A mount that should work did not."""


class WorkspaceError(OverlayrunError):
    """A workspace is not in the state that the command needs."""


class WorkspaceBusy(WorkspaceError):
    """Another process holds the workspace's lock."""


class WorkspaceBroken(WorkspaceError):
    """Record and disk disagree."""


class SnapshotError(OverlayrunError):
    """A snapshot could not be taken; the upper layer is kept."""


class StoreError(OverlayrunError):
    """Git's store refused: a missing object, a rejected pack, a command of git that failed."""


class RefMoved(StoreError):
    """A compare-and-swap was lost: somebody else moved the ref."""
