"""What a batch has to do: tasks from a file, from the command line, or from both."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from hashlib import sha256
from typing import Any, Final

from overlayrun.batch.documents import STDIN, Document
from overlayrun.batch.drafts import Draft, Names, make_drafts
from overlayrun.batch.fields import Note, gather, option_path
from overlayrun.batch.foreach import matching
from overlayrun.batch.making import AgentCommand, Maker
from overlayrun.batch.needs import components, cycles, start_order
from overlayrun.batch.reading import Path, Problem, shown
from overlayrun.batch.schema import faults, problems
from overlayrun.batch.task import Task
from overlayrun.errors import UsageError

TASK_BASE: Final = "task:"
MOST_NEEDS: Final = 1_000_000
_MOST_SHOWN: Final = 50
_MOST_NAMED: Final = 8
_MOST_COMPARED: Final = 100
_LONGEST_COMMAND: Final = 72
_UNITS: Final = (("h", 3600), ("m", 60))
_POWERS: Final = (("T", 40), ("G", 30), ("M", 20), ("k", 10))


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What the command line says of every task; a task's own word in the file stands above it.

    command: after `--`, with placeholders. agents: the known ones by name. prompt: of -p, or the text of -P.
    foreach: globs over the tracked files. count: None where -n was not given. values: any other field of a
    task, as a file has it: `{"timeout": "20m", "check": "pytest -q", "net": "none"}`.
    """

    command: tuple[str, ...] = ()
    agent: str | None = None
    agents: Mapping[str, AgentCommand] = field(default_factory=dict)
    prompt: str | None = None
    foreach: tuple[str, ...] = ()
    count: int | None = None
    values: Mapping[str, Any] = field(default_factory=dict)

    def fields(self) -> dict[str, Any]:
        """All of it that tasks have fields for, as a file has it."""
        own = {
            "command": list(self.command) or None,
            "agent": self.agent,
            "prompt": self.prompt,
            "count": self.count,
        }
        return {**self.values, **{name: value for name, value in own.items() if value is not None}}


@dataclass(frozen=True, slots=True)
class PlanRow:
    """A line of what `--dry-run` shows. base: None for HEAD. limits: `10m, 2G, 1 cpu`."""

    id: str
    needs: tuple[str, ...]
    command: str
    base: str | None
    branch: str
    limits: str


def expand(
    document: Document | None, given: Given, *, run: str, tracked: Callable[[], Sequence[str]]
) -> list[Task]:
    """The tasks of a batch, in the order of the file.

    Of each value the highest that is said holds: the task's own, the command line's, the file's `defaults`,
    the built-in one. run: the run's name, for `{run}`; any word will do for a plan alone. tracked: gives the
    files that `--foreach` looks among, relative to where the tasks start.
    Raises UsageError with everything that is wrong, each with its line; nothing was done then.
    """
    fields = given.fields()
    on_line = [Problem(None, option_path(path), words) for path, words in faults(fields, "defaults")]
    found = dict.fromkeys([*on_line, *(problems(document) if document else ())])
    if on_line:
        raise _refusal(document, list(found))
    # A task whose shape is wrong is left out, so that the faults of all others are found as well.
    unsound = {each.path[:end] for each in found for end in range(len(each.path) + 1)}
    sources = gather(document, fields, lambda path: path not in unsound)
    note: Note = found.setdefault
    drafts, names = make_drafts(sources, matching(given.foreach, tracked, note), note)
    maker = Maker(run, given.agents, document.directory if document else "", note)
    tasks = [maker.task(draft) for draft in drafts]
    for name in _unread_ids(document, unsound):
        names.ids.setdefault(name, [])
    tasks = _connected(tasks, drafts, names, note)
    _note_cycles(tasks, drafts, note)
    _note_branches(tasks, drafts, note)
    if found:
        raise _refusal(document, list(found))
    return tasks


def _refusal(document: Document | None, found: Sequence[Problem]) -> UsageError:
    name = "the command line" if document is None else document.name
    name = "standard input" if name == STDIN else name
    lines = [str(each) for each in sorted(found, key=lambda each: each.line or 0)]
    more = [f"and {len(lines) - _MOST_SHOWN} more"] if len(lines) > _MOST_SHOWN else []
    count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    return UsageError(
        f"{count} in {shown(name, 200)}; nothing was started",
        details="\n".join([*lines[:_MOST_SHOWN], *more]),
    )


def _unread_ids(document: Document | None, unsound: Container[Path]) -> Iterator[str]:
    """Ids of tasks that were left out."""
    value = document.value if document else None
    tasks = value.get("tasks") if isinstance(value, dict) else None
    for number, task in enumerate(tasks if isinstance(tasks, list) else ()):
        if ("tasks", number) in unsound and isinstance(task, dict) and isinstance(task.get("id"), str):
            yield task["id"]


def _connected(tasks: Sequence[Task], drafts: Sequence[Draft], names: Names, note: Note) -> list[Task]:
    """The tasks with their needs as ids, what their bases come from included."""
    connected = []
    total = 0
    for task, draft in zip(tasks, drafts, strict=True):
        base, made_by = _base(task, draft, names, note)
        needs = [each for name in task.needs for each in _known(name, "needs", draft, names, note)]
        total += len(needs)
        if total > MOST_NEEDS:
            note(draft.fields.problem("needs", f"has more needs, with those above, than {MOST_NEEDS}"))
            break
        connected.append(replace(task, base=base, needs=tuple(dict.fromkeys([*needs, *made_by]))))
    return connected


