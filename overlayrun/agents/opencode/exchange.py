"""One request and one answer on a connection, as bytes."""

from __future__ import annotations

import asyncio
import json
import socket
from dataclasses import dataclass
from typing import Any, Final

from overlayrun.agents.opencode.servers import Endpoint
from overlayrun.tunnel import connect

_LONGEST_HEAD: Final = 1 << 16
_LONGEST_BODY: Final = 1 << 26
_HEAD_PATIENCE: Final = 30.0


@dataclass(frozen=True, slots=True)
class Request:
    """One request. path: decoded of nothing, with its query. head: lines after the first."""

    method: str
    path: str
    head: tuple[str, ...]
    rest: bytes

    def header(self, name: str) -> str | None:
        """Value of a header, by its name in lower case."""
        for line in self.head:
            key, _, value = line.partition(":")
            if key.strip().lower() == name:
                return value.strip()
        return None

    def passed_on(self, path: str, endpoint: Endpoint) -> bytes:
        """The same for a server: one request a connection, which both sides then need not count."""
        own = {"host", "authorization", "proxy-connection"}
        upgrades = self.header("upgrade") is not None
        own |= set() if upgrades else {"connection", "keep-alive"}
        kept = [line for line in self.head if line.partition(":")[0].strip().lower() not in own]
        added = [f"Host: 127.0.0.1:{endpoint.port}", f"Authorization: {endpoint.authorization}"]
        added += [] if upgrades else ["Connection: close"]
        lines = [f"{self.method} {path} HTTP/1.1", *added, *kept, "", ""]
        return "\r\n".join(lines).encode("latin-1") + self.rest


async def read_request(client: socket.socket) -> Request | None:
    """The request that a client makes, None where it makes none; TimeoutError where it takes too long."""
    async with asyncio.timeout(_HEAD_PATIENCE):
        head, rest = await read_head(client)
    if not head:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    if first.count(" ") != 2:
        return None
    method, path, _ = first.split(" ")
    return Request(method, path, tuple(lines), rest)


async def read_body(client: socket.socket, request: Request) -> bytes:
    """What follows its head, as long as the head says."""
    length = min(int(request.header("content-length") or 0), _LONGEST_BODY)
    data = request.rest
    while len(data) < length:
        part = await asyncio.get_running_loop().sock_recv(client, 1 << 16)
        if not part:
            break
        data += part
    return data


async def read_head(connection: socket.socket) -> tuple[bytes, bytes]:
    """The head of a message with its empty line, and what came with it; (b"", …) where none came whole."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = await asyncio.get_running_loop().sock_recv(connection, 1 << 14)
        if not part or len(data) > _LONGEST_HEAD:
            return b"", data
        data += part
    head, end, rest = data.partition(b"\r\n\r\n")
    return head + end, rest


async def answer(client: socket.socket, data: Any, status: int = 200) -> None:
    """Answer with JSON."""
    body = json.dumps(data).encode()
    head = (
        f"HTTP/1.1 {status} {'OK' if status == 200 else 'Service Unavailable'}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    await asyncio.get_running_loop().sock_sendall(client, head.encode() + body)


async def begin(endpoint: Endpoint, method: str, path: str, body: bytes = b"") -> socket.socket:
    """Ask a server; its answer is to be read from what is given, and ends where that does. Raises OSError."""
    # 1.0: the answer has no chunks, so that one which is cut off is the same as one that is over.
    lines = [f"{method} {path} HTTP/1.0", f"Host: 127.0.0.1:{endpoint.port}"]
    lines += [f"Authorization: {endpoint.authorization}"]
    lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"] if body else []
    server = await connect("127.0.0.1", endpoint.port)
    try:
        head = "\r\n".join([*lines, "", ""]).encode()
        await asyncio.get_running_loop().sock_sendall(server, head + body)
    except BaseException:
        server.close()
        raise
    return server


async def post(endpoint: Endpoint, path: str, body: bytes) -> bytes:
    """Ask a server, and give the body of its answer. Raises OSError."""
    with await begin(endpoint, "POST", path, body) as server:
        head, data = await read_head(server)
        while part := await asyncio.get_running_loop().sock_recv(server, 1 << 16):
            data += part
    if not head:
        raise ConnectionResetError(f"no answer to {path}")
    return data
