"""What happens in one workspace, told to OpenCode without a gap.

OpenCode counts the lasting events of every session and takes none after one that is missing: its requests
then fail by a time limit. But a server's stream of events begins 0.1 to 0.2 s after it says that it does. And
where a server is killed, its answer is cut off in the middle, whereupon OpenCode gives up listening to it for
good. So OpenCode's stream is one from here, whatever becomes of the server; what the server's own stream left
out comes from its history.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, Final

from overlayrun.agents.opencode.exchange import begin, post, read_head
from overlayrun.agents.opencode.servers import Endpoint

EVENTS: Final = "/global/event"
HISTORY: Final = "/sync/history"
_HEARTBEAT: Final = 10.0  # seconds; OpenCode's own servers do the same
_JOIN_PATIENCE: Final = 10.0
_HISTORY_PATIENCE: Final = 30.0
_PAUSE: Final = 0.1
_PROBES: Final = 100
_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


class _HungUpError(Exception):
    """OpenCode does not listen any more."""


class _Stream:
    """One connection of OpenCode's. heard: the server that it hears.

    known: number of the last event that OpenCode has, by session; None until it has said so.
    """

    def __init__(self, client: socket.socket) -> None:
        self.heard: Endpoint | None = None
        self.known: dict[str, int] | None = None
        self._client = client

    async def send(self, data: bytes) -> None:
        """Raises _HungUpError."""
        try:
            await asyncio.get_running_loop().sock_sendall(self._client, data)
        except OSError as err:
            raise _HungUpError from err

    def learn(self, numbers: Iterable[tuple[str, int]]) -> None:
        """OpenCode has these events, and what was before them."""
        self.known = self.known or {}
        for session, number in numbers:
            self.known[session] = max(number, self.known.get(session, -1))

    def lacks_before(self, session: str, number: int) -> bool:
        """Whether OpenCode can't take an event yet."""
        return number > (self.known or {}).get(session, -1) + 1


