"""A task of a batch, and what can become of it. Values only, which pass through JSON unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any, Final, Self


class Outcome(Enum):
    """What became of an attempt, and in the end of its task."""

    OK = "ok"  # it exited 0 and changed something, and the check passed
    NO_CHANGE = "no-change"  # it exited 0 and printed something, but changed nothing
    EMPTY = "empty"  # it exited 0, and neither printed nor changed anything
    REJECTED = "rejected"  # it was refused a permission which nobody was there to give
    FAILED = "failed"  # it exited otherwise
    CHECK_FAILED = "check-failed"
    TIMEOUT = "timeout"  # of the command, of its silence or of the check
    RATE_LIMITED = "rate-limited"  # the model's provider refused it for a while
    LOST = "lost"  # its worker is gone, or the batch was killed
    INFRA = "infra"  # it could not be started or recorded: our fault or the machine's
    CANCELLED = "cancelled"  # the user or the batch ended it
    SKIPPED = "skipped"  # it never began


ACCEPTED: Final = (Outcome.OK, Outcome.NO_CHANGE)
"""What counts as success where the task says nothing else."""
RETRIED: Final = (Outcome.INFRA, Outcome.RATE_LIMITED, Outcome.TIMEOUT, Outcome.LOST)
"""What is tried again where the task says nothing else: what another moment may cure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One task, with everything filled in. Spans in seconds, sizes in bytes, money in US dollars.

    id: a file's name and a ref's part: letters, digits and `._-`, unique in the batch. command: argv. agent:
    whose output it prints (opencode, claude, codex), None for another's. base: revision, or `task:ID` for
    what that task made. group: the task it is one of several tries of (`-n`), else its own id. attempts: at
    most. budget: after which it is not tried again. provider: tasks of one share its rate. options: values of
    run options by their names in `model.RunOptions`, as JSON has them. values: of its matrix and --foreach.
    """

    id: str
    command: tuple[str, ...]
    branch: str
    group: str
    agent: str | None = None
    prompt: str | None = None
    base: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    timeout: float | None = None
    idle_timeout: float | None = None
    check: str | None = None
    check_timeout: float = 1800.0
    judge: str | None = None
    attempts: int = 2
    retry_on: tuple[Outcome, ...] = RETRIED
    accept: tuple[Outcome, ...] = ACCEPTED
    priority: int = 0
    needs: tuple[str, ...] = ()
    provider: str | None = None
    budget: float | None = None
    memory: int | None = None
    disk: int | None = None
    cpus: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        plain = {**asdict(self), "env": dict(self.env), "options": dict(self.options)}
        return {name: _plain(value) for name, value in plain.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        outcomes = {name: tuple(map(Outcome, data[name])) for name in ("retry_on", "accept")}
        words = {name: tuple(data[name]) for name in ("command", "needs")}
        return cls(**{**data, **outcomes, **words})


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try of a task. number: from 1, never used twice. base: commit that it starts from."""

    run: str
    task: Task
    number: int
    base: str

    @property
    def key(self) -> AttemptKey:
        """What engines and journals call it."""
        return self.task.id, self.number

    @property
    def ref(self) -> str:
        """The ref that keeps what it made; it never moves."""
        return f"refs/overlayrun/attempts/{self.run}/{self.task.id}/{self.number}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"run": self.run, "task": self.task.to_json(), "number": self.number, "base": self.base}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(**{**data, "task": Task.from_json(data["task"])})


AttemptKey = tuple[str, int]
"""Task id and number of an attempt."""


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return value.value if isinstance(value, Enum) else value
