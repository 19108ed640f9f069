"""The workspaces of one OpenCode, on a loopback port: `/<token>/w/<workspace id>/<branch>/…` is that server.

OpenCode asks for the address of every workspace that it knows when it starts, and holds a stream of events
open to each. A server takes seconds and 350 MB, so that it is started by the first request that needs it;
until then the stream is answered from here. Requests are passed on byte by byte, WebSockets too: no library
of the field does that without taking a request apart and making it anew.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

from overlayrun.agents.opencode.servers import Endpoint, Scene, Server, is_well
from overlayrun.errors import OverlayrunError
from overlayrun.model import BranchName
from overlayrun.store.git import git
from overlayrun.tunnel import connect, serve
from overlayrun.workspace.catalogue import records
from overlayrun.workspace.names import branch_names

_LONGEST_HEAD: Final = 1 << 16
_LONGEST_BODY: Final = 1 << 26
_HEAD_PATIENCE: Final = 30.0
_JOIN_PATIENCE: Final = 10.0
_HEARTBEAT: Final = 10.0  # seconds; OpenCode's own servers do the same
_EVENTS: Final = "/global/event"
_HISTORY: Final = "/sync/history"
# Told to a server that is not there yet: it hears them, in order, before anything else.
_KEPT: Final = ("/sync/replay", "/sync/steal")


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


class _Workspace:
    """One workspace. kept: requests (path, body) for its server. is_new: made while this hub lives.

    streams: streams of events that are answered from here; joined: whether none is, any more.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.kept: list[tuple[str, bytes]] = []
        self.is_new = False
        self.started = asyncio.Event()
        self.joined = asyncio.Event()
        self.streams = 0
        self.door = asyncio.Lock()


