"""Feed a process and read it at the same time, so that neither side waits for ever. On the launch path."""

from __future__ import annotations

import os
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Final

_CHUNK: Final = 1 << 16
LONGEST: Final = 2 << 30  # bytes taken of one source


def pump(
    sink: int,
    data: bytes,
    sources: Sequence[int],
    *,
    seen: Mapping[int, Callable[[bytes], object]] | None = None,
    seconds: float | None = None,
) -> list[bytes]:
    """Write `data` to `sink`, read all `sources` to their ends, and give what each said; closes them all.

    seen: by source, called with each piece as it comes. A source that says more than LONGEST is cut off
    there. seconds: for all of it. Raises TimeoutError.
    """
    until = None if seconds is None else time.monotonic() + seconds
    parts: dict[int, list[bytes]] = {fd: [] for fd in sources}
    sizes = dict.fromkeys(sources, 0)
    poll = select.poll()
    for fd in sources:
        poll.register(fd, select.POLLIN)
    os.set_blocking(sink, False)
    poll.register(sink, select.POLLOUT)
    rest = memoryview(data)
    waiting = {sink, *sources}
    while waiting:
        for fd, _ in poll.poll(_left(until, waiting)):
            if fd == sink:
                rest = _feed(sink, rest)
                done = not rest
            else:
                part = os.read(fd, _CHUNK)
                parts[fd].append(part)
                sizes[fd] += len(part)
                _show(seen, fd, part)
                done = not part or sizes[fd] > LONGEST
            if done:
                poll.unregister(fd)
                os.close(fd)
                waiting.discard(fd)
    return [b"".join(parts[fd]) for fd in sources]


def _left(until: float | None, waiting: Iterable[int]) -> float | None:
    """Milliseconds, as poll(2) takes them. Raises TimeoutError, and has closed what waits, when none are."""
    if until is None:
        return None
    left = until - time.monotonic()
    if left <= 0:
        for fd in waiting:
            os.close(fd)
        raise TimeoutError
    return left * 1000 + 1


def _show(seen: Mapping[int, Callable[[bytes], object]] | None, fd: int, part: bytes) -> None:
    if seen and fd in seen and part:
        seen[fd](part)


def _feed(sink: int, rest: memoryview) -> memoryview:
    try:
        return rest[os.write(sink, rest[:_CHUNK]) :] if rest else rest
    except BlockingIOError:
        return rest
    except BrokenPipeError:  # the process ended early; its status tells why
        return rest[:0]
