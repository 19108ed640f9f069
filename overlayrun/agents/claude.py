"""Claude Code: which of its hooks call us, and what it tells them. Lean: it is loaded at every tool call.

Source: Claude Code's hooks reference ("Hook events"); field names as 2.1.197 has them.
"""

from __future__ import annotations

import json
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any, Final

NAME: Final = "claude"
COMMAND: Final = "overlayrun hook claude"
_TOOLS: Final = "Edit|MultiEdit|Write|NotebookEdit|Bash"
_SECONDS: Final = 15  # the hook ends itself after 10
_TAIL: Final = 256 * 1024  # bytes of a transcript in which the last answer is looked for
EVENTS: Final[Mapping[str, str | None]] = {
    "SessionStart": None,
    "UserPromptSubmit": None,
    "PostToolUse": _TOOLS,
    "Stop": None,
    "WorktreeCreate": None,
    "WorktreeRemove": None,
}


def hooks() -> Iterator[tuple[str, dict[str, Any]]]:
    """Events, and the group of hooks that each gets in the settings."""
    for event, matcher in EVENTS.items():
        group: dict[str, Any] = {} if matcher is None else {"matcher": matcher}
        yield event, {**group, "hooks": [{"type": "command", "command": COMMAND, "timeout": _SECONDS}]}


def settings_json() -> str:
    """The same for `claude --settings`, in one line: nothing needs to be written for it."""
    return json.dumps({"hooks": {event: [group] for event, group in hooks()}}, separators=(",", ":"))


def settings_path() -> str:
    """The user's own settings."""
    above = os.environ.get("CLAUDE_CONFIG_DIR") or os.path.expanduser("~/.claude")
    return f"{above}/settings.json"


def answer_in(payload: Mapping[str, Any]) -> str:
    """What the assistant said at the end of a turn: as told, else the last text of the transcript."""
    told = payload.get("last_assistant_message")
    if isinstance(told, str) and told:
        return told
    try:
        return _last_text(str(payload.get("transcript_path") or ""))
    except (OSError, ValueError):
        return ""


def _last_text(path: str) -> str:
    """The last text of the assistant in a transcript: JSON lines, not a documented format."""
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
        lines = file.read(_TAIL).split(b"\n")
    for line in reversed(lines):
        text = _text_of(line)
        if text:
            return text
    return ""


def _text_of(line: bytes) -> str:
    try:
        data = json.loads(line)
        if data["type"] != "assistant":
            return ""
        parts = data["message"]["content"]
        return "\n".join(part["text"] for part in parts if part.get("type") == "text")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""  # a line cut in two, or another kind of entry
