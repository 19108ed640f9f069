"""`status` and `fork` inside a workspace, without click and pygit2: agents ask at every step. One socket."""

from __future__ import annotations

import json
import os
from contextlib import suppress

from overlayrun.cli.here import inside_of
from overlayrun.cli.telling import show_error
from overlayrun.control import ask
from overlayrun.errors import OverlayrunError, WorkspaceError
from overlayrun.report import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any, Final

_FAILED: Final = 3
_SCHEMA: Final = 1
_BRANCH: Final = ("-b", "--branch")


def inside_lean(words: Sequence[str]) -> int | None:
    """Carry out `status` or `fork` inside and give the exit status; None outside, for help, usage errors."""
    if inside_of() is None:
        return None
    parsed = _parse(words)
    if parsed is None:
        return None
    request, as_json = parsed
    try:
        answer = ask_inside(request)
    except OverlayrunError as err:
        show_error(err)
        return _FAILED
    if as_json:
        shape = status_shape(answer) if request["op"] == "status" else fork_shape(answer)
        _write(json.dumps({"schema": _SCHEMA, **shape}, indent=2))
        return 0
    for line in _status_lines(answer) if request["op"] == "status" else fork_lines(answer):
        _write(line)
    return 0


def _parse(words: Sequence[str]) -> tuple[dict[str, Any], bool] | None:
    """The request, and whether JSON is wanted."""
    request: dict[str, Any] = {"op": words[0]}
    # The directory, because it may lie in the tree of a further branch that the run has opened.
    with suppress(FileNotFoundError):  # it was removed
        request["path"] = os.getcwd()
    as_json = False
    rest = list(words[1:])
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        if word == "--json":
            as_json = True
        elif request["op"] == "fork" and word in _BRANCH and rest:
            request["branch"] = rest.pop(0)
        elif request["op"] == "fork" and flag == "--branch" and equals:
            request["branch"] = value
        elif request["op"] == "fork" and _is_count(word, rest):
            request["count"] = int(value if equals else rest.pop(0))
        elif request["op"] == "fork" and word == inside_of():
            request.pop("path", None)  # the run's own branch was named
        else:
            return None
    return request, as_json


def _is_count(word: str, rest: Sequence[str]) -> bool:
    flag, equals, value = word.partition("=")
    number = value if equals else (rest or [""])[0]
    return (flag == "--count" or word == "-n") and number.isascii() and number.isdigit() and int(number) > 0


def ask_inside(request: dict[str, Any]) -> dict[str, Any]:
    """Ask the run that this process is in. Raises WorkspaceError, with what the run says against it."""
    path = os.environ.get("OVERLAYRUN_SOCKET", "/run/overlayrun/control/control")
    answer, _ = ask(os.path.dirname(path), os.path.basename(path), request)
    if "error" in answer:
        hint = printable(str(answer.get("hint") or "see: overlayrun status"))
        raise WorkspaceError(printable(str(answer["error"])), hint=hint)
    return answer


def _status_lines(told: dict[str, Any]) -> Iterator[str]:
    kind = "throwaway" if told["throwaway"] else f"branch {told['branch']}"
    base = told["base"][:10] if told["base"] else "the empty tree"
    dirty = " with the user's uncommitted changes" if told["dirty"] else ""
    yield f"{kind} from {base}{dirty}" + (f", for {told['target']}" if told["target"] else "")
    last = told["last_snapshot"]
    yield f"running for {_span(told['running'])}; " + (
        f"snapshot {last['number']} was taken {_span(last['age'])} ago" if last else "no snapshot yet"
    )
    if told["session"]:
        yield f"session: {printable(told['session']['title'] or told['session']['id'])}"
    if last:
        yield from _change_lines(told)
    yield f"more: {os.environ.get('OVERLAYRUN_HELP', 'overlayrun --help')}"


def _change_lines(told: dict[str, Any]) -> Iterator[str]:
    change = told["change"]
    count = change["files"]
    lines = "" if change["insertions"] is None else f", +{change['insertions']} -{change['deletions']} lines"
    yield f"changed by then: {count} file{'s' * (count != 1)}{lines}"
    yield from (f"  {letter} {printable(path)}" for letter, path in told["paths"])
    if count > len(told["paths"]):
        yield f"  and {count - len(told['paths'])} more"


def status_shape(told: dict[str, Any]) -> dict[str, Any]:
    """A workspace as it tells its own command of itself."""
    return {**told, "paths": [{"change": letter, "path": path} for letter, path in told["paths"]]}


def fork_shape(told: dict[str, Any]) -> dict[str, Any]:
    """A fork that was made."""
    return {**told, "left_out": [{"path": path, "reason": reason} for path, reason in told["left_out"]]}


def fork_lines(told: dict[str, Any]) -> Iterator[str]:
    """What came of a fork, or of several."""
    at = f"snapshot {told['number']}" if told["number"] else "the start"
    for each in told["forks"]:
        yield f"branch {each['branch']}: a fork of {told['source']}, at {at}"
    for path, reason in told["left_out"]:
        yield f"not in the snapshot: {printable(path)}: {printable(reason)}"
    yield from (printable(note) for note in told["notes"])
    where = ", outside" if inside_of() else ""
    what = f"start something in {'it' if len(told['forks']) == 1 else 'each'}{where}: "
    yield what + (told["start"] if len(told["forks"]) == 1 else "overlayrun -b NAME -- COMMAND")


def _span(seconds: float) -> str:
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def _write(line: str) -> None:
    data = memoryview(f"{line}\n".encode("utf-8", "backslashreplace"))
    while data:
        data = data[os.write(1, data) :]
