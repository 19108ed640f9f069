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
from typing import Any, Final
from urllib.parse import unquote

from overlayrun.agents.opencode.events import EVENTS, HISTORY, Feed
from overlayrun.agents.opencode.exchange import Request, answer, post, read_body, read_head, read_request
from overlayrun.agents.opencode.servers import Endpoint, Scene, Server
from overlayrun.errors import OverlayrunError
from overlayrun.model import BranchName
from overlayrun.store.git import git
from overlayrun.tunnel import connect, serve
from overlayrun.workspace.catalogue import records
from overlayrun.workspace.names import branch_names

_LAST_PATIENCE: Final = 10.0
# Told to a server that is not there yet: it hears them, in order, before anything else.
_KEPT: Final = ("/sync/replay", "/sync/steal")


class _Workspace:
    """One workspace. kept: requests (path, body) for its server."""

    def __init__(self, server: Server, feed: Feed) -> None:
        self.server = server
        self.feed = feed
        self.kept: list[tuple[str, bytes]] = []
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
        request = await read_request(client)
        parts = request.path.split("/", 5) if request else []
        if request is None or len(parts) < 3 or not secrets.compare_digest(parts[1], self._token):
            return
        if parts[2] == "new":
            await answer(client, {"branch": self._new_branch()})
        elif parts[2] == "list":
            await answer(client, self._branches())
        elif len(parts) > 4:
            workspace = self._workspace(parts[3], BranchName(unquote(parts[4])))
            await self._deal(client, workspace, request, parts)

    async def _deal(
        self, client: socket.socket, workspace: _Workspace, request: Request, parts: list[str]
    ) -> None:
        if parts[2] == "w":
            await self._serve(client, workspace, request, "/" + "".join(parts[5:]))
        elif parts[2] == "start":
            self._begin(workspace)
            await answer(client, {})
        elif parts[2] == "end":
            await workspace.server.end()
            await answer(client, {})

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
            self._workspaces[branch] = _Workspace(
                Server(self._scene, branch, workspace_id), Feed(self._scene.root)
            )
        return self._workspaces[branch]

    async def _serve(self, client: socket.socket, workspace: _Workspace, request: Request, path: str) -> None:
        bare = path.partition("?")[0]
        if bare == EVENTS:
            await workspace.feed.stream(client)
        elif bare == HISTORY:
            known = json.loads(await read_body(client, request))
            await answer(client, await workspace.feed.history(known))
        elif bare in _KEPT and not await workspace.server.answers():
            await self._keep(client, workspace, request, bare)
        else:
            await self._ask(client, workspace, request, path)

    async def _ask(self, client: socket.socket, workspace: _Workspace, request: Request, path: str) -> None:
        try:
            endpoint = await self._ready(workspace)
        except OverlayrunError as err:
            words = ": ".join(part for part in (err.brief, err.details, err.hint) if part)
            await answer(client, _told(words), 503)
            return
        await _pass_on(client, request.passed_on(path, endpoint), endpoint)

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
            await workspace.feed.begin(endpoint)
            while workspace.kept:
                path, body = workspace.kept.pop(0)
                await post(endpoint, path, body)
            return endpoint

    async def _keep(self, client: socket.socket, workspace: _Workspace, request: Request, path: str) -> None:
        body = await read_body(client, request)
        data = json.loads(body)
        first = data["events"][0]["aggregateID"] if "events" in data else data["sessionID"]
        workspace.kept.append((path, body))
        await answer(client, {"sessionID": first})

    async def end(self) -> None:
        """End every server that was started here."""
        await asyncio.gather(*(each.server.end() for each in self._workspaces.values()))


_TASKS: Final[set[asyncio.Task[None]]] = set()


def _keep_task(task: asyncio.Task[None]) -> None:
    _TASKS.add(task)
    task.add_done_callback(_TASKS.discard)


def _told(words: str) -> dict[str, Any]:
    """An error as OpenCode's clients show it."""
    return {"name": "UnknownError", "message": words, "data": {"message": words}}


async def _pass_on(client: socket.socket, data: bytes, endpoint: Endpoint) -> None:
    """Carry a request and its answer. Where either end goes, so does the other."""
    with await connect("127.0.0.1", endpoint.port) as server:
        await asyncio.get_running_loop().sock_sendall(server, data)
        there = asyncio.create_task(_carry(client, server))
        back = asyncio.create_task(_carry_back(server, client))
        try:
            await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
            if there.done() and there.exception():  # the server is gone; the client hears it by the other way
                await asyncio.wait({back}, timeout=_LAST_PATIENCE)
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
    head, rest = await read_head(server)
    if (
        not head and not rest
    ):  # killed in this moment; nobody knows what it still did, so it is not asked again
        await answer(client, _told("OpenCode ended in this branch: send it again"), 503)
        return
    if not head.startswith(b"HTTP/1.1 101"):
        first, end, others = head.partition(b"\r\n")
        head = first + end + (b"Connection: close\r\n" if end else b"") + others
    await asyncio.get_running_loop().sock_sendall(client, head + rest)
    await _carry(server, client)


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
