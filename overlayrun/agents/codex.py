"""Codex: which of its hooks call us, and what it tells them. Lean: it is loaded at every tool call.

Source: the schemas of hook input in openai/codex, codex-rs/hooks/schema/generated; as 0.169.0 has them.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any, Final

NAME: Final = "codex"
COMMAND: Final = "overlayrun hook codex"
_SECONDS: Final = 15  # the hook ends itself after 10
EVENTS: Final = ("UserPromptSubmit", "PostToolUse", "Stop")


def hooks() -> Iterator[tuple[str, dict[str, Any]]]:
    """Events, and the group of hooks that each gets."""
    for event in EVENTS:
        yield event, {"hooks": [{"type": "command", "command": COMMAND, "timeout": _SECONDS}]}


def hooks_path() -> str:
    """The user's own hooks."""
    above = os.environ.get("CODEX_HOME") or os.path.expanduser("~/.codex")
    return f"{above}/hooks.json"


def answer_in(payload: Mapping[str, Any]) -> str:
    """What the assistant said at the end of a turn; Codex may leave it out."""
    told = payload.get("last_assistant_message")
    return told if isinstance(told, str) else ""
