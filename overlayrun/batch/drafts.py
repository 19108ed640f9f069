"""From the fields of a file to one draft a task: matrix, number of tries, ids. Pure."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import product
from math import prod
from typing import Any, Final

from overlayrun.batch.fields import Fields, Note
from overlayrun.batch.template import slug

MOST_TASKS: Final = 20_000
RESERVED: Final = frozenset({"id", "prompt", "run", "group", "n", "attempt"})
_LONGEST_ID: Final = 100
_LONGEST_STEM: Final = 40


@dataclass(frozen=True, slots=True)
class Draft:
    """A task that has a name. number: of the try, from 1. values: of its matrix."""

    fields: Fields
    id: str
    group: str
    number: int
    values: Mapping[str, str]


@dataclass(slots=True)
class Names:
    """What a need can name. ids: for each name the tasks that it stands for; owners: whose it is."""

    ids: dict[str, list[str]] = field(default_factory=dict)
    owners: dict[str, Fields] = field(default_factory=dict)


def make_drafts(sources: Sequence[Fields], paths: Sequence[str], note: Note) -> tuple[list[Draft], Names]:
    """Drafts in the order of the file, then of the matrix, then of the tries; and their names.

    paths: what `--foreach` found; each task is done once for each of them. An id that the file gives is
    kept or is an error; one that is made gives way by a number.
    """
    matrices = [_matrix(source, paths, note) for source in sources]
    total = sum(
        _count(source) * prod(len(values) for values in matrix.values())
        for source, matrix in zip(sources, matrices, strict=True)
    )
    names = Names()
    if total > MOST_TASKS:
        source = max(sources, key=lambda each: each.line or 0)
        note(source.problem("", f"makes {total} tasks with those above: more than {MOST_TASKS}"))
        return [], names
    made: dict[int, list[Draft]] = {}
    # The ids that were given are never in the way of one another because of those that are made.
    order = sorted(range(len(sources)), key=lambda number: "id" not in sources[number].values)
    counters: dict[str, int] = {}
    for number in order:
        own = {} if "id" in sources[number].values else counters
        made[number] = list(_drafts(sources[number], matrices[number], names, own))
        _claim(sources[number], made[number], names, note)
    return [draft for number in range(len(sources)) for draft in made[number]], names


def _matrix(source: Fields, paths: Sequence[str], note: Note) -> dict[str, list[str]]:
    matrix = source.values.get("matrix", {})
    for name in sorted(RESERVED & matrix.keys()):
        note(source.problem("matrix", f"can't have {name}, which means something already"))
    texts = {name: list(dict.fromkeys(map(as_text, values))) for name, values in matrix.items()}
    return {"path": list(paths), **texts} if paths and "path" not in texts else texts


def as_text(value: Any) -> str:
    """A plain value as a command or a variable has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _count(source: Fields) -> int:
    return int(source.values.get("count", 1))


def _drafts(
    source: Fields, matrix: Mapping[str, Sequence[str]], names: Names, counters: dict[str, int]
) -> Iterator[Draft]:
    count = _count(source)
    given = source.values.get("id")
    stem = given or _stem(source, matrix)
    others: Iterable[str] = () if given else names.ids
    own: set[str] = set()
    for combination in product(*matrix.values()):
        parts = [stem, *(slug(value) or "x" for value in combination)]
        name = "-".join(part for part in parts if part)
        # An id that was given and is the task's only one stays, however long.
        base = name if name == given and count == 1 else _free(_bounded(name), count, (own, others), counters)
        values = dict(zip(matrix, combination, strict=True))
        for number in range(1, count + 1):
            name = f"{base}-{number}" if count > 1 else base
            own |= {name, base}
            yield Draft(source, name, base, number, values)


def _stem(source: Fields, matrix: Mapping[str, object]) -> str:
    """What the id of a task without one begins with; "" where its path says enough."""
    if "path" in matrix:
        return ""
    values = source.values
    command = values.get("command", "")
    candidates = (
        str(values.get("prompt", "")).lower(),
        os.path.splitext(os.path.basename(values.get("prompt_file", "")))[0],
        command if isinstance(command, str) else " ".join(command),
        values.get("agent", ""),
    )
    return next(filter(None, (slug(text, _LONGEST_STEM) for text in candidates)), "task")


def _free(name: str, count: int, taken: Sequence[Iterable[str]], counters: dict[str, int]) -> str:
    """`name`, or `name-2` and so on: the first that is free together with the names of its tries."""
    number = counters.get(name, 1)
    while True:
        free = f"{name}-{number}" if number > 1 else name
        tries = (f"{free}-{each}" for each in range(1, count + 1)) if count > 1 else ()
        if not any(each in names for each in (free, *tries) for names in taken):
            break
        number += 1
    counters[name] = number
    return free


def _bounded(name: str) -> str:
    room = _LONGEST_ID - len("-1000-10000")
    if len(name) <= room:
        return name
    return f"{name[: room - 9].rstrip('-._')}-{sha256(name.encode()).hexdigest()[:8]}"


def _claim(source: Fields, drafts: Sequence[Draft], names: Names, note: Note) -> None:
    """Give the names of a task's drafts to it; note those that are another's."""
    ids: dict[str, list[str]] = {}
    for draft in drafts:
        stem = source.values.get("id", draft.group)
        for name in dict.fromkeys((stem, draft.group, draft.id)):
            ids.setdefault(name, []).append(draft.id)
    for name in sorted(ids.keys() & names.owners.keys()):
        other = names.owners[name]
        note(source.problem("id", f"{name!a} is taken by the task of line {other.line}"))
    names.owners |= dict.fromkeys(ids, source)
    names.ids |= ids
