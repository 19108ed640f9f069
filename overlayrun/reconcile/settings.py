"""What the reconciler was told: flags, over git configuration, over the repository's overlayrun.toml.

A command from the repository's file was written by whoever wrote the repository; like any other it runs in
the sandbox and nowhere else.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final

from overlayrun.errors import UsageError
from overlayrun.store.git import git
from overlayrun.values import seconds, switch, wanted

FILE: Final = "overlayrun.toml"
TABLE: Final = "reconcile"
_SECTION: Final = f"overlayrun.{TABLE}."


class ExecPolicy(Enum):
    """What to do with a branch that brings files that run code on the user's machine."""

    ASK = "ask"
    ALLOW = "allow"


class LandingMode(Enum):
    """What a landing looks like in the target's history."""

    MERGE = "merge"
    SQUASH = "squash"
    REBASE = "rebase"


@dataclass(frozen=True, slots=True)
class Settings:
    """How to reconcile. Spans in seconds.

    check: command that must exit 0 on every tree that lands. slots: checks at the same time. resolve: command
    that resolves conflicts. only: patterns of branch names, as fnmatch(3). exec: whether the user is
    asked before files that run code on his machine come to him. allow_bare_layout: directories that git takes
    for a repository may come; of one command alone.
    """

    check: str | None = None
    check_each: bool = False
    slots: int = 2
    timeout: float = 1200.0
    resolve: str | None = None
    resolve_timeout: float = 1200.0
    require_approval: bool = False
    only: tuple[str, ...] = ()
    mode: LandingMode = LandingMode.MERGE
    exec: ExecPolicy = ExecPolicy.ASK
    allow_bare_layout: bool = False

    def merged(self, given: Mapping[str, Any]) -> Settings:
        """The same with what was given (by field name; None and () stand for not given)."""
        return replace(self, **{name: value for name, value in given.items() if value not in (None, ())})


def read_settings(root: str) -> Settings:
    """Settings of the repository whose working tree is `root`. Raises UsageError for what can't be meant."""
    return Settings().merged(file_values(root)).merged(dict(_from_git(root)))


def file_values(root: str) -> dict[str, Any]:
    """Values by field name that overlayrun.toml sets. Raises UsageError."""
    return dict(_from_file(root))


def _count(text: str) -> int:
    if not int(text) > 0:
        raise ValueError(text)
    return int(text)


@dataclass(frozen=True, slots=True)
class Key:
    """A setting that can be written down. metavar: None for a switch. read: raises ValueError."""

    metavar: str | None
    read: Callable[[str], Any]
    help: str


KEYS: Final[Mapping[str, Key]] = {
    "check": Key("COMMAND", str, "Land only what this command passes, in the sandbox."),
    "check-each": Key(None, switch, "Check every branch by itself, not runs of them."),
    "slots": Key("N", _count, "Checks, and resolvers, at the same time."),
    "timeout": Key("SPAN", seconds, "End a check after this long."),
    "resolve": Key("COMMAND", str, "Hand conflicts to this command, in a workspace of its own."),
    "resolve-timeout": Key("SPAN", seconds, "End a resolver after this long."),
    "require-approval": Key(None, switch, "Only approved branches land."),
    "only": Key("PATTERN", str, "Branches like this alone, as 'overlay/*'."),
    "mode": Key("merge|squash|rebase", LandingMode, "What a landing looks like in the history."),
    "exec": Key("ask|allow", ExecPolicy, "Let files land that run code on your machine, or ask first."),
}


def parse_value(key: str, text: str, where: str) -> Any:
    """The value of a key. Raises UsageError; where: names the place for the message."""
    known = KEYS.get(key)
    if known is None:
        raise UsageError(f"{where} has no key {key!a}", hint=f"keys: {' '.join(KEYS)}")
    try:
        return known.read(text)
    except ValueError as err:
        takes = wanted(known.metavar or "true or false")
        raise UsageError(f"{where}: {key} can't be {text!a}", hint=f"it takes {takes}") from err


def _from_file(root: str) -> Iterator[tuple[str, Any]]:
    path = os.path.join(root, FILE)
    try:
        with open(path, "rb") as file:
            data = tomllib.load(file)
    except FileNotFoundError:
        return
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as err:
        raise UsageError(f"{path} can't be read: {err}", hint=f"mend it, or move it away: {path}") from err
    table = data.get(TABLE, {})
    unknown = [key for key in data if key != TABLE]
    if unknown or not isinstance(table, dict):
        raise UsageError(f"{path}: {(unknown or [TABLE])[0]!a} is no table of ours", hint=f"it has [{TABLE}]")
    for key, value in table.items():
        if key == "exec":  # whoever wrote the repository is whom it is about
            raise UsageError(
                f"{path}: {key!a} is not for the repository to say",
                hint=f"if it is what you want: overlayrun config {TABLE}.{key} allow",
            )
        yield key.replace("-", "_"), _from_toml(key, value, path)


def _from_toml(key: str, value: Any, path: str) -> Any:
    if key == "only":
        patterns = value if isinstance(value, list) else [value]
        return tuple(str(pattern) for pattern in patterns)
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return parse_value(key, text, path)


def _from_git(root: str) -> Iterator[tuple[str, Any]]:
    listed = git(["config", "-z", "--get-regexp", rf"^overlayrun\.{TABLE}\."], cwd=root, check=False)
    patterns: list[str] = []
    for item in os.fsdecode(listed).split("\0")[:-1]:
        name, _, text = item.partition("\n")
        key = name.removeprefix(_SECTION)
        value = parse_value(key, text, "git config overlayrun.reconcile")
        if key == "only":
            patterns.append(value)
            value = tuple(patterns)
        yield key.replace("-", "_"), value
