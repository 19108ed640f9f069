"""The stand-in for a model answers as its script says."""

from __future__ import annotations

import json
import threading
from typing import Any
from urllib.request import Request, urlopen

import pytest

from .project import wait_until
from .scripted_model import TITLE, Answer, ScriptedModel, ToolCall, parse_script


@pytest.mark.parametrize(
    ("prompt", "answers"),
    [
        ("no command", [Answer(text="Done.")]),
        ("@say a\\tb", [Answer(text="a\tb")]),
        (
            "@sleep 2\n@write d/f one\\ntwo\n@wait go\n@say End",
            [
                Answer(sleep=2, call=ToolCall("write", {"filePath": "d/f", "content": "one\ntwo"})),
                Answer(gates=("go",), text="End"),
            ],
        ),
        (
            '"@tool read {\\"filePath\\": \\"f\\"}"',
            [Answer(call=ToolCall("read", {"filePath": "f"})), Answer(text="Done.")],
        ),
    ],
)
def test_a_prompt_is_read_as_a_script(prompt: str, answers: list[Answer]) -> None:
    assert parse_script(prompt) == answers


def test_a_request_without_tools_gets_a_title(model: ScriptedModel) -> None:
    message = _ask(model, tools=[], messages=[{"role": "user", "content": "@bash false"}])
    assert message == {"role": "assistant", "content": TITLE}


def test_each_tool_result_brings_the_next_call(model: ScriptedModel) -> None:
    messages = [{"role": "user", "content": "@bash one\n@bash two"}]
    commands = []
    while calls := _ask(model, tools=[{}], messages=messages).get("tool_calls"):
        commands.append(json.loads(calls[0]["function"]["arguments"])["command"])
        messages += [{"role": "assistant", "content": ""}, {"role": "tool", "content": "ok"}]
    assert commands == ["one", "two"]


def test_the_server_stops_while_an_agent_still_waits() -> None:
    with ScriptedModel() as model:
        messages = [{"role": "user", "content": "@wait for-ever"}]
        asking = threading.Thread(target=_ask, args=(model,), kwargs={"tools": [{}], "messages": messages})
        asking.start()
        wait_until(lambda: model.is_reached("for-ever"))
    asking.join(30)
    assert not asking.is_alive()


def _ask(model: ScriptedModel, **request: Any) -> dict[str, Any]:
    data = json.dumps(request).encode()
    with urlopen(Request(f"{model.base_url}/chat/completions", data), timeout=30) as answer:
        message: dict[str, Any] = json.load(answer)["choices"][0]["message"]
    return message
