"""A branch for every session of one OpenCode: the real one, its plugins, a real terminal, a scripted model."""

from __future__ import annotations

import json
import os
import signal
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

    def ask(self, method: str, path: str, data: Any = None) -> Any:
        """One request of its API; JSON both ways."""
        body = None if data is None else json.dumps(data).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}{path}", body, headers, method=method)
        with urllib.request.urlopen(request, timeout=_START) as answer:
            text = answer.read()
        return json.loads(text) if text else None

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
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            # Those in a sandbox show their environment to nobody: pid 1 of it is not dumpable, the rest is.
            is_ours = f"HOME={project.home}".encode() in (entry / "environ").read_bytes().split(b"\0")
            if is_ours and b"serve" in words and not (alone and b"-c" in words):
                found.append(int(entry.name))
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
        script = f"@write {here}/src/app.py answer = 'first'\\n\n@bash pwd\n@say Said."
        text = project.output(["opencode", "run", "--attach", hub.url, script])
        assert "Said." in text
        assert str(here) in text
        assert _untouched(project)
        (first,) = _rows(project)
        assert project.git("show", f"{first['branch']}:src/app.py") == "answer = 'first'\n"
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
        for pid in _servers(project, alone=True):
            if pid != hub.process.pid:
                os.kill(pid, signal.SIGKILL)
        hub.prompt(session, "@write after-kill.txt here")
        assert "after-kill.txt" in _names(project, first["branch"])

        # So with the hub: nothing outlives it.
        hub.process.kill()
        wait_until(lambda: not _servers(project), _START)
    with _hub(project, tmp_path / "again.log") as hub:
        hub.prompt(session, "@bash cat src/app.py after-kill.txt > both.txt")
    wait_until(lambda: not _servers(project), _START)
    assert project.git("show", f"{first['branch']}:both.txt") == "answer = 'first'\nhere"
    assert len(_rows(project)) == 2 + _AT_ONCE
    assert _untouched(project)


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
        wait_until((project.repo / "same.txt").exists)
        assert project.git("show", "main:same.txt") == "right"
        screen.press("C-c")
    wait_until(lambda: not _servers(project), _START)
    assert project.git("status", "--porcelain") == ""
    story = project.output(["overlayrun", "log", left])
    assert "write: same.txt" in story


STORIES: Final[list[Callable[[Project, ScriptedModel, Path], None]]] = [through_the_api, on_a_terminal]


# Each starts OpenCode many times, seconds each: root tells one half of them, the ordinary user the other.
@pytest.mark.parametrize("story", STORIES[SHARE::2])
def test_every_session_has_a_branch(
    integrated: Project,
    model: ScriptedModel,
    tmp_path: Path,
    story: Callable[[Project, ScriptedModel, Path], None],
) -> None:
    story(integrated, model, tmp_path)
