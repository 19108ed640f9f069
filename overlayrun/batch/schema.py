"""A file of tasks against the published schema, in words that a person understands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path as FilePath
from typing import Any, Final

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

from overlayrun.batch.documents import Document
from overlayrun.batch.reading import QUOTES, Path, Problem, shown

SCHEMA: Final = FilePath(__file__).with_name("tasks.schema.json")
_LONGEST_WORD: Final = 60


def problems(document: Document) -> list[Problem]:
    """Everything that is wrong with a file's text and shape, by line; each place once."""
    found = list(document.problems)
    if document.value is not None:
        found += [
            Problem(document.line(path), path, message) for path, message in faults(document.value, "file")
        ]
    return sorted({(each.line, each.path): each for each in reversed(found)}.values(), key=_place)


def faults(value: Any, kind: str) -> Iterator[tuple[Path, str]]:
    """Paths and messages of what is wrong with plain values; the path of an unknown key ends with it.

    kind: a definition of the schema: `file`, `task` or `defaults`.
    """
    for error in _validator(kind).iter_errors(value):
        path: Path = tuple(error.absolute_path)
        if error.validator == "additionalProperties":
            yield from _unknown_keys(path, error)
        elif error.validator == "required":
            yield path, f"has no {error.message.split()[0].strip(QUOTES)}"
        elif "propertyNames" in error.absolute_schema_path:
            yield (*path, str(error.instance)), _words(error)
        else:
            yield path, _sentence(error)


@cache
def definitions() -> Mapping[str, Any]:
    """The schema's parts by name."""
    return json.loads(SCHEMA.read_text(encoding="utf-8"))["$defs"]  # type: ignore[no-any-return]  # our own file


@cache
def _validator(kind: str) -> Any:
    # `$` is the very end in a schema (ECMA 262); in Python it stands before a last newline too.
    checked = extend(Draft202012Validator, {"pattern": _pattern})  # type: ignore[no-untyped-call]  # theirs
    return checked({"$ref": f"#/$defs/{kind}", "$defs": definitions()})


def _pattern(_validator: Any, pattern: str, value: Any, _schema: Any) -> Iterator[ValidationError]:
    if isinstance(value, str) and not re.search(pattern.removesuffix("$") + r"\Z", value):
        yield ValidationError("does not match")


def _unknown_keys(path: Path, error: Any) -> Iterator[tuple[Path, str]]:
    known = error.schema["properties"]
    for key in error.instance:
        if key not in known:
            yield (*path, key), f"is no known field{_hint(key.lower().replace('-', '_'), known)}"


def _sentence(error: Any) -> str:
    if error.validator == "not":
        return _words(error)
    return "has no value" if error.instance is None else f"{shown(error.instance)} {_words(error)}"


def _words(error: Any) -> str:
    words = error.schema.get("errorMessage", "is not what belongs there")
    return f"{words}{_hint(str(error.instance), error.schema.get('enum', ()))}"


def _hint(text: str, known: Iterable[str]) -> str:
    near = get_close_matches(text[:_LONGEST_WORD], known, 1)
    return f"; did you mean {near[0]}?" if near else ""


def _place(problem: Problem) -> tuple[int, tuple[str, ...]]:
    return problem.line or 0, tuple(f"{part:09}" if isinstance(part, int) else part for part in problem.path)
