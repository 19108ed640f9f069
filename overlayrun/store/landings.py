"""Landings: which commit of a target brought a branch, whatever it looks like there (merged, squashed, …)."""

from __future__ import annotations

from dataclasses import dataclass

from overlayrun.model import BranchName, CommitId
from overlayrun.store.refs import landed_ref
from overlayrun.store.repo import Repo


@dataclass(frozen=True, slots=True)
class Landing:
    """A landing: the commit of the target that brought `source`, a commit of the branch."""

    commit: CommitId
    source: CommitId


def landing_of(repo: Repo, workspace_id: str, target: BranchName) -> Landing | None:
    """The last landing of a workspace on a target, whether the target still has it or not."""
    at = repo.ref(landed_ref(workspace_id, target))
    if at is None:
        return None
    commit, source = repo.commit(at).parents
    return Landing(commit, source)


def has_landed(
    repo: Repo, workspace_id: str, tip: CommitId, target: BranchName, target_tip: CommitId
) -> bool:
    """Whether a target that stands at `target_tip` has all of a branch that stands at `tip`."""
    if repo.is_ancestor(tip, target_tip):
        return True
    landing = landing_of(repo, workspace_id, target)
    return landing is not None and landing.source == tip and repo.is_ancestor(landing.commit, target_tip)
