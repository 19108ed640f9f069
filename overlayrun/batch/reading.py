"""Text that people and programs wrote, while it is read: plain values, the line of each, and what is wrong.

Sizes and depths are bounded here for JSON, YAML and TOML alike.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_right
from dataclasses import dataclass
from datetime import date, time
from itertools import accumulate
from typing import Any, Final

MOST_VALUES: Final = 1_000_000
DEEPEST: Final = 30
_LARGEST: Final = 10**18
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
QUOTES: Final = "'\""

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong at a place of a file, in words that follow the place.

    line: from 1; None for what the command line said. path: keys and indexes from the top.
    """

    line: int | None
    path: Path
    message: str

    @property
    def where(self) -> str:
        """The path as people write it: `tasks[3].env`; an option as it is; "" for the whole."""
        return "".join(_step(part) for part in self.path).removeprefix(".")

    def __str__(self) -> str:
        parts = [f"line {self.line}" if self.line else "", self.where, self.message]
        return ": ".join(part for part in parts if part)


def _step(part: str | int) -> str:
    if isinstance(part, int):
        return f"[{part}]"
    return f".{part}" if re.fullmatch(r"[\w-]{1,40}", part, re.ASCII) else f"[{shown(part)}]"


def shown(value: Any, most: int = 40) -> str:
    """A value in a message: ASCII, short, no control characters."""
    if isinstance(value, list | dict):
        kind = "list" if isinstance(value, list) else "object"
        return f"{'a' if value else 'an empty'} {kind}".replace("a object", "an object")
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    text = ascii(value[: most + 1] if isinstance(value, str) else value)
    return text if len(text) <= most + 2 else f"{text[: most - 3]}...{text[0] if text[0] in QUOTES else ''}"


class Wrong(Exception):
    """Reading stops here. path: where known."""

    def __init__(self, message: str, line: int, path: Path = ()) -> None:
        super().__init__(message)
        self.problem = Problem(line, path, message)


class Reading:
    """A text while it is read: lines of paths, and what is wrong with it.

    last: number of the last line that is not empty, at least 1.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.lines: dict[Path, int] = {}
        self.problems: list[Problem] = []
        self._starts = [0, *accumulate(len(line) + 1 for line in text.split("\n"))][:-1]
        self.last = text.rstrip("\n").count("\n") + 1
        self._values = 0

    def line_at(self, offset: int) -> int:
        """The line of a character."""
        return min(bisect_right(self._starts, offset), self.last)

    def wrong(self, path: Path, message: str) -> None:
        """Note what is wrong at a path whose line is known."""
        self.problems.append(Problem(self.line_of(path), path, message))

    def given_twice(self, path: Path, line: int) -> None:
        """Note a key that is there already."""
        self.problems.append(Problem(line, path, "is given twice"))

    def line_of(self, path: Path) -> int:
        """The line of a path, or of the nearest above it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def count(self, number: int, path: Path) -> None:
        """Take account of so many values. Raises Wrong for too many."""
        self._values += number
        if self._values > MOST_VALUES:
            raise Wrong(f"holds more than {MOST_VALUES} values", self.line_of(path), path)


def plain(reading: Reading, value: Any, path: Path) -> Any:
    """`value` as JSON could hold it; what could not stand in a command or a report is noted as wrong."""
    if len(path) > DEEPEST:
        raise Wrong("is nested too deep", reading.line_of(path), path[:4])
    if isinstance(value, dict):
        return {key: plain(reading, each, (*path, key)) for key, each in value.items()}
    if isinstance(value, list):
        return [plain(reading, each, (*path, number)) for number, each in enumerate(value)]
    if isinstance(value, date | time):
        return value.isoformat()
    fault = _fault(value)
    if fault:
        reading.wrong(path, fault)
    return 0 if fault else value


def _fault(value: str | float | None) -> str | None:
    if isinstance(value, str):
        is_usable = "\0" not in value and not _SURROGATE.search(value)
        return None if is_usable else "holds characters that no command can take"
    is_usable = value is None or (math.isfinite(value) and abs(value) <= _LARGEST)
    return None if is_usable else "is no usable number"
