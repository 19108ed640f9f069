"""The proxy of `--net allow=…`: the one way out of a sandbox that has a network of its own.

Why no library: proxy.py's hook may name an address, but asks again by itself where it gives none, its parser
takes bare line feeds, and it brings processes and plugins that we would have to close; mitmproxy and pproxy
are about other things, and h11 takes bare line feeds too. What is left to write is small.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from overlayrun.proxy_rules import LONGEST_HEAD, Refused, Request, is_public, parse_request
from overlayrun.sandbox.network import Network
from overlayrun.tunnel import connect, run_until_told, serve, tunnel

_HEAD_PATIENCE: Final = 30.0  # seconds for a client to say what it wants
_NAME_PATIENCE: Final = 15.0
_CONNECT_PATIENCE: Final = 8.0  # for each address
_MOST_ADDRESSES: Final = 4
_MOST_NAMES: Final = 100  # different names that are counted one by one: the report fits into a pipe
_OTHERS: Final = "other names"
_WORDS: Final = {
    400: "Bad Request",
    403: "Forbidden",
    411: "Length Required",
    502: "Bad Gateway",
    504: "Gateway Timeout",
}
# What the process never needs: it reads what hostile programs send.
_LIMITS: Final = (
    (resource.RLIMIT_CORE, 0),
    (resource.RLIMIT_FSIZE, 0),
    (resource.RLIMIT_NOFILE, 1024),
    (resource.RLIMIT_DATA, 1 << 30),
)

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]


async def ask_system(host: str, port: int) -> Sequence[str]:
    """Addresses of a name as this machine's resolver gives them, best first; raises OSError."""
    # As bytes: for text Python loads its idna codec, from a disk that this process may not read any more.
    found = await asyncio.get_running_loop().getaddrinfo(host.encode(), port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Proxy:
    """What is let through, and what was not. resolve: looks names up. public: judges an address."""

    def __init__(
        self, network: Network, *, resolve: Resolver = ask_system, public: Callable[[str], bool] = is_public
    ) -> None:
        self.network = network
        self.resolve = resolve
        self.public = public
        self.denied: dict[str, int] = {}

    async def handle(self, client: socket.socket) -> None:
        """Serve one connection of the sandbox's: one request, whatever it asks for."""
        try:
            head, rest = await _read_head(client)
            request = parse_request(head)
            server = await self._open(request)
        except Refused as refusal:
            self._count(refusal.denied)
            await _answer(client, refusal)
            return
        with server:
            await _carry(client, server, request, rest)

    def _count(self, denied: str | None) -> None:
        """Count what was denied; a client that makes up names without end can't make this grow."""
        if denied is None:
            return
        known = denied in self.denied or len(self.denied) < _MOST_NAMES
        name = denied if known else _OTHERS
        self.denied[name] = self.denied.get(name, 0) + 1

    async def _open(self, request: Request) -> socket.socket:
        """A connection to a name that is allowed, at an address that was looked at; raises Refused."""
        place = f"{request.host}:{request.port}"
        if not self.network.allows(request.host, request.port):
            raise Refused(403, f"{place} is not in --net allow=", denied=place)
        try:
            async with asyncio.timeout(_NAME_PATIENCE):
                addresses = await self.resolve(request.host, request.port)
        except OSError as err:
            raise Refused(502, f"{request.host} has no address that could be found") from err
        # All of them: a name that is public today and private in its next answer is somebody's trick.
        if not addresses or not all(self.public(address) for address in addresses):
            raise Refused(502, f"{request.host} is no public host", denied=f"{place} (a private address)")
        return await _connect_first(addresses[:_MOST_ADDRESSES], request)

    def report(self) -> bytes:
        """Lines `<times> <what>`, most first."""
        rows = sorted(self.denied.items(), key=lambda row: (-row[1], row[0]))
        return "".join(f"{times} {what}\n" for what, times in rows).encode()


async def _connect_first(addresses: Sequence[str], request: Request) -> socket.socket:
    """Connect to one of the addresses that were checked: the name is never looked up again."""
    for address in addresses:
        try:
            async with asyncio.timeout(_CONNECT_PATIENCE):
                return await connect(address, request.port)
        except OSError:  # TimeoutError is one
            continue
    raise Refused(504, f"{request.host}:{request.port} does not answer")


async def _read_head(client: socket.socket) -> tuple[bytes, bytes]:
    """A request's head, and what came behind it. Raises Refused, OSError where the client is gone.

    TCP carries no descriptors, and recv(2) would drop them: nobody can pass us any.
    """
    data = b""
    try:
        async with asyncio.timeout(_HEAD_PATIENCE):
            while not _has_head(data):
                data += await _receive(client)
    except TimeoutError as err:
        raise Refused(400, "no request in time") from err
    end = data.find(b"\r\n\r\n") + 4 if b"\r\n\r\n" in data else len(data)
    return data[:end], data[end:]


def _has_head(data: bytes) -> bool:
    """Whether the head is whole, or can't become one: too long, or with bare line feeds for an end."""
    return len(data) > LONGEST_HEAD or any(end in data for end in (b"\r\n\r\n", b"\n\n", b"\n\r\n"))


async def _receive(client: socket.socket) -> bytes:
    part = await asyncio.get_running_loop().sock_recv(client, LONGEST_HEAD)
    if not part:
        raise ConnectionResetError("no request")
    return part


async def _carry(client: socket.socket, server: socket.socket, request: Request, rest: bytes) -> None:
    loop = asyncio.get_running_loop()
    if request.body is None:
        await loop.sock_sendall(client, b"HTTP/1.1 200 Connection established\r\n\r\n")
        await loop.sock_sendall(server, rest)
        await tunnel(client, server)
        return
    # What follows the body would be a second request, which nobody has looked at.
    first = rest[: request.body]
    await loop.sock_sendall(server, request.head + first)
    await tunnel(client, server, up=request.body - len(first))


async def _answer(client: socket.socket, refusal: Refused) -> None:
    loop = asyncio.get_running_loop()
    text = f"overlayrun: {refusal.why}\n".encode("ascii", "backslashreplace")
    head = (
        f"HTTP/1.1 {refusal.status} {_WORDS[refusal.status]}\r\nContent-Type: text/plain\r\n"
        f"Content-Length: {len(text)}\r\nConnection: close\r\n\r\n"
    )
    await loop.sock_sendall(client, head.encode() + text)
    client.shutdown(socket.SHUT_WR)
    # What the client still sends is read for a moment: closing over it would take the answer away (tcp(7)).
    try:
        async with asyncio.timeout(1.0):
            while await loop.sock_recv(client, LONGEST_HEAD):
                pass
    except TimeoutError:
        pass


def run_proxy(listener: socket.socket, network: Network, stop: int, report: int) -> None:
    """Be the proxy's process until told to stop, then write the report."""
    for limit, value in _LIMITS:
        hard = resource.getrlimit(limit)[1]
        lowered = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (lowered, lowered))
    proxy = Proxy(network)
    run_until_told(serve(listener, proxy.handle), stop)
    os.write(report, proxy.report())
