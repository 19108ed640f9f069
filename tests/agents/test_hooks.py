"""`hook`: what Claude Code and Codex tell at each event becomes snapshots in their own words.

The events are those of the agents' documentation, and as the real programs sent them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import overlayrun
from overlayrun.agents import claude, codex
from overlayrun.cli import hook

if TYPE_CHECKING:
    from conftest import Done, UserRepo

_SESSION: Final = "fa40beed-bdcc-423c-abc7-0d74a0c86f4d"
_HEAVY: Final = {"click", "dataclasses", "pygit2", "psutil", "rich", "subprocess", "tempfile", "pathlib"}


def _event(event: str, cwd: Path | str, /, **fields: Any) -> str:
    common = {
        "session_id": _SESSION,
        "transcript_path": "/nowhere",
        "cwd": str(cwd),
        "hook_event_name": event,
    }
    return json.dumps({**common, **fields})


def _feed(repo: UserRepo, agent: str, data: str) -> Done:
    return repo.overlayrun("hook", agent, data=data)


def _script(repo: UserRepo, agent: str, steps: list[str]) -> str:
    """A script whose lines are shell, or an event that is fed to the hook; a status is told after each event."""
    lines = []
    for number, step in enumerate(steps):
        if step.startswith("{"):
            file = repo.home / f"event{number}.json"
            file.write_text(step)
            lines.append(f"overlayrun hook {agent} <{file}; echo status $?")
        else:
            lines.append(step)
    return "\n".join(lines)


def _messages(repo: UserRepo, branch: str = "b") -> list[str]:
    """Messages of a branch's snapshots, oldest first."""
    return [repo.git("log", "-1", "--format=%B", oid) for oid in reversed(repo.snapshots(branch))]


def test_a_session_of_claude_code_is_told_by_its_snapshots(repo: UserRepo) -> None:
    transcript = repo.home / "transcript.jsonl"
    texts = [
        {"type": "text", "text": "It is"},
        {"type": "tool_use", "id": "x"},
        {"type": "text", "text": "right now."},
    ]
    entries = [
        {"type": "assistant", "message": {"content": [{"type": "text", "text": "an older one"}]}},
        {"type": "assistant", "message": {"content": texts}},
        {"type": "user", "message": {"content": "not this"}},
    ]
    transcript.write_text("\n".join(map(json.dumps, entries)) + '\n{"type": "assis')
    app = f"{repo.root}/src/app.py"
    steps = [
        _event("SessionStart", repo.root, source="startup", model="claude-opus"),
        _event("UserPromptSubmit", repo.root, prompt="Make the answer right.\nPlease."),
        "echo 'answer = 42' >src/app.py",
        _event("PostToolUse", repo.root, tool_name="Edit", tool_input={"file_path": app, "old_string": "1"}),
        _event("PostToolUse", repo.root, tool_name="Bash", tool_input={"command": "true"}),
        "echo tested >log",
        _event("PostToolUse", f"{repo.root}/src", tool_name="Bash", tool_input={"command": "make test\nls"}),
        "echo noted >notes",
        _event("Stop", repo.root, transcript_path=str(transcript), stop_hook_active=False),
        _event("Unheard", repo.root),
        '{"no": "event"}',
        "OVERLAYRUN_SOCKET=/run/overlayrun/control/gone",
        _event("Stop", repo.root),
    ]
    done = repo.sh(_script(repo, "claude", steps))

    assert done.out.splitlines() == ["status 0"] * 9, str(done)
    told = [line for line in done.ours if line.startswith("hook: ")]
    assert told == ["hook: KeyError: 'hook_event_name'", "hook: the run does not answer - see: overlayrun ls"]
    edit, bash, stop = _messages(repo)
    assert edit.splitlines()[0] == "Edit src/app.py"
    assert "> Make the answer right.\n> Please." in edit
    assert bash.splitlines()[0] == "Bash: make test"
    assert "It is\nright now." in stop
    for message in (edit, bash, stop):
        assert f"Overlayrun-Session: {_SESSION}" in message.splitlines()
        assert "Overlayrun-Agent: claude" in message.splitlines()
        assert "Overlayrun-Model: claude-opus" in message.splitlines()
    assert repo.show("b", "src/app.py") == "answer = 42\n"


def test_a_session_of_codex_is_told_by_its_snapshots(repo: UserRepo) -> None:
    patch = "*** Begin Patch\n*** Update File: src/app.py\n@@\n-1\n+2\n*** Add File: new\n+x\n*** End Patch\n"
    more = {"turn_id": "t", "model": "gpt-x", "permission_mode": "default"}
    tool = {**more, "tool_response": "x" * 200_000, "tool_use_id": "c0"}
    steps = [
        _event("UserPromptSubmit", repo.root, prompt="Two files", **more),
        "echo 2 >src/app.py; echo x >new",
        _event("PostToolUse", repo.root, tool_name="apply_patch", tool_input={"command": patch}, **tool),
        "echo y >other",
        _event("Stop", repo.root, last_assistant_message="Codex is done.\n\n" + "漢" * 90_000, **more),
    ]
    done = repo.sh(_script(repo, "codex", steps))
    assert (done.out.splitlines(), done.code) == (["status 0"] * 3, 0)
    assert not [line for line in done.ours if line.startswith("hook: ")], str(done)
    step, stop = _messages(repo)
    assert step.splitlines()[0] == "apply_patch src/app.py and 1 more"
    assert "> Two files" in step
    assert "Codex is done." in stop
    assert "Overlayrun-Agent: codex" in stop


