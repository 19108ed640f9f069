"""Rows about OpenCode: a session in a workspace of its own, and what its snapshots add to a turn.

The model is scripted and answers at once, so that only the agent and overlayrun are measured.
"""

from __future__ import annotations

import functools
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Any, Final

from _bench_inside import path_of
from _bench_measure import BenchError, Figure, Race, amount, more
from _bench_peers import branch_of
from _bench_world import HERE, World

sys.path.append(f"{os.path.dirname(HERE)}/tests/agents")
from scripted_model import MODEL_NAME, ScriptedModel

_CALLS: Final = 20  # of a tool, in one turn
_PATIENCE: Final = 120  # seconds for an answer
_AT_FIRST: Final = 0.1  # the same, while the port opens: OpenCode never answers what comes too early
_PAUSE: Final = 0.01
_SETTLED: Final = (
    1  # seconds in which OpenCode's own git works in a new tree, which can't be closed meanwhile
)
_EXPERIMENT: Final = "OPENCODE_EXPERIMENTAL_WORKSPACES"
_OFFLINE: Final = {
    "OPENCODE_DISABLE_DEFAULT_PLUGINS": "1",
    "OPENCODE_DISABLE_MODELS_FETCH": "1",
    "npm_config_fetch_retries": "0",
    "npm_config_offline": "true",
}
# As an installation of OpenCode's own leaves it, which comes once and not with every start.
_INSTALLED: Final = '{"lockfileVersion": 3, "packages": {"": {"dependencies": {"@opencode-ai/plugin": "*"}}}}'
_STATE: Final = (".config/opencode", ".local/share/opencode", ".local/state/opencode", ".cache/opencode")


class _Server:
    """One `opencode serve` in a repository; a context manager. command: as far as `serve`."""

    def __init__(self, world: World, place: str, command: list[str], **variables: str) -> None:
        self._port = _free_port()
        environment = {**world.run.environment, **_OFFLINE, **variables}
        environment["PATH"] = f"{os.path.dirname(world.overlayrun)}:{environment['PATH']}"
        with open(f"{world.scrap}/opencode.log", "wb") as log:
            self._process = subprocess.Popen(
                [*command, "serve", "--hostname", "127.0.0.1", "--port", str(self._port)],
                cwd=place,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._log = log.name

    def __enter__(self) -> _Server:
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _wait(self) -> None:
        _wait_for(lambda: self._is_up() or self._process.poll() is not None, "OpenCode")
        if self._process.returncode is not None:
            with open(self._log, encoding="utf-8", errors="replace") as log:
                raise BenchError(f"OpenCode does not start: {log.read()[-300:].strip()}")

    def _is_up(self) -> bool:
        with suppress(OSError, http.client.HTTPException, BenchError):
            self.ask("GET", "/global/health", patience=_AT_FIRST)
            return True
        return False

    def ask(self, method: str, path: str, data: Any = None, patience: float = _PATIENCE) -> Any:
        """One request of its API; JSON both ways. Raises BenchError for any answer but 200."""
        body = None if data is None else json.dumps(data)
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=patience)) as connection:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
        if answer.status != http.client.OK:
            raise BenchError(f"OpenCode answers {answer.status}: {text[:300].decode(errors='replace')}")
        return json.loads(text)

    def prompt(self, session: str, script: str) -> None:
        """One turn to its end."""
        answer = self.ask(
            "POST", f"/session/{session}/message", {"parts": [{"type": "text", "text": script}]}
        )
        if answer["info"].get("error"):
            raise BenchError(f"the turn failed: {str(answer['info']['error'])[:300]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _configured(world: World, **settings: bool) -> Iterator[str]:
    """OpenCode's path, with its configuration for a model in the home directory; settings: more of that."""
    program = world.opencode()
    for name in _STATE:
        world.remove(f"{world.home}/{name}")
    with ScriptedModel() as model:
        place = f"{world.home}/{_STATE[0]}"
        os.makedirs(f"{place}/node_modules")
        text = json.dumps(_settings(model.base_url) | settings)
        for name, content in (("package-lock.json", _INSTALLED), ("opencode.json", text)):
            with open(f"{place}/{name}", "w", encoding="ascii") as file:
                file.write(content)
        try:
            yield program
        finally:
            for name in _STATE:
                world.remove(f"{world.home}/{name}")


def _settings(address: str) -> dict[str, Any]:
    limit = {"context": 100_000, "output": 10_000}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "options": {"baseURL": address, "apiKey": "none"},
        "models": {MODEL_NAME: {"tool_call": True, "limit": limit}},
    }
    name = f"scripted/{MODEL_NAME}"
    settings = {"provider": {"scripted": provider}, "model": name, "small_model": name}
    return {**settings, "autoupdate": False, "lsp": False, "formatter": False}


def _drop_all(world: World, place: str) -> None:
    """Remove every branch, the servers having ended."""
    for row in json.loads(world.run(world.ours("ls", "--json"), place).output)["workspaces"]:
        world.drop(place, row["branch"])
    world.tidy(place)


def _in_branch(world: World, program: str, branch: str, *options: str) -> list[str]:
    words = ("-q", "-b", branch, "--dirty", "ignore", "--every", "0", *options)
    return world.ours(*words, "--", program)


def _since(began: int) -> float:
    return (time.monotonic_ns() - began) / 1e6


