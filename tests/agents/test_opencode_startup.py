"""What a start of OpenCode in a workspace costs, and whose state it works with."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Final

import pytest

from .project import Project, Run, wait_until

pytestmark = pytest.mark.shared  # what OpenCode asks for, and what its sessions undo

_PATIENCE: Final = 120.0
_PLUGIN: Final = """\
import { writeFileSync } from "fs"
export default async () => { writeFileSync(process.env.HOME + "/plugin-was-loaded", ""); return {} }
"""


class Registry(ThreadingHTTPServer):
    """A registry of packages that has none, and counts who asks; a context manager."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_error(404)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
                """Keep quiet: `asked` is the log."""

        super().__init__(("127.0.0.1", 0), Handler)
        self._thread = Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> Registry:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


@pytest.fixture
def registry() -> Iterator[Registry]:
    """The registry that the project's OpenCode would install from."""
    with Registry() as registry:
        yield registry


@pytest.fixture
def configured(project: Project, registry: Registry) -> Project:
    """A project with a plugin and commands for OpenCode, free to install, its history in a pack."""
    for name in ("npm_config_offline", "npm_config_fetch_retries"):
        del project.env[name]
    project.env["npm_config_registry"] = f"http://127.0.0.1:{registry.server_address[1]}/"
    plugin = project.home / "plugin.js"
    plugin.write_text(_PLUGIN)
    project.env["OPENCODE_CONFIG_CONTENT"] = json.dumps({"plugin": [f"file://{plugin}"]})
    command = project.repo / ".opencode/command/hi.md"
    command.parent.mkdir(parents=True)
    command.write_text("Say hi\n")
    project.git("add", "--all")
    project.git("commit", "--quiet", "--message=A command")
    project.git("repack", "-a", "-d", "--quiet")
    return project


class Server:
    """One `opencode serve` in a workspace, with a session."""

    def __init__(self, run: Run, port: int) -> None:
        self._run = run
        self._url = f"http://127.0.0.1:{port}"
        wait_until(lambda: "listening on" in run.output() or not run.is_running())
        wait_until(lambda: self._answers() or not run.is_running())
        self._session = self._post("session", {})["id"]

    def prompt(self, script: str) -> str:
        """Let a turn run to its end, and give the id of the user's message in it."""
        answer = self._post(f"session/{self._session}/message", {"parts": [{"type": "text", "text": script}]})
        identity: str = answer["info"]["parentID"]
        return identity

    def undo(self, message: str) -> None:
        """Do what the TUI's /undo does."""
        self._post(f"session/{self._session}/revert", {"messageID": message})

    def _answers(self) -> bool:
        # What is asked while it starts may never be answered: it is asked again.
        try:
            self._call("config", None, 2.0)
        except OSError:
            return False
        return True

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return self._call(path, json.dumps(body).encode())

    def _call(self, path: str, body: bytes | None, seconds: float = _PATIENCE) -> Any:
        request = urllib.request.Request(f"{self._url}/{path}", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            return json.load(answer)


@contextmanager
def serving(project: Project, branch: str) -> Iterator[Server]:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    with project.started("-b", branch, "--", "opencode", "serve", "--port", str(port)) as run:
        yield Server(run, port)


def test_two_servers_start_cheaply_and_undo_each_for_itself(configured: Project, registry: Registry) -> None:
    """One pair of servers for many questions: their start takes seconds."""
    project, before = configured, configured.files()
    script = "@edit src/app.py 41 => {0!r}\n@bash printf {0} >new.txt; git add new.txt; git commit -qm {0}"
    with serving(project, "left") as left, serving(project, "right") as right:
        with ThreadPoolExecutor() as at_once:
            scripts = map(script.format, ("left", "right"))
            told_left, told_right = at_once.map(Server.prompt, (left, right), scripts)
        assert contents(project, "left") == ["answer = 'left'\n", "left"]
        assert contents(project, "right") == ["answer = 'right'\n", "right"]

        left.undo(told_left)
        assert contents(project, "left") == ["answer = 41\n"]
        assert contents(project, "right") == ["answer = 'right'\n", "right"]
        right.undo(told_right)
        assert contents(project, "right") == ["answer = 41\n"]

    # No package was asked for, installed or left behind, with a plugin that waits for all that.
    assert registry.asked == []
    assert project.files() == before
    assert sorted(os.listdir(project.home / ".config/opencode")) == ["opencode.json"]
    for name in ("left", "right"):
        place = workspace(project, name)
        assert (place / "home/plugin-was-loaded").exists()
        assert not [path for path in place.rglob("*.pack") if path.is_file()]
        assert not list(place.glob("**/node_modules/*"))
        assert list((place / "home/.local/share/opencode/snapshot").iterdir())
        assert ".opencode" not in project.git("diff", "--name-only", "main", name)
    assert not list((project.home / ".local/share/opencode/snapshot").iterdir())

    # Both are sessions of the user's.
    assert sessions(project.home) == 2
    done = project.overlayrun("-b", "own", "--agent-state", "private", "--", "opencode", "run", "@say Mine")
    assert (done.returncode, done.stdout.strip()) == (0, "Mine"), done.stderr
    assert (sessions(project.home), sessions(workspace(project, "own") / "home")) == (2, 1)
    assert registry.asked == []


def contents(project: Project, branch: str) -> list[str]:
    """Take a snapshot, and give the files that the sessions change, those that are there."""
    done = project.overlayrun("snapshot", branch)
    assert done.returncode == 0, done.stderr
    ref = f"refs/overlayrun/snapshots/{workspace(project, branch).name}"
    names = project.git("ls-tree", "-r", "--name-only", ref, "src/app.py", "new.txt").split()
    return [project.git("show", f"{ref}:{name}") for name in sorted(names, reverse=True)]


def workspace(project: Project, branch: str) -> Path:
    for record in (project.repo / ".git/overlayrun/workspaces").glob("*/record.json"):
        if json.loads(record.read_bytes())["branch"] == branch:
            return record.parent
    raise LookupError(branch)


def sessions(home: Path) -> int:
    with closing(sqlite3.connect(home / ".local/share/opencode/opencode.db")) as database:
        count: int = database.execute("SELECT count(*) FROM session").fetchone()[0]
    return count
