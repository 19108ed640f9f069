"""What agents print. Lines are recorded from the real programs, each with a stand-in for its model, and shortened.

opencode 1.18.33 (`run --format json`), Claude Code 2.1.197 (`-p --output-format stream-json --verbose`), Codex
0.169.0 (`exec --json`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from overlayrun.batch import transcript
from overlayrun.batch.transcript import AGENTS, Transcript, one_line, read_transcript

pytestmark = pytest.mark.shared  # what agents print

SESSION: Final = "ses_df8be5687ffeNYYW67JtCvCHJj"
Read = Callable[..., Transcript]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """`read(agent, lines or text, stderr, status)`."""

    def read_these(
        agent: str | None, output: str | list[Any], errors: str = "", status: int | None = 0
    ) -> Transcript:
        if isinstance(output, list):
            output = "".join(f"{json.dumps(event)}\n" for event in output)
        (tmp_path / "output").write_text(output)
        (tmp_path / "errors").write_text(errors)
        return read_transcript(agent, str(tmp_path / "output"), str(tmp_path / "errors"), status)

    return read_these


def step(cost: float, **tokens: Any) -> dict[str, Any]:
    counted = {"total": 2, "input": 1, "output": 1, "reasoning": 0, "cache": {"write": 0, "read": 0}} | tokens
    part = {"reason": "stop", "type": "step-finish", "tokens": counted, "cost": cost}
    return {"type": "step_finish", "timestamp": 1795418077053, "sessionID": SESSION, "part": part}


def tool(name: str, state: dict[str, Any]) -> dict[str, Any]:
    part = {"type": "tool", "tool": name, "callID": "call_2", "state": state}
    return {"type": "tool_use", "timestamp": 1795418076276, "sessionID": SESSION, "part": part}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "sessionID": SESSION, "part": {"type": "text", "text": words}}


EDIT: Final = tool(
    "edit",
    {
        "status": "completed",
        "input": {"filePath": "src/app.py", "oldString": "41", "newString": "42"},
        "output": "Edit applied successfully.",
        "metadata": {"diagnostics": {}, "diff": "-answer = 41\n+answer = 42\n", "truncated": False},
        "title": "src/app.py",
    },
)
REJECTED: Final = tool(
    "bash",
    {
        "status": "error",
        "input": {"command": "cat /proc/self/uid_map", "description": "Run a scripted command"},
        "error": "The user rejected permission to use this specific tool call.",
    },
)
MISSING: Final = tool(
    "read",
    {
        "status": "error",
        "input": {"filePath": "nonexistent.txt"},
        "error": "File not found: /home/u/project/nonexistent.txt",
    },
)
START: Final = {"type": "step_start", "sessionID": SESSION, "part": {"type": "step-start"}}
LIMITED: Final = {
    "type": "error",
    "sessionID": SESSION,
    "error": {
        "name": "APIError",
        "data": {"message": "Rate limit reached for requests", "statusCode": 429, "isRetryable": True},
    },
}


def test_opencode_says_what_it_did(read: Read) -> None:
    tokens = {"input": 1000, "output": 20, "reasoning": 3, "cache": {"write": 100, "read": 10}}
    said = read(
        "opencode", [START, EDIT, step(0.000018), START, MISSING, text("Fixed.\n"), step(0.25, **tokens)]
    )
    assert said == Transcript(
        agent="opencode",
        text="- edit src/app.py\n- read nonexistent.txt: File not found: /home/u/project/nonexistent.txt\nFixed.\n",
        cost=0.250018,
        tokens_in=1111,
        tokens_out=24,
        session=SESSION,
    )


def test_a_price_of_nothing_for_work_is_an_unknown_price(read: Read) -> None:
    assert read("opencode", [text("Hello"), step(0)]).cost is None
    assert read("opencode", [step(0), step(0.5), step(0)]).cost == 0.5
    assert read("opencode", [text("Hello")]).cost is None


@pytest.mark.parametrize("cost", [-1, "1", None, True, 1e300, [], {}, float("nan"), float("inf"), 10**400])
def test_what_nobody_pays_is_no_price(read: Read, cost: object) -> None:
    assert read("opencode", [step(cost)]).cost is None  # type: ignore[arg-type]  # what a hostile agent prints


@pytest.mark.parametrize("count", [-1, "1", None, True, 1.5, 10**16, [1]])
def test_what_is_no_count_of_tokens_counts_nothing(read: Read, count: object) -> None:
    said = read("opencode", [step(0, input=count, output=count), step(0, cache=count)])
    assert (said.tokens_in, said.tokens_out) == (1, 1)


def test_opencode_is_refused_what_nobody_could_allow(read: Read) -> None:
    said = read("opencode", [START, REJECTED, step(0)])
    assert said.rejected == ("bash: cat /proc/self/uid_map",)
    shown = (
        "\x1b[93m\x1b[1m! \x1b[0mpermission requested: external_directory (/proc/self/*); auto-rejecting\n"
    )
    said = read("opencode", [START, REJECTED, step(0)], shown)
    assert said.rejected == ("external_directory (/proc/self/*)",)
    assert said.error is None
    # Of a sub-agent, the line of standard error is all there is.
    assert read("opencode", [text("Hello")], shown).rejected == said.rejected


def test_a_rule_of_the_users_is_no_refusal(read: Read) -> None:
    denied = tool(
        "bash", {"status": "error", "error": "The user has specified a rule which prevents you from …"}
    )
    assert read("opencode", [denied, text("I'll do without.")]).rejected == ()


def test_opencode_says_that_the_provider_refused(read: Read) -> None:
    said = read("opencode", [LIMITED], status=1)
    assert (said.rate_limited, said.error) == (True, "Rate limit reached for requests")
    unknown = {
        "name": "UnknownError",
        "data": {"message": "Unexpected server error. Check server logs for details."},
    }
    said = read("opencode", [{"type": "error", "sessionID": SESSION, "error": unknown}], status=1)
    assert (said.rate_limited, said.error) == (
        False,
        "Unexpected server error. Check server logs for details.",
    )


def test_opencode_tells_nothing_of_what_sub_agents_cost(read: Read) -> None:
    said = read("opencode", [tool("task", {"status": "completed", "title": "look around"}), step(0.5)])
    assert said.notes == ("cost and tokens are without those of its sub-agents",)


USAGE: Final = {
    "input_tokens": 20,
    "cache_creation_input_tokens": 10,
    "cache_read_input_tokens": 14,
    "output_tokens": 40,
}
CLAUDE: Final = "b62073a9-e6dd-424e-8238-0130fe485d5a"
INIT: Final = {"type": "system", "subtype": "init", "session_id": CLAUDE, "model": "claude-opus-4-8[1m]"}
RETRY: Final = {
    **{"type": "system", "subtype": "api_retry", "attempt": 1, "max_retries": 1, "retry_delay_ms": 1000},
    **{"error_status": 429, "error": "rate_limit", "session_id": CLAUDE},
}
CALL: Final = {
    "type": "assistant",
    "message": {
        "model": "claude-opus-4-8",
        "content": [
            {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {"command": "echo hi > new.txt"}}
        ],
    },
    "session_id": CLAUDE,
}
WORDS: Final = {"type": "assistant", "message": {"content": [{"type": "text", "text": "All done."}]}}


def result(**changes: Any) -> dict[str, Any]:
    usual = {
        **{
            "type": "result",
            "subtype": "success",
            "is_error": False,
            "api_error_status": None,
            "num_turns": 2,
        },
        **{"result": "All done.", "session_id": CLAUDE, "total_cost_usd": 0.0011695, "usage": USAGE},
        **{"permission_denials": []},
    }
    return usual | changes


def test_claude_says_what_it_did(read: Read) -> None:
    answer = {
        "type": "user",
        "message": {"role": "user", "content": [{"type": "tool_result", "content": "a" * 99}]},
    }
    assert read("claude", [INIT, CALL, answer, WORDS, result()]) == Transcript(
        agent="claude",
        text="- Bash echo hi > new.txt\nAll done.\n",
        cost=0.0011695,
        tokens_in=44,
        tokens_out=40,
        model="claude-opus-4-8[1m]",
        session=CLAUDE,
    )


def test_claude_is_refused_what_nobody_could_allow(read: Read) -> None:
    denied = {"tool_name": "Bash", "tool_use_id": "toolu_1", "tool_input": {"command": "echo hi > new.txt"}}
    said = read("claude", [INIT, CALL, WORDS, result(permission_denials=[denied, 5, None])])
    assert said.rejected[0] == "Bash: echo hi > new.txt"


def test_claude_says_that_the_provider_refused(read: Read) -> None:
    words = "API Error: Request rejected (429) · This request would exceed your rate limit"
    nothing = dict.fromkeys(USAGE, 0)
    last = result(is_error=True, api_error_status=429, result=words, total_cost_usd=0, usage=nothing)
    said = read("claude", [INIT, RETRY, last], status=1)
    assert (said.rate_limited, said.error, said.cost) == (True, words, 0.0)
    # It was ended while it waited for another try.
    assert read("claude", [INIT, RETRY], status=143).rate_limited
    # It waited, and went on.
    assert not read("claude", [INIT, RETRY, WORDS, result()]).rate_limited


def test_claude_gave_up(read: Read) -> None:
    last = result(
        subtype="error_max_turns", is_error=True, result=None, errors=["Reached maximum number of turns"]
    )
    said = read("claude", [INIT, last], status=1)
    assert (said.error, said.rate_limited) == ("Reached maximum number of turns", False)
    refused = "--dangerously-skip-permissions cannot be used with root/sudo privileges for security reasons"
    assert read("claude", [], f"{refused}\n", status=1).error == refused


CODEX: Final = "01a20744-18cd-7491-8d0f-3fc2226d4102"
THREAD: Final = {"type": "thread.started", "thread_id": CODEX}
TURN: Final = {
    "type": "turn.completed",
    "usage": {"input_tokens": 200, "cached_input_tokens": 80, "output_tokens": 40},
}


def item(**values: Any) -> dict[str, Any]:
    return {"type": "item.completed", "item": {"id": "item_1", **values}}


def test_codex_says_what_it_did(read: Read) -> None:
    command = "/bin/bash -lc 'echo hi'"
    done = {"type": "command_execution", "command": command, "exit_code": 0, "status": "completed"}
    patch = {
        "type": "file_change",
        "changes": [{"path": "a.py", "kind": "add"}, {"path": "b.py", "kind": "update"}],
    }
    message = {"type": "agent_message", "text": "All done."}
    events = [
        THREAD,
        {"type": "turn.started"},
        item(**done),
        item(**patch, status="completed"),
        item(**message),
        TURN,
    ]
    assert read("codex", events) == Transcript(
        agent="codex",
        text=f"- command_execution {command}\n- file_change a.py, b.py\nAll done.\n",
        tokens_in=200,
        tokens_out=40,
        session=CODEX,
    )


def test_codex_is_refused_what_nobody_could_allow(read: Read) -> None:
    """From its source (exec_events.rs, CommandExecutionStatus): not seen with approvals switched off."""
    done = item(type="command_execution", command="rm -rf /", exit_code=None, status="declined")
    assert read("codex", [THREAD, done, TURN]).rejected == ("command_execution: rm -rf /",)


def test_codex_says_that_the_provider_refused(read: Read) -> None:
    words = "exceeded retry limit, last status: 429 Too Many Requests"
    errors = [
        {"type": "error", "message": f"Reconnecting... 1/1 ({words})"},
        {"type": "error", "message": words},
    ]
    failed = {"type": "turn.failed", "error": {"message": words}}
    warning = item(type="error", message="Model metadata for `gpt-5` not found.")
    said = read("codex", [THREAD, warning, *errors, failed], "Reading additional input from stdin...\n", 1)
    assert (said.rate_limited, said.error) == (True, words)
    said = read("codex", [THREAD, *errors, TURN])
    assert (said.rate_limited, said.error) == (False, None)


@pytest.mark.parametrize(
    ("errors", "status", "is_limited"),
    [
        ("openai.RateLimitError: Error code: 429 - {'error': …}", 1, True),
        ("HTTP/1.1 429\n", 1, True),
        ("anthropic.APIStatusError: overloaded_error", 2, True),
        ("429 Too Many Requests", 0, False),
        ("FAILED test_rate_limit.py::test_429 - line 429", 1, False),
        ("boom", 1, False),
        ("", 1, False),
    ],
)
def test_another_command_tells_by_the_words_of_its_errors(
    read: Read, errors: str, status: int, *, is_limited: bool
) -> None:
    said = read(None, "It works.\n\n", errors, status)
    assert (said.agent, said.text, said.cost) == (None, "It works.\n", None)
    assert said.rate_limited == is_limited
    assert said.error == (errors.strip() or None if status else None)


def test_its_errors_do_not_hide_what_an_agent_says(read: Read) -> None:
    said = read("opencode", [{"type": "error", "error": {"name": "Broken"}}], "429 Too Many Requests", 1)
    assert (said.error, said.rate_limited) == ("Broken", False)


def test_files_that_are_not_there_are_empty(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "none")
    assert read_transcript("opencode", nowhere, nowhere, None) == Transcript(agent="opencode")
    assert read_transcript("unknown", nowhere, nowhere, 1) == Transcript()


def test_lines_that_are_no_json_are_text(read: Read) -> None:
    said = read("opencode", f"npm warn old\n{json.dumps(text('Hi'))}\n[1]\n{json.dumps(EDIT)[:60]}")
    assert said.text.startswith("npm warn old\nHi\n[1]\n{")


def test_what_is_read_is_bounded(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcript, "LONGEST_LINE", 1000)
    monkeypatch.setattr(transcript, "MOST_READ", 5000)
    said = read("opencode", [text("a" * 3000), text("Hello"), *[text("b" * 700)] * 20])
    assert said.text.startswith("Hello\nb")
    assert len(said.text) < 5000
    assert len(said.notes) == 2


def test_beginning_and_end_of_much_text_are_kept(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcript, "_MOST_TEXT", 2000)
    said = read("opencode", [text(f"{number:04} word") for number in range(1000)])
    assert said.text.startswith("0000 word\n")
    assert said.text.endswith("0999 word\n")
    assert len(said.text) <= 2000
    assert said.notes == ("the middle of what it said was left out",)


def test_a_line_is_cut_between_words_so_that_no_half_of_a_secret_is_left() -> None:
    assert one_line("one two  \x1b[31mthree\x00four\n") == "one two three four"
    assert one_line("use " + "s3cret" * 100) == "use…"
    assert one_line("\u202eevil") == "evil"
    assert one_line(None) == one_line(5) == one_line([]) == ""


KEYS: Final = st.sampled_from(
    "type part state input error data message text tool title tokens cache cost item usage status content name subtype"
    " result errors permission_denials session_id sessionID model is_error api_error_status changes path thread_id".split()
)
ANYTHING: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=6),
    max_leaves=20,
)
KINDS: Final = st.sampled_from(
    "text tool_use step_finish error system assistant result thread.started item.completed turn.completed turn.failed".split()
)
EVENTS: Final = st.lists(
    st.builds(lambda kind, rest: rest | {"type": kind}, KINDS, st.dictionaries(KEYS, ANYTHING))
)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    max_examples=50,
    deadline=None,
    derandomize=True,
    database=None,
)
@given(
    agent=st.sampled_from([*AGENTS, None]),
    events=EVENTS,
    noise=st.binary(max_size=200),
    status=st.none() | st.integers(0, 255),
)
@example(
    "claude", [{"type": "result", "result": {"a": 1}, "is_error": [1], "api_error_status": [429]}], b"", 0
)
@example("opencode", [], b'{"a":' * 20_000, 1)
@example("opencode", [], b'{"a":' + b"9" * 10_000 + b"}", 1)
def test_nothing_that_an_agent_prints_is_an_error_of_ours(
    tmp_path: Path, agent: str | None, events: list[dict[str, Any]], noise: bytes, status: int | None
) -> None:
    lines = b"".join(json.dumps(event).encode() + b"\n" for event in events)
    output, errors = tmp_path / "output", tmp_path / "errors"
    output.write_bytes(lines + noise)
    errors.write_bytes(noise)
    said = read_transcript(agent, str(output), str(errors), status)
    assert said.cost is None or 0 <= said.cost < 1e9
    for line in (said.error, said.model, said.session, *said.rejected):
        assert line is None or (line.isprintable() and len(line) <= 301)
    json.dumps([said.text, said.error, said.cost, said.tokens_in])


def test_commands_ask_nobody_and_take_the_prompt_as_it_is() -> None:
    assert AGENTS["opencode"].command("-fix it") == (
        "opencode",
        "run",
        "--format",
        "json",
        "--auto",
        "--",
        "-fix it",
    )
    assert AGENTS["claude"].command("do", "opus")[-4:] == ("--model", "opus", "--", "do")
    assert AGENTS["codex"].command("do")[:3] == ("codex", "exec", "--json")
    assert {name: agent.name for name, agent in AGENTS.items()} == {name: name for name in AGENTS}
