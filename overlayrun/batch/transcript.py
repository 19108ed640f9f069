"""What agents print: commands that make them print it for programs, and what can be read from it.

Formats: opencode 1.18 (`run --format json`), Claude Code 2.1 (`--output-format stream-json`) and Codex 0.169
(`exec --json`), as each prints them. All of it is the words of an agent: bounded, and never more than text.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final

LONGEST_LINE: Final = 4 << 20
MOST_READ: Final = 128 << 20
_MOST_TEXT: Final = 4 << 20
_LONGEST_PIECE: Final = 64 << 10
_MOST_REJECTED: Final = 20
_TAIL: Final = 8 << 10
_MOST_TOKENS: Final = 10**15
_MOST_COST: Final = 10**6

Event = Mapping[str, Any]

# Words of providers' answers, not "429" or "rate limit" alone: a failing test's name may hold these.
_LIMITED: Final = re.compile(
    r"rate[ _-]?limit(?:_error|ed\b| (?:reached|exceeded|hit))|rate_limit_exceeded|too many requests"
    r"|\b(?:status|code|http(?:/\S+)?|error)\W{1,4}429\b|RESOURCE_EXHAUSTED|overloaded_error"
    r"|usage limit (?:reached|exceeded)|hit your usage limit|\bquota exceeded",
    re.IGNORECASE,
)
_LIMITED_STATUS: Final = (429, 529)  # 529: Anthropic's "overloaded"
_AUTO_REJECTED: Final = re.compile(r"permission requested: (.{1,400}); auto-rejecting")
_ANSI: Final = re.compile(r"\x1b\[[0-9;?]{0,20}[A-Za-z]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """What a command said. agent: a name of AGENTS, None for another's. cost: US dollars, of all of it.

    text: for people, a few MiB at most; of an agent what it said and did, else the beginning of its output.
    tokens_in: with those from caches. rejected: what it was refused because nobody was there to allow it.
    rate_limited: the provider's refusal ended it. error: what went wrong, in its words. None: it did not say.
    """

    agent: str | None = None
    text: str = ""
    cost: float | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    model: str | None = None
    session: str | None = None
    rejected: tuple[str, ...] = ()
    rate_limited: bool = False
    error: str | None = None
    notes: tuple[str, ...] = ()


class Heard:
    """What was heard so far; `hear` of an agent fills it."""

    def __init__(self) -> None:
        self.cost: float | None = None
        self.tokens_in: int | None = None
        self.tokens_out: int | None = None
        self.model: str | None = None
        self.session: str | None = None
        self.rejected: list[str] = []
        self.rate_limited = False
        self.error: str | None = None
        self.notes: dict[str, None] = {}
        self._first: list[str] = []
        self._last: deque[str] = deque()
        self._sizes = [0, 0]

    def say(self, text: object) -> None:
        """Add a paragraph of the agent's. Beginning and end of all of them are kept."""
        if not isinstance(text, str) or not text.strip():
            return
        piece = text.rstrip()
        if len(piece) > _LONGEST_PIECE:
            piece = f"{piece[:_LONGEST_PIECE].rpartition(' ')[0]}…"
        piece += "\n"
        if not self._last and self._sizes[0] + len(piece) <= _MOST_TEXT // 2:
            self._first.append(piece)
            self._sizes[0] += len(piece)
            return
        self._last.append(piece)
        self._sizes[1] += len(piece)
        while self._sizes[1] > _MOST_TEXT // 2:
            self._sizes[1] -= len(self._last.popleft())
            self.notes["the middle of what it said was left out"] = None

    def did(self, tool: object, title: object, failure: object = None) -> None:
        """Add a line for a tool that was used."""
        words = f"- {one_line(tool, 60)} {one_line(title)}".rstrip()
        self.say(f"{words}: {one_line(failure)}" if failure else words)

    def refused(self, what: str) -> None:
        """A permission was asked for, and nobody was there."""
        if len(self.rejected) < _MOST_REJECTED:
            self.rejected.append(one_line(what))

    def fail(self, words: object, status: object = None) -> None:
        """The agent gave up."""
        self.error = one_line(words) or "an error without words"
        self.rate_limited = status in _LIMITED_STATUS or bool(_LIMITED.search(self.error))

    def count(self, tokens_in: Iterable[object], tokens_out: Iterable[object]) -> None:
        """Add tokens; what is no sane number counts nothing."""
        self.tokens_in = (self.tokens_in or 0) + sum(map(_tokens, tokens_in))
        self.tokens_out = (self.tokens_out or 0) + sum(map(_tokens, tokens_out))

    def text(self) -> str:
        """What was said."""
        return "".join([*self._first, *self._last])


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent that works without a person. environment: variables that it needs for that.

    Permissions are all given beforehand, as each tool's help names it for use in a sandbox: ours is the
    wall, and nobody is there to be asked.
    """

    name: str
    argv: tuple[str, ...]
    hear: Callable[[Heard, Event], None]
    environment: Mapping[str, str] = field(default_factory=dict)

    def command(self, prompt: str, model: str | None = None) -> tuple[str, ...]:
        """Argv of a run with `prompt`. model: as the tool itself names it; None for the tool's own choice."""
        chosen = ("--model", model) if model else ()
        return (*self.argv, *chosen, "--", prompt)


