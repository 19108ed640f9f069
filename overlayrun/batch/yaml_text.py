"""YAML as plain values with the line of each, by the rules of YAML 1.2's core schema."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import yaml

from overlayrun.batch.reading import DEEPEST, Path, Reading, Wrong, plain, shown

_YAML_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CORE: Final = "tag:yaml.org,2002:"
# YAML 1.2's core schema: PyYAML's own rules are 1.1's, by which `no` is false and 1:30 is 90.
_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})
_TRUTH: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER: Final = re.compile(r"[-+]?[0-9]{1,400}|0o[0-7]{1,400}|0x[0-9a-fA-F]{1,300}")
_NUMBER: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]{1,9})?")
_NOT_FINITE: Final = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")


def read_yaml(reading: Reading) -> Any:
    """The value of YAML text, by the rules of YAML 1.2's core schema."""
    try:
        return plain(reading, _YamlScan(reading).whole(), ())
    except yaml.YAMLError as err:
        mark = getattr(err, "problem_mark", None)
        offset = mark.index if mark else getattr(err, "position", 0)
        words = getattr(err, "problem", None) or getattr(err, "reason", None) or "it can't be read"
        raise Wrong(f"this is no YAML: {words}", reading.line_at(offset)) from err


class _YamlScan:
    """Values from a parser's events: no tag makes an object, and an alias costs what it stands for."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.events = yaml.parse(reading.text, Loader=_YAML_LOADER)
        self.anchors: dict[str, tuple[Any, int]] = {}
        self.cost = 0

    def whole(self) -> Any:
        value, documents = None, 0
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise Wrong("a second document: put all tasks into one", self._line(event))
                value = self._value(next(self.events), ())
        return value

    def _line(self, event: Any) -> int:
        return self.reading.line_at(event.start_mark.index)

    def _value(self, event: Any, path: Path) -> Any:
        line = self._line(event)
        if path:
            self.reading.lines.setdefault(path, line)
        if len(path) > DEEPEST:
            raise Wrong("is nested too deep", line, path[:4])
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, path)
        before = self.cost
        self._pay(1, path)
        if isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event, path)
        elif event.tag not in (None, "!", f"{_CORE}map", f"{_CORE}seq"):
            raise Wrong(f"has the tag {shown(event.tag)}, which means nothing here", line, path)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = [self._value(each, (*path, number)) for number, each in enumerate(self._rest())]
        else:
            value = self._mapping(path)
        if event.anchor:
            self.anchors[event.anchor] = value, self.cost - before
        return value

    def _rest(self) -> Iterator[Any]:
        return iter(self._next_entry, None)

    def _next_entry(self) -> Any:
        event = next(self.events)
        return None if isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent) else event

    def _mapping(self, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for event in self._rest():
            line = self._line(event)
            if not isinstance(event, yaml.ScalarEvent):
                raise Wrong("has a key that is no text", line, path)
            key = str(event.value)
            if key in found:
                self.reading.given_twice((*path, key), line)
            self.reading.lines[*path, key] = line
            found[key] = self._value(next(self.events), (*path, key))
        return found

    def _alias(self, event: Any, path: Path) -> Any:
        if event.anchor not in self.anchors:
            raise Wrong(f"nothing above is called {shown('*' + event.anchor)}", self._line(event), path)
        value, cost = self.anchors[event.anchor]
        self._pay(cost, path)
        return value

    def _scalar(self, event: Any, path: Path) -> Any:
        self._pay(len(event.value) // 256, path)
        tag = event.tag
        if event.implicit[0] and tag is None:
            return _resolved(event.value)
        if tag in (None, "!", f"{_CORE}str"):
            return event.value
        if tag in {f"{_CORE}{name}" for name in ("int", "float", "bool", "null")}:
            return _resolved(event.value)
        raise Wrong(f"has the tag {shown(tag)}, which means nothing here", self._line(event), path)

    def _pay(self, cost: int, path: Path) -> None:
        self.cost += cost
        self.reading.count(cost, path)


def _resolved(text: str) -> Any:
    if text in _NULL:
        return None
    if text in _TRUTH:
        return _TRUTH[text]
    if _INTEGER.fullmatch(text):
        return int(text, 0 if text[:2] in ("0o", "0x") else 10)
    if _NUMBER.fullmatch(text) or _NOT_FINITE.fullmatch(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text