class Hub:
    """Serves one OpenCode. A request without the token is not answered."""

    def __init__(self, scene: Scene, token: str) -> None:
        self._scene = scene
        self._token = token
        self._workspaces: dict[str, _Workspace] = {}
        self._given: set[str] = set()

    async def handle(self, client: socket.socket) -> None:
        """Serve one connection: one request."""
        request = await _read(client)
        parts = request.path.split("/", 5) if request else []
        if request is None or len(parts) < 3 or not secrets.compare_digest(parts[1], self._token):
            return
        if parts[2] == "new":
            await _answer(client, {"branch": self._new_branch()})
        elif parts[2] == "list":
            await _answer(client, self._branches())
        elif len(parts) > 4:
            workspace = self._workspace(parts[3], BranchName(unquote(parts[4])))
            await self._deal(client, workspace, request, parts)

    async def _deal(
        self, client: socket.socket, workspace: _Workspace, request: Request, parts: list[str]
    ) -> None:
        if parts[2] == "w":
            await self._serve(client, workspace, request, "/" + "".join(parts[5:]))
        elif parts[2] == "start":
            workspace.is_new = True
            self._begin(workspace)
            await _answer(client, {})
        elif parts[2] == "end":
            await workspace.server.end()
            await _answer(client, {})

    def _new_branch(self) -> str:
        """A name for a branch that nobody has, and that is not given again."""
        refs = ["for-each-ref", "--format=%(refname:short)", "refs/heads/"]
        taken = {*git(refs, cwd=self._scene.root).decode().split("\n"), *self._given, *self._branches()}
        name = next(name for name in branch_names("opencode") if name not in taken)
        self._given.add(name)
        return name

    def _branches(self) -> list[str]:
        return [record.branch for record in records(self._scene.layout)]

    def _workspace(self, workspace_id: str, branch: BranchName) -> _Workspace:
        if branch not in self._workspaces:
            self._workspaces[branch] = _Workspace(Server(self._scene, branch, workspace_id))
        return self._workspaces[branch]

    async def _serve(self, client: socket.socket, workspace: _Workspace, request: Request, path: str) -> None:
        bare = path.partition("?")[0]
        if bare in (_EVENTS, _HISTORY, *_KEPT) and not await workspace.server.answers():
            await self._stand_in(client, workspace, request, bare)
            return
        try:
            endpoint = await self._ready(workspace)
        except OverlayrunError as err:
            words = ": ".join(part for part in (err.brief, err.details, err.hint) if part)
            await _answer(client, _told(words), 503)
            return
        await _pass_on(client, request.passed_on(path, endpoint), endpoint)

    async def _stand_in(
        self, client: socket.socket, workspace: _Workspace, request: Request, path: str
    ) -> None:
        """Answer in the place of a server that is not running, and need not run for this."""
        if path == _EVENTS:
            await self._stream(client, workspace, request)
        elif path == _HISTORY:
            await _answer(client, [])
        else:
            await self._keep(client, workspace, request, path)

    def _begin(self, workspace: _Workspace) -> None:
        """Start its server now, in the background; who needs it waits for it, and hears of errors."""

        async def begin() -> None:
            try:
                await self._ready(workspace)
            except OverlayrunError:
                pass

        _keep_task(asyncio.create_task(begin()))

    async def _ready(self, workspace: _Workspace) -> Endpoint:
        """Its server, which has heard what was kept for it, with OpenCode listening to what comes of that."""
        async with workspace.door:
            endpoint = await workspace.server.endpoint()
            workspace.started.set()
            if workspace.streams:  # what happens before OpenCode hears it would be missing for good
                with suppress(TimeoutError):
                    await asyncio.wait_for(workspace.joined.wait(), _JOIN_PATIENCE)
            while workspace.kept:
                path, body = workspace.kept.pop(0)
                await _post(endpoint, path, body)
            return endpoint

    async def _keep(self, client: socket.socket, workspace: _Workspace, request: Request, path: str) -> None:
        body = await _body(client, request)
        data = json.loads(body)
        first = data["events"][0]["aggregateID"] if "events" in data else data["sessionID"]
        workspace.kept.append((path, body))
        await _answer(client, {"sessionID": first})

    async def _stream(self, client: socket.socket, workspace: _Workspace, request: Request) -> None:
        """A stream of events without a server; as soon as there is one, its own.

        A workspace that this hub has not made may have a history that OpenCode asks for when it connects: its
        stream ends, so that it connects anew.
        """
        workspace.started.clear()
        workspace.joined.clear()
        workspace.streams += 1
        loop = asyncio.get_running_loop()
        head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
        try:
            await loop.sock_sendall(client, head.encode() + _event("server.connected"))
            if await workspace.server.answers():  # since it was asked last
                workspace.started.set()
            await _beat_until(workspace.started, client)
            if not workspace.is_new:
                return
            server, heard = await self._join(workspace, request)
        finally:
            workspace.streams -= 1
            if not workspace.streams:
                workspace.joined.set()
        with server:
            await loop.sock_sendall(client, heard)
            await _carry(server, client)

    async def _join(self, workspace: _Workspace, request: Request) -> tuple[socket.socket, bytes]:
        """The server's own stream, from the moment on in which it misses nothing; what it told until then."""
        endpoint = await workspace.server.endpoint()
        server = await connect("127.0.0.1", endpoint.port)
        await asyncio.get_running_loop().sock_sendall(server, request.passed_on(_EVENTS, endpoint))
        _, heard = await _head(server)
        if not heard:  # its own "server.connected"
            heard = await asyncio.get_running_loop().sock_recv(server, 1 << 16)
        await is_well(endpoint)  # it listens a moment after it has said so: one more round trip
        return server, heard

    async def end(self) -> None:
        """End every server that was started here."""
        await asyncio.gather(*(each.server.end() for each in self._workspaces.values()))


_TASKS: Final[set[asyncio.Task[None]]] = set()


def _keep_task(task: asyncio.Task[None]) -> None:
    _TASKS.add(task)
    task.add_done_callback(_TASKS.discard)


def _event(kind: str) -> bytes:
    payload = {"id": f"evt_{secrets.token_hex(12)}", "type": kind, "properties": {}}
    return f"data: {json.dumps({'payload': payload})}\n\n".encode()


async def _beat_until(over: asyncio.Event, client: socket.socket) -> None:
    """Keep a stream of events alive."""
    while not over.is_set():
        try:
            await asyncio.wait_for(over.wait(), _HEARTBEAT)
        except TimeoutError:
            await asyncio.get_running_loop().sock_sendall(client, _event("server.heartbeat"))