class _Probe:
    """A message to nobody that is sent to a server until its stream tells it: from then on it tells all."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._name = f"overlayrun-{secrets.token_hex(12)}"
        self._heard = asyncio.Event()

    def is_in(self, block: bytes) -> bool:
        """Whether this is what a block of the stream tells."""
        return self._name.encode() in block

    def is_heard_first(self) -> bool:
        """Note that it was; whether this is the first time."""
        is_first = not self._heard.is_set()
        self._heard.set()
        return is_first

    @asynccontextmanager
    async def asked(self) -> AsyncIterator[None]:
        """Send it meanwhile."""
        sending = asyncio.create_task(self._send())
        try:
            yield
        finally:
            sending.cancel()

    async def _send(self) -> None:
        toast = {"title": self._name, "message": "", "variant": "info"}
        for _ in range(_PROBES):
            with suppress(OSError):
                await post(self._endpoint, "/tui/show-toast", json.dumps(toast).encode())
            with suppress(TimeoutError):
                await asyncio.wait_for(self._heard.wait(), _PAUSE)
                return


class Feed:
    """The events of one workspace. directory: of the repository."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._endpoint: Endpoint | None = None
        self._streams: set[_Stream] = set()
        self._changed = asyncio.Condition()

    async def begin(self, endpoint: Endpoint) -> None:
        """A server is there; when this returns OpenCode hears it."""
        async with self._changed:
            self._endpoint = endpoint
            self._changed.notify_all()
        await self._comes(lambda: all(each.heard == endpoint for each in self._streams), _JOIN_PATIENCE)

    async def history(self, known: Mapping[str, int]) -> list[dict[str, Any]]:
        """What OpenCode asks for as soon as it is connected; nothing where no server is there."""
        events: list[dict[str, Any]] = []
        if self._endpoint is not None:
            with suppress(OSError, ValueError):
                events = await _events_after(self._endpoint, known)
        async with self._changed:
            for each in self._streams:
                each.learn([*known.items(), *_numbers(events)])
            self._changed.notify_all()
        return events

    async def stream(self, client: socket.socket) -> None:
        """Tell what happens until OpenCode hangs up."""
        stream = _Stream(client)
        self._streams.add(stream)
        try:
            await stream.send(_HEAD + _event({"type": "server.connected"}))
            while True:
                await self._until(stream, lambda: self._endpoint is not None)
                await self._hear(stream)
        except _HungUpError:
            pass
        finally:
            self._streams.discard(stream)
            async with self._changed:
                self._changed.notify_all()

    async def _until(self, stream: _Stream, is_true: Callable[[], bool]) -> None:
        """Wait, and keep the stream alive."""
        while not await self._comes(is_true, _HEARTBEAT):
            await stream.send(_event({"type": "server.heartbeat"}))

    async def _comes(self, is_true: Callable[[], bool], seconds: float) -> bool:
        with suppress(TimeoutError):
            async with self._changed, asyncio.timeout(seconds):
                return await self._changed.wait_for(is_true)
        return False

    async def _hear(self, stream: _Stream) -> None:
        """Pass on what the server tells, until it is silent."""
        endpoint = self._endpoint
        if endpoint is None:
            return
        try:
            server = await begin(endpoint, "GET", EVENTS)
        except OSError:
            if self._endpoint == endpoint:
                self._endpoint = None
            return
        with server, suppress(OSError, ValueError, LookupError):  # or it says what is no event
            await self._pass_on(stream, server, endpoint)
        stream.heard = None
        await asyncio.sleep(_PAUSE)  # one that is being killed may still answer, and hang up

    async def _pass_on(self, stream: _Stream, server: socket.socket, endpoint: Endpoint) -> None:
        _, rest = await read_head(server)
        async with aclosing(_blocks(server, rest)) as blocks:
            await anext(blocks, b"")  # its own "server.connected"
            async with self._changed:
                stream.heard = endpoint
                self._changed.notify_all()
            await self._until(stream, lambda: stream.known is not None)
            await self._tell_all(stream, endpoint, blocks)

    async def _tell_all(
        self, stream: _Stream, endpoint: Endpoint, blocks: AsyncGenerator[bytes, None]
    ) -> None:
        probe = _Probe(endpoint)
        async with probe.asked():
            async for block in blocks:
                if not probe.is_in(block):
                    await self._tell(stream, endpoint, block)
                elif probe.is_heard_first():
                    await self._fill(stream, endpoint)

    async def _tell(self, stream: _Stream, endpoint: Endpoint, block: bytes) -> None:
        event = _lasting(block)
        if event is not None and stream.lacks_before(event["aggregateID"], event["seq"]):
            await self._fill(stream, endpoint)
        await stream.send(block)
        if event is not None:
            stream.learn([(event["aggregateID"], event["seq"])])

    async def _fill(self, stream: _Stream, endpoint: Endpoint) -> None:
        """Tell what OpenCode does not know yet."""
        events = await _events_after(endpoint, stream.known or {})
        for event in events:
            told = {key: event[key] for key in ("id", "type", "seq", "data")}
            told["aggregateID"] = event["aggregate_id"]
            await stream.send(_event({"type": "sync", "syncEvent": told}, directory=self._directory))
        stream.learn(_numbers(events))


def _event(payload: dict[str, Any], **others: str) -> bytes:
    is_own = payload["type"] != "sync"
    named = {"id": f"evt_{secrets.token_hex(12)}", "properties": {}} if is_own else {}
    return f"data: {json.dumps({**others, 'payload': {**named, **payload}})}\n\n".encode()


def _lasting(block: bytes) -> dict[str, Any] | None:
    """The lasting event that a block of a stream holds. Raises ValueError."""
    if b'"type":"sync"' not in block:  # most are not; some are long
        return None
    data = b"".join(line[5:] for line in block.split(b"\n") if line.startswith(b"data:"))
    payload = json.loads(data)["payload"]
    event: dict[str, Any] | None = payload.get("syncEvent") if payload.get("type") == "sync" else None
    return event


def _numbers(events: Iterable[Mapping[str, Any]]) -> list[tuple[str, int]]:
    return [(event["aggregate_id"], event["seq"]) for event in events]


async def _events_after(endpoint: Endpoint, known: Mapping[str, int]) -> list[dict[str, Any]]:
    """Lasting events of a server but those that are known, in order. Raises OSError, ValueError."""
    async with asyncio.timeout(_HISTORY_PATIENCE):
        events = json.loads(await post(endpoint, HISTORY, json.dumps(known).encode()))
    return [event for event in events if isinstance(event, dict)]  # an error is told as one object


async def _blocks(server: socket.socket, data: bytes) -> AsyncGenerator[bytes, None]:
    """The events of a stream, each with the empty line that ends it."""
    while True:
        *whole, data = data.split(b"\n\n")
        for block in whole:
            yield block + b"\n\n"
        part = await asyncio.get_running_loop().sock_recv(server, 1 << 16)
        if not part:
            return
        data += part
