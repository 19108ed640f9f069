"""A task's fields by precedence: its own, then the command line's, then the file's defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from overlayrun.batch.documents import Document
from overlayrun.batch.reading import Path, Problem

# Of each of these the highest level that says anything of it decides the whole.
_TOGETHER: Final = (("command", "agent"), ("prompt", "prompt_file"), ("check", "verify"))
# Of these each entry has its own precedence.
_BY_ENTRY: Final = ("env", "resources")
_OPTION: Final = "--"

Note = Callable[[Problem], None]


@dataclass(frozen=True, slots=True)
class Fields:
    """Fields of one task of the file, or of the one that the command line alone makes.

    path: of the task, () for the command line's. places: line and path where each field stands.
    """

    line: int | None
    path: Path
    values: Mapping[str, Any]
    places: Mapping[str, tuple[int | None, Path]]

    def is_own(self, name: str) -> bool:
        """Whether the task itself says a field."""
        return self.places.get(name, (None, ()))[1][:1] == ("tasks",)

    def problem(self, name: str, message: str) -> Problem:
        """Something wrong with a field; with the task where it has none of that name."""
        line, path = self.places.get(name, (self.line, self.path))
        return Problem(line, path, message)


def option_path(path: Path) -> Path:
    """Path of a value of the command line's: its option."""
    name, *rest = path or ("command",)
    head = "command" if name == "command" else f"{_OPTION}{str(name).replace('_', '-')}"
    return (head, *rest)


def gather(
    document: Document | None, given: Mapping[str, Any], is_sound: Callable[[Path], bool]
) -> list[Fields]:
    """Fields of every task whose shape is sound.

    given: values of the command line, in the words of the file.
    """
    on_line = _Level(given, {name: (None, option_path((name,))) for name in given})
    if document is None:
        return [_merged(None, (), (_Level({}, {}), on_line))]
    value = document.value if isinstance(document.value, dict) else {}
    tasks, defaults = value.get("tasks"), value.get("defaults", {})
    if not isinstance(tasks, list) or not is_sound(("defaults",)):
        return []
    below = _level(document, ("defaults",), defaults)
    paths: list[Path] = [("tasks", number) for number in range(len(tasks))]
    return [
        _merged(document.line(path), path, (_level(document, path, own), on_line, below))
        for path, own in zip(paths, tasks, strict=True)
        if is_sound(path)
    ]


@dataclass(frozen=True, slots=True)
class _Level:
    values: Mapping[str, Any]
    places: Mapping[str, tuple[int | None, Path]]


def _level(document: Document, path: Path, values: Mapping[str, Any]) -> _Level:
    return _Level(values, {name: (document.line((*path, name)), (*path, name)) for name in values})


def _merged(line: int | None, path: Path, levels: Sequence[_Level]) -> Fields:
    """levels: the highest first."""
    values: dict[str, Any] = {}
    places: dict[str, tuple[int | None, Path]] = {}
    for level in reversed(levels):
        decided = [names for names in _TOGETHER if any(name in level.values for name in names)]
        for name in (name for names in decided for name in names):
            values.pop(name, None)
            places.pop(name, None)
        entries = {
            name: {**values.get(name, {}), **level.values[name]} for name in _BY_ENTRY if name in level.values
        }
        values |= {**level.values, **entries}
        places |= level.places
    if "verify" in values:
        values["check"], places["check"] = values.pop("verify"), places.pop("verify")
    return Fields(line, path, values, places)
