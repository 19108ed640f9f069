"""Which branches the user's working trees stand on, told by their files: no git process, no pygit2."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from overlayrun.model import BranchName


def is_checked_out(git_dir: str, branch: BranchName) -> bool:
    """Whether a worktree of the user has the branch as HEAD, or is in the middle of rebasing it."""
    try:
        linked = [f"{git_dir}/worktrees/{name}" for name in os.listdir(f"{git_dir}/worktrees")]
    except OSError:
        linked = []
    names = ("HEAD", "rebase-merge/head-name", "rebase-apply/head-name")
    texts = {_first_line(f"{place}/{name}") for place in (git_dir, *linked) for name in names}
    return not texts.isdisjoint({f"ref: refs/heads/{branch}", f"refs/heads/{branch}"})


def _first_line(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.readline().rstrip("\n")
    except OSError:
        return ""
