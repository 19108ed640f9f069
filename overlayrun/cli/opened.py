"""What a command on workspaces opens: repository, state, git's store; what was interrupted is recovered."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from overlayrun.cli.here import Here, find_here
from overlayrun.cli.telling import tell
from overlayrun.errors import WorkspaceBusy
from overlayrun.recover import recover_all
from overlayrun.store.location import Repository
from overlayrun.store.repo import Repo
from overlayrun.workspace.catalogue import find
from overlayrun.workspace.layout import Layout
from overlayrun.workspace.lock import lock
from overlayrun.workspace.record import Record


@dataclass(frozen=True, slots=True)
class Opened:
    """Where a command works."""

    repository: Repository
    layout: Layout
    repo: Repo


def open_here() -> Opened:
    """Open the repository around the current directory; missing snapshots are taken, and told of."""
    return open_found(find_here())


def open_found(here: Here) -> Opened:
    """The same for a repository that was found already."""
    recover_all(here.repository, here.layout, tell)
    return Opened(here.repository, here.layout, Repo(here.repository.common_dir))


@contextmanager
def locked(opened: Opened, text: str, hint: str) -> Iterator[Record]:
    """The workspace that `text` names, with its lock held. Raises WorkspaceBusy with `hint` while it runs."""
    record = find(opened.layout, text)
    place = opened.layout.workspace(record.id)
    try:
        held = lock(place.lock)
    except WorkspaceBusy as err:
        raise WorkspaceBusy(f"branch {record.branch} is running", hint=hint) from err
    try:
        yield Record.load(place.record)  # somebody may have finished with it meanwhile
    finally:
        os.close(held)
