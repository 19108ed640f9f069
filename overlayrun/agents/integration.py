"""`integrate`: put an agent's hooks and plugins into the user's files, and take exactly them out again.

What was done is noted, so that the undo does not guess: a file that nobody touched since is as it was before,
to the byte; from one that was, only what we put in is taken.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, Final

from overlayrun.agents.jsonc import Piece, append, applied, listed, parse, take_out, without_pieces
from overlayrun.agents.recipes import Agent, Recipe
from overlayrun.errors import HostError, UsageError
from overlayrun.files import write_whole

_SCHEMA: Final = 1
_LARGEST: Final = 8 << 20  # bytes of a file of configuration


class Action(Enum):
    """What becomes of a file."""

    CREATE = "create"
    CHANGE = "change"
    DELETE = "delete"
    UNCHANGED = "unchanged"
    KEPT = "kept"  # what we put in was changed by somebody: it stays


@dataclass(frozen=True, slots=True)
class Placed:
    """A value that we put into the array at a path of keys. depth: how many of the keys were there before."""

    path: tuple[str, ...]
    value: Any
    depth: int


@dataclass(frozen=True, slots=True)
class Done:
    """What was put into one file, as it is noted.

    path: links followed. made: we made the file; directories: those that we made for it, outermost first.
    after: SHA-256 of what the file held then. placed, text: of which one is empty, as in a Recipe.
    """

    path: str
    made: bool
    after: str
    pieces: list[Piece]
    directories: list[str]
    placed: list[Placed]
    text: str


@dataclass(frozen=True, slots=True)
class Change:
    """One file before and after; None where it is not there."""

    path: str
    action: Action
    before: str | None
    after: str | None
    done: Done | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What `integrate` or its undo will do. noted: of this agent, as it will stand."""

    agent: str
    changes: tuple[Change, ...]
    noted: tuple[Done, ...]


def plan_integration(agent: Agent) -> Plan:
    """Put in what is not there. Raises UsageError for a file that can't be read; nothing is written yet."""
    noted = {done.path: done for done in _noted().get(agent.name, ())}
    changes = [_put_in(recipe, noted) for recipe in agent.recipes()]
    fresh = {change.path: change.done for change in changes if change.done is not None}
    return Plan(agent.name, tuple(changes), tuple({**noted, **fresh}.values()))


def plan_removal(agent: Agent) -> Plan:
    """Take out what is noted. Raises UsageError for a file that can't be read; nothing is written yet."""
    noted = _noted().get(agent.name, ())
    return Plan(agent.name, tuple(_take_out(done) for done in noted), ())


def carry_out(plan: Plan) -> None:
    """Write the files and the note. Stopped in between, it can be begun again, and undone.

    Raises UsageError where a file is another one by now, HostError where one can't be written.
    """
    notes = _noted()
    try:
        if plan.noted and plan.noted != notes.get(plan.agent):
            _note({**notes, plan.agent: plan.noted})
        for change in plan.changes:
            _write(change, notes.get(plan.agent, ()))
        if not plan.noted and plan.agent in notes:
            _note({name: done for name, done in notes.items() if name != plan.agent})
    except OSError as err:
        raise HostError(
            f"can't be written: {err.filename}: {err.strerror}",
            hint=f"what is done so far can be undone: overlayrun integrate {plan.agent} --remove",
        ) from err


