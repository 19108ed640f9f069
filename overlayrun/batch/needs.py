"""What tasks wait for: cycles, what belongs together, the order of a start. Pure."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Final

from overlayrun.batch.task import Task

MOST_CYCLES: Final = 10


def cycles(needs: Mapping[str, Sequence[str]]) -> Iterator[list[str]]:
    """Tasks that wait for themselves: each list begins and ends with the same, and each needs the next."""
    left = {name: list(dict.fromkeys(others)) for name, others in needs.items()}
    for _ in range(MOST_CYCLES):
        try:
            TopologicalSorter(left).prepare()
        except CycleError as err:
            found = list(reversed(err.args[1]))
            left[found[0]].remove(found[1])
            yield found
        else:
            return


def components(tasks: Sequence[Task]) -> Mapping[str, str]:
    """For each id the smallest id of those that belong with it, by needs and groups."""
    above = {task.id: task.id for task in tasks}

    def top(name: str) -> str:
        while above[name] != name:
            above[name] = name = above[above[name]]
        return name

    def join(one: str, other: str) -> None:
        low, high = sorted((top(one), top(other)))
        above[high] = low

    first: dict[str, str] = {}
    for task in tasks:
        join(task.id, first.setdefault(task.group, task.id))
        for other in task.needs:
            if other in above:
                join(task.id, other)
    return {name: top(name) for name in above}


def start_order(tasks: Sequence[Task]) -> list[Task]:
    """Tasks as they would start one by one: what they need first, then by priority, then as they stand."""
    places = {task.id: place for place, task in enumerate(tasks)}
    waiting = {task.id: len(set(task.needs) & places.keys()) for task in tasks}
    waiters = defaultdict(list)
    for task in tasks:
        for other in set(task.needs):
            waiters[other].append(task)
    ready = [(-task.priority, places[task.id]) for task in tasks if not waiting[task.id]]
    heapq.heapify(ready)
    order = []
    while ready:
        task = tasks[heapq.heappop(ready)[1]]
        order.append(task)
        for waiter in waiters[task.id]:
            waiting[waiter.id] -= 1
            if not waiting[waiter.id]:
                heapq.heappush(ready, (-waiter.priority, places[waiter.id]))
    return order
