"""What OpenCode hears of a workspace, whatever its server's own stream leaves out: a server that does so on purpose."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest

from overlayrun.agents.opencode.events import EVENTS, HISTORY, Feed
from overlayrun.agents.opencode.servers import Endpoint

pytestmark = pytest.mark.shared

_PATIENCE: Final = 60.0
_SESSION: Final = "ses_1"


def _row(number: int) -> dict[str, Any]:
    return {"id": f"evt_{number}", "aggregate_id": _SESSION, "seq": number, "type": "message.1", "data": {}}


def _event(payload: dict[str, Any]) -> bytes:
    return f"data: {json.dumps({'payload': payload}, separators=(',', ':'))}\n\n".encode()


class Server:
    """Speaks as OpenCode does, as far as its events go; it tells in its stream what the test lets it tell."""

    def __init__(self) -> None:
        self.history: list[int] = []
        self.listens = True
        self.streams: list[asyncio.StreamWriter] = []
        self.toasts = 0
        self.endpoint = Endpoint(0, "secret")

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Server]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.endpoint = Endpoint(server.sockets[0].getsockname()[1], "secret")
        async with server:
            try:
                yield self
            finally:
                self.hang_up()

    def happens(self, number: int, *, is_told: bool) -> None:
        self.history.append(number)
        if is_told:
            row = _row(number)
            told = {"id": row["id"], "type": row["type"], "seq": number, "data": {}, "aggregateID": _SESSION}
            self.tell({"type": "sync", "syncEvent": told})

    def tell(self, payload: dict[str, Any]) -> None:
        for stream in self.streams:
            stream.write(_event(payload))

    def hang_up(self) -> None:
        while self.streams:
            self.streams.pop().close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(head.lower().partition("content-length: ")[2].partition("\r\n")[0] or 0)
        body = json.loads(await reader.readexactly(length)) if length else {}
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        path = head.split()[1]
        if path == EVENTS:
            writer.write(_event({"type": "server.connected"}))
            self.streams.append(writer)
            return
        if path == HISTORY:
            known = body.get(_SESSION, -1)
            writer.write(json.dumps([_row(each) for each in self.history if each > known]).encode())
        else:
            self.toasts += 1
            if self.listens:
                self.tell({"type": "tui.toast.show", "properties": body})
        writer.close()


class Listener:
    """OpenCode's end of a stream: what it was told, in order."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._text = b""

    async def connects(self) -> None:
        """Wait until the stream begins."""
        await self._read_until(lambda: b"server.connected" in self._text)

    async def hears(self, *numbers: int) -> None:
        """Wait for these lasting events, and for no other before them."""
        await self._read_until(lambda: len(self.numbers()) >= len(numbers))
        assert self.numbers() == list(numbers)

    async def _read_until(self, is_true: Callable[[], bool]) -> None:
        async with asyncio.timeout(_PATIENCE):
            while not is_true():
                part = await asyncio.get_running_loop().sock_recv(self._connection, 1 << 16)
                assert part, "the stream is over"
                self._text += part

    def numbers(self) -> list[int]:
        """Numbers of the events told so far. One that was told twice counts once, as it does with OpenCode."""
        lines = [line[6:] for line in self._text.split(b"\n")[:-1] if line.startswith(b"data: ")]
        told = [json.loads(line)["payload"] for line in lines]
        assert not any(each["type"] == "tui.toast.show" for each in told)
        return list(dict.fromkeys(each["syncEvent"]["seq"] for each in told if each["type"] == "sync"))


@asynccontextmanager
async def _listening(feed: Feed) -> AsyncIterator[Listener]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(0)
        theirs.settimeout(0)
        streaming = asyncio.create_task(feed.stream(theirs))
        try:
            listener = Listener(ours)
            await listener.connects()
            yield listener
        finally:
            streaming.cancel()
            await asyncio.gather(streaming, return_exceptions=True)


async def _begins_late(server: Server, feed: Feed) -> None:
    """What happens after a stream says that it begins, and before it does."""
    server.listens = False
    async with _listening(feed) as listener:
        assert await feed.history({_SESSION: 4}) == []
        server.history = [3, 4, 5]
        await feed.begin(server.endpoint)
        server.happens(6, is_told=False)
        async with asyncio.timeout(_PATIENCE):
            while server.toasts < 2:
                await asyncio.sleep(0.01)
        server.listens = True
        await listener.hears(5, 6)
        server.happens(7, is_told=True)
        await listener.hears(5, 6, 7)


async def _leaves_out(server: Server, feed: Feed) -> None:
    """A gap, and two events in the wrong order."""
    async with _listening(feed) as listener:
        await feed.begin(server.endpoint)
        server.history = [0]
        events = await feed.history({})
        assert [event["seq"] for event in events] == [0]
        server.happens(1, is_told=True)
        await listener.hears(1)
        server.happens(2, is_told=False)
        server.happens(3, is_told=True)
        await listener.hears(1, 2, 3)
        server.history += [4]
        server.happens(5, is_told=True)
        server.happens(4, is_told=True)
        server.happens(6, is_told=True)
        await listener.hears(1, 2, 3, 4, 5, 6)


async def _is_killed(server: Server, feed: Feed) -> None:
    """OpenCode's stream goes on, with the next server too."""
    async with _listening(feed) as listener:
        await feed.history({})
        async with Server().serving() as first:
            await feed.begin(first.endpoint)
            first.happens(0, is_told=True)
            await listener.hears(0)
            first.happens(1, is_told=False)
        server.history = [0, 1, 2]
        await feed.begin(server.endpoint)
        await listener.hears(0, 1, 2)
        server.happens(3, is_told=True)
        await listener.hears(0, 1, 2, 3)


@pytest.mark.parametrize("story", [_begins_late, _leaves_out, _is_killed])
def test_no_event_is_missing_where_the_stream_of_a_server(
    story: Callable[[Server, Feed], Awaitable[None]],
) -> None:
    async def main() -> None:
        async with Server().serving() as server:
            await story(server, Feed("/repository"))

    asyncio.run(main())
