"""Ids and choices that every floor shares. On the launch path: imports nothing but enum."""

from __future__ import annotations

from enum import Enum

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, NewType

    CommitId = NewType("CommitId", str)
    TreeId = NewType("TreeId", str)
    BlobId = NewType("BlobId", str)
    BranchName = NewType("BranchName", str)
else:
    # NewType costs the launch path 7 ms of `typing`; at run time it is the plain type anyway.
    CommitId = TreeId = BlobId = BranchName = str

EMPTY_TREE = TreeId("4b825dc642cb6eb9a060e54bf8d69288fbee4904")
ZERO_ID = CommitId("0" * 40)


class DirtyPolicy(Enum):
    """What to do with uncommitted changes of the user's tree when a workspace is made."""

    INCLUDE = "include"
    IGNORE = "ignore"
    FAIL = "fail"


class CarryPolicy(Enum):
    """How ignored files of the user's tree come along."""

    REFLINK = "reflink"
    LINK = "link"
    LIVE = "live"
    NONE = "none"


class HomePolicy(Enum):
    """What the command sees as HOME."""

    COW = "cow"
    PRIVATE = "private"


class BackendKind(Enum):
    """How a workspace gets its tree. AUTO: the first of the others that works where the state lies."""

    AUTO = "auto"
    OVERLAY = "overlay"
    BTRFS = "btrfs"
    REFLINK = "reflink"
    COPY = "copy"


class AgentState(Enum):
    """Whose sessions and logins an agent with a profile works with: the user's or the branch's own."""

    SHARED = "shared"
    PRIVATE = "private"


class SnapshotReason(Enum):
    """Why a snapshot was taken."""

    EXIT = "exit"
    INTERVAL = "interval"
    REQUEST = "request"
    RECOVERY = "recovery"


class RunOptions:
    """What a run was asked for, by the names of the command line's options. Spans in seconds, sizes in bytes.

    without: names of `sandbox.switches.LAYERS` that the user switched off. asked: names of the options that
    the command line gave.
    """

    backend: BackendKind = BackendKind.AUTO
    asked: Sequence[str] = ()

    branch: str | None
    base: str | None
    into: str | None
    dirty: DirtyPolicy
    carry: CarryPolicy | None
    home: HomePolicy
    rm: bool
    keep: bool
    apply: bool
    every: float
    freeze: bool
    timeout: float | None
    idle_timeout: float | None
    message: str | None
    env: Sequence[str]
    ssh_agent: bool
    mask: Sequence[str]
    unmask: Sequence[str]
    bind_ro: Sequence[str]
    bind_rw: Sequence[str]
    profile: str | None
    agent_state: AgentState
    net: str | None
    publish: Sequence[int]
    memory: int | None
    pids: int | None
    cpus: float | None
    disk: int
    allow_ptrace: bool
    allow_userns: bool
    allow_root_uid: bool
    strict: bool
    without: Sequence[str]
    quiet: bool

    def __init__(self, **given: Any) -> None:
        for name, value in given.items():
            setattr(self, name, value)
