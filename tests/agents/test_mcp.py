"""`overlayrun mcp`: the SDK's own client talks to the real server over its standard input and output."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from conftest import PATIENCE, wait_until
from mcp import Client, StdioServerParameters
from mcp.types import CallToolResult, TextContent, Tool

if TYPE_CHECKING:
    from conftest import UserRepo

pytestmark = pytest.mark.shared  # the server's words

_LOOKING: Final = {"list", "status", "log", "diff"}
_CHANGING: Final = {"merge", "discard"}
# A step, as an agent tells of it.
_TELLING: Final = """
import json, os, socket, time
place = os.environ["OVERLAYRUN_SOCKET"]
while not os.path.exists(place):
    time.sleep(0.02)
open("step", "w").close()
account = {"agent": "a", "session": "s", "model": "m/1", "tool": "edit", "prompt": "Do it"}
with socket.socket(socket.AF_UNIX) as client:
    client.connect(place)
    client.sendall(json.dumps({"op": "snapshot", "account": account}).encode() + b"\\n")
    client.recv(1)
"""
_ALL: Final = _LOOKING | _CHANGING | {"create", "fork", "run", "snapshot"}


@dataclass(frozen=True, slots=True)
class Talk:
    """A client's session with a server of its own."""

    client: Client
    portal: BlockingPortal
    tools: dict[str, Tool] = field(default_factory=dict)

    def raw(self, tool: str, arguments: dict[str, Any]) -> CallToolResult:
        done: CallToolResult = self.portal.call(self.client.call_tool, tool, arguments, PATIENCE)
        return done

    def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """What a tool gives back; the client has checked it against the tool's schema."""
        done = self.raw(tool, arguments)
        assert not done.is_error, done.content
        found: dict[str, Any] = done.structured_content
        return found

    def refusal(self, tool: str, **arguments: Any) -> str:
        done = self.raw(tool, arguments)
        assert done.is_error, done.structured_content
        assert isinstance(done.content[0], TextContent)
        return done.content[0].text


@contextmanager
def talking(command: list[str], repo: UserRepo) -> Iterator[Talk]:
    server = StdioServerParameters(command=command[0], args=command[1:], cwd=repo.root, env=repo.env)
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(Client(server)) as client,
    ):
        listed = portal.call(client.list_tools).tools
        yield Talk(client, portal, {tool.name: tool for tool in listed})


@pytest.fixture
def talk(repo: UserRepo) -> Iterator[Talk]:
    with talking(repo.command("mcp"), repo) as session:
        yield session


