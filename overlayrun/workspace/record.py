"""record.json: what a workspace was made from and how its last run went. On the launch path.

Nothing that can be derived is kept here: whether a run lives is the lock's to say, whether work landed the
commits'.
"""

from __future__ import annotations

import os

from overlayrun.errors import WorkspaceBroken
from overlayrun.files import read_bytes, write_whole
from overlayrun.model import BranchName, CommitId, TreeId

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final, Self

VERSION: Final = 1
OVERLAY: Final = "overlay"
"""The backend whose upper holds the changes alone; every other one's holds the whole tree."""
UNFILLED: Final = 0
"""The inode in the record of a fork whose upper nobody has made yet: no file has it."""


class Run:
    """One launch of a command.

    started, ended: seconds since the epoch. status: as a shell shows it, None while open.
    boot: the kernel's boot id, so that a power cut is told from a kill. blocked: times by what the network
    did not let through. folder: no command, but the time in which the branch was shown as a folder.
    """

    __slots__ = ("blocked", "boot", "command", "ended", "folder", "number", "started", "status")

    def __init__(self, number: int, command: list[str], boot: str, started: float) -> None:
        self.number = number
        self.command = command
        self.boot = boot
        self.started = started
        self.ended: float | None = None
        self.status: int | None = None
        self.blocked: dict[str, int] = {}
        self.folder = False

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        run = cls(data["number"], data["command"], data["boot"], data["started"])
        run.ended, run.status = data["ended"], data["status"]
        run.blocked, run.folder = data.get("blocked", {}), data.get("folder", False)
        return run


class Record:
    """What a workspace is.

    base: None when HEAD was unborn. tree: the base's. dirty: commit of the uncommitted changes it started
    with.
    stack: layer directories of the tree below the state directory, topmost first; its first is the one whose
    `git/` belongs to `tree`. carried: ignored paths that came along, below the repository's root.
    carried_layers: their layer directories, as in stack. target: None for a detached HEAD. root_uid: in runs
    by root the command may be the host's root. agent_state: whose `profile`'s is; "none" where a strict run
    named no profile. backend: what made its tree. by_command: a command inside a run made it, by `open` or
    `fork`, and such a one may open it again. session: what the agent told of itself, as `account.Session`
    writes it. parent: id of the workspace that it was forked from. filled: the boot in which what it begins
    with was written, which nobody flushes; it counts until something ran.
    """

    __slots__ = (
        "agent_state",
        "backend",
        "base",
        "branch",
        "by_command",
        "carried",
        "carried_layers",
        "common_dir",
        "created",
        "dirty",
        "filled",
        "home",
        "id",
        "inode",
        "last_run",
        "live",
        "parent",
        "profile",
        "prompt",
        "reset_index",
        "root",
        "root_uid",
        "session",
        "stack",
        "target",
        "throwaway",
        "tree",
    )

    def __init__(self, workspace_id: str, branch: BranchName, root: str, tree: TreeId) -> None:
        self.id = workspace_id
        self.branch = branch
        self.root = root
        self.tree = tree
        self.base: CommitId | None = None
        self.dirty: CommitId | None = None
        self.target: BranchName | None = None
        self.stack: list[str] = []
        self.carried: list[str] = []
        self.carried_layers: list[str] = []
        self.common_dir = ""
        self.created = 0.0
        self.home = "cow"
        self.agent_state = "shared"
        self.backend = OVERLAY
        self.by_command = False
        self.filled: str | None = None
        self.inode = 0
        self.parent: str | None = None
        self.profile: str | None = None
        self.prompt: str | None = None
        self.reset_index = False
        self.root_uid = False
        self.session: dict[str, Any] | None = None
        self.throwaway = False
        self.last_run: Run | None = None
        self.live: list[str] = []

    @property
    def is_open(self) -> bool:
        """Whether the last run was never closed: it lives still, or was interrupted."""
        return self.last_run is not None and self.last_run.ended is None

    @property
    def is_whole(self) -> bool:
        """Whether its upper holds the whole tree and not the changes alone."""
        return self.backend != OVERLAY

    @property
    def has_own_agent_state(self) -> bool:
        """Whether its agent's sessions are the branch's alone."""
        return self.agent_state == "private" and self.profile not in (None, "none")

    def save(self, path: str, *, durable: bool = True) -> None:
        """Write the record whole.

        durable: False leaves the flush to the caller, but for the first: without one, nobody would find the
        work. Until then the last that was flushed is kept beside it: a power cut may leave an empty file in
        the place of a record that was whole.
        """
        import json  # 4 ms that a throwaway saves: it has a mark instead of a record

        data = {name: getattr(self, name) for name in self.__slots__}
        data["last_run"] = self.last_run and self.last_run.to_json()
        # surrogateescape bytes of odd paths travel as \udcXX escapes
        durable = durable or not _keep_flushed(path)
        write_whole(path, json.dumps({"version": VERSION, **data}).encode(), durable=durable)
        if durable:
            forget_flushed(path)

    @classmethod
    def load(cls, path: str) -> Self:
        """Read a record; raises WorkspaceBroken where it is missing, torn or of a newer version."""
        import json

        try:
            data = json.loads(read_bytes(path) or read_bytes(_flushed(path)))
            if data.pop("version") != VERSION:
                raise WorkspaceBroken(
                    f"{path} was written by a newer overlayrun", hint="update overlayrun, then try again"
                )
            record = cls(data["id"], data["branch"], data["root"], data["tree"])
            run = data.pop("last_run")
            for name, value in data.items():
                setattr(record, name, value)
            record.last_run = run and Run.from_json(run)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
            raise WorkspaceBroken(
                f"the record can't be read: {path}: {err}", hint="overlayrun doctor shows what can be saved"
            ) from err
        return record


def _flushed(path: str) -> str:
    return f"{path}.flushed"


def _keep_flushed(path: str) -> bool:
    """Whether there is one, kept now or before."""
    try:
        os.link(path, _flushed(path))
    except FileExistsError:
        return True
    except OSError:  # there is none yet, or this disk has no links
        return False
    return True


def forget_flushed(path: str) -> None:
    """Remove what was kept beside a record that is on the disk now."""
    try:
        os.unlink(_flushed(path))
    except FileNotFoundError:
        pass


def boot_id() -> str:
    """The kernel's id of this boot (random(4), /proc/sys/kernel/random)."""
    fd = os.open("/proc/sys/kernel/random/boot_id", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 64).decode().strip()
    finally:
        os.close(fd)
