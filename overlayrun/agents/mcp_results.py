"""What the tools of the MCP server give back; clients get the schemas. Times: seconds since the epoch."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class Result(BaseModel):
    """Every result."""

    notes: list[str] = Field(default=[], description="What overlayrun remarked.")


class Change(BaseModel):
    """Size of a change, in files and lines."""

    files: int
    insertions: int
    deletions: int


class Run(BaseModel):
    """One run of a command in a branch."""

    command: list[str]
    status: int | None = Field(description="Exit status; null while it runs.")
    started: float
    ended: float | None


class Workspace(BaseModel):
    """A branch that has a workspace."""

    branch: str
    state: str = Field(description="idle, running, or what is wrong with it.")
    base: str | None = Field(description="Commit that it was made from.")
    dirty: str | None = Field(description="Commit of the uncommitted changes that it took along.")
    target: str | None = Field(description="Branch that it will be merged into.")
    prompt: str | None
    last_run: Run | None
    snapshots: int = Field(description="How many there are.")
    change: Change = Field(description="Newest snapshot against the start.")
    ahead: int | None = Field(description="Commits that the target lacks.")
    landed: bool = Field(description="Whether the target holds all of it.")
    session_title: str | None = Field(default=None, description="Title of the agent's session.")
    agent: str | None = Field(default=None, description="Agent of that session.")
    last_message: str | None = Field(default=None, description="What that agent said last.")


class Listing(Result):
    """Every branch that has a workspace."""

    workspaces: list[Workspace]
    broken: list[str] = Field(description="Workspaces that can't be read.")


class Created(Result):
    """A new branch."""

    branch: str
    workspace: Workspace


class SnapshotLine(BaseModel):
    """One snapshot. back: the N of `BRANCH@{N}`, 0 for the newest."""

    back: int
    number: int
    commit: str
    tip: str | None = Field(description="Commit of the branch that holds it.")
    time: float
    reason: str
    subject: str
    agent: str | None = Field(default=None, description="Whose step it was.")
    model: str | None = Field(default=None, description="Model of that agent.")
    tool: str | None = Field(default=None, description="What did the step; null at the end of a turn.")
    prompt: str | None = Field(default=None, description="What the user had asked for then.")


class Ran(Result):
    """How a command ended."""

    branch: str
    status: int = Field(
        description="Exit status; 124 timed out, 126 not executable, 127 not found, 128+n for signal n."
    )
    snapshot: SnapshotLine | None = Field(description="The newest: it holds what the command left.")
    change: Change = Field(description="The branch now against its start.")
    output: str = Field(description="End of what it printed, standard error included.")
    cut: str | None = Field(description="What of the output is missing.")


class LeftOut(BaseModel):
    """A path that a snapshot does not hold."""

    path: str
    reason: str


class Snapshot(Result):
    """A snapshot that was asked for."""

    branch: str
    number: int
    commit: str | None
    tip: str | None
    unchanged: bool = Field(description="Nothing had changed: `number` is the one before.")
    left_out: list[LeftOut]


class Log(Result):
    """Snapshots of a branch, newest first."""

    branch: str
    snapshots: list[SnapshotLine]
    cut: str | None


class FileChange(BaseModel):
    """One changed path. status: A, M, D or T; lines are null for a binary file."""

    path: str
    status: str
    insertions: int | None
    deletions: int | None


class Carrier(BaseModel):
    """A file that runs code on the user's machine when it is opened or built."""

    path: str
    why: str


class Diff(Result):
    """What a branch changed."""

    branch: str
    insertions: int
    deletions: int
    files: list[FileChange]
    carriers: list[Carrier] = Field(description="Files that run code by themselves once they are merged.")
    bare: list[str] = Field(description="Directories that git takes for repositories.")
    unsafe: list[str] = Field(description="Content that is never merged.")
    patch: str | None = Field(description="Only with content=patch.")
    cut: str | None = Field(description="What is missing here because there is too much of it.")


class Landed(BaseModel):
    """A branch that was merged, or would be."""

    branch: str
    commit: str
    files: int


class ConflictedPath(BaseModel):
    """A path in conflict."""

    path: str
    kind: str


class Conflict(BaseModel):
    """A branch that conflicts; nothing of it was merged."""

    branch: str
    paths: list[ConflictedPath]


class Failed(BaseModel):
    """A branch whose check failed. log: file with what the check printed."""

    branch: str
    why: str
    log: str


class Withheld(BaseModel):
    """A branch that waits for the user's own word."""

    branch: str
    why: str
    carriers: list[Carrier]


class Merged(Result):
    """What a merge came to."""

    merged: bool = Field(description="Whether all of it is in the target.")
    target: str
    commit: str | None = Field(default=None, description="Tip of the target.")
    landed: list[Landed]
    conflicts: list[Conflict]
    failed: list[Failed]
    withheld: list[Withheld]
    waiting: int = Field(default=0, description="Landed commits that the user's files don't have yet.")
    held: list[str] = Field(default=[], description="Why they wait.")


class Discarded(Result):
    """A branch that is gone."""

    branch: str


class ForkedBranch(Result):
    """One of them."""

    branch: str
    id: str


class Forked(Result):
    """New branches from the present state of another. number: of the snapshot that they began at."""

    branch: str = Field(description="The first of them.")
    forks: list[ForkedBranch]
    source: str
    number: int | None
    left_out: list[LeftOut]


class Status(Result):
    """What runs now; inside a workspace, how this one stands."""

    status: dict[str, Any] = Field(description="As `overlayrun status --json` prints it.")
