"""The repository around the current directory, for every command but a run. Lean: `snapshot` needs it too."""

from __future__ import annotations

import os

from overlayrun.cli.telling import tell
from overlayrun.errors import UsageError
from overlayrun.owner import become_owner
from overlayrun.store.location import Repository, find_repository
from overlayrun.workspace.layout import Layout, open_state, state_directory


class Here:
    """Where a command works. repository: as the user's shell sees it. layout: its state, there or not."""

    __slots__ = ("layout", "repository")

    def __init__(self, repository: Repository, layout: Layout) -> None:
        self.repository = repository
        self.layout = layout


def find_here() -> Here:
    """The repository and its state; makes and recovers nothing. Raises UsageError, also in a workspace."""
    branch = inside_of()
    if branch is not None:
        raise UsageError(
            f"this is a workspace (branch {branch}), and its repository is out of reach here",
            hint="type it in a terminal outside; here there is: overlayrun snapshot | status | fork",
        )
    become_owner(os.getcwd(), tell)
    repository = find_repository(os.getcwd())
    state = state_directory(repository.common_dir)
    known = os.path.lexists(state)
    return Here(repository, open_state(repository.common_dir) if known else Layout(state))


def inside_of() -> str | None:
    """The branch of the workspace that this process runs in, None outside of any."""
    branch = os.environ.get("OVERLAYRUN_BRANCH")
    return branch if branch and os.path.isdir("/run/overlayrun") else None
