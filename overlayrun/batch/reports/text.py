"""Text of attempts as reports show it: bounded, and free of what is no text.

Agents and their tests wrote it: what is left is letters, tabs and line breaks, which each report still has to
escape for its own medium.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from typing import Final

from overlayrun.batch.layout import AttemptLayout
from overlayrun.batch.result import Result
from overlayrun.batch.task import Outcome

LONGEST_LINE: Final = 300
"""Letters of what is to stand on a line."""
# Control sequences of terminals (ECMA-48). Bounded, and up to the next escape: hostile text must not be slow.
_SEQUENCE: Final = re.compile(
    r"\x1b\[[0-?]{0,64}[ -/]{0,8}[@-~]?"
    r"|\x1b[\]PX^_][^\x07\x1b]{0,4096}(?:\x07|\x1b\\)?"
    r"|\x1b[ -/]{0,8}[0-~]?"
)
# What XML 1.0 has no place for (2.2, "Char"), the other control characters, and what turns text around.
_NO_TEXT: Final = re.compile(
    "[^\t\n\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|[\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
_BY_OUTCOME: Final = {
    Outcome.CHECK_FAILED: ("check", "stdout"),
    Outcome.INFRA: ("overlayrun", "stderr"),
    Outcome.LOST: ("overlayrun", "stderr"),
}
_ELSE: Final = ("stderr", "stdout")


def plain(text: str) -> str:
    """Text as a terminal leaves it: without colours, without what a carriage return wrote over."""
    text = _SEQUENCE.sub("", text)
    lines = (line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    return _NO_TEXT.sub("\ufffd", "\n".join(lines))


def on_a_line(text: str, longest: int = LONGEST_LINE) -> str:
    """The same on one line, cut where it is longer."""
    line = " ".join(plain(text[: 4 * longest]).split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def attempt_place(directory: str, result: Result) -> AttemptLayout:
    """Files of an attempt below the directory of a report."""
    return AttemptLayout(f"{directory}/tasks/{result.task}/{result.attempt}")


def tail(path: str, limit: int) -> str:
    """The last whole lines of a file, about `limit` bytes; "" where there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            return ""
        start = max(0, info.st_size - limit)
        data = os.pread(fd, limit, start)
    finally:
        os.close(fd)
    if start:
        data = data[data.find(b"\n", 0, -1) + 1 :]
    text = plain(data.decode("utf-8", "replace")).strip("\n")
    return f"[{info.st_size - len(data)} bytes before this]\n{text}" if start else text


def evidence(directory: str, result: Result, limit: int) -> Iterator[tuple[str, str]]:
    """Names and ends of the logs that say why an attempt ended as it did, the likeliest first; none is empty.

    limit: bytes of each.
    """
    place = attempt_place(directory, result)
    for name in _BY_OUTCOME.get(result.outcome, _ELSE):
        path = str(getattr(place, name))
        text = tail(path, limit)
        if text:
            yield os.path.basename(path), text
