"""A branch for every session of one OpenCode: the real one, its plugins, a real terminal, a scripted model."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest
from conftest import SHARE

from .project import Project, wait_until
from .scripted_model import ScriptedModel
from .tmux import Screen

_AT_ONCE: Final = 6
_START: Final = 90  # seconds that a start of OpenCode may take on a busy machine


@pytest.fixture
def integrated(project: Project) -> Project:
    """A project whose user has typed `overlayrun integrate opencode`, and opened a new terminal."""
    project.output(["overlayrun", "integrate", "opencode"])
    project.env["OPENCODE_EXPERIMENTAL_WORKSPACES"] = "1"
    return project


class Hub:
    """`opencode serve` in the user's repository, with overlayrun's plugin."""

    def __init__(self, project: Project, process: subprocess.Popen[bytes], url: str) -> None:
        self.process = process
        self.url = url
        self._project = project

    def ask(self, method: str, path: str, data: Any = None, patience: float = _START) -> Any:
        """One request of its API; JSON both ways."""
        body = None if data is None else json.dumps(data).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}{path}", body, headers, method=method)
        with urllib.request.urlopen(request, timeout=patience) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def is_up(self) -> bool:
        """Whether it answers."""
        try:
            self.ask("GET", "/global/health", patience=1)  # one on a port that is just opening may hang
        except OSError:
            return False
        return True

    def begin(self, script: str) -> str:
        """Make a session and prompt at once, as a client that knows nothing of workspaces; the session."""
        session: str = self.ask("POST", "/session", {})["id"]
        self.prompt(session, script)
        return session

    def prompt(self, session: str, script: str) -> None:
        """One turn to its end."""
        answer = self.ask(
            "POST", f"/session/{session}/message", {"parts": [{"type": "text", "text": script}]}
        )
        assert answer["info"]["role"] == "assistant", answer


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _hub(project: Project, log: Path) -> Iterator[Hub]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["opencode", "serve", "--port", "0"],
            cwd=project.repo,
            env=project.env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        wait_until(lambda: "listening on" in log.read_text() or process.poll() is not None, _START)
        yield Hub(project, process, log.read_text().rpartition("listening on ")[2].split()[0])
    finally:
        process.terminate()
        process.wait(_START)


def _servers(project: Project, *, alone: bool = False) -> list[int]:
    """Processes of this user's OpenCode servers, and (unless alone) of what overlayrun started for them."""
    return [pid for pid, words in _processes(project) if b"serve" in words and not (alone and b"-c" in words)]


def _kill_servers(project: Project, hub: Hub) -> None:
    for pid in set(_servers(project, alone=True)) - {hub.process.pid}:
        os.kill(pid, signal.SIGKILL)


def _kill_hub(project: Project, hub: Hub) -> None:
    """What serves all workspaces of one OpenCode, which end with it; it is there again by itself."""

    def hubs() -> set[int]:
        return {pid for pid, words in _processes(project) if b"hub" in words}

    (killed,) = hubs()
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: bool(hubs() - {killed}), _START)
    wait_until(lambda: set(_servers(project)) == {hub.process.pid}, _START)


