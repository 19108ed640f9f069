"""Bytes between two connections, and a loop that serves a bounded number of them. Plain asyncio on sockets.

On sockets and not on streams: nothing is read before what was read is written, so a slow reader holds its
writer up and no buffer grows.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final

_CHUNK: Final = 1 << 16
_AT_ONCE: Final = 256  # connections; the kernel's queue holds those that come meanwhile
_IDLE: Final = 900.0  # seconds without a byte either way; a model may think for minutes
_PAUSE: Final = 0.1
_THREADS: Final = 8  # that ask for names


async def serve(listener: socket.socket, handle: Callable[[socket.socket], Awaitable[None]]) -> None:
    """Accept connections for ever and give each to `handle`; it is closed afterwards."""
    loop = asyncio.get_running_loop()
    room = asyncio.Semaphore(_AT_ONCE)
    at_work: set[asyncio.Task[None]] = set()

    async def one(client: socket.socket) -> None:
        try:
            with client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await handle(client)
        except OSError:  # the client is gone
            pass
        finally:
            room.release()

    listener.settimeout(0)
    while True:
        await room.acquire()
        try:
            client, _ = await loop.sock_accept(listener)
        except OSError:  # a client that left at once, or no descriptor free: accept(2)
            room.release()
            await asyncio.sleep(_PAUSE)
            continue
        task = asyncio.create_task(one(client))
        at_work.add(task)
        task.add_done_callback(at_work.discard)


async def connect(address: str, port: int) -> socket.socket:
    """A connection to a numeric address; raises OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.settimeout(0)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(made, (address, port))
    except BaseException:
        made.close()
        raise
    return made


class _Way:
    """One direction. left: bytes that may still pass, None for all until the end."""

    def __init__(self, source: socket.socket, sink: socket.socket, left: int | None = None) -> None:
        self.source = source
        self.sink = sink
        self.left = left

    async def carry(self, moved: Callable[[], None]) -> None:
        """Pass bytes on until the source ends, which the sink is told, or no more may pass."""
        loop = asyncio.get_running_loop()
        while self.left is None or self.left:
            data = await loop.sock_recv(self.source, _CHUNK if self.left is None else min(_CHUNK, self.left))
            if not data:
                break
            await loop.sock_sendall(self.sink, data)
            moved()
            if self.left is not None:
                self.left -= len(data)
        else:  # a body is whole: its connection stays open for the answer
            return
        with suppress(OSError):
            self.sink.shutdown(socket.SHUT_WR)


async def tunnel(
    client: socket.socket, server: socket.socket, *, up: int | None = None, idle: float = _IDLE
) -> None:
    """Carry bytes both ways until both ends have ended, one breaks, or nothing has moved for `idle` seconds.

    up: bytes that the client may send, None for all; with a number, the server's end is the end.
    """
    loop = asyncio.get_running_loop()
    last = loop.time()

    def moved() -> None:
        nonlocal last
        last = loop.time()

    down = asyncio.create_task(_Way(server, client).carry(moved))
    ways = {down, asyncio.create_task(_Way(client, server, up).carry(moved))}
    waiting = set(ways)
    try:
        while waiting and not (up is not None and down.done()) and loop.time() - last < idle:
            done, waiting = await _wait(waiting, last + idle - loop.time())
            if any(task.exception() for task in done):
                return
    finally:
        for task in ways:
            task.cancel()
        await asyncio.gather(*ways, return_exceptions=True)


async def _wait(
    tasks: set[asyncio.Task[None]], seconds: float
) -> tuple[set[asyncio.Task[None]], set[asyncio.Task[None]]]:
    return await asyncio.wait(tasks, timeout=max(seconds, _PAUSE), return_when=asyncio.FIRST_COMPLETED)


def run_until_told(main: Coroutine[Any, Any, None], stop: int) -> None:
    """Run `main`, which never ends by itself, until a byte or the end comes from the descriptor `stop`.

    No thread is waited for that still asks for a name: the caller ends the process.
    """
    loop = asyncio.new_event_loop()
    loop.set_default_executor(ThreadPoolExecutor(_THREADS))
    over = asyncio.Event()
    loop.add_reader(stop, over.set)
    tasks = {loop.create_task(main), loop.create_task(over.wait())}
    done, _ = loop.run_until_complete(asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED))
    for task in done:
        task.result()  # `main` ends by an error alone