def _base(task: Task, draft: Draft, names: Names, note: Note) -> tuple[str | None, list[str]]:
    """The base of a task, and the task that makes it."""
    if task.base is None or not task.base.startswith(TASK_BASE):
        return task.base, []
    made_by = _known(task.base.removeprefix(TASK_BASE), "base", draft, names, note)
    if len(made_by) > 1:
        note(draft.fields.problem("base", f"{shown(task.base)} is several tasks: name one of them"))
    return (f"{TASK_BASE}{made_by[0]}" if made_by else None), made_by[:1]


def _known(name: str, where: str, draft: Draft, names: Names, note: Note) -> list[str]:
    if name in names.ids:
        return names.ids[name]
    near = get_close_matches(name[:100], list(names.ids)[:_MOST_COMPARED], 1)
    words = f"; did you mean {near[0]}?" if near else ""
    note(draft.fields.problem(where, f"{shown(name)} is no task's id{words}"))
    return []


def _note_cycles(tasks: Sequence[Task], drafts: Sequence[Draft], note: Note) -> None:
    by_id = {draft.id: draft for draft in drafts}
    needs: dict[str, list[str]] = {}
    for task in tasks:
        needs.setdefault(task.id, []).extend(task.needs)
    for cycle in cycles(needs):
        some = [*cycle[:_MOST_NAMED], "...", cycle[-1]] if len(cycle) > _MOST_NAMED + 1 else cycle
        message = f"waits for itself: {' needs '.join(some)}"
        fields = by_id[cycle[0]].fields
        note(fields.problem("needs" if "needs" in fields.places else "base", message))


def _note_branches(tasks: Sequence[Task], drafts: Sequence[Draft], note: Note) -> None:
    owners: dict[str, str] = {}
    for task, draft in zip(tasks, drafts, strict=False):
        owner = owners.setdefault(task.branch, task.id)
        if owner != task.id:
            message = f"{shown(task.branch, 200)} is the branch of {owner} too: put {{id}} into it"
            note(draft.fields.problem("branch", message))
    for task, draft in zip(tasks, drafts, strict=False):
        parts = task.branch.split("/")
        for above in ("/".join(parts[:end]) for end in range(1, len(parts))):
            if above in owners:
                message = (
                    f"{shown(task.branch, 200)} can't be beside {above!a}, the branch of {owners[above]}"
                )
                note(draft.fields.problem("branch", f"{message}: git allows only one of them"))


def rates(document: Document | None) -> dict[str, str]:
    """The file's rates by provider, such as `30/m`; of a file that `expand` has taken."""
    return dict(document.value.get("rates", {})) if document else {}


def shard(tasks: Sequence[Task], number: int, of: int) -> list[Task]:
    """The part of a batch that is machine `number`'s, from 1, of so many; in the same order.

    Every task is in one of them, together with all that it needs and that need it, and with its group. Which
    one depends on the ids alone. Raises UsageError.
    """
    if not 1 <= number <= of:
        raise UsageError(
            f"there is no shard {number} of {of}", hint="count from 1: --shard 1/8 to --shard 8/8"
        )
    keys = components(tasks)
    return [task for task in tasks if _shard_of(keys[task.id], of) == number - 1]


def _shard_of(key: str, of: int) -> int:
    return int.from_bytes(sha256(key.encode()).digest()[:8], "big") % of


def plan_rows(tasks: Sequence[Task]) -> list[PlanRow]:
    """What `--dry-run` shows, in the order in which the tasks would start one by one."""
    return [
        PlanRow(
            task.id, task.needs, _shortened(task.command), task.base, task.branch, ", ".join(_limits(task))
        )
        for task in start_order(tasks)
    ]


def _shortened(command: Sequence[str]) -> str:
    """A command in one line; words that are long are cut, and so is the whole."""
    shell = ("/bin/sh", "-c")
    words = command[2:] if tuple(command[:2]) == shell else [shlex.quote(_cut(word)) for word in command]
    line = " ".join(" ".join(words).split())
    return _cut("".join(letter if letter.isprintable() else "?" for letter in line), _LONGEST_COMMAND)


def _cut(text: str, most: int = 40) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _limits(task: Task) -> Iterator[str]:
    spans = (("", task.timeout), ("silence ", task.idle_timeout))
    yield from (f"{name}{_span(value)}" for name, value in spans if value)
    sizes = (("memory", task.memory), ("disk", task.disk))
    yield from (f"{name} {_size(value)}" for name, value in sizes if value)
    if task.cpus:
        yield f"{task.cpus:g} cpus"
    if task.budget:
        yield f"${task.budget:g}"


def _span(value: float) -> str:
    unit, factor = next(
        ((unit, each) for unit, each in _UNITS if value >= each and not value % each), ("s", 1)
    )
    return f"{value / factor:g}{unit}"


def _size(value: int) -> str:
    unit, power = next(((unit, each) for unit, each in _POWERS if value >> each), ("", 0))
    return f"{value / (1 << power):.4g}{unit}"
