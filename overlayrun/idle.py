"""A sandbox without a command, for git's work inside a workspace that is not running."""

from __future__ import annotations

from overlayrun.command import idle_command
from overlayrun.live import LiveSandbox
from overlayrun.store.location import Repository
from overlayrun.view import layers_of, view_of
from overlayrun.workspace.flushed import refuse_torn
from overlayrun.workspace.layout import Layout
from overlayrun.workspace.record import Record


def idle_sandbox(repository: Repository, layout: Layout, record: Record) -> LiveSandbox:
    """The workspace's sandbox, to be joined; the caller holds the lock and closes it.

    Raises WorkspaceError for one that a power cut tore, and that could not be recovered.
    """
    refuse_torn(layout.workspace(record.id), record)
    return LiveSandbox(layers_of(view_of(repository, layout, record)), idle_command(record))
