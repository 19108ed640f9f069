"""One `opencode serve` in the workspace of a branch: started when it is asked for, ended with its hub.

The hub of a second OpenCode on the same repository uses the server that the first one has started.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import socket
import time
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from overlayrun.errors import WorkspaceBusy, WorkspaceError
from overlayrun.files import read_bytes, write_whole
from overlayrun.kernel.namespaces import die_with_parent
from overlayrun.model import BranchName
from overlayrun.program import this_program
from overlayrun.tunnel import connect
from overlayrun.workspace.catalogue import find_exact, user_state
from overlayrun.workspace.layout import Layout, WorkspaceLayout
from overlayrun.workspace.lock import is_locked

_PATIENCE: Final = 60.0  # seconds that OpenCode may take to answer
_PAUSE: Final = 0.03
_HEALTH_PATIENCE: Final = 2.0
_END_PATIENCE: Final = 30.0  # seconds for the last snapshot
_OTHERS_PATIENCE: Final = 5.0  # the same of a server whose hub is dead
_SHOWN: Final = 3  # lines of the log that an error tells
# What OpenCode tells its own children about itself; to a server of its own it would be wrong.
_OF_ITSELF: Final = frozenset(
    "OPENCODE OPENCODE_PID OPENCODE_RUN_ID OPENCODE_PROCESS_ROLE OPENCODE_CLIENT AGENT "
    "OPENCODE_SERVER_PASSWORD OPENCODE_SERVER_USERNAME".split()
)


@dataclass(frozen=True, slots=True)
class Scene:
    """Where a hub works. root: of the working tree. opencode: the program.

    has_own_network: by the user's settings runs have one of their own, out of which a server is published.
    """

    layout: Layout
    root: str
    opencode: str
    has_own_network: bool = False


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server on the loopback address, and what it wants to hear."""

    port: int
    password: str

    @property
    def authorization(self) -> str:
        """Value of the header."""
        return f"Basic {b64encode(f'opencode:{self.password}'.encode()).decode()}"


class Server:
    """The server of one branch. workspace_id: OpenCode's own name for it."""

    def __init__(self, scene: Scene, branch: BranchName, workspace_id: str) -> None:
        self.branch = branch
        self._scene = scene
        self._workspace_id = workspace_id
        self._process: asyncio.subprocess.Process | None = None
        self._endpoint: Endpoint | None = None
        self._starting = asyncio.Lock()

    async def answers(self) -> bool:
        """Whether it is there now, however busy."""
        if self._endpoint is None:
            return False
        is_held = self._lock_is_held() if self._process is None else self._process.returncode is None
        return is_held and await _is_there(self._endpoint)

    async def endpoint(self) -> Endpoint:
        """Where it answers; started first where it does not.

        Raises WorkspaceBusy where another run has the branch, WorkspaceError where it does not start.
        """
        async with self._starting:
            if self._endpoint is None or not await self.answers():
                await self.end()  # what was killed may still be at its last snapshot
                self._endpoint = await self._adopt() or await self._start()
            return self._endpoint

    def _place(self) -> WorkspaceLayout | None:
        record = find_exact(self._scene.layout, self.branch)
        return self._scene.layout.workspace(record.id) if record else None

    def _lock_is_held(self) -> bool:
        place = self._place()
        return place is not None and is_locked(place.lock)

    async def _adopt(self) -> Endpoint | None:
        """The server that another hub has started, None where the branch is idle."""
        place = self._place()
        end = time.monotonic() + _OTHERS_PATIENCE
        while place is not None and is_locked(place.lock):
            found = _announced(place)
            if found is not None and await _is_there(found):
                self._process = None
                return found
            if found is None or time.monotonic() > end:
                raise WorkspaceBusy(
                    f"a command runs in branch {self.branch}", hint="end it, or take another session"
                )
            await asyncio.sleep(_PAUSE)
        return None

    async def _start(self) -> Endpoint:
        endpoint = Endpoint(_free_port(), secrets.token_urlsafe(24))
        log = self._log()
        with open(log, "ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *self._command(endpoint),
                cwd=self._scene.root,
                env=self._environment(endpoint),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=_end_with_us(os.getpid()),
            )
        if not await _comes(endpoint, self._process):
            await self.end()
            raise WorkspaceError(
                f"OpenCode did not start in branch {self.branch}", details=_tail(log), hint=f"see {log}"
            )
        self._announce(endpoint)
        return endpoint

    def _command(self, endpoint: Endpoint) -> list[str]:
        # Its sessions reach OpenCode's own database as events: nothing is gained by sharing the file.
        options = ["-b", self.branch, "--profile", "opencode", "--agent-state", "private"]
        if self._scene.has_own_network:
            options += ["--publish", str(endpoint.port)]
        for name in ("OPENCODE_SERVER_PASSWORD", "OPENCODE_WORKSPACE_ID"):
            options += ["--env", name]
        serve = ["serve", "--hostname", "127.0.0.1", "--port", str(endpoint.port)]
        return [*this_program(), *options, "--", self._scene.opencode, *serve]

    def _environment(self, endpoint: Endpoint) -> Mapping[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in _OF_ITSELF}
        return kept | {
            "OPENCODE_EXPERIMENTAL_WORKSPACES": "true",
            "OPENCODE_WORKSPACE_ID": self._workspace_id,
            "OPENCODE_SERVER_PASSWORD": endpoint.password,
        }

    def _log(self) -> str:
        place = f"{user_state()}/log/opencode"
        os.makedirs(place, mode=0o700, exist_ok=True)
        return f"{place}/{self.branch.replace('/', '-')}.log"

    def _announce(self, endpoint: Endpoint) -> None:
        place = self._place()
        if place is not None:
            data = {"port": endpoint.port, "password": endpoint.password}
            write_whole(place.server, json.dumps(data).encode(), durable=False)

    async def end(self) -> None:
        """End a server that was started here, and wait for its last snapshot."""
        process, self._process, self._endpoint = self._process, None, None
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), _END_PATIENCE)
        except TimeoutError:
            process.kill()
            await process.wait()