async def _read(client: socket.socket) -> Request | None:
    async with asyncio.timeout(_HEAD_PATIENCE):
        head, rest = await _head(client)
    if not head:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    if first.count(" ") != 2:
        return None
    method, path, _ = first.split(" ")
    return Request(method, path, tuple(lines), rest)


async def _body(client: socket.socket, request: Request) -> bytes:
    length = min(int(request.header("content-length") or 0), _LONGEST_BODY)
    data = request.rest
    while len(data) < length:
        part = await asyncio.get_running_loop().sock_recv(client, 1 << 16)
        if not part:
            break
        data += part
    return data


async def _head(connection: socket.socket) -> tuple[bytes, bytes]:
    """The head of a message with its empty line, and what came with it; (b"", …) where none came whole."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = await asyncio.get_running_loop().sock_recv(connection, 1 << 14)
        if not part or len(data) > _LONGEST_HEAD:
            return b"", data
        data += part
    head, end, rest = data.partition(b"\r\n\r\n")
    return head + end, rest


def _told(words: str) -> dict[str, Any]:
    """An error as OpenCode's clients show it."""
    return {"name": "UnknownError", "message": words, "data": {"message": words}}


async def _answer(client: socket.socket, data: Any, status: int = 200) -> None:
    body = json.dumps(data).encode()
    head = (
        f"HTTP/1.1 {status} {'OK' if status == 200 else 'Service Unavailable'}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    await asyncio.get_running_loop().sock_sendall(client, head.encode() + body)


async def _pass_on(client: socket.socket, data: bytes, endpoint: Endpoint) -> None:
    """Carry a request and its answer. Where either end goes, so does the other."""
    with await connect("127.0.0.1", endpoint.port) as server:
        await asyncio.get_running_loop().sock_sendall(server, data)
        there = asyncio.create_task(_carry(client, server))
        back = asyncio.create_task(_carry_back(server, client))
        try:
            await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
            if there.done() and there.exception():  # the server is gone; the client hears it by the other way
                await asyncio.wait({back}, timeout=_JOIN_PATIENCE)
        finally:
            there.cancel()
            back.cancel()
            await asyncio.gather(there, back, return_exceptions=True)


async def _carry(source: socket.socket, sink: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(source, 1 << 16):
        await loop.sock_sendall(sink, data)


async def _carry_back(server: socket.socket, client: socket.socket) -> None:
    """The answer; Bun closes after it, but does not say so, and a client would use the connection again."""
    head, rest = await _head(server)
    if (
        not head and not rest
    ):  # killed in this moment; nobody knows what it still did, so it is not asked again
        await _answer(client, _told("OpenCode ended in this branch: send it again"), 503)
        return
    if not head.startswith(b"HTTP/1.1 101"):
        first, end, others = head.partition(b"\r\n")
        head = first + end + (b"Connection: close\r\n" if end else b"") + others
    await asyncio.get_running_loop().sock_sendall(client, head + rest)
    await _carry(server, client)


async def _post(endpoint: Endpoint, path: str, body: bytes) -> None:
    lines = ("Content-Type: application/json", f"Content-Length: {len(body)}")
    request = Request("POST", path, lines, body)
    with await connect("127.0.0.1", endpoint.port) as server:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(server, request.passed_on(path, endpoint))
        while await loop.sock_recv(server, 1 << 14):
            pass


def run_hub(
    scene: Scene, stop: int, tell: Callable[[dict[str, Any]], None], again: str | None = None
) -> None:
    """Serve until the descriptor `stop` ends, which OpenCode holds; then end every server.

    tell: called once with {"url"}. again: the url of a hub that died, to be served on.
    """
    port, token = (again or "").removeprefix("http://127.0.0.1:").partition("/")[::2]
    token = token or secrets.token_urlsafe(24)
    listener = socket.create_server(("127.0.0.1", int(port or 0)))
    hub = Hub(scene, token)
    tell({"url": f"http://127.0.0.1:{listener.getsockname()[1]}/{token}"})

    async def main() -> None:
        over = asyncio.Event()
        asyncio.get_running_loop().add_reader(stop, over.set)
        serving = asyncio.create_task(serve(listener, hub.handle))
        await over.wait()
        serving.cancel()
        await hub.end()

    asyncio.run(main())
