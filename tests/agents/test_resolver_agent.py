"""The real OpenCode resolves a real conflict by the messages in CONFLICT.json, and is refused when it misbehaves."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from conftest import SHARE

from overlayrun.model import BranchName, CommitId
from overlayrun.reconcile.conflict import Case
from overlayrun.reconcile.resolvers import Resolution, resolve
from overlayrun.store.location import find_repository
from overlayrun.store.merger import merge_once
from overlayrun.workspace.catalogue import find_exact
from overlayrun.workspace.layout import open_state

from .project import Project
from .scripted_model import Answer, ScriptedModel, ToolCall

COMMAND: Final = 'opencode run "$OVERLAYRUN_PROMPT"'
NUMBERED: Final = re.compile(r"^\s*\d+[|:] ?(.*)$", re.MULTILINE)
BLOCK: Final = re.compile(r"^<{7} .*?^>{7} [^\n]*$", re.MULTILINE | re.DOTALL)
BEFORE: Final = "top = 0\n\n\nconnect(timeout=10, retries=1)\n\n\nend = 0\n"


class MergingModel(ScriptedModel):
    """A stand-in that merges: it reads what the prompt names, and writes what both sides' messages want.

    manner: how it does that; all but "honest" are faults.
    """

    manner = "honest"

    def answer(self, request: dict[str, Any]) -> tuple[Answer, int]:
        self.requests.append(request)
        answer = self._next(request["messages"]) if request.get("tools") else Answer(text="Merging")
        if answer.gates:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping)
        return answer, len(self.requests)

    def _next(self, messages: list[dict[str, Any]]) -> Answer:
        prompt = json.dumps([message for message in messages if message["role"] == "user"])
        named = re.search(r"[\w.-]+/CONFLICT\.json", prompt)
        results = [_text(message) for message in messages if message["role"] == "tool"]
        assert named, prompt
        if self.manner == "hangs":
            return Answer(gates=("for ever",))
        if self.manner == "lies":
            return Answer(text="I have resolved the conflict.")
        if not results:
            return Answer(call=ToolCall("read", {"filePath": named[0]}))
        conflict = json.loads(_content(results[0]))["conflicts"][0]
        if len(results) == 1:
            return Answer(call=ToolCall("read", {"filePath": conflict["path"]}))
        return self._write(conflict, _content(results[1]), len(results))

    def _write(self, conflict: Mapping[str, Any], marked: str, turn: int) -> Answer:
        wanted = f"connect({_wanted(conflict['ours_commits'])}, {_wanted(conflict['theirs_commits'])})"
        resolved = BLOCK.sub(wanted, marked) + "\n"
        content = {
            "leaves markers": re.sub(r"^<{7} .*\n", "", marked, flags=re.MULTILINE) + "\n",
            "drops a side": BEFORE.replace("retries=1", "retries=5"),
        }.get(self.manner, resolved)
        calls = [ToolCall("write", {"filePath": conflict["path"], "content": content})]
        if self.manner == "edits elsewhere":
            calls.append(ToolCall("bash", {"command": "echo x >README", "description": "Tidy up"}))
        done = turn - 2
        return Answer(call=calls[done]) if done < len(calls) else Answer(text="Done.")


def _wanted(side: Mapping[str, Any]) -> str:
    """The line of a side's messages that says what it wanted."""
    lines = [line for commit in side["commits"] for line in commit["message"]]
    return next(str(line).removeprefix("Wanted: ") for line in lines if line.startswith("Wanted: "))


def _text(message: Mapping[str, Any]) -> str:
    content: str | list[dict[str, str]] = message["content"]
    return content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content)


def _content(result: str) -> str:
    """A file as OpenCode's `read` shows it, without its line numbers."""
    return "\n".join(NUMBERED.findall(result))


@pytest.fixture
def model() -> Iterator[MergingModel]:
    server = MergingModel()
    with server:
        yield server