def _announced(place: WorkspaceLayout) -> Endpoint | None:
    """Where the last server of a branch says that it listens."""
    try:
        data = json.loads(read_bytes(place.server))
        return Endpoint(data["port"], data["password"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _end_with_us(parent: int) -> Any:
    """What a child does before it becomes overlayrun: its run is ended in order when the hub is killed."""

    def prepare() -> None:
        die_with_parent(parent, signal.SIGTERM)

    return prepare


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _comes(endpoint: Endpoint, process: asyncio.subprocess.Process) -> bool:
    """Wait for a server that starts; false where it ends instead, or takes too long.

    It is asked again before it has answered: what reaches OpenCode while its port opens is never answered.
    """
    asked: set[asyncio.Task[bool]] = set()
    end = time.monotonic() + _PATIENCE
    try:
        while not any(each.done() and each.result() for each in asked):
            if process.returncode is not None or time.monotonic() > end:
                return False
            asked = {each for each in asked if not each.done()} | {asyncio.create_task(_is_well(endpoint))}
            await asyncio.sleep(_PAUSE)
    finally:
        for each in asked:
            each.cancel()
    return True


async def _is_there(endpoint: Endpoint) -> bool:
    """Whether anybody listens; one that is busy for seconds is not dead, one that hangs up is."""
    try:
        return await _health(endpoint)
    except TimeoutError:
        return True
    except OSError:
        return False


async def _is_well(endpoint: Endpoint) -> bool:
    """Whether it answers, and soon."""
    try:
        return await _health(endpoint)
    except OSError:
        return False


async def _health(endpoint: Endpoint) -> bool:
    """What it says of itself. Raises TimeoutError, OSError."""
    request = (
        f"GET /global/health HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {endpoint.authorization}\r\n"
        "Connection: close\r\n\r\n"
    )
    async with asyncio.timeout(_HEALTH_PATIENCE):
        with await connect("127.0.0.1", endpoint.port) as server:
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(server, request.encode())
            return (await loop.sock_recv(server, 64)).startswith(b"HTTP/1.1 200")


def _tail(log: str) -> str:
    try:
        lines = read_bytes(log).decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return " | ".join(lines[-_SHOWN:])