def _processes(project: Project) -> list[tuple[int, list[bytes]]]:
    """This user's processes: number, words."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            # Those in a sandbox show their environment to nobody: pid 1 of it is not dumpable, the rest is.
            is_ours = f"HOME={project.home}".encode() in (entry / "environ").read_bytes().split(b"\0")
            if is_ours:
                found.append((int(entry.name), words))
    return found


def _rows(project: Project) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(project.output(["overlayrun", "ls", "--json"]))["workspaces"]
    return rows


def _names(project: Project, commit: str) -> list[str]:
    return project.git("ls-tree", "-r", "--name-only", commit).splitlines()


def _untouched(project: Project) -> bool:
    return project.git("status", "--porcelain") == "" and project.git("rev-list", "--count", "main") == "2\n"


def through_the_api(project: Project, model: ScriptedModel, tmp_path: Path) -> None:
    """`opencode serve` and clients that know nothing of workspaces."""
    here = project.repo
    with _hub(project, tmp_path / "hub.log") as hub:
        # The very first request makes a session, and its prompt follows at once. Its path is one of the repository's.
        script = f"@write {here}/src/app.py answer = 'first'\\n\n@bash pwd >where\n@say Said."
        assert "Said." in project.output(["opencode", "run", "--attach", hub.url, script])
        assert _untouched(project)
        (first,) = _rows(project)
        assert project.git("show", f"{first['branch']}:src/app.py") == "answer = 'first'\n"
        assert project.git("show", f"{first['branch']}:where") == f"{here}\n"
        assert first["session_title"]

        # Several at once.
        with ThreadPoolExecutor() as threads:
            list(threads.map(hub.begin, [f"@write src/app.py {number}" for number in range(_AT_ONCE)]))
        assert _untouched(project)
        rows = _rows(project)
        assert len(rows) == 1 + _AT_ONCE
        shown = {project.git("show", f"{row['branch']}:src/app.py") for row in rows[1:]}
        assert shown == {str(number) for number in range(_AT_ONCE)}

        # The command line's own branches can be chosen in /warp; what is deleted there keeps its branch.
        project.overlayrun("-b", "by-hand", "--", "sh", "-c", "echo x >by-hand.txt")
        hub.ask("POST", "/experimental/workspace/sync-list", {})
        known = {each["branch"]: each["id"] for each in hub.ask("GET", "/experimental/workspace")}
        assert "by-hand" in known
        second = rows[1]["branch"]
        hub.ask("DELETE", f"/experimental/workspace/{known[second]}")
        assert project.git("show", f"{second}:src/app.py") in shown

        # A server that is killed is there again with the next prompt, and its work is kept.
        session = first["session_id"]
        _kill_servers(project, hub)
        hub.prompt(session, "@write after-kill.txt here")
        assert "after-kill.txt" in _names(project, first["branch"])

        # So with the hub: nothing outlives it.
        hub.process.kill()
        wait_until(lambda: not _servers(project), _START)
    with _hub(project, tmp_path / "again.log") as hub:
        hub.ask("GET", f"/session/{session}")  # as every client does: plugins are loaded by the first request
        hub.prompt(session, "@bash cat src/app.py after-kill.txt > both.txt")
        # Nor does a server that is killed here, or what serves them all, end a session.
        for kill in (_kill_servers, _kill_hub):
            kill(project, hub)
            hub.prompt(session, "@bash echo again >>again.txt")
    wait_until(lambda: not _servers(project), _START)
    assert project.git("show", f"{first['branch']}:both.txt") == "answer = 'first'\nhere"
    assert project.git("show", f"{first['branch']}:again.txt") == "again\nagain\n"
    assert len(_rows(project)) == 2 + _AT_ONCE
    assert _untouched(project)


def _bring_home(screen: Screen, project: Project, model: ScriptedModel, branches: tuple[str, str]) -> None:
    """What a user does with two branches that conflict; the second one's session is shown."""
    left, right = branches
    # A sub-agent works in the branch of the session that it helps.
    task = {"description": "help", "prompt": "::write helped.txt yes", "subagent_type": "general"}
    screen.enter(f"::tool task {json.dumps(task)}", seen="subagent_type")
    wait_until(lambda: "helped.txt" in _names(project, right))
    assert len(_rows(project)) == 2

    # Home with it, from inside.
    screen.enter("/overlay", seen="Branch: changes")
    screen.see("Merge into its target")
    screen.see("same.txt")
    screen.press("Enter")
    wait_until(lambda: "same.txt" in _names(project, "main"))
    assert project.git("show", "main:same.txt") == "right"

    # The other one conflicts now: a merging session reads what both sides say.
    screen.press("C-x", "l")
    screen.see("Sessions")
    screen.press("Down")
    screen.press("Enter")
    screen.see(left.removeprefix("overlay/"))
    screen.enter("/overlay", seen="Branch: changes")
    screen.see("Merge into its target")
    screen.press("Enter")
    screen.see(f"{left} conflicts with main")
    screen.press("Enter")
    wait_until(lambda: any("conflict" in prompt for prompt in model.prompts()))
    screen.see("still conflicts")

    # Approved, and thought better of it.
    screen.enter("/overlay", seen="Branch: changes")
    screen.see("Approve for the reconciler")
    screen.press("Down")
    screen.press("Enter")
    screen.see("is approved")
    screen.enter("/overlay", seen="Branch: changes")
    screen.see("Discard branch and session")
    screen.press("Down", "Down")
    screen.press("Enter")
    screen.see("Discard for good?")
    screen.press("Enter")
    screen.see("is discarded")
    assert left not in project.git("branch", "--list")