def test_a_worktree_of_claude_code_is_a_branch_in_the_same_run(repo: UserRepo) -> None:
    steps = [
        _event("WorktreeCreate", repo.root, name="feature"),
        "echo inside >/run/overlayrun/trees/feature/new",
        _event(
            "PostToolUse",
            "/run/overlayrun/trees/feature/src",
            tool_name="Write",
            tool_input={"file_path": "/run/overlayrun/trees/feature/new", "content": "inside"},
        ),
        "test ! -e new && echo alone",
        _event("WorktreeCreate", repo.root, name="main"),
        _event("WorktreeRemove", repo.root, worktree_path="/run/overlayrun/trees/feature"),
        _event("WorktreeRemove", repo.root, worktree_path=str(repo.root)),
    ]
    done = repo.sh(_script(repo, "claude", steps))
    tree, *rest = done.out.splitlines()
    assert tree == "/run/overlayrun/trees/feature", str(done)
    assert rest == ["status 0", "status 0", "alone", "status 1", "status 0", "status 1"], str(done)
    assert repo.show("feature", "new") == "inside\n"
    assert _messages(repo, "feature")[0].splitlines()[0] == "Write new"
    assert (
        f"hook: no worktree of overlayrun, left as it is: {repo.root} - git worktree remove PATH" in done.ours
    )
    assert "new" not in repo.files("b")


@pytest.mark.parametrize("agent", ["claude", "codex"])
def test_outside_of_a_workspace_it_does_nothing_and_says_nothing(repo: UserRepo, agent: str) -> None:
    for data in (_event("Stop", repo.root), _event("UserPromptSubmit", repo.root, prompt="x"), "garbage", ""):
        done = _feed(repo, agent, data)
        assert (done.code, done.out, done.err) == (0, "", "")
    assert not repo.state.exists()


def test_a_worktree_outside_of_a_workspace_is_refused_with_the_cure(repo: UserRepo) -> None:
    done = _feed(repo, "claude", _event("WorktreeCreate", repo.root, name="feature-x"))
    assert (done.code, done.out) == (1, "")
    assert done.ours == [
        "hook: a worktree of overlayrun is made inside a workspace - start it so: overlayrun -- claude -w feature-x"
    ]
    hostile = _feed(repo, "claude", _event("WorktreeCreate", repo.root, name="x; \x1b[2J rm"))
    assert hostile.ours[0].endswith("overlayrun -- claude -w NAME")


def test_an_agent_that_never_ends_its_event_is_not_held_up(repo: UserRepo) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from overlayrun.cli import hook\n"
        "hook._PATIENCE = 1; status = hook.hook_lean(['claude'])\n"
        "print(status, *sys.modules)"
    )
    with subprocess.Popen(
        # -S: no site, so that nothing of the environment's own start (an editable install's finder) is loaded.
        [sys.executable, "-I", "-S", "-c", code, str(Path(overlayrun.__file__).parent.parent)],
        cwd=repo.root,
        env=repo.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        told, *loaded = process.stdout.read().split()
        assert told == "0"
        assert process.stderr.read() == "overlayrun: hook: TimeoutError: it took longer than 1 s\n"
    assert not _HEAVY & set(loaded)


def test_on_a_terminal_and_for_another_agent_it_tells_its_usage(repo: UserRepo) -> None:
    with repo.terminal(*repo.command("hook", "claude")) as terminal:
        terminal.expect("hint: overlayrun integrate claude")
        assert terminal.end() == 3
    assert _feed(repo, "another", "{}").code == 2


@pytest.mark.parametrize(
    ("tool", "given", "subject"),
    [
        ("Write", {"file_path": "/no/where/x.py"}, "Write /no/where/x.py"),
        ("NotebookEdit", {"notebook_path": "/no/where/x.ipynb"}, "NotebookEdit /no/where/x.ipynb"),
        ("Bash", {"command": "\n npm test \nls", "description": "d"}, "Bash: npm test "),
        ("Bash", {"command": "  "}, "Bash"),
        ("apply_patch", {"patch": "*** Begin Patch\n*** Delete File: a b\n*** End Patch"}, "apply_patch a b"),
        ("mcp__server__tool", {"file_path": 3, "command": ["x"]}, "mcp__server__tool"),
    ],
)
def test_the_subject_of_a_step(tool: str, given: dict[str, Any], subject: str) -> None:
    assert hook._subject(tool, given) == subject


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(st.text(max_size=300), st.sampled_from(["x", "漢", "\U0001f600", "\n", '"', "\x00", "\ud800"]))
def test_what_is_asked_fits_into_one_request_whatever_was_said(text: str, letter: str) -> None:
    account = {"agent": "claude", "session": text, "prompt": letter * 50_000, "said": text + letter * 50_000}
    asked = hook._fitting({"op": "snapshot", "account": account})
    assert len(json.dumps(asked)) < 64 * 1024
    assert asked["account"]["prompt"]


def test_each_hook_is_called_by_what_the_command_line_knows() -> None:
    # A name that is wrong in one place alone would make every hook fail without a word.
    for agent in (claude, codex):
        commands = {each["command"] for _, group in agent.hooks() for each in group["hooks"]}
        assert commands == {f"overlayrun hook {agent.NAME}"}
        assert agent.NAME in hook._ANSWERS