class Desk:
    """A project in which branch `work` and main changed the same line, and said why."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self._commit(BEFORE, "Start")
        command = 'sed -i s/retries=1/retries=5/ src/net.py && git commit -qam "$(printf \'%b\' "$0")"'
        message = "Try five times\\n\\nThe network is bad.\\n\\nWanted: retries=5\\n"
        done = project.overlayrun("-b", "work", "--", "sh", "-c", command, message)
        assert done.returncode == 0, done.stderr
        ours = BEFORE.replace("timeout=10", "timeout=30").replace("top = 0", "top = 1")
        self._commit(ours, "Wait longer\n\nThe server is slow.\n\nWanted: timeout=30\n")

    def _commit(self, content: str, message: str) -> None:
        (self.project.repo / "src/net.py").write_text(content)
        self.project.git("add", "--all")
        self.project.git("commit", "--quiet", f"--message={message}")

    def resolve(self, timeout: float = 300.0) -> Resolution:
        repository = find_repository(str(self.project.repo))
        layout = open_state(repository.common_dir)
        tip, source = (CommitId(self.project.git("rev-parse", name).strip()) for name in ("main", "work"))
        base = CommitId(self.project.git("merge-base", tip, source).strip())
        record = find_exact(layout, "work")
        assert record
        merged = merge_once(repository.common_dir, tip, source)
        case = Case(record, BranchName("main"), tip, source, base, merged)
        return resolve(repository, layout, case, COMMAND, timeout=timeout, show=lambda _: None)


@pytest.fixture
def desk(project: Project, monkeypatch: pytest.MonkeyPatch) -> Desk:
    for name, value in project.env.items():
        monkeypatch.setenv(name, value)
    return Desk(project)


@pytest.mark.shared
def test_an_agent_resolves_a_conflict_by_what_both_sides_said(desk: Desk) -> None:
    before, head = desk.project.files(), desk.project.git("rev-parse", "main")

    done = desk.resolve()

    assert done.refused is None, Path(done.log).read_text(errors="replace")
    resolved = desk.project.git("show", f"{done.tree}:src/net.py")
    assert resolved == BEFORE.replace("top = 0", "top = 1").replace(
        "timeout=10, retries=1", "timeout=30, retries=5"
    )
    assert desk.project.git("diff-tree", "-r", "--name-only", "main", str(done.tree)) == "src/net.py\n"
    assert (desk.project.files(), desk.project.git("rev-parse", "main")) == (before, head)
    assert desk.project.git("for-each-ref", "refs/heads/overlay/") == ""


@pytest.mark.shared
def test_a_merge_on_the_command_line_hands_its_conflict_to_an_agent(desk: Desk) -> None:
    parents = [desk.project.git("rev-parse", name).strip() for name in ("main", "work")]

    done = desk.project.overlayrun("merge", "work", "--resolve", COMMAND)

    assert done.returncode == 0, done.stdout + done.stderr
    assert desk.project.git("rev-list", "--parents", "-1", "main").split()[1:] == parents
    assert "connect(timeout=30, retries=5)" in (desk.project.repo / "src/net.py").read_text()


@pytest.mark.parametrize(
    ("manner", "why"),
    [
        ("lies", "it changed nothing"),
        ("leaves markers", "conflict markers are left in src/net.py"),
        ("edits elsewhere", "it changed README, which is neither in conflict nor declared"),
        ("drops a side", "it changed src/net.py outside the conflict: this line is gone: top = 1"),
    ][SHARE::2],
)
def test_an_agent_that_misbehaves_is_refused(desk: Desk, model: MergingModel, manner: str, why: str) -> None:
    model.manner = manner
    done = desk.resolve()
    assert (done.refused, done.tree) == (why, None)


@pytest.mark.shared
def test_an_agent_that_hangs_is_ended(desk: Desk, model: MergingModel) -> None:
    model.manner = "hangs"
    done = desk.resolve(timeout=10)
    assert done.refused == "it ran into its time limit of 10 s"
