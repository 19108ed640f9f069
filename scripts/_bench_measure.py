"""Measure whole processes, in lanes that take turns; and judge what came out."""

from __future__ import annotations

import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from resource import struct_rusage
from typing import Final

Samples = dict[str, list[float]]
Lane = Callable[[int], Mapping[str, float]]
"""One contestant: takes the round's number, gives samples by name. It prepares and cleans up unmeasured."""

_LONGEST: Final = 900  # seconds that a process may take before the row is given up


class BenchError(Exception):
    """A row can't be measured; the text says why."""


class AbsentError(BenchError):
    """A row needs a program that is not here: it is left out, which is no failure."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What a process cost. wall and cpu: milliseconds. output: its stdout. ended: CLOCK_MONOTONIC in ns."""

    wall: float
    cpu: float
    output: bytes
    ended: int

    def named(self, name: str) -> dict[str, float]:
        """Samples of a lane."""
        return {name: self.wall, f"{name}, CPU": self.cpu}


class Runner:
    """Starts processes without a shell. directory: takes their output. environment: all they get."""

    def __init__(self, directory: str, environment: Mapping[str, str]) -> None:
        self.environment = environment
        self._out, self._err = f"{directory}/stdout", f"{directory}/stderr"

    def __call__(self, argv: list[str], cwd: str) -> Spent:
        """Run a process to its end and measure it; raises BenchError where it fails."""
        for path in (self._out, self._err):
            os.close(os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, self._out, os.O_WRONLY | os.O_APPEND, 0),
            (os.POSIX_SPAWN_OPEN, 2, self._err, os.O_WRONLY | os.O_APPEND, 0),
        ]
        os.chdir(cwd)  # posix_spawn(3) knows no directory
        began = time.monotonic_ns()
        try:
            pid = os.posix_spawnp(argv[0], argv, self.environment, file_actions=actions)
        except OSError as err:
            raise BenchError(f"{argv[0]}: {err.strerror}") from err
        status, usage = _wait(pid)
        ended = time.monotonic_ns()
        if status:
            raise BenchError(
                f"{_short(argv)} ended with {os.waitstatus_to_exitcode(status)}: {_last(self._err)}"
            )
        with open(self._out, "rb") as file:
            output = file.read()
        return Spent((ended - began) / 1e6, (usage.ru_utime + usage.ru_stime) * 1e3, output, ended)


def _wait(pid: int) -> tuple[int, struct_rusage]:
    def give_up(*_: object) -> None:
        os.kill(pid, signal.SIGKILL)

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(_LONGEST)
    try:
        _, status, usage = os.wait4(pid, 0)
    finally:
        signal.alarm(0)
    return status, usage


def _short(argv: Sequence[str]) -> str:
    return " ".join([os.path.basename(argv[0]), *argv[1:]])[:100]


def _last(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return " | ".join(file.read().split("\n")[-5:]).strip()[:300]


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table. ours, peer: names of samples, in `unit`. limit: bound of the value."""

    what: str
    files: str
    ours: str
    peer: str | None
    value: Callable[[Mapping[str, float]], float]
    form: str = "{:.2f}x"
    limit: float | None = None
    at_least: bool = False
    unit: str = "ms"

    def is_met(self, value: float) -> bool | None:
        """Whether the bound holds; None without one."""
        if self.limit is None:
            return None
        return value >= self.limit if self.at_least else value <= self.limit


@dataclass(slots=True)
class Race:
    """Lanes that take turns, and the figures that come of them. heavy: seconds a round, so few must do."""

    lanes: Sequence[Lane]
    figures: Sequence[Figure]
    heavy: bool = False
    samples: Samples = field(default_factory=dict)

    def run(self, rounds: int) -> None:
        """Run every lane in each round, forwards and backwards in turn, so that drift hits all alike."""
        if not self.heavy:
            self._round(-1, keep=False)  # caches
        for number in range(rounds):
            self._round(number, keep=True)

    def _round(self, number: int, *, keep: bool) -> None:
        for lane in self.lanes if number % 2 == 0 else self.lanes[::-1]:
            for name, value in lane(number).items():
                if keep:
                    self.samples.setdefault(name, []).append(value)

    def lines(self) -> list[dict[str, object]]:
        """The figures as plain values: median and minimum of each side, value, bound, met."""
        medians = {name: statistics.median(values) for name, values in self.samples.items()}
        return [_line(figure, self.samples, medians) for figure in self.figures]


def _line(figure: Figure, samples: Samples, medians: Mapping[str, float]) -> dict[str, object]:
    value = figure.value(medians)
    bound = None
    if figure.limit is not None:
        bound = ("≥ " if figure.at_least else "≤ ") + figure.form.format(figure.limit)
    return {
        "what": figure.what,
        "files": figure.files,
        "unit": figure.unit,
        "rounds": len(samples[figure.ours]),
        "ours": {"name": figure.ours, "median": medians[figure.ours], "minimum": min(samples[figure.ours])},
        "peer": figure.peer
        and {"name": figure.peer, "median": medians[figure.peer], "minimum": min(samples[figure.peer])},
        "value": value,
        "shown": figure.form.format(value),
        "bound": bound,
        "met": figure.is_met(value),
    }


def times(what: str, files: str, ours: str, peer: str, limit: float | None = None) -> Figure:
    """Ours costs at most `limit` times the peer."""
    return Figure(what, files, ours, peer, lambda medians: medians[ours] / medians[peer], limit=limit)


def faster(what: str, files: str, ours: str, peer: str, limit: float | None = None) -> Figure:
    """Ours is at least `limit` times as fast as the peer."""
    return Figure(
        what,
        files,
        ours,
        peer,
        lambda medians: medians[peer] / medians[ours],
        form="{:.1f}x faster",
        limit=limit,
        at_least=True,
    )


def more(what: str, files: str, ours: str, peer: str, limit: float | None = None) -> Figure:
    """Ours costs at most `limit` milliseconds more than the peer."""
    return Figure(
        what, files, ours, peer, lambda medians: medians[ours] - medians[peer], form="{:.0f} ms", limit=limit
    )


def amount(what: str, files: str, ours: str, unit: str, limit: float | None = None) -> Figure:
    """Ours itself is at most `limit`."""
    return Figure(
        what,
        files,
        ours,
        None,
        lambda medians: medians[ours],
        form=f"{{:.0f}} {unit}",
        limit=limit,
        unit=unit,
    )


def note(text: str) -> None:
    """Tell what is going on, on standard error."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
