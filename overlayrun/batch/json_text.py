"""JSON, and JSON lines, as plain values with the line of each."""

from __future__ import annotations

import json
from typing import Any

from overlayrun.batch.reading import DEEPEST, Path, Reading, Wrong, plain


def read_json(reading: Reading) -> Any:
    """The value of JSON text. Raises Wrong, as all readers here."""
    scan = _JsonScan(reading)
    try:
        return plain(reading, scan.whole(), ())
    except json.JSONDecodeError as err:
        raise Wrong(f"this is no JSON: {err.msg}", reading.line_at(err.pos)) from err


class _JsonScan:
    """Objects and arrays by hand, for their lines; all else by the standard library."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.text = reading.text
        self.decode = json.JSONDecoder().raw_decode

    def whole(self) -> Any:
        value, at = self._value(self._skip(0), ())
        if at < len(self.text):
            raise json.JSONDecodeError("more after its end", self.text, at)
        return value

    def _skip(self, at: int) -> int:
        while self.text[at : at + 1] and self.text[at] in " \t\r\n":
            at += 1
        return at

    def _value(self, at: int, path: Path) -> tuple[Any, int]:
        if len(path) > DEEPEST:
            raise Wrong("is nested too deep", self.reading.line_at(at), path[:4])
        self.reading.count(1, path)
        if path:
            self.reading.lines.setdefault(path, self.reading.line_at(at))
        opening = self.text[at : at + 1]
        if opening == "{":
            value, at = self._object(at, path)
        elif opening == "[":
            value, at = self._array(at, path)
        else:
            value, at = self._scalar(at, path)
        return value, self._skip(at)

    def _scalar(self, at: int, path: Path) -> tuple[Any, int]:
        try:
            return self.decode(self.text, at)
        except json.JSONDecodeError:
            raise
        except ValueError as err:
            raise Wrong("is no usable number", self.reading.line_at(at), path) from err

    def _object(self, at: int, path: Path) -> tuple[Any, int]:
        found: dict[str, Any] = {}
        at = self._skip(at + 1)
        while self.text[at : at + 1] != "}":
            at = self._comma(at, first=not found)
            if self.text[at : at + 1] != '"':
                raise json.JSONDecodeError("a key in double quotes is missing", self.text, at)
            key, end = self.decode(self.text, at)
            if key in found:
                self.reading.given_twice((*path, key), self.reading.line_at(at))
            self.reading.lines[*path, key] = self.reading.line_at(at)
            end = self._skip(end)
            if self.text[end : end + 1] != ":":
                raise json.JSONDecodeError("a colon after the key is missing", self.text, end)
            found[key], at = self._value(self._skip(end + 1), (*path, key))
        return found, at + 1

    def _array(self, at: int, path: Path) -> tuple[Any, int]:
        found: list[Any] = []
        at = self._skip(at + 1)
        while self.text[at : at + 1] != "]":
            at = self._comma(at, first=not found)
            value, at = self._value(at, (*path, len(found)))
            found.append(value)
        return found, at + 1

    def _comma(self, at: int, *, first: bool) -> int:
        if first:
            return at
        if self.text[at : at + 1] != ",":
            raise json.JSONDecodeError("a comma is missing", self.text, at)
        return self._skip(at + 1)


def read_lines(reading: Reading) -> list[Any]:
    """The values of JSON lines, each a task; a line that is wrong gives null, and a problem."""
    found: list[Any] = []
    for number, text in enumerate(reading.text.split("\n"), 1):
        if not text.strip():
            continue
        path = ("tasks", len(found))
        reading.lines[path] = number
        found.append(_one_line(reading, text, path))
    return found


def _one_line(reading: Reading, text: str, path: Path) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        reading.count(1 + len(pairs), path)
        if len(value) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            reading.given_twice((*path, twice), reading.line_of(path))
        return value

    try:
        return plain(reading, json.loads(text, object_pairs_hook=unique), path)
    except json.JSONDecodeError as err:
        reading.wrong(path, f"this line is no JSON: {err.msg} (column {err.colno})")
    except (ValueError, RecursionError):
        reading.wrong(path, "this line is no JSON that can be read")
    return None