def note_path() -> str:
    """Where the note is kept."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return f"{state}/overlayrun/integrations.json"


def _put_in(recipe: Recipe, noted: dict[str, Done]) -> Change:
    # Links are followed: many keep such files elsewhere and link them.
    path = os.path.realpath(recipe.path)
    before = _read(path)
    old = noted.get(path)
    try:
        if before is not None and _holds(before, recipe):
            return Change(path, Action.UNCHANGED, before, before)
        # What another version of ours put in gives way.
        clean = _undone(before, old) if old is not None and before is not None else before or ""
        after, pieces, placed = _with_text(clean, recipe) if recipe.text else _with_items(clean, recipe)
    except ValueError as err:
        raise _unreadable(recipe.path, err) from err
    made = before is None or (old is not None and old.made)
    directories = (old.directories if old is not None else []) or list(_missing_directories(path))
    done = Done(path, made, _digest(after), pieces, directories, placed, recipe.text)
    return Change(path, Action.CREATE if before is None else Action.CHANGE, before, after, done)


def _unreadable(path: str, err: ValueError) -> UsageError:
    return UsageError(
        f"left as it is, for it can't be edited: {path}: {err}", hint="mend it or move it away; then again"
    )


def _holds(text: str, recipe: Recipe) -> bool:
    if recipe.text:
        return recipe.text in text
    return bool(text.strip()) and all(item.value in listed(text, item.path) for item in recipe.items)


def _with_text(now: str, recipe: Recipe) -> tuple[str, list[Piece], list[Placed]]:
    gap = "\n" if now and not now.endswith("\n") else ""
    pieces = [Piece(len(now), f"{gap}{recipe.text}")]
    return applied(now, pieces), pieces, []


def _with_items(now: str, recipe: Recipe) -> tuple[str, list[Piece], list[Placed]]:
    """The text of a file that holds what is wanted, the pieces that it took, and what is ours in it."""
    pieces = [] if now.strip() else [Piece(len(now), "{}\n")]
    now = applied(now, pieces)
    wanted = parse(now)
    if not recipe.has_comments and not _is_plain(now):
        raise ValueError("the agent ignores a file that has comments or trailing commas")
    if not isinstance(wanted, dict):
        raise ValueError("it holds no object")  # noqa: TRY004  # the file is wrong, no argument
    placed = []
    for item in recipe.items:
        if item.value in listed(now, item.path):
            continue
        more, depth = append(now, item.path, item.value)
        now = applied(now, more)
        pieces += more
        placed.append(Placed(item.path, item.value, depth))
        _add(wanted, item.path, item.value)
    if parse(now) != wanted:
        raise ValueError("its layout is too odd to be edited")
    return now, pieces, placed


def _is_plain(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _add(value: dict[str, Any], path: Sequence[str], item: Any) -> None:
    for key in path[:-1]:
        value = value.setdefault(key, {})
    value.setdefault(path[-1], []).append(item)


def _take_out(done: Done) -> Change:
    before = _read(done.path)
    if before is None:
        return Change(done.path, Action.UNCHANGED, None, None, done)
    try:
        after = _undone(before, done)
    except ValueError as err:
        raise _unreadable(done.path, err) from err
    if done.made and "".join(after.split()) in ("", "{}"):
        return Change(done.path, Action.DELETE, before, None, done)
    if after != before:
        return Change(done.path, Action.CHANGE, before, after, done)
    is_left = bool(done.text) and done.text.splitlines()[0] in before
    return Change(done.path, Action.KEPT if is_left else Action.UNCHANGED, before, before, done)


def _undone(text: str, done: Done) -> str:
    """The text without what is noted; as it was before where nobody changed it since."""
    exact = without_pieces(text, done.pieces) if done.text or _digest(text) == done.after else None
    if exact is not None:
        return exact
    if done.text:
        return text.replace(done.text, "", 1)
    for item in reversed(done.placed):
        text = take_out(text, item.path, item.value, item.depth)
    return text


def _missing_directories(path: str) -> Iterator[str]:
    above = os.path.dirname(path)
    if not os.path.lexists(above):
        yield from _missing_directories(above)
        yield above


def _digest(text: str) -> str:
    return hashlib.sha256(_bytes(text)).hexdigest()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _read(path: str) -> str | None:
    """A file's text, None without one; bytes that are no UTF-8 come back as they were."""
    try:
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode) or info.st_size > _LARGEST:
            raise UsageError(f"is no file of configuration: {path}")
        with open(path, "rb") as file:
            return file.read().decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return None
    except OSError as err:
        raise HostError(f"can't be read: {path}: {err.strerror}") from err


def _write(change: Change, noted: Sequence[Done]) -> None:
    if change.before == change.after:
        return
    if _read(change.path) != change.before:
        raise UsageError(f"changed while this ran: {change.path}", hint="type it again")
    if change.after is None:
        os.unlink(change.path)
        _remove_empty(next(done.directories for done in noted if done.path == change.path))
        return
    os.makedirs(os.path.dirname(change.path), exist_ok=True)
    mode = 0o644 if change.before is None else stat.S_IMODE(os.stat(change.path).st_mode)
    write_whole(change.path, _bytes(change.after), durable=True, mode=mode)
    if change.before is not None:
        os.chmod(change.path, mode)


def _remove_empty(directories: Sequence[str]) -> None:
    for directory in reversed(directories):
        try:
            os.rmdir(directory)
        except OSError:
            return  # somebody else's files are in it


def _noted() -> dict[str, tuple[Done, ...]]:
    """What the note says, by agent."""
    text = _read(note_path())
    if text is None:
        return {}
    try:
        data = json.loads(text)
        if data["schema"] != _SCHEMA:
            raise UsageError(
                f"the note is of another version of overlayrun: {note_path()}", hint="use that version"
            )
        return {name: tuple(map(_done, files)) for name, files in data["agents"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise UsageError(
            f"the note of what was done can't be read: {note_path()}", hint="move it away, and undo by hand"
        ) from err


def _done(data: dict[str, Any]) -> Done:
    pieces = [Piece(**piece) for piece in data["pieces"]]
    placed = [Placed(tuple(item["path"]), item["value"], item["depth"]) for item in data["placed"]]
    return Done(**{**data, "pieces": pieces, "placed": placed})


def _note(notes: dict[str, tuple[Done, ...]]) -> None:
    path = note_path()
    if not notes:
        os.unlink(path)
        return
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    data = {
        "schema": _SCHEMA,
        "agents": {name: [asdict(done) for done in files] for name, files in notes.items()},
    }
    write_whole(path, json.dumps(data, indent=1).encode(), durable=True)
