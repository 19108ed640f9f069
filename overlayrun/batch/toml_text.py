"""TOML as plain values, with the line of each header and key."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import Any, Final

from overlayrun.batch.reading import QUOTES, Path, Reading, Wrong, plain


def read_toml(reading: Reading) -> Any:
    """The value of TOML text."""
    try:
        value = tomllib.loads(reading.text)
    except tomllib.TOMLDecodeError as err:
        place = re.search(r" \(at line (\d+), column \d+\)$", str(err))
        line = int(place[1]) if place else reading.last
        brief = re.sub(r" \(at [^()]*\)$", "", str(err))
        raise Wrong(f"this is no TOML: {brief}", min(line, reading.last)) from err
    except (ValueError, RecursionError) as err:
        raise Wrong("this is no TOML that can be read", 1) from err
    for path, line in _toml_lines(reading.text):
        reading.lines.setdefault(path, line)
    return plain(reading, value, ())


_HEADER: Final = re.compile(r"\s*(\[\[?)\s*([\w.\s\"'-]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY: Final = re.compile(r"\s*([\w.\"'-]+(?:\s*\.\s*[\w\"'-]+)*)\s*=")


def _toml_lines(text: str) -> Iterator[tuple[Path, int]]:
    """Lines of headers and keys: tomllib tells of none."""
    counts: dict[Path, int] = {}
    table: Path = ()
    fence = ""
    for number, line in enumerate(text.split("\n"), 1):
        inside = fence
        fence = _fence_after(line, fence)
        if inside:
            continue
        if header := _HEADER.match(line):
            table = _toml_path(header[2], counts)
            if header[1] == "[[":
                counts[table] = counts.get(table, -1) + 1
                table = (*table, counts[table])
            yield table, number
        elif key := _KEY.match(line):
            dotted = (*table, *_toml_parts(key[1]))
            yield from ((dotted[:end], number) for end in range(len(table) + 1, len(dotted) + 1))


def _toml_path(name: str, counts: dict[Path, int]) -> Path:
    """A header's path, with the index of the last entry of each array of tables above it."""
    path: Path = ()
    parts = _toml_parts(name)
    for number, part in enumerate(parts):
        path = (*path, part)
        if path in counts and number < len(parts) - 1:
            path = (*path, counts[path])
    return path


def _toml_parts(name: str) -> list[str]:
    return [part.strip().strip(QUOTES) for part in name.split(".")]


def _fence_after(line: str, fence: str) -> str:
    """The mark of the text of many lines that is open after a line; "" for none."""
    while True:
        places = [(line.find(mark), mark) for mark in ((fence,) if fence else ('"""', "'''"))]
        opened = min((place for place in places if place[0] >= 0), default=None)
        if opened is None:
            return fence
        line = line[opened[0] + 3 :]
        fence = "" if fence else opened[1]
