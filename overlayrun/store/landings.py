"""Landings: which commit of a target brought a branch, whatever it looks like there (merged, squashed, …)."""

from __future__ import annotations

from dataclasses import dataclass

from overlayrun.model import BranchName, CommitId
from overlayrun.store.refs import landed_ref
from overlayrun.store.repo import Repo


@dataclass(frozen=True, slots=True)
class Landing:
    """A landing: the commit of the target that brought `source`, a commit of the branch.

    before: the note on the landing before it.
    """

    commit: CommitId
    source: CommitId
    before: CommitId | None = None


def landing_of(repo: Repo, workspace_id: str, target: BranchName) -> Landing | None:
    """The last landing of a workspace on a target, whether the target still has it or not."""
    at = repo.ref(landed_ref(workspace_id, target))
    return note_at(repo, at) if at else None


def note_at(repo: Repo, at: CommitId) -> Landing:
    """What a note says: a commit whose parents are those of `Landing`, in their order."""
    return Landing(*repo.commit(at).parents)


def is_merge_of(repo: Repo, landing: Landing) -> bool:
    """Whether the landing brought the branch with its history."""
    return landing.source == landing.commit or landing.source in repo.commit(landing.commit).parents


def has_landed(
    repo: Repo, workspace_id: str, tip: CommitId, target: BranchName, target_tip: CommitId
) -> bool:
    """Whether a target that stands at `target_tip` has all of a branch that stands at `tip`."""
    landing = landing_of(repo, workspace_id, target)
    if landing and landing.source == tip and repo.is_on_mainline(landing.commit, target_tip):
        return True
    return repo.is_ancestor(tip, target_tip)
