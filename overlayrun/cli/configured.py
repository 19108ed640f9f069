"""Defaults of run options from git configuration: `overlayrun.dirty` and so on. On the launch path."""

from __future__ import annotations

import os

from overlayrun.cli.options import RUN_OPTIONS
from overlayrun.errors import UsageError
from overlayrun.store.git import git
from overlayrun.values import switch, wanted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from overlayrun.cli.options import Option

SECTION: Final = "overlayrun."
# What belongs to one run alone can't be a habit.
_OF_ONE_RUN: Final = frozenset({"branch", "base", "message", "rm", "keep", "apply"})


def key_of(option: Option) -> str:
    """The name of an option's key, without the section."""
    return "target" if option.name == "into" else option.name.replace("_", "-")


KEYS: Final = {key_of(option): option for option in RUN_OPTIONS if option.name not in _OF_ONE_RUN}


def configured(root: str, git_dir: str) -> dict[str, Any]:
    """Values by option name, of those that are set for the repository. Raises UsageError for a bad one.

    root: the working tree. git_dir: the common git directory.
    """
    if not _may_be_set(git_dir):
        return {}
    given: dict[str, Any] = {}
    listed = git(["config", "-z", "--get-regexp", r"^overlayrun\."], cwd=root, check=False)
    for item in os.fsdecode(listed).split("\0")[:-1]:
        name, _, text = item.partition("\n")
        option = KEYS.get(name.removeprefix(SECTION))
        if option is not None:
            value = parse(option, text)
            given[option.name] = [*given.get(option.name, ()), value] if option.many else value
    return given


def _may_be_set(git_dir: str) -> bool:
    """Whether any file of git's configuration could set one: asking git costs 2 ms, reading the files 0.05.

    A system-wide file elsewhere than /etc/gitconfig is found only where another of the files has an include.
    """
    home = os.environ.get("HOME", "")
    chosen = os.environ.get("GIT_CONFIG_GLOBAL")
    own = (
        [chosen]
        if chosen
        else [f"{home}/.gitconfig", f"{os.environ.get('XDG_CONFIG_HOME') or f'{home}/.config'}/git/config"]
    )
    system = os.environ.get("GIT_CONFIG_SYSTEM", "/etc/gitconfig")
    return any(_mentions(path) for path in (f"{git_dir}/config", f"{git_dir}/config.worktree", *own, system))


def _mentions(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            text = file.read().lower()
    except OSError:
        return False
    return b"[overlayrun" in text or b"[include" in text


def parse(option: Option, text: str) -> Any:
    """The value of a key's text. Raises UsageError."""
    key = f"{SECTION}{key_of(option)}"
    try:
        if option.metavar is None:
            return switch(text)
        return option.convert(text)
    except ValueError as err:
        takes = wanted(option.metavar or "true or false")
        raise UsageError(
            f"git config {key} can't be {text!a}: it takes {takes}",
            hint=f"overlayrun config {key_of(option)} VALUE, or: git config --unset {key}",
        ) from err