def test_a_branch_goes_from_create_to_merge_and_discard(repo: UserRepo, talk: Talk) -> None:
    repo.write("src/app.py", "answer = 40\n")  # the user's own, uncommitted
    before = repo.picture()

    made = talk.call("create", branch="fix", message="make it right")
    assert made["branch"] == "fix"
    assert made["workspace"] | {"base": None, "dirty": None} == {
        **made["workspace"],
        **{"base": None, "dirty": None, "target": "main", "prompt": "make it right", "snapshots": 0},
    }
    assert any("1 uncommitted change" in line for line in made["notes"])
    assert "exists already" in talk.refusal("create", branch="fix")

    script = "cat src/app.py; echo said >&2; echo more >>NEWS; exit 3"
    ran = talk.call("run", branch="fi", command=["sh", "-c", script], message="news")
    assert (ran["branch"], ran["status"], ran["cut"]) == ("fix", 3, None)
    assert ran["output"] == "answer = 40\nsaid\n"
    assert ran["change"] == {"files": 1, "insertions": 1, "deletions": 0}
    assert ran["snapshot"]["subject"] == "news"
    assert repo.show("fix", "NEWS") == "more\n"
    assert talk.call("run", branch="fix", command=["sleep", "60"], timeout=0.3)["status"] == 124

    assert "is a snapshot" in talk.refusal("run", branch="fix@{0}", command=["true"])

    found = talk.call("diff", revision="fix")
    assert found["files"] == [{"path": "NEWS", "status": "A", "insertions": 1, "deletions": 0}]
    assert found["patch"] is None
    assert "+more\n" in talk.call("diff", revision="fix", content="patch")["patch"]

    taken = talk.call("snapshot", branch="fix", message="as it is")
    assert taken["number"] > ran["snapshot"]["number"]
    subjects = [line["subject"] for line in talk.call("log", branch="fix")["snapshots"]]
    assert subjects[0] == "as it is"
    assert "news" in subjects
    assert [each["branch"] for each in talk.call("list")["workspaces"]] == ["fix"]
    assert talk.call("status")["status"]["tree"]["branch"] == "main"

    forked = talk.call("fork", branch="fix", name="second")
    assert (forked["branch"], forked["source"], forked["left_out"]) == ("second", "fix", [])
    assert talk.call("run", branch="second", command=["cat", "NEWS"])["output"] == "more\n"
    talk.call("run", branch="second", command=["python3", "-c", _TELLING])
    newest = talk.call("log", branch="second")["snapshots"][0]
    told = {name: newest[name] for name in ("agent", "model", "tool", "prompt")}
    assert told == {"agent": "a", "model": "m/1", "tool": "edit", "prompt": "Do it"}
    talk.call("discard", branch="second", force=True)

    assert "nowhere else" in talk.refusal("discard", branch="fix")
    assert repo.picture() == before
    foreseen = talk.call("merge", branch="fix", dry_run=True)
    assert (foreseen["merged"], [each["branch"] for each in foreseen["landed"]]) == (False, ["fix"])
    failed = talk.call("merge", branch="fix", check="false")
    assert (failed["merged"], failed["failed"][0]["branch"]) == (False, "fix")
    merged = talk.call("merge", branch="fix", check="grep more NEWS")
    assert merged["merged"], merged
    assert merged["commit"] == repo.git("rev-parse", "main")
    assert (repo.root / "NEWS").read_text() == "more\n"
    assert talk.call("discard", branch="fix")["branch"] == "fix"
    assert talk.call("list")["workspaces"] == []


def test_what_an_agent_left_is_shown_escaped_and_cut(repo: UserRepo, talk: Talk) -> None:
    script = r"""
        printf 'evil\033[2J\xff\n'
        seq 100000
        printf '\033]0;title\007\n' >wide
        seq 20000 >>wide
        printf x >"$(printf 'name\033[31m\xff')"
        mkdir -p .vscode && echo '{}' >.vscode/tasks.json
        echo theirs >README
    """
    talk.call("create", branch="wild", base="main", dirty="ignore")
    ran = talk.call("run", branch="wild", command=["sh", "-c", script])
    assert ran["output"].splitlines()[-1] == "100000"
    assert len(ran["output"]) <= 16 << 10
    assert "bytes" in ran["cut"]
    shown = talk.call("run", branch="wild", command=["printf", r"evil\033[2J\377\r\n"])["output"]
    assert shown == "evil\\x1b[2J\\xff\\r\n"

    found = talk.call("diff", revision="wild", content="patch", limit=5000)
    assert "name\\x1b[31m\\xff" in [each["path"] for each in found["files"]]
    assert [each["path"] for each in found["carriers"]] == [".vscode/tasks.json"]
    assert len(found["patch"]) <= 6000
    assert "limit can be raised" in found["cut"]
    whole = talk.call("diff", revision="wild", content="patch", limit=400_000)
    assert (whole["cut"], "\x1b" in whole["patch"]) == (None, False)
    assert "+\\x1b]0;title\\x07\n" in whole["patch"]

    # The user alone agrees to files that run code; there is no argument for it.
    withheld = talk.call("merge", branch="wild")
    assert (withheld["merged"], withheld["withheld"][0]["carriers"][0]["path"]) == (
        False,
        ".vscode/tasks.json",
    )
    assert not [name for name in talk.tools["merge"].input_schema["properties"] if "exec" in name]
    repo.commit("ours", README="ours\n")
    clash = talk.call("merge", branch="wild")
    assert [path["path"] for path in clash["conflicts"][0]["paths"]] == ["README"]
    assert (repo.root / "README").read_text() == "ours\n"
    talk.call("discard", branch="wild", force=True)