def one_line(text: object, most: int = 300) -> str:
    """Any value as one line of printable text, shortened between words: no half of a secret may be left."""
    words = _ANSI.sub("", text[: 8 * most] if isinstance(text, str) else "")
    short = " ".join("".join(char if char.isprintable() else " " for char in words).split())
    return short if len(short) <= most else f"{short[:most].rpartition(' ')[0]}…"


def read_transcript(agent: str | None, output: str, errors: str, status: int | None) -> Transcript:
    """What a command said, from the files of its two raw streams (AttemptLayout.output, .errors).

    status: exit status, None where it never started. Never raises for what the files hold; reads MOST_READ
    bytes at most. A missing file is an empty one.
    """
    known = AGENTS.get(agent) if agent else None
    heard = Heard()
    if known is None:
        heard.say(_read(output, 0, _LONGEST_PIECE))
    else:
        for event in _events(output, heard):
            known.hear(heard, event)
    _hear_errors(heard, known, _read(errors, -_TAIL, _TAIL), failed=bool(status))
    return Transcript(
        agent=known.name if known else None,
        text=heard.text(),
        cost=heard.cost,
        tokens_in=heard.tokens_in,
        tokens_out=heard.tokens_out,
        model=heard.model,
        session=heard.session,
        rejected=tuple(heard.rejected),
        rate_limited=heard.rate_limited,
        error=heard.error,
        notes=tuple(heard.notes),
    )


def _hear_errors(heard: Heard, known: Agent | None, text: str, *, failed: bool) -> None:
    """Standard error: last resort for why it failed, and where OpenCode names what it refused."""
    if known is not None and known.name == "opencode" and (named := _AUTO_REJECTED.findall(text)):
        heard.rejected = []
        for what in named:
            heard.refused(what)
    if failed and heard.error is None:
        lines = [line for line in text.splitlines() if line.strip()]
        if lines:
            heard.error = one_line(lines[-1])
        heard.rate_limited |= bool(_LIMITED.search(text))


def _events(path: str, heard: Heard) -> Iterator[Event]:
    """JSON objects of a file, a line each; a line that is none is said as it is."""
    for line in _lines(path, heard):
        event = parse_event(line)
        if event is not None:
            yield event
        else:
            heard.say(line.decode("utf-8", "replace"))


def parse_event(line: bytes) -> dict[str, Any] | None:
    """A line as a JSON object; None for anything else, however it is torn or nested."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None


def _lines(path: str, heard: Heard) -> Iterator[bytes]:
    try:
        file = open(path, "rb")  # noqa: SIM115  # closed below
    except OSError:
        return
    with file:
        left = MOST_READ
        while left > 0 and (line := file.readline(LONGEST_LINE)):
            left -= len(line)
            if len(line) < LONGEST_LINE or line.endswith(b"\n"):
                yield line
            else:
                heard.notes["a line of its output was too long to be read"] = None
                left -= _skip_line(file, left)
        if file.read(1):
            heard.notes["its output was too long to be read to the end"] = None


def _skip_line(file: BinaryIO, most: int) -> int:
    """Read on to the end of the line; how many bytes that was."""
    read = 0
    while read < most and (rest := file.readline(LONGEST_LINE)):
        read += len(rest)
        if rest.endswith(b"\n"):
            break
    return read


def _read(path: str, begin: int, most: int) -> str:
    """Text of a part of a file. begin: below 0 from its end."""
    try:
        with open(path, "rb") as file:
            if begin < 0:
                file.seek(max(0, file.seek(0, 2) + begin))
            return file.read(most).decode("utf-8", "replace")
    except OSError:
        return ""


def _within(value: object, *names: str) -> Any:
    """`value[name][name]…`; None where anything on the way is no object or has no such name."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _items(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _tokens(value: object) -> int:
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else 0


