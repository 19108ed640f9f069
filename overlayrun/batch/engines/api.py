"""What a coordinator asks of an engine: five methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from overlayrun.batch.result import Result
from overlayrun.batch.task import Attempt, AttemptKey


@dataclass(frozen=True, slots=True)
class Host:
    """A machine that takes attempts. slots: how many at a time, all in all."""

    name: str
    slots: int


@dataclass(frozen=True, slots=True)
class Started:
    """An attempt's command runs."""

    key: AttemptKey
    host: str


@dataclass(frozen=True, slots=True)
class Ended:
    """An attempt is over and its result safe: its ref is in the user's repository, its files on disk."""

    key: AttemptKey
    result: Result


@dataclass(frozen=True, slots=True)
class Lost:
    """Nobody knows what became of an attempt; what it may still do can't land."""

    key: AttemptKey
    host: str
    why: str


Event = Started | Ended | Lost


class Engine(Protocol):
    """Runs attempts. Every attempt submitted gives exactly one Ended or Lost; a key is never used twice."""

    def submit(self, attempt: Attempt, host: str) -> None:
        """Start an attempt on a host that has a slot free. Raises HostError where the machine can't."""

    def poll(self, seconds: float) -> Sequence[Event]:
        """What happened since the last call, in order; waits for something for at most so long."""

    def cancel(self, key: AttemptKey) -> None:
        """End an attempt: TERM, after 5 s KILL, then the last snapshot; its Ended says CANCELLED."""

    def hosts(self) -> Sequence[Host]:
        """The machines that are there now; one that was lost is missing."""

    def close(self) -> None:
        """End whatever runs, and wait for it."""
