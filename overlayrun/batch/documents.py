"""A file of tasks, whatever it is written in: its values, the line of each, what is wrong with its text."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from overlayrun.batch.json_text import read_json, read_lines
from overlayrun.batch.reading import Path, Problem, Reading, Wrong
from overlayrun.batch.toml_text import read_toml
from overlayrun.batch.yaml_text import read_yaml

STDIN: Final = "-"
_MOST_BYTES: Final = 64 << 20
_KEYS: Final = frozenset({"tasks", "defaults", "rates"})
_READERS: Final[Mapping[str, Callable[[Reading], Any]]] = {
    ".json": read_json,
    ".jsonl": read_lines,
    ".ndjson": read_lines,
    ".toml": read_toml,
    ".yaml": read_yaml,
    ".yml": read_yaml,
}
_TOML: Final = re.compile(r"\[\[?[\w.\s\"'-]+\]\]?\s*(?:#.*)?|[\w.\"'-]+\s*=.*")


@dataclass(frozen=True, slots=True)
class Document:
    """A file as it was read. name: as given, `-` for standard input.

    value: `{tasks: [...], ...}`, of plain values whose shape nobody has looked at; a bare list of tasks is
    put there. None where the text can't be read. problems: of the text alone.
    """

    name: str
    value: Any
    lines: Mapping[Path, int]
    last_line: int
    problems: tuple[Problem, ...] = ()

    def line(self, path: Path) -> int:
        """The line of a path, or of the nearest one above it; within the file."""
        while path and path not in self.lines:
            path = path[:-1]
        return max(1, min(self.lines.get(path, 1), self.last_line))

    @property
    def directory(self) -> str:
        """The directory that paths in it are relative to: its own, or the current one."""
        return os.path.dirname(self.name) if self.name != STDIN else ""


def read_documents(name: str, data: bytes) -> Document:
    """Read a file of tasks by the ending of its name; by its content where that says nothing.

    Never raises: what can't be read is a document with problems.
    """
    reading = Reading("")
    value = None
    try:
        reading = Reading(_decoded(data))
        reader = _READERS.get(os.path.splitext(name)[1].lower()) or _guess(reading.text)
        value = reader(reading)
    except Wrong as err:
        reading.problems.append(err.problem)
    if value is None and not reading.problems:
        reading.problems.append(Problem(1, (), "holds no tasks"))
    return Document(
        name,
        {"tasks": value} if isinstance(value, list) else value,
        {_below_tasks(path): line for path, line in reading.lines.items()},
        reading.last,
        tuple(Problem(each.line, _below_tasks(each.path), each.message) for each in reading.problems),
    )


def _below_tasks(path: Path) -> Path:
    """A path of a bare list, as if the list stood in a whole file."""
    return ("tasks", *path) if path and isinstance(path[0], int) else path


def _decoded(data: bytes) -> str:
    if len(data) > _MOST_BYTES:
        raise Wrong(f"is larger than {_MOST_BYTES >> 20} MiB", 1)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise Wrong("is no text in UTF-8", 1) from err


def _guess(text: str) -> Callable[[Reading], Any]:
    """What a text without a name is written in."""
    lines = (line.strip() for line in text.split("\n"))
    first = next((line for line in lines if line and not line.startswith("#")), "")
    if first.startswith("{"):
        return read_lines if _is_task(first) else read_json
    if _TOML.fullmatch(first) and not _is_json(first):
        return read_toml
    return read_json if first.startswith("[") else read_yaml


def _parsed(line: str) -> Any:
    reading = Reading(line)
    try:
        return read_json(reading)
    except Wrong:
        return None


def _is_json(line: str) -> bool:
    return _parsed(line) is not None


def _is_task(line: str) -> bool:
    """Whether a line is an object of its own, and no whole file."""
    value = _parsed(line)
    return isinstance(value, dict) and not _KEYS & value.keys()
