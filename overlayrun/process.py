"""What process trees use: memory and processor time. The only user of psutil."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import psutil  # type: ignore[import-untyped]  # noqa: TID251  # no types come with it; this is its only user


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process and all below it use.

    memory: resident bytes; pages that processes share count for each. cpu: seconds so far, of those alive.
    load: processors kept busy just now, 1.0 for one.
    """

    processes: int
    memory: int
    cpu: float
    load: float


def usages(roots: Sequence[int], *, interval: float = 0.1) -> dict[int, Usage]:
    """Usage of the trees under some process ids, over `interval` seconds; without those that are gone."""
    before = {root: _tree(root) for root in roots}
    began = time.monotonic()
    if before:
        time.sleep(interval)
    elapsed = max(time.monotonic() - began, 1e-6)
    return {root: _usage(trees, elapsed) for root, trees in before.items() if trees}


def _tree(root: int) -> list[tuple[psutil.Process, float]]:
    """Processes with the seconds each has used."""
    try:
        top = psutil.Process(root)
        return [
            (process, seconds)
            for process in (top, *top.children(recursive=True))
            for seconds in _cpu(process)
        ]
    except psutil.NoSuchProcess:
        return []


def _cpu(process: psutil.Process) -> Iterator[float]:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return
    yield times.user + times.system


def _usage(tree: list[tuple[psutil.Process, float]], elapsed: float) -> Usage:
    memory, now, spent = 0, 0.0, 0.0
    for process, before in tree:
        for after in _cpu(process):
            now += after
            spent += max(0.0, after - before)
            memory += _resident(process)
    return Usage(len(tree), memory, now, spent / elapsed)


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def memory_available() -> int:
    """Bytes that new processes can take without driving others out, by the kernel's own estimate."""
    return int(psutil.virtual_memory().available)
