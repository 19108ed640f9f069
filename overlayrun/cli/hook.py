"""`hook`: what Claude Code and Codex call at every tool call and turn. Without click and pygit2.

Outside of a workspace it does nothing. Inside, it hands the agent's own words on to the run: the session with
its prompt, a snapshot after each edit or command, one more at the end of a turn. It never fails the agent.
"""

from __future__ import annotations

import json
import os
import signal

from overlayrun.agents import claude, codex
from overlayrun.cli.here import inside_of
from overlayrun.cli.telling import tell
from overlayrun.control import ask
from overlayrun.errors import OverlayrunError, UsageError, WorkspaceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import FrameType
    from typing import Any, Final

_PATIENCE: Final = 10  # seconds for all of it
_LARGEST: Final = 32 << 20  # bytes; a tool's whole answer is in what it is told
_LINE: Final = 60_000  # bytes; a run reads a request of 64 KiB
_LONGEST: Final = {"prompt": 4000, "said": 8000}  # characters; a run keeps no more
_SHOWN: Final = 200  # characters of a command or a path in a subject
_TREES: Final = "/run/overlayrun/trees/"
_ANSWERS: Final[Mapping[str, Callable[[Mapping[str, Any]], str]]] = {
    claude.NAME: claude.answer_in,
    codex.NAME: codex.answer_in,
}
_PATCHED: Final = ("*** Add File: ", "*** Update File: ", "*** Delete File: ")


def hook_lean(words: Sequence[str]) -> int | None:
    """Carry out `hook *words` with the event on standard input; None for wrong words."""
    if len(words) != 1 or words[0] not in _ANSWERS or os.isatty(0):
        return None
    signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(_PATIENCE)
    failed = 0
    try:
        # All is read in any case: an agent that writes into a closed pipe may take that for a failure.
        data = _read_all()
        is_inside = inside_of() is not None
        if not is_inside and b"Worktree" not in data:
            return 0
        payload = json.loads(data)
        failed = 1 if str(payload["hook_event_name"]).startswith("Worktree") else 0
        _answer(words[0], payload, is_inside=is_inside)
    except OverlayrunError as err:
        tell(" - ".join(part for part in (f"hook: {err.brief}", err.hint) if part))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        tell(f"hook: {type(err).__name__}: {err}"[:_SHOWN])
    else:
        return 0
    return failed


def _give_up(_: int, __: FrameType | None) -> None:
    raise TimeoutError(f"it took longer than {_PATIENCE} s")


def _read_all() -> bytes:
    parts = []
    size = 0
    while part := os.read(0, 1 << 20):
        size += len(part)
        if size <= _LARGEST:
            parts.append(part)
    return b"".join(parts)


def _answer(agent: str, payload: Mapping[str, Any], *, is_inside: bool) -> None:
    event = str(payload["hook_event_name"])
    if event in ("WorktreeCreate", "WorktreeRemove"):
        _worktree(agent, payload, is_inside=is_inside)
    elif is_inside:
        where = _tree_of(payload.get("cwd"))
        if event in ("SessionStart", "UserPromptSubmit"):
            _ask({"op": "session", "account": _session(agent, payload), **where})
        elif event == "PostToolUse":
            _ask({"op": "snapshot", "account": _step(agent, payload), **where})
        elif event == "Stop":
            said = _ANSWERS[agent](payload)
            _ask({"op": "snapshot", "account": {**_session(agent, payload), "said": said}, **where})


def _worktree(agent: str, payload: Mapping[str, Any], *, is_inside: bool) -> None:
    """Open or close a further branch of the run: a tree of its own in the same sandbox."""
    event = payload["hook_event_name"]
    name = str(payload.get("name") or payload.get("worktree_name") or "")
    path = str(payload.get("worktree_path") or "")
    if event == "WorktreeCreate":
        if not is_inside:
            raise UsageError("a worktree of overlayrun is made inside a workspace", hint=_cure(name))
        opened = _ask({"op": "open", "branch": name})["path"]
        if not os.path.isdir(opened):
            raise WorkspaceError(f"the branch's tree is not there: {opened}")
        os.write(1, f"{opened}\n".encode("utf-8", "surrogateescape"))
        # A sub-agent has no session of its own that would be told later.
        _ask({"op": "session", "account": _session(agent, payload), "path": opened})
    elif path.startswith(_TREES) and is_inside:
        _ask({"op": "close", "path": path})
    else:
        raise UsageError(f"no worktree of overlayrun, left as it is: {path}", hint="git worktree remove PATH")


def _cure(name: str) -> str:
    quoted = name if name.replace("-", "").replace("_", "").isalnum() else "NAME"
    return f"start it so: overlayrun -- claude -w {quoted}"


def _ask(request: dict[str, Any]) -> dict[str, Any]:
    """Ask the run that this is in. Raises WorkspaceError also for what it refuses."""
    path = os.environ.get("OVERLAYRUN_SOCKET", "/run/overlayrun/control/control")
    answer = ask(os.path.dirname(path), os.path.basename(path), _fitting(request), wait=0.5)[0]
    if "error" in answer:
        raise WorkspaceError(str(answer["error"]), hint=str(answer.get("hint") or ""))
    return answer


def _fitting(request: dict[str, Any]) -> dict[str, Any]:
    """The request, its long texts cut so that a run reads it."""
    account = request.get("account")
    if not isinstance(account, dict):
        return request
    cut = {name: text[: _LONGEST.get(name, _SHOWN)] for name, text in account.items() if text}
    while len(json.dumps(cut)) > _LINE:
        longest = max(cut, key=lambda name: len(cut[name]))
        cut[longest] = cut[longest][: len(cut[longest]) // 2]
    return {**request, "account": cut}


def _tree_of(cwd: object) -> dict[str, str]:
    """Which of the run's trees an event is about: nothing for the run's own."""
    if not isinstance(cwd, str) or not cwd.startswith(_TREES):
        return {}
    return {"path": _TREES + cwd.removeprefix(_TREES).partition("/")[0]}


def _session(agent: str, payload: Mapping[str, Any]) -> dict[str, str]:
    told = {
        "agent": agent,
        "session": payload.get("session_id"),
        "title": payload.get("session_title"),
        "model": payload.get("model"),
        "prompt": payload.get("prompt"),
    }
    return {name: value for name, value in told.items() if isinstance(value, str)}


def _step(agent: str, payload: Mapping[str, Any]) -> dict[str, str]:
    tool = str(payload.get("tool_name") or "tool")
    given = payload.get("tool_input")
    return {
        **_session(agent, payload),
        "tool": tool,
        "subject": _subject(tool, given if isinstance(given, dict) else {}),
    }


def _subject(tool: str, given: Mapping[str, Any]) -> str:
    """One line on a tool call: the file that it changed or the command that it ran."""
    path = given.get("file_path") or given.get("notebook_path")
    if isinstance(path, str):
        return f"{tool} {_below_root(path)}"
    command = given.get("command") or given.get("patch")
    if not isinstance(command, str) or not command.strip():
        return tool
    lines = command.strip().splitlines()
    files = [line.removeprefix(mark).strip() for line in lines for mark in _PATCHED if line.startswith(mark)]
    if files and lines[0].startswith("*** "):
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        return f"{tool} {_below_root(files[0])}{more}"
    return f"{tool}: {lines[0]}"


def _below_root(path: str) -> str:
    """A path as git names it, where it lies in a working tree."""
    above = os.path.dirname(path)
    while len(above) > 1:
        if os.path.lexists(f"{above}/.git"):
            return os.path.relpath(path, above)
        above = os.path.dirname(above)
    return path