def on_a_terminal(project: Project, model: ScriptedModel, tmp_path: Path) -> None:
    """One user interface, several sessions."""
    screen = Screen(tmp_path, project.repo, project.env)
    with screen.showing(["opencode"]):
        screen.see("Ask anything")
        screen.enter("::write same.txt left")
        screen.see("# Wrote same.txt")
        screen.enter("::wait gate", seen="::wait")
        wait_until(lambda: model.is_reached("gate"))
        # While the first session works, a second one edits the same file.
        screen.press("C-x", "n")
        screen.see("Ask anything")
        screen.enter("::write same.txt right")
        screen.see("# Wrote same.txt")
        model.release("gate")
        wait_until(lambda: len(_rows(project)) == 2)
        left, right = (row["branch"] for row in _rows(project))
        wait_until(lambda: [row["state"] for row in _rows(project)] == ["running"] * 2)
        wait_until(lambda: len(_names(project, right)) == 3)
        assert project.git("show", f"{right}:same.txt") == "right"
        assert project.git("show", f"{left}:same.txt") == "left"
        assert _untouched(project)
        assert screen.text().count(right.removeprefix("overlay/")) > 0

        _bring_home(screen, project, model, (left, right))
        screen.press("C-c")
    wait_until(lambda: not _servers(project), _START)
    assert project.git("status", "--porcelain") == ""
    story = project.output(["overlayrun", "log", right])
    assert "write: same.txt" in story


def beside_each_other(project: Project, model: ScriptedModel, tmp_path: Path) -> None:
    """The local type: one OpenCode in one run, whose sessions may have branches of their own beside its."""
    port = _free_port()
    serve = ["opencode", "serve", "--port", str(port)]
    options = ["--env", "OPENCODE_EXPERIMENTAL_WORKSPACES"]
    with project.started("-b", "one", *options, "--", *serve) as run:
        hub = Hub(project, run.process, f"http://127.0.0.1:{port}")
        wait_until(hub.is_up, _START)
        made = [
            hub.ask("POST", "/experimental/workspace", {"type": "overlayrun-local", "branch": None})
            for _ in "ab"
        ]
        assert len({each["directory"] for each in made}) == 2
        sessions = [hub.ask("POST", f"/session?workspace={each['id']}", {})["id"] for each in made]
        with ThreadPoolExecutor() as threads:
            list(threads.map(hub.prompt, sessions, ["@write same.txt left", "@write same.txt right"]))
        hub.begin("@write own.txt own")
        left, right = (each["branch"] for each in made)
        assert [project.git("show", f"{branch}:same.txt") for branch in (left, right)] == ["left", "right"]
        assert _names(project, "one") == ["README", "own.txt", "src/app.py"]
        titles = {row["branch"]: row["session_title"] for row in _rows(project)}
        assert titles.keys() == {"one", left, right}
        assert all(titles.values())
        # What is deleted there is closed, and keeps its branch.
        hub.ask("DELETE", f"/experimental/workspace/{made[0]['id']}")
        assert {row["branch"]: row["state"] for row in _rows(project)}[left] == "idle"
    assert project.git("show", f"{left}:same.txt") == "left"
    assert _untouched(project)


Story = Callable[[Project, ScriptedModel, Path], None]
# Each starts OpenCode several times, seconds each: root tells one part of them, the ordinary user the other.
_STORIES: Final[tuple[list[Story], list[Story]]] = ([through_the_api], [on_a_terminal, beside_each_other])


@pytest.mark.parametrize("story", _STORIES[SHARE])
def test_every_session_has_a_branch(
    integrated: Project, model: ScriptedModel, tmp_path: Path, story: Story
) -> None:
    story(integrated, model, tmp_path)
