"""One file to look at: every task, attempt, change and log of a batch, offline and without a server.

What agents wrote is data here: it goes into the page as JSON, and the page's script makes text nodes of it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shlex
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Final
from urllib.parse import quote

from overlayrun.batch.artifacts import mask
from overlayrun.batch.layout import AttemptLayout
from overlayrun.batch.reports.summary import has_succeeded
from overlayrun.batch.result import BatchReport, Result, TaskReport
from overlayrun.batch.task import AttemptKey, Outcome
from overlayrun.files import write_whole

_LOG_HEAD: Final = 16 << 10
_LOG_TAIL: Final = 48 << 10  # more of the end: that is where the reason stands
_DIFF: Final = 256 << 10
_TOTAL: Final = 20 << 20  # bytes of logs and diffs as they stand in the page
_LINE: Final = 4000  # letters: more of one line is a machine's, and browsers are slow at it
_LONG: Final = 16 << 10  # letters of a prompt or command
_SHORT: Final = 1000  # letters of any other text
_NOTES: Final = 20

_KINDS: Final = ("diff", "stdout", "stderr", "check", "judge", "overlayrun")
_BESIDE: Final = (*_KINDS, "events", "bundle", "result")

# ECMA-48: CSI sequences but for those that end in `m` (colours, which the page shows), OSC and other strings
# up to their end, and escapes of two or three characters.
_ESCAPES: Final = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-ln-~]"
    r"|\x1b\[(?![0-9;:]{0,40}m)[0-?]*[ -/]*m"
    r"|\x1b[\]PX^_][^\x07\x1b]{0,4096}(?:\x07|\x1b\\|$)"
    r"|\x1b(?!\[)[ -/]*[0-~]?"
    r"|\x1b\[(?![0-9;:]{0,40}m)"
)
_COLOURS: Final = re.compile("\x1b\\[[0-9;:]*m")
# Invisible ones, and those that turn text around: shown as their code points.
_UNSEEN: Final = re.compile(
    "[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
)


def write_html(report: BatchReport, directory: str, secrets: Sequence[str] = ()) -> None:
    """Write report.html into `directory`, whose `tasks/<id>/<n>/` hold the attempts' masked files.

    secrets: values that prompts and commands are cleared of. Equal input gives equal bytes. A log's middle,
    a diff's end, and whatever would make the page too large are left out, said so, and linked.
    """
    texts = _Texts(directory)
    for each in _most_telling_first(report.tasks):
        texts.take(each)
    data = _Writer(texts.taken, secrets).batch(report)
    write_whole(f"{directory}/report.html", _page(data), durable=False, mode=0o644)


def _most_telling_first(tasks: Iterable[TaskReport]) -> Iterator[AttemptKey]:
    # The order in which the page's room is given away: what failed, and the last attempts, first.
    ordered = sorted(tasks, key=lambda each: each.succeeded)
    for each in ordered:
        yield from ((each.task.id, result.attempt) for result in each.results[-1:])
    for each in ordered:
        yield from ((each.task.id, result.attempt) for result in reversed(each.results[:-1]))


@dataclass(slots=True)
class _Texts:
    """Reads logs and diffs while the page has room."""

    directory: str
    room: int = _TOTAL
    taken: dict[AttemptKey, list[dict[str, Any]]] = field(default_factory=dict)

    def take(self, key: AttemptKey) -> None:
        """Read what an attempt left."""
        below = f"tasks/{key[0]}/{key[1]}"
        place = AttemptLayout(f"{self.directory}/{below}")
        self.taken[key] = [
            found for kind in _BESIDE if (found := self._one(kind, getattr(place, kind), below)) is not None
        ]

    def _one(self, kind: str, path: str, below: str) -> dict[str, Any] | None:
        size = _size(path)
        if size is None or (size == 0 and kind not in ("stdout", "diff")):
            return None
        found: dict[str, Any] = {
            "kind": kind,
            "size": size,
            "href": quote(f"{below}/{os.path.basename(path)}"),
        }
        if kind in _KINDS:
            found |= self._fitting(_patch(path, size) if kind == "diff" else _log(path, size))
        return found

    def _fitting(self, parts: dict[str, Any]) -> dict[str, Any]:
        needs = len(_json(parts))
        if needs > self.room:
            return {"dropped": True}
        self.room -= needs
        return parts


def _size(path: str) -> int | None:
    try:
        info = os.lstat(path)
    except OSError:
        return None
    return info.st_size if stat.S_ISREG(info.st_mode) else None


def _log(path: str, size: int) -> dict[str, Any]:
    """Text of a log; of a long one its head and tail by whole lines, and how many bytes lie between."""
    with open(path, "rb") as file:
        if size <= _LOG_HEAD + _LOG_TAIL:
            return {"text": _as_terminal(file.read(size))}
        head = _whole_lines(file.read(_LOG_HEAD))
        file.seek(size - _LOG_TAIL)
        tail = file.read(_LOG_TAIL)
    tail = tail[tail.find(b"\n") + 1 :]
    left = size - len(head) - len(tail)
    return {"text": _as_terminal(head), "left": left, "tail": _as_terminal(tail)}


def _patch(path: str, size: int) -> dict[str, Any]:
    """Text of a patch; of a long one its head, and how many bytes follow."""
    with open(path, "rb") as file:
        data = file.read(_DIFF)
    if size > _DIFF:
        data = _whole_lines(data)
    # Of a change every character counts, so that none goes as it does from a log.
    text = data.decode("utf-8", "replace").replace("\r", "\N{SYMBOL FOR CARRIAGE RETURN}")
    return {"text": _visible(text.replace("\x1b", "\N{SYMBOL FOR ESCAPE}")), "left": size - len(data)}


def _whole_lines(data: bytes) -> bytes:
    return data[: data.rfind(b"\n") + 1] or data


def _as_terminal(data: bytes) -> str:
    """What a terminal would show: colours stay, other sequences go."""
    lines = data.decode("utf-8", "replace").split("\n")
    return _visible(_ESCAPES.sub("", "\n".join(_last_written(line) for line in lines)))


def _last_written(line: str) -> str:
    # A progress bar writes its line over and over: a terminal shows what stood there last.
    return line.rstrip("\r").rpartition("\r")[2]


def _visible(text: str) -> str:
    text = _UNSEEN.sub(_code_point, text)
    return "\n".join(_cut(line, _LINE) for line in text.split("\n"))


def _code_point(found: re.Match[str]) -> str:
    return f"\N{LEFT-POINTING ANGLE BRACKET}U+{ord(found[0]):04X}\N{RIGHT-POINTING ANGLE BRACKET}"


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    return f"{text[:limit]}\N{HORIZONTAL ELLIPSIS} [{len(text) - limit} more characters]"


@dataclass(frozen=True, slots=True)
class _Writer:
    """Turns the report into what the page reads."""

    texts: Mapping[AttemptKey, list[dict[str, Any]]]
    secrets: Sequence[str]

    def batch(self, report: BatchReport) -> dict[str, Any]:
        names = ("run", "version", "repository", "base", "target", "engine", "jobs", "started", "ended")
        return {
            **{name: _plain(getattr(report, name)) for name in (*names, "status", "cost", "unpriced")},
            "why": self._said(report.why),
            "outcomes": [each.value for each in Outcome],
            "tasks": [self._task(each) for each in report.tasks],
        }

    def _task(self, report: TaskReport) -> dict[str, Any]:
        task = report.task
        last = report.results[-1] if report.results else None
        return {
            **{name: _plain(getattr(task, name)) for name in ("id", "group", "agent")},
            **{name: self._said(getattr(task, name), _LONG) for name in ("prompt", "check", "judge")},
            "command": self._said(shlex.join(task.command), _LONG),
            "needs": [_plain(each) for each in task.needs],
            "values": {_plain(name): self._said(value) for name, value in task.values.items()},
            "outcome": report.outcome.value,
            "ok": has_succeeded(report),
            "detail": self._said(report.detail),
            "landing": report.landing,
            "landing_detail": self._said(report.landing_detail),
            "winner": report.winner,
            "attempts": [
                self._attempt(result, _next(report, result, is_last=result is last))
                for result in report.results
            ],
        }

    def _attempt(self, result: Result, commands: list[str]) -> dict[str, Any]:
        names = ("started", "ended", "host", "branch", "base", "ref", "tip", "model", "session", "status")
        numbers = ("files", "insertions", "deletions", "cost", "tokens_in", "tokens_out", "score")
        check = result.check
        return {
            "n": result.attempt,
            "outcome": result.outcome.value,
            "detail": self._said(result.detail),
            **{name: _plain(getattr(result, name)) for name in (*names, *numbers)},
            "check": check and {"status": check.status, "seconds": check.seconds},
            "notes": [self._said(note) for note in result.notes[:_NOTES]],
            "next": [_plain(each) for each in commands],
            "texts": self.texts[result.task, result.attempt],
        }

    def _said(self, text: str | None, limit: int = _SHORT) -> Any:
        return text and _plain(mask(text, self.secrets), limit)


def _plain(value: Any, limit: int = _SHORT) -> Any:
    if not isinstance(value, str):
        return value
    return _cut(_COLOURS.sub("", _as_terminal(value.encode("utf-8", "replace"))), limit)


def _next(report: TaskReport, result: Result, *, is_last: bool) -> list[str]:
    """Commands to go on with an attempt. Only the last one has the task's branch; the others are refs."""
    if result.tip is None:
        return []
    if not is_last:
        return [shlex.join(["git", "diff", result.base[:12], result.ref])]
    branch = shlex.quote(result.branch)
    commands = [f"overlayrun diff {branch}"]
    if report.landing == "conflict":
        commands.append(f"overlayrun conflicts {branch}")
    if report.landing not in ("landed", "nothing to land") and result.outcome in report.task.accept:
        commands.append(f"overlayrun merge {branch}")
    elif report.landing is None:
        commands.append(f"overlayrun shell {branch}")
    return commands


def _page(data: dict[str, Any]) -> bytes:
    template = resources.files("overlayrun.batch.reports").joinpath("report.html").read_text("utf-8")
    (style,) = re.findall("<style>(.*?)</style>", template, re.DOTALL)
    (script,) = re.findall("<script>(.*?)</script>", template, re.DOTALL)
    policy = "; ".join(
        (
            *("default-src 'none'", "base-uri 'none'", "form-action 'none'"),
            *(f"style-src {_hash(style)}", f"script-src {_hash(script)}"),
        )
    )
    before, after = template.replace("%POLICY%", policy).split("%DATA%")
    return before.encode() + _json(data) + after.encode()


def _hash(inline: str) -> str:
    digest = hashlib.sha256(inline.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _json(data: Any) -> bytes:
    """JSON that can stand in a script element: nothing in it ends the element or, to old engines, a line."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for letter in "<\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text.encode()
