"""Hand a conflict to a command, and judge what it leaves.

The command runs as an agent does: in a workspace of its own, made from the conflict commit, with

    OVERLAYRUN_CONFLICT  path of CONFLICT.json, below the repository's root, where the command starts
    OVERLAYRUN_PROMPT    what to tell an agent: opencode run "$OVERLAYRUN_PROMPT"

What it leaves is a proposal. The workspace's target is the branch that conflicts: no reconciliation takes a
proposal for a branch that is ready.
"""

from __future__ import annotations

import os
import select
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from overlayrun.errors import WorkspaceBusy
from overlayrun.model import BranchName, CommitId, TreeId
from overlayrun.reconcile.acceptance import Proposal, Sides, Verdict, judge, shown
from overlayrun.reconcile.background import Background
from overlayrun.reconcile.checks import TIMED_OUT, tail
from overlayrun.reconcile.conflict import Case, declared_in, directory_for, instruction, write_conflict
from overlayrun.reconcile.paths import edited, entry_at
from overlayrun.removal import drop
from overlayrun.sandbox.profiles import profile_of
from overlayrun.store.compare import changed_paths
from overlayrun.store.git import git
from overlayrun.store.location import Repository
from overlayrun.store.pack import ObjectWriter
from overlayrun.store.repo import Repo
from overlayrun.store.trees import EXECUTABLE, FILE, GITLINK
from overlayrun.workspace.catalogue import find_exact
from overlayrun.workspace.layout import Layout
from overlayrun.workspace.lock import lock
from overlayrun.workspace.names import workspace_id
from overlayrun.workspace.record import Record

_GRACE: Final = 60.0  # seconds after the time limit in which the last snapshot is taken
_LARGEST: Final = 64 << 20  # bytes
_LONGEST: Final = 60  # letters of the branch's name in the workspace's


