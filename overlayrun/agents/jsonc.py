"""JSON with comments, edited in place: what is not ours keeps its comments and its layout to the byte."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

_SPACE: Final = " \t\r\n"
_TRIVIA: Final = re.compile(r"(?:[\ufeff \t\r\n]|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
_ENDS: Final = {"{": "}", "[": "]"}


@dataclass(frozen=True, slots=True)
class Piece:
    """Text put in at an offset (characters) of a text that holds the pieces before it already."""

    at: int
    text: str


@dataclass(slots=True)
class _Node:
    """A value and where it stands: text[start:end]. entries: what a container holds, None of a scalar."""

    start: int
    end: int
    value: Any
    entries: list[_Entry] | None = None


@dataclass(slots=True)
class _Entry:
    """One member or item. start: of its key or value. comma: offset of the one after it, None without."""

    start: int
    node: _Node
    key: str | None = None
    comma: int | None = None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


@dataclass(slots=True)
class _Reader:
    text: str
    scalars: json.JSONDecoder = field(default_factory=lambda: json.JSONDecoder(parse_constant=_refuse))

    def document(self) -> _Node:
        node = self._value(self._skip(0))
        at = self._skip(node.end)
        if at != len(self.text):
            raise self._error("text after the end", at)
        return node

    def _skip(self, at: int) -> int:
        found = _TRIVIA.match(self.text, at)
        return found.end() if found else at

    def _error(self, what: str, at: int) -> ValueError:
        return ValueError(f"line {self.text.count(chr(10), 0, at) + 1}: {what}")

    def _value(self, at: int) -> _Node:
        if self.text[at : at + 1] in _ENDS:
            return self._container(at)
        try:
            value, end = self.scalars.raw_decode(self.text, at)
        except ValueError as err:
            raise self._error("no JSON value", at) from err
        return _Node(at, end, value)

    def _container(self, start: int) -> _Node:
        opening = self.text[start]
        entries: list[_Entry] = []
        at = self._skip(start + 1)
        while self.text[at : at + 1] != _ENDS[opening]:
            if entries and entries[-1].comma is None:
                raise self._error("a comma is missing", at)
            entries.append(self._entry(at, keyed=opening == "{"))
            at = self._skip(entries[-1].node.end)
            if self.text[at : at + 1] == ",":
                entries[-1].comma = at
                at = self._skip(at + 1)
        value = (
            {entry.key: entry.node.value for entry in entries}
            if opening == "{"
            else [entry.node.value for entry in entries]
        )
        return _Node(start, at + 1, value, entries)

    def _entry(self, start: int, *, keyed: bool) -> _Entry:
        if not keyed:
            return _Entry(start, self._value(start))
        key = self._value(start)
        at = self._skip(key.end)
        if not isinstance(key.value, str) or self.text[at : at + 1] != ":":
            raise self._error("no key with a colon", start)
        return _Entry(start, self._value(self._skip(at + 1)), key.value)


def _read(text: str) -> _Node:
    try:
        return _Reader(text).document()
    except RecursionError as err:
        raise ValueError("nested too deep") from err


def parse(text: str) -> Any:
    """The value of a text of JSON, comments and trailing commas allowed. Raises ValueError with the line."""
    return _read(text).value


def listed(text: str, path: Sequence[str]) -> list[Any]:
    """Items of the array at a path of keys; none where there is no such array."""
    node: _Node | None = _read(text)
    for key in path:
        node = _member(node, key)
    return list(node.value) if node is not None and isinstance(node.value, list) else []


def _member(node: _Node | None, key: str) -> _Node | None:
    if node is None or not isinstance(node.value, dict):
        return None
    return next((entry.node for entry in reversed(node.entries or ()) if entry.key == key), None)


def applied(text: str, pieces: Sequence[Piece]) -> str:
    """The text with pieces put in, one after another."""
    for piece in pieces:
        text = text[: piece.at] + piece.text + text[piece.at :]
    return text


def without_pieces(text: str, pieces: Sequence[Piece]) -> str | None:
    """The text before pieces were put in; None where they are not there any more."""
    for piece in reversed(pieces):
        end = piece.at + len(piece.text)
        if text[piece.at : end] != piece.text:
            return None
        text = text[: piece.at] + text[end:]
    return text


def append(text: str, path: Sequence[str], item: Any) -> tuple[list[Piece], int]:
    """How to put an item at the end of the array at a path of keys, and how many keys were there before.

    Objects and the array are made where they are missing. Raises ValueError where something else is there.
    """
    node, depth = _read(text), 0
    while depth < len(path) and (below := _member(node, path[depth])) is not None:
        node, depth = below, depth + 1
    wanted = list if depth == len(path) else dict
    if not isinstance(node.value, wanted):
        where = ".".join(path[:depth]) or "the whole"
        kind = "array" if wanted is list else "object"
        raise ValueError(f"{where} is no {kind}")  # noqa: TRY004  # the file is wrong, no argument
    return list(_insertion(text, node, path[depth:], item)), depth


def _insertion(text: str, box: _Node, keys: Sequence[str], item: Any) -> Iterator[Piece]:
    """Pieces that put an item, below keys that are made, at the end of a container; as its neighbours are."""
    eol = "\r\n" if "\r\n" in text else "\n"
    is_one_line = "\n" not in text[box.start : box.end]
    unit = _unit(text)
    outer = _indent(text, box.start)
    # Comments between the last item and the end stay where they are.
    at = len(text[: box.end - 1].rstrip(_SPACE))
    lines = list(_lines(keys, item, unit))
    if box.entries and is_one_line:
        added = " " + "".join(line.strip() for line in lines)
    else:
        inner = _indent(text, box.entries[0].start) if box.entries else outer + unit
        added = "".join(f"{eol}{inner}{line}" for line in lines)
    if box.entries and box.entries[-1].comma is None:
        yield Piece(box.entries[-1].node.end, ",")
        at += 1
    if not box.entries and is_one_line:
        added += eol + outer
    yield Piece(at, added)


def _lines(keys: Sequence[str], item: Any, unit: str) -> Iterator[str]:
    """An item on a line of its own, inside the array and the objects that are made for it."""
    if not keys:
        yield json.dumps(item, ensure_ascii=False)
        return
    opening, closing = "[]" if len(keys) == 1 else "{}"
    yield f"{json.dumps(keys[0])}: {opening}"
    for line in _lines(keys[1:], item, unit):
        yield unit + line
    yield closing


def _unit(text: str) -> str:
    """What the text is indented by a level: as its first indented line is."""
    found = re.search(r"\n([ \t]+)[^\s]", text)
    return found[1] if found else "  "


def _indent(text: str, at: int) -> str:
    """White space at the beginning of the line around an offset."""
    begin = text.rfind("\n", 0, at) + 1
    line = text[begin:at]
    return line[: len(line) - len(line.lstrip(" \t"))]


def take_out(text: str, path: Sequence[str], item: Any, depth: int) -> str:
    """The text without an item of the array at a path, and without what this leaves empty below `depth` keys.

    An item that is not there is no error. Raises ValueError for a text that can't be read.
    """
    nodes: list[_Node | None] = [_read(text)]
    for key in path:
        nodes.append(_member(nodes[-1], key))
    box = nodes[-1]
    if box is not None and isinstance(box.value, list) and item in box.value:
        text = _cut(text, box, len(box.value) - 1 - box.value[::-1].index(item))
    for level in range(len(path), depth, -1):
        text = _without_empty(text, path[:level])
    return text


def _without_empty(text: str, path: Sequence[str]) -> str:
    above = _read(text)
    for key in path[:-1]:
        found = _member(above, key)
        if found is None:
            return text
        above = found
    for index, entry in enumerate(above.entries or ()):
        inside = text[entry.node.start + 1 : entry.node.end - 1]
        if entry.key == path[-1] and entry.node.entries == [] and not inside.strip(_SPACE):
            return _cut(text, above, index)
    return text


def _cut(text: str, box: _Node, index: int) -> str:
    """The text without one entry of a container; comments around it stay."""
    entries = box.entries or []
    entry = entries[index]
    end = entry.node.end if entry.comma is None else entry.comma + 1
    expected = _less(_read(text), box, index)
    before = text[: entry.start]
    if entry.comma is None and index > 0:
        comma = entries[index - 1].comma
        assert comma is not None, "two entries have a comma between them"
        before = text[:comma] + text[comma + 1 : entry.start]
    # Without the white space before it; but a line's comment must keep its line's end.
    for head in (before.rstrip(_SPACE), before):
        left = head + text[end:]
        if _parses_to(left, expected):
            return left
    raise ValueError("it can't be taken out")


def _less(node: _Node, box: _Node, index: int) -> Any:
    """A node's value, less one entry of a container in it."""
    if node.entries is None:
        return node.value
    is_box = node.start == box.start
    kept = [entry for number, entry in enumerate(node.entries) if not (is_box and number == index)]
    if isinstance(node.value, dict):
        return {entry.key: _less(entry.node, box, index) for entry in kept}
    return [_less(entry.node, box, index) for entry in kept]


def _parses_to(text: str, expected: Any) -> bool:
    try:
        return bool(parse(text) == expected)
    except ValueError:
        return False