def test_tools_tell_what_they_do_and_refuse_with_a_hint(talk: Talk) -> None:
    assert set(talk.tools) == _ALL
    hints = {name: tool.annotations for name, tool in talk.tools.items()}
    assert {name for name, hint in hints.items() if hint and hint.read_only_hint} == _LOOKING
    assert {name for name, hint in hints.items() if hint and hint.destructive_hint} == _CHANGING
    assert all(tool.output_schema and tool.description for tool in talk.tools.values())
    assert "never instructions" in (talk.client.instructions or "")

    assert "no workspace is called 'none'" in talk.refusal("run", branch="none", command=["true"])
    assert "hint: see: overlayrun ls" in talk.refusal("diff", revision="none")
    assert "main" in talk.refusal("create", branch="main")
    for wrong in ({"branch": "--force"}, {"branch": ""}):
        assert "pattern" in talk.refusal("discard", **wrong)
    assert "can't be started" in talk.refusal("create", branch="b", message="a\0b")
    assert talk.refusal("run", branch="b", command=[])


@pytest.mark.by_both
def test_runs_end_with_their_call_and_with_the_server_and_keep_what_they_did(repo: UserRepo) -> None:
    command = ["sh", "-c", f'echo $$ >"$HOME/server"; exec {shlex.join(repo.command("mcp"))}']
    with talking(command, repo) as talk:
        given_up = _start(talk, repo, "given-up")
        assert "given-up is running already" in talk.refusal("run", branch="given-up", command=["true"])
        given_up.cancel()
        wait_until(lambda: not repo.marked(), "its client has given up, and it is dead")
        _start(talk, repo, "orphaned")
        os.kill(int((repo.home / "server").read_text()), signal.SIGKILL)
        wait_until(lambda: not repo.marked(), "its server is dead, and it is too")
    assert "begun" in repo.git("ls-tree", "--name-only", "given-up")
    assert "begun" in repo.git("ls-tree", "--name-only", "orphaned")


def _start(talk: Talk, repo: UserRepo, branch: str) -> Future[CallToolResult]:
    """A run that goes on and on, once its command has begun."""
    talk.call("create", branch=branch)
    words = ["sh", "-c", f"echo here >begun; {repo.sleeper()}"]
    call = talk.portal.start_task_soon(talk.client.call_tool, "run", {"branch": branch, "command": words})
    wait_until((repo.workspace(branch) / "upper/begun").exists, "the command runs")
    return call


def test_inside_a_workspace_the_server_offers_what_the_workspace_allows(repo: UserRepo) -> None:
    server = repo.command("--quiet", "--branch", "b", "--", *repo.command("mcp"))
    with talking(server, repo) as talk:
        taken = talk.call("snapshot", message="from inside")
        assert (taken["branch"], taken["number"]) == ("b", 1)
        assert talk.call("status")["status"]["branch"] == "b"
        assert talk.call("fork", name="c")["branch"] == "c"
        for tool, arguments in (("list", {}), ("create", {"branch": "d"}), ("merge", {"branch": "b"})):
            assert "this is a workspace" in talk.refusal(tool, **arguments)


def test_without_the_sdk_it_says_what_to_install(repo: UserRepo, tmp_path: Path) -> None:
    (tmp_path / "mcp.py").write_text("")  # too old, or something else
    done = repo.overlayrun("mcp", env={"PYTHONPATH": str(tmp_path)})
    assert (done.code, len(done.ours)) == (3, 1)
    assert "pip install 'overlayrun[mcp]'" in done.ours[0]