def _price(value: object) -> float | None:
    """Dollars; None for what is none (not a number, or not a number that anyone pays)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= _MOST_COST else None


def _add_cost(heard: Heard, value: object) -> None:
    """A price of 0 for work that was done is no price: agents print it for models they have none for.

    A model that is free is then one whose cost is not known, which budgets take alike; the other way round
    a budget would call dear work free.
    """
    cost = _price(value)
    if cost or (cost == 0.0 and not heard.tokens_in and not heard.tokens_out):
        heard.cost = (heard.cost or 0.0) + cost


def _hear_opencode(heard: Heard, event: Event) -> None:
    kind, part = event.get("type"), event.get("part")
    heard.session = heard.session or one_line(event.get("sessionID"), 100) or None
    if kind == "text":
        heard.say(_within(part, "text"))
    elif kind == "tool_use":
        _hear_opencode_tool(heard, part)
    elif kind == "step_finish":
        tokens = _within(part, "tokens")
        cached = (_within(tokens, "cache", name) for name in ("read", "write"))
        heard.count(
            (_within(tokens, "input"), *cached), (_within(tokens, "output"), _within(tokens, "reasoning"))
        )
        _add_cost(heard, _within(part, "cost"))
    elif kind == "error":
        data = _within(event, "error", "data")
        words = _within(data, "message") or _within(event, "error", "name")
        heard.fail(words, _within(data, "statusCode"))


def _hear_opencode_tool(heard: Heard, part: object) -> None:
    tool, state = _within(part, "tool"), _within(part, "state")
    failure = _within(state, "error")
    title = _within(state, "title") or _about(_within(state, "input"))
    heard.did(tool, title, failure)
    # By a rule of the user's it is told "a rule which prevents you", and goes on: that is no refusal.
    if isinstance(failure, str) and failure.startswith("The user rejected permission"):
        heard.refused(f"{tool}: {title}")
    if tool == "task":  # only the events of its own session are printed
        heard.notes["cost and tokens are without those of its sub-agents"] = None


def _hear_claude(heard: Heard, event: Event) -> None:
    kind = event.get("type")
    heard.session = heard.session or one_line(event.get("session_id"), 100) or None
    if kind == "system":
        heard.model = heard.model or one_line(event.get("model"), 100) or None
        if event.get("subtype") == "api_retry":  # it stands where no result comes any more
            heard.rate_limited = event.get("error_status") in _LIMITED_STATUS
    elif kind == "assistant":
        heard.rate_limited = event.get("error") == "rate_limit"
        for block in _items(_within(event, "message", "content")):
            if _within(block, "type") == "tool_use":
                heard.did(_within(block, "name"), _about(_within(block, "input")))
            else:
                heard.say(_within(block, "text"))
    elif kind == "result":
        _hear_claude_result(heard, event)


def _hear_claude_result(heard: Heard, event: Event) -> None:
    usage = event.get("usage")
    taken = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    heard.count((_within(usage, name) for name in taken), (_within(usage, "output_tokens"),))
    _add_cost(heard, event.get("total_cost_usd"))
    for denied in _items(event.get("permission_denials")):
        tool, given = _within(denied, "tool_name"), _within(denied, "tool_input")
        heard.refused(f"{one_line(tool, 60)}: {_about(given)}")
    heard.rate_limited = False
    subtype = event.get("subtype")
    if event.get("is_error") or (isinstance(subtype, str) and subtype.startswith("error")):
        errors = [each for each in _items(event.get("errors")) if isinstance(each, str)]
        words = event.get("result") or "; ".join(errors[:5]) or subtype
        heard.fail(words, event.get("api_error_status"))


def _hear_codex(heard: Heard, event: Event) -> None:
    kind = event.get("type")
    if kind == "thread.started":
        heard.session = one_line(event.get("thread_id"), 100) or None
    elif kind == "item.completed":
        _hear_codex_item(heard, event.get("item"))
    elif kind == "turn.completed":
        usage = event.get("usage")
        # Those from caches are among the input, those of its reasoning among the output.
        heard.count((_within(usage, "input_tokens"),), (_within(usage, "output_tokens"),))
        heard.error, heard.rate_limited = None, False  # what came before was overcome
    elif kind in ("turn.failed", "error"):
        heard.fail(_within(event, "error", "message") or event.get("message"))


def _hear_codex_item(heard: Heard, item: object) -> None:
    kind, status = _within(item, "type"), _within(item, "status")
    if kind in ("agent_message", "error"):
        heard.say(_within(item, "text") or _within(item, "message"))
        return
    paths = [one_line(_within(each, "path"), 100) for each in _items(_within(item, "changes"))[:20]]
    title = ", ".join(paths) or _about(item)
    heard.did(kind, title, status if status in ("failed", "declined") else None)
    if status == "declined":
        heard.refused(f"{kind}: {title}")


def _about(given: object) -> str:
    """What a tool's input is about, by the names that tools have for it."""
    names = ("command", "filePath", "file_path", "path", "pattern", "url", "query", "tool", "description")
    return next((line for name in names if (line := one_line(_within(given, name)))), "")


AGENTS: Final[Mapping[str, Agent]] = {
    "opencode": Agent("opencode", ("opencode", "run", "--format", "json", "--auto"), _hear_opencode),
    "claude": Agent(
        "claude",
        ("claude", "-p", "--output-format", "stream-json", "--verbose", "--dangerously-skip-permissions"),
        _hear_claude,
        {"IS_SANDBOX": "1"},  # without it, it refuses root
    ),
    "codex": Agent(
        "codex", ("codex", "exec", "--json", "--dangerously-bypass-approvals-and-sandbox"), _hear_codex
    ),
}
"""By name: `AGENTS["opencode"].command(prompt, model)` is argv."""
