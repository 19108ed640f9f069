"""A scripted stand-in for a language model on loopback: the prompt is the script for a real agent.

It speaks the chat-completions protocol, streaming or not, and needs the standard library alone. Script lines
(`\\n`, `\\t` and `\\\\` in TEXT, OLD and NEW mean what they mean in Python; other lines are ignored):

    @write PATH TEXT         call the agent's tool `write`
    @edit PATH OLD => NEW    call `edit`
    @bash COMMAND            call `bash`
    @tool NAME {json}        call any tool
    @sleep SECONDS           wait before the next answer
    @wait NAME               wait before the next answer until the test calls `release(NAME)`
    @say TEXT                text of the answer

Each tool call is one answer; the agent sends its result, and the next request gets the next call. A request
without tools (titles, summaries: the "small model") gets one fixed line.

By hand: `python tests/agents/scripted_model.py [PORT]` prints the address and serves until Ctrl-C.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

MODEL_NAME: Final = "scripted"
TITLE: Final = "Scripted work"
_COMMAND = re.compile(r"(?:@|::)(write|edit|bash|tool|sleep|wait|say) (.*)")
_ESCAPES: Final = {"n": "\n", "t": "\t", "\\": "\\"}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool that the agent offers."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: sleep (seconds), wait for each gate (by name), say `text`, then perhaps call a tool."""

    sleep: float = 0.0
    gates: tuple[str, ...] = ()
    text: str = ""
    call: ToolCall | None = None


def parse_script(prompt: str) -> list[Answer]:
    """Turn a prompt into the answers it asks for, in order; the last one calls no tool."""
    answers: list[Answer] = []
    next_one = Answer()
    for word, rest in _commands(prompt):
        if word == "sleep":
            next_one = replace(next_one, sleep=next_one.sleep + float(rest))
        elif word == "wait":
            next_one = replace(next_one, gates=(*next_one.gates, rest))
        elif word == "say":
            next_one = replace(next_one, text=next_one.text + _unescape(rest))
        else:
            answers.append(replace(next_one, call=_tool_call(word, rest)))
            next_one = Answer()
    return [*answers, replace(next_one, text=next_one.text or "Done.")]


def _commands(prompt: str) -> Iterator[tuple[str, str]]:
    for line in _unwrap(prompt).splitlines():
        if found := _COMMAND.fullmatch(line.strip()):
            yield found[1], found[2]


def _unwrap(prompt: str) -> str:
    # `opencode run` puts an argument that holds a space into double quotes, with inner ones escaped.
    text = prompt.strip()
    if text.startswith('"') and text.endswith('"'):
        return text[1:-1].replace('\\"', '"')
    return text


def _tool_call(word: str, rest: str) -> ToolCall:
    head, _, tail = rest.partition(" ")
    if word == "tool":
        return ToolCall(head, json.loads(tail))
    if word == "bash":
        return ToolCall("bash", {"command": rest, "description": "Run a scripted command"})
    if word == "write":
        return ToolCall("write", {"filePath": head, "content": _unescape(tail)})
    old, _, new = tail.partition(" => ")
    return ToolCall("edit", {"filePath": head, "oldString": _unescape(old), "newString": _unescape(new)})


def _unescape(text: str) -> str:
    return re.sub(r"\\([nt\\])", lambda found: _ESCAPES[found[1]], text)


def choose_answer(request: dict[str, Any], scripts: Mapping[str, str] | None = None) -> Answer:
    """Give the answer that a chat-completions request is due: stateless, from the messages in it alone.

    scripts: by prompts that are no scripts themselves.
    """
    if not request.get("tools"):
        return Answer(text=TITLE)
    messages = request["messages"]
    start, answers = _newest_script(messages, scripts or {})
    done = sum(1 for message in messages[start:] if message["role"] == "tool")
    return answers[min(done, len(answers) - 1)]


def _newest_script(
    messages: Sequence[dict[str, Any]], scripts: Mapping[str, str]
) -> tuple[int, list[Answer]]:
    for index in range(len(messages) - 1, -1, -1):
        if messages[index]["role"] != "user":
            continue
        # An agent adds user messages of its own (reminders): the newest one that holds a script counts.
        text = _text(messages[index])
        script = scripts.get(_unwrap(text), text)
        if any(_commands(script)):
            return index, parse_script(script)
    return len(messages), [Answer(text="No script in the prompt.")]