@contextmanager
def local(world: World, size: int) -> Iterator[Race]:
    """A session in a further branch of the run that the user's OpenCode works in."""
    place, ours, own = world.repository(size), "workspace and session", "its session alone"
    with ExitStack() as stack:
        stack.callback(_drop_all, world, place)
        program = stack.enter_context(_configured(world))
        command = _in_branch(world, program, branch_of(0), "--env", _EXPERIMENT)
        server = stack.enter_context(_Server(world, place, command, **{_EXPERIMENT: "1"}))

        def lane(_: int) -> Mapping[str, float]:
            wanted = {"type": "overlayrun-local", "branch": None}
            began = time.monotonic_ns()
            made = server.ask("POST", "/experimental/workspace", wanted)
            middle = time.monotonic_ns()
            server.ask("POST", f"/session?workspace={made['id']}", {})
            spent = {ours: _since(began), own: _since(middle)}
            time.sleep(_SETTLED)
            server.ask("DELETE", f"/experimental/workspace/{made['id']}")
            return spent

        files = f"{size:,}"
        figures = [
            amount("OpenCode, session beside others", files, ours, "ms", 300),
            amount("the same, OpenCode's own part", files, own, "ms"),
        ]
        yield Race([lane], figures)


@contextmanager
def remote(world: World, size: int) -> Iterator[Race]:
    """A session with a server of its own, beside such a server that the user starts without overlayrun."""
    place, ours, peer = world.repository(size), "POST /session of the hub", "opencode serve, POST /session"
    with ExitStack() as stack:
        stack.callback(_drop_all, world, place)
        program = stack.enter_context(_configured(world))
        variables = {_EXPERIMENT: "1", "OPENCODE_CONFIG_CONTENT": json.dumps({"plugin": [_plugin(world)]})}
        hub = stack.enter_context(_Server(world, place, [program], **variables))
        hub.ask("GET", "/session")  # plugins are loaded by the first request that needs the repository

        def session(_: int) -> Mapping[str, float]:
            began = time.monotonic_ns()
            made = hub.ask("POST", "/session", {})
            spent = _since(began)
            (found,) = hub.ask("GET", "/experimental/workspace")
            assert made["workspaceID"] == found["id"], made
            hub.ask("DELETE", f"/experimental/workspace/{found['id']}")
            world.drop(place, found["branch"])
            return {ours: spent}

        def alone(_: int) -> Mapping[str, float]:
            began = time.monotonic_ns()
            with _Server(world, place, [program]) as server:
                server.ask("POST", "/session", {})
                return {peer: _since(began)}

        figure = more("OpenCode, session with its own server", f"{size:,}", ours, peer, 300)
        for lane in (session, alone):  # caches
            lane(-1)
        yield Race([session, alone], [figure], heavy=True)


def _plugin(world: World) -> str:
    program = "from overlayrun import agents; print(agents.__path__[0])"
    found = world.run([f"{world.home}/venv/bin/python", "-c", program], world.root)
    return f"file://{found.output.decode().strip()}/opencode/server.js"


@contextmanager
def tool(world: World, size: int) -> Iterator[Race]:
    """A turn of many tool calls in a workspace: with a snapshot after each, and without any."""
    place, ours, peer, added = world.repository(size), "a turn, snapshots", "a turn, none", "a call, more"
    with ExitStack() as stack:
        stack.callback(_drop_all, world, place)
        # OpenCode's own snapshots take 300 ms a call here, and differ by more than ours cost.
        program = stack.enter_context(_configured(world, snapshot=False))
        turns: dict[str, Callable[[], float]] = {}
        # OPENCODE_PURE: without plugins. The turn's end has a snapshot too.
        for name, expected, variables in ((ours, _CALLS + 1, {}), (peer, 0, {"OPENCODE_PURE": "1"})):
            branch = branch_of(len(turns))
            words = [word for variable in variables for word in ("--env", variable)]
            command = _in_branch(world, program, branch, *words)
            server = stack.enter_context(_Server(world, place, command, **variables))
            turns[name] = functools.partial(_turn, world, server, (place, branch), size, expected)

        def lane(number: int) -> Mapping[str, float]:
            names = (ours, peer) if number % 2 == 0 else (peer, ours)
            spent = {name: turns[name]() for name in names}
            # By pairs: turns differ by more than what is measured, as long as a server warms up.
            return {**spent, added: (spent[ours] - spent[peer]) / _CALLS}

        lane(-1)  # the first turn of a server
        what = "OpenCode, a snapshot after a tool call"
        form = "{:.0f} ms a call"
        figure = Figure(what, f"{size:,}", ours, peer, lambda medians: medians[added], form, limit=60)
        yield Race([lane], [figure], heavy=True)


def _turn(world: World, server: _Server, where: tuple[str, str], size: int, expected: int) -> float:
    """Milliseconds of a turn. where: repository and branch. expected: snapshots that it makes."""
    place, branch = where

    def snapshots() -> int:
        listed = json.loads(world.run(world.ours("log", branch, "--json"), place).output)
        return len(listed["snapshots"])

    paths = [path_of(call * size // _CALLS) for call in range(_CALLS)]
    script = "\n".join(f"@write {path} now = {time.time_ns()}" for path in paths)
    session = server.ask("POST", "/session", {})["id"]
    wanted = snapshots() + expected
    began = time.monotonic_ns()
    server.prompt(session, script)
    spent = _since(began)
    _wait_for(lambda: snapshots() >= wanted, "the turn's last snapshot")
    if snapshots() > wanted:
        raise BenchError(f"{branch}: more snapshots were taken than {expected}")
    return spent


def _wait_for(is_true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + _PATIENCE
    while not is_true():
        if time.monotonic() > end:
            raise BenchError(f"{what} does not come")
        time.sleep(_PAUSE)
