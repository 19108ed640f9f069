"""What would be lost with a workspace: for the care of `rm`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from overlayrun.capture import job_of
from overlayrun.model import BranchName, CommitId
from overlayrun.overview import count_commits, target_tip
from overlayrun.snapshot import LeftOut, LeftOutReason, preview
from overlayrun.store.git import git
from overlayrun.store.landings import has_landed
from overlayrun.store.refs import OWN, QUEUE, branch_ref
from overlayrun.store.repo import Repo
from overlayrun.workspace.layout import Layout
from overlayrun.workspace.record import Record


@dataclass(frozen=True, slots=True)
class Unsaved:
    """What would be lost with a workspace: sentences, and the paths that no snapshot could hold."""

    reasons: tuple[str, ...]
    left_out: tuple[LeftOut, ...]


def unsaved(layout: Layout, repo: Repo, record: Record, *, keep_branch: bool) -> Unsaved:
    """What only this workspace holds: commits, an open run, left-out paths, refs of its own `.git`.

    The caller holds the lock. keep_branch: the branch will stay, so what it holds is no loss.
    """
    reasons = [*_lone_commits(repo, record, keep_branch=keep_branch), *_inner_refs(layout, record)]
    if record.is_open:
        reasons.append("its last run was interrupted, and what it did is in no snapshot yet")
    # Sockets, pipes and devices hold no work.
    lost = tuple(item for item in left_out(layout, record) if item.reason is not LeftOutReason.UNSUPPORTED)
    if lost:
        reasons.append(f"{len(lost)} path{'s' * (len(lost) != 1)} could not be put into a snapshot")
    return Unsaved(tuple(reasons), lost)


def left_out(layout: Layout, record: Record) -> tuple[LeftOut, ...]:
    """Paths that a snapshot taken now would leave out. The caller holds the lock."""
    found = preview(job_of(layout, record, None)).left_out
    # A filter runs in a sandbox alone, and there is none now; the last snapshot had one.
    return tuple(item for item in found if item.reason is not LeftOutReason.FILTER)


def _lone_commits(repo: Repo, record: Record, *, keep_branch: bool) -> Iterator[str]:
    latest = next(repo.snapshots(record.id), None)
    target = target_tip(repo, record)
    tips = {tip for tip in (repo.ref(branch_ref(record.branch)), latest.tip if latest else None) if tip}
    if latest and _is_in_another(repo, record, latest.commit):
        tips.discard(latest.tip)
    for tip in tips - {record.base}:
        if target and record.target and has_landed(repo, record.id, tip, record.target, target):
            continue
        others = ["--branches", "--remotes", "--tags"]
        own = [] if keep_branch else [f"--exclude={record.branch}"]
        count = count_commits(repo, [tip, "--not", *own, *others])
        if count:
            where = f"in {record.target} or in any other branch" if record.target else "in any other branch"
            yield f"{count} commit{'s' * (count != 1)} not {where}"
            return


def _is_in_another(repo: Repo, record: Record, latest: CommitId) -> bool:
    """Whether a snapshot came into another workspace (`merge --into`), whose chain still has that."""
    notes = ["for-each-ref", "--format=%(parent)", f"{QUEUE}landed/{record.id}/"]
    for line in git(notes, git_dir=repo.git_dir).decode().split("\n"):
        commit, _, rest = line.partition(" ")
        if rest.partition(" ")[0] == latest:
            others = ["for-each-ref", f"--contains={commit}", f"{OWN}snapshots/"]
            return bool(git(others, git_dir=repo.git_dir))
    return False


def _inner_refs(layout: Layout, record: Record) -> Iterator[str]:
    """Branches and stashes that the command made in its own `.git`; only names are read there."""
    known = {f"refs/heads/{name}" for name in (record.branch, record.target) if name}
    place = layout.workspace(record.id)
    for git_dir, whose in ((place.git_upper, "its own .git"), (place.folder, "its folder's .git")):
        heads = _names(git_dir, "refs/heads")
        stash = ["refs/stash"] if os.path.lexists(f"{git_dir}/refs/stash") else []
        for name in chain(heads, stash, _names(git_dir, "refs/kept")):
            if name not in known:
                yield f"{name} of {whose}, which no snapshot holds"


def _names(place: str, top: str) -> Iterator[str]:
    for directory, _, files in os.walk(f"{place}/{top}"):
        for name in files:
            if not name.endswith(".lock"):
                yield os.path.relpath(os.path.join(directory, name), place)


def branch_is_checked_out(repo: Repo, branch: BranchName) -> str | None:
    """A working tree of the user's that has the branch checked out."""
    answer = git(["for-each-ref", "--format=%(worktreepath)", branch_ref(branch)], git_dir=repo.git_dir)
    return os.fsdecode(answer).strip("\n") or None