@dataclass(frozen=True, slots=True)
class Resolution:
    """What came of one try.

    tree: the resolution; nothing refers to it yet. refused: why there is none. workspace: branch of what was
    refused, kept to be looked at; None where there is nothing to see. log: file with all that the command
    printed. declared: paths it changed that were not in conflict.
    """

    tree: TreeId | None
    refused: str | None
    workspace: BranchName | None
    log: str
    declared: tuple[bytes, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of an accepted one."""
        paths = ", ".join(map(shown, self.declared))
        return (f"the resolver also changed, and declared: {paths}",) if self.tree and paths else ()


def sides_of(repo: Repo, case: Case) -> Sides:
    """The three trees of a case."""
    return Sides(repo.tree_of(case.base), repo.tree_of(case.tip), repo.tree_of(case.source))


def resolve(
    repository: Repository,
    layout: Layout,
    case: Case,
    command: str,
    *,
    timeout: float,
    show: Callable[[str], None],
) -> Resolution:
    """Run `command` (a shell's words) on a conflict, wait for its end, and judge its proposal.

    timeout: seconds. show: is told one line before anything slow. The workspace of an accepted proposal is
    removed, as is one in which nothing happened.
    Whether the result passes the check, and the commit, are the caller's to see to. Raises StoreError.
    """
    return _Attempt(repository, layout, case, command, timeout).through(show)


class _Attempt:
    """One run of one resolver."""

    def __init__(
        self, repository: Repository, layout: Layout, case: Case, command: str, timeout: float
    ) -> None:
        self._repository = repository
        self._layout = layout
        self._repo = Repo(repository.common_dir)
        self._case = case
        self._command = command
        self._timeout = timeout
        self._directory = directory_for(self._repo, case.merged.tree)
        short = case.record.branch.removeprefix("overlay/").replace("/", "-")[:_LONGEST]
        # Random letters and no word: a name that is taken would resume somebody's workspace.
        self._name = BranchName(f"overlay/resolve-{short}-{workspace_id()[:6]}")
        self._log = f"{layout.checks}/resolve-{case.record.id}/{os.path.basename(self._name)}.log"

    def through(self, show: Callable[[str], None]) -> Resolution:
        os.makedirs(os.path.dirname(self._log), mode=0o700, exist_ok=True)
        commit = write_conflict(self._repo, self._case)
        show(f"{self._case.record.branch}: a resolver works in {self._name}; its log: {self._log}")
        status, seconds = self._run(commit)
        record = find_exact(self._layout, self._name)
        if record is None or record.last_run is None:
            last = tail(self._log, limit=400).strip().rpartition("\n")[2]
            return self._refused(record, f"it could not be started: {last}")
        if status:
            return self._refused(record, self._why(status, seconds))
        latest = next(self._repo.snapshots(record.id), None)
        tree = latest.tree if latest else self._repo.tree_of(commit)
        large = self._large_file(self._repo.tree_of(commit), tree)
        if large is not None:
            return self._refused(record, f"{shown(large)} is too large to be judged")
        proposal = self._proposal(tree)
        verdict = judge(self._repo, self._case.merged, sides_of(self._repo, self._case), proposal)
        return self._concluded(record, proposal.tree, verdict)

    def _run(self, commit: CommitId) -> tuple[int, float]:
        """Exit status, and seconds until then."""
        job = Background(self._options(commit), self._command, cwd=self._repository.root, log=self._log)
        try:
            poll = select.poll()
            poll.register(job.fd, select.POLLIN)
            poll.poll((self._timeout + _GRACE) * 1000)
        finally:
            status = job.end()  # does nothing to one that has ended
        return status, job.seconds

    def _options(self, commit: CommitId) -> list[str]:
        case = self._case
        message = f"Resolve the conflict of {case.record.branch} with {case.target}"
        profile = next((name for name in map(profile_of, _words(self._command)) if name), None)
        return [
            *("-q", "-b", self._name, "--base", commit, "--dirty", "ignore"),
            *("--into", case.record.branch, "-m", message, "--timeout", f"{self._timeout:g}s"),
            *("--env", f"OVERLAYRUN_CONFLICT={self._directory}/CONFLICT.json"),
            *("--env", f"OVERLAYRUN_PROMPT={instruction(case, self._directory)}"),
            *(("--profile", profile) if profile else ()),
        ]

    def _why(self, status: int, seconds: float) -> str:
        if status == TIMED_OUT and seconds >= self._timeout:
            return f"it ran into its time limit of {self._timeout:g} s"
        return f"it ended with status {status}"

    def _large_file(self, before: TreeId, after: TreeId) -> bytes | None:
        """A changed file that is larger than we read into memory, unless it is one side's version."""
        known = {stage.oid for conflict in self._case.merged.conflicts for stage in conflict.stages}
        changed = {
            change.after[1].hex(): change.path
            for change in changed_paths(self._repo, before, after)
            if change.after and change.after[0] != GITLINK
        }
        asked = "".join(f"{oid}\n" for oid in changed.keys() - known)
        command = ["cat-file", "--batch-check=%(objectname) %(objectsize)"]
        answer = git(command, git_dir=self._repo.git_dir, input=asked.encode()).decode()
        sizes = (line.split() for line in answer.splitlines())
        return next((changed[oid] for oid, size in sizes if int(size) > _LARGEST), None)

    def _proposal(self, tree: TreeId) -> Proposal:
        """What is in the workspace, less the directory that described the conflict."""
        said = entry_at(self._repo, tree, f"{self._directory}/DECLARED".encode())
        regular = said is not None and said[0] in (FILE, EXECUTABLE)
        declared = declared_in(self._repo.read_blob(said[1].hex())) if said and regular else ()
        with ObjectWriter(self._repo.objects) as writer:
            bare = edited(self._repo, writer, tree, {self._directory.encode(): None})
            writer.finish()
        return Proposal(bare, tuple(declared))

    def _concluded(self, record: Record, tree: TreeId, verdict: Verdict) -> Resolution:
        if verdict.refused is not None:
            return self._refused(record, verdict.refused)
        self._drop(record)
        return Resolution(tree, None, None, self._log, verdict.beyond)

    def _refused(self, record: Record | None, why: str) -> Resolution:
        seen = record
        if record and next(self._repo.snapshots(record.id), None) is None:
            self._drop(record)
            seen = None
        return Resolution(None, why, seen.branch if seen else None, self._log)

    def _drop(self, record: Record) -> None:
        try:
            held = lock(self._layout.workspace(record.id).lock)
        except (WorkspaceBusy, FileNotFoundError):  # the user is looking, or has removed it
            return
        try:
            drop(self._layout, record, branch=True)
        finally:
            os.close(held)


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # the shell will say so
        return []