def _text(message: dict[str, Any]) -> str:
    content = message["content"]
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part.get("type") == "text")


def _chunks(answer: Answer, number: int) -> Iterator[dict[str, Any]]:
    yield {"delta": {"role": "assistant", "content": answer.text}, "finish_reason": None}
    if answer.call:
        yield {"delta": {"tool_calls": [_call_record(answer.call, number)]}, "finish_reason": None}
    yield {"delta": {}, "finish_reason": "tool_calls" if answer.call else "stop"}


def _call_record(call: ToolCall, number: int) -> dict[str, Any]:
    function = {"name": call.name, "arguments": json.dumps(call.arguments)}
    return {"index": 0, "id": f"call_{number}", "type": "function", "function": function}


def _whole(answer: Answer, number: int) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text}
    if answer.call:
        message["tool_calls"] = [_call_record(answer.call, number)]
    return {"message": message, "finish_reason": "tool_calls" if answer.call else "stop"}


class ScriptedModel:
    """The server, a context manager: listens on a free port of loopback, stops with every thread at exit.

    `requests` holds the body of each request, oldest first. `scripts` gives the script of a prompt that is
    written for people. `is_reached(NAME)` and `release(NAME)` are the
    two sides of `@wait NAME`: a test knows that the agent got that far, and lets it go on.
    """

    def __init__(self, port: int = 0) -> None:
        self.requests: list[dict[str, Any]] = []
        self.scripts: dict[str, str] = {}
        self._changed = threading.Condition()
        self._reached: set[str] = set()
        self._released: set[str] = set()
        self._stopping = False
        self._server = _Server(("127.0.0.1", port), _handler_of(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def base_url(self) -> str:
        """Address to give to a client of the chat-completions protocol."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def prompts(self) -> list[str]:
        """Give the newest user text of each request that offered tools, oldest first."""
        with_tools = [request for request in self.requests if request.get("tools")]
        return [[_text(m) for m in request["messages"] if m["role"] == "user"][-1] for request in with_tools]

    def is_reached(self, gate: str) -> bool:
        """Say whether an agent waits at `gate`, or did."""
        with self._changed:
            return gate in self._reached

    def release(self, gate: str) -> None:
        """Let every agent pass `gate`, now and later."""
        with self._changed:
            self._released.add(gate)
            self._changed.notify_all()

    def answer(self, request: dict[str, Any]) -> tuple[Answer, int]:
        """Log a request, wait as its script says (not past the server's end), answer it."""
        answer = choose_answer(request, self.scripts)
        with self._changed:
            self.requests.append(request)
            number = len(self.requests)
            self._reached.update(answer.gates)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._stopping, answer.sleep)
            self._changed.wait_for(lambda: self._stopping or self._released.issuperset(answer.gates))
        return answer, number

    def __enter__(self) -> ScriptedModel:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    # Joined at server_close(): no thread outlives a test.
    daemon_threads = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        # An agent that is killed drops its connection: that is what some tests do on purpose.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def _handler_of(model: ScriptedModel) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send_json({"object": "list", "data": [{"id": MODEL_NAME, "object": "model"}]})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            request = json.loads(body)
            answer, number = model.answer(request)
            if request.get("stream"):
                self._send_stream(answer, number)
            else:
                self._send_json(_envelope("chat.completion", number, _whole(answer, number)))

        def _send_stream(self, answer: Answer, number: int) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for choice in _chunks(answer, number):
                self._send_event(json.dumps(_envelope("chat.completion.chunk", number, choice)))
            self._send_event("[DONE]")

        def _send_event(self, data: str) -> None:
            self.wfile.write(f"data: {data}\n\n".encode())

        def _send_json(self, value: dict[str, Any]) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
            """Keep quiet: `requests` is the log."""

    return Handler


def _envelope(kind: str, number: int, choice: dict[str, Any]) -> dict[str, Any]:
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    head = {"id": f"answer-{number}", "object": kind, "created": int(time.time()), "model": MODEL_NAME}
    return {**head, "choices": [{"index": 0, **choice}], "usage": usage}


def main() -> None:
    """Serve by hand until Ctrl-C."""
    with ScriptedModel(int(sys.argv[1]) if len(sys.argv) > 1 else 0) as model:
        print(model.base_url, flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print(f"{len(model.requests)} requests")


if __name__ == "__main__":
    main()
