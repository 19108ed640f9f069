"""What a snapshot is asked to do, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from overlayrun.account import Session
from overlayrun.collector import LeftOut, Limits
from overlayrun.model import BranchName, CommitId, TreeId
from overlayrun.store.importer import RunInside
from overlayrun.store.trees import ChangeCount


@dataclass(frozen=True, slots=True)
class SnapshotJob:
    """What a snapshot of one workspace needs to know.

    git_dir: common git directory of the user's repository. base: None for an unborn HEAD. dirty: commit of
    the user's uncommitted changes, its parent is base. upper, agent_git: upper layers of the tree and of the
    agent's `.git`. index: where upper holds the whole tree, a git index with the stamps that its files had
    when it was made; else None. carried: root-relative paths that came from the host as ignored; nothing at
    or below is ever committed. hashes: file of the hash cache; its directory takes scratch files.
    exit_status: of the run, if it is over. run_inside: runs a command in the live sandbox, at the
    repository's root: (argv, stdin) -> (exit status, stdout). session: the agent's, as far as it told.
    task: the user's own words for the run.
    """

    git_dir: str
    workspace_id: str
    branch: BranchName
    base: CommitId | None
    dirty: CommitId | None
    upper: str
    agent_git: str
    hashes: str
    command: str
    index: str | None = None
    carried: tuple[bytes, ...] = ()
    exit_status: int | None = None
    run_inside: RunInside | None = None
    limits: Limits = field(default_factory=Limits)
    session: Session = field(default_factory=Session)
    task: str | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot taken, or the last one where `unchanged`.

    commit: on the snapshot chain; None if nothing was ever changed. tip: what the branch stands for; None on
    an unborn
    branch without changes. changes: against what the workspace started with. ignored: entries that ignore
    rules left
    out, a directory counts once. notes: sentences for the user.
    """

    commit: CommitId | None
    tip: CommitId | None
    tree: TreeId
    number: int
    unchanged: bool
    changes: ChangeCount
    start_tree: TreeId
    left_out: tuple[LeftOut, ...] = ()
    ignored: int = 0
    notes: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever changed, not even what no snapshot takes."""
        return not (self.commit or self.changes.total or self.left_out or self.ignored)
