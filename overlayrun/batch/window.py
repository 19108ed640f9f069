"""What may start at one moment: slots, rates, memory and disk. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from overlayrun.batch.engines.api import Host
from overlayrun.batch.facts import Facts, share_of
from overlayrun.batch.settings import Settings
from overlayrun.batch.task import Outcome, Task

MEMORY: Final = 512 << 20
"""Bytes that a task takes where it asks for none."""
DISK: Final = 256 << 20
LOOK_AGAIN: Final = 1.0
"""Seconds after which to ask again for room."""
_ELSEWHERE: Final = (Outcome.LOST, Outcome.INFRA)


@dataclass(frozen=True, slots=True)
class Room:
    """What attempts to come may take of this machine, bytes; None where nobody knows."""

    memory: int | None = None
    disk: int | None = None

    def holds(self, claim: Room) -> bool:
        """Whether there is room for it."""
        pairs = ((self.memory, claim.memory), (self.disk, claim.disk))
        return all(mine is None or (its or 0) <= mine for mine, its in pairs)

    def less(self, claim: Room) -> Room:
        """What is left of it."""
        return Room(
            None if self.memory is None else self.memory - (claim.memory or 0),
            None if self.disk is None else self.disk - (claim.disk or 0),
        )


def claim_of(task: Task) -> Room:
    """What a task asks for."""
    return Room(task.memory or MEMORY, task.disk or DISK)


@dataclass(frozen=True, slots=True)
class Start:
    """An attempt to start now."""

    task: Task
    number: int
    host: str


class Window:
    """What may still start in one decision. Slots, rates and room shrink with every start."""

    def __init__(
        self, settings: Settings, facts: Facts, now: float, hosts: Sequence[Host], room: Room
    ) -> None:
        self._settings = settings
        self._facts = facts
        self._now = now
        self._room = room
        self._hosts = hosts
        taken = [attempt.host for attempt in facts.running.values()]
        self._free = {host.name: host.slots - taken.count(host.name) for host in hosts}
        self._left = settings.jobs - len(taken)
        self._shares: defaultdict[str, int] = defaultdict(int)
        self.starts: list[Start] = []
        self.wakes: list[float] = []
        self.note: str | None = None
        self.is_closed = False
        self._shut()

    def offer(self, task: Task, ready: float) -> None:
        """Start a task if everything allows it, else remember when that may be so. ready: not before."""
        when = max(ready, self._gate(share_of(task)))
        if when > self._now:
            self.wakes.append(when)
            return
        host = self._host(task)
        if host is None:
            return
        claim = claim_of(task)
        if not self._room.holds(claim):
            if self._facts.running or self.starts:
                # Nobody goes past it: else what asks for much would never get it.
                self.note = "fewer attempts run at a time than asked for: memory or disk is short"
                self.wakes.append(self._now + LOOK_AGAIN)
                self.is_closed = True
                return
            self.note = (
                "attempts are started one by one: this machine has less memory or disk than they ask for"
            )
        self._take(task, host, claim)

    def _take(self, task: Task, host: str, claim: Room) -> None:
        self._free[host] -= 1
        self._left -= 1
        self._shares[share_of(task)] += 1
        self._room = self._room.less(claim)
        self.starts.append(Start(task, len(self._facts.histories[task.id].tries) + 1, host))
        self._shut()

    def _shut(self) -> None:
        """Close where no slot is free, or the next start must wait."""
        stagger, last = self._settings.stagger, self._facts.last_start
        if self._left <= 0 or not any(free > 0 for free in self._free.values()):
            self.is_closed = True
        elif stagger:
            last = self._now if self.starts else last
            if last is not None and last + stagger > self._now:
                self.is_closed = True
                self.wakes.append(last + stagger)

    def _gate(self, share: str) -> float:
        """When the provider's rate, and its patience, let another one start."""
        rate = self._settings.rates.get(share)
        held = self._held(share)
        if rate is None:
            return held
        times = self._facts.starts[share] + [self._now] * self._shares[share]
        return max(held, times[-rate.starts] + rate.span) if len(times) >= rate.starts else held

    def _held(self, share: str) -> float:
        """Until when a provider is left alone after it refused."""
        times, at = self._facts.limited.get(share, (0, 0.0))
        return (
            at + self._settings.wait(self._settings.hold, times, f"{share}/{times}")
            if share and times
            else 0.0
        )

    def _host(self, task: Task) -> str | None:
        """The host with most slots free, but for those where it failed through no fault of its own."""
        history = self._facts.histories[task.id].current
        failed = [each for each in history if each.counts and each.result]
        bad = {each.host for each in failed if each.result and each.result.outcome in _ELSEWHERE}
        good = [host.name for host in self._hosts if host.name not in bad]
        names = good or [host.name for host in self._hosts]
        best = max(names, key=lambda name: self._free[name], default=None)
        return best if best is not None and self._free[best] > 0 else None
