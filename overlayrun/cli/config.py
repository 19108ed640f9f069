"""`config`: the settings in force, and setting them."""

from __future__ import annotations

import os
from typing import Any

import click  # noqa: TID251  # this is overlayrun/cli/
from click.shell_completion import CompletionItem  # noqa: TID251  # this is overlayrun/cli/

from overlayrun.cli.configured import KEYS, SECTION, parse
from overlayrun.cli.here import find_here
from overlayrun.cli.options import Option
from overlayrun.cli.render import say, say_json, say_table
from overlayrun.cli.words import ParamType, json_option
from overlayrun.errors import UsageError
from overlayrun.store.git import git


class _Key(ParamType):
    name = "key"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Every key."""
        return [CompletionItem(key) for key in KEYS if key.startswith(incomplete)]


@click.command("config", short_help="Show or set the defaults of run options.")
@click.argument("key", required=False, type=_Key())
@click.argument("value", required=False)
@click.option("--global", "everywhere", is_flag=True, help="Set it for all your repositories.")
@click.option("--unset", is_flag=True, help="Back to the default.")
@json_option
def config_command(
    *, key: str | None, value: str | None, everywhere: bool, unset: bool, as_json: bool
) -> None:
    """Show the settings in force; KEY shows one, KEY VALUE sets it.

    They are git configuration, section `overlayrun`, and stand for the run option of the same name.
    """
    root = find_here().repository.root
    if key is None:
        _show_all(root, as_json=as_json)
        return
    option = _option(key)
    if unset:
        git(["config", *_scope(everywhere=everywhere), "--unset-all", _name(key)], cwd=root, check=False)
    elif value is not None:
        parse(option, value)
        _set(root, option, key, value, everywhere=everywhere)
    elif as_json:
        say_json({_short(key): _shown(option, _set_values(root).get(_short(key)))[0]})
    else:
        say(_shown(option, _set_values(root).get(_short(key)))[0])


def _set(root: str, option: Option, key: str, value: str, *, everywhere: bool) -> None:
    how = ["--add"] if option.many else []
    git(["config", *_scope(everywhere=everywhere), *how, _name(key), value], cwd=root)


def _scope(*, everywhere: bool) -> list[str]:
    return ["--global"] if everywhere else ["--local"]


def _short(key: str) -> str:
    return key.lower().removeprefix(SECTION)


def _name(key: str) -> str:
    return f"{SECTION}{_short(key)}"


def _option(key: str) -> Option:
    option = KEYS.get(_short(key))
    if option is None:
        raise UsageError(f"there is no setting {key!a}", hint=f"settings: {' '.join(sorted(KEYS))}")
    return option


def _set_values(root: str) -> dict[str, list[tuple[str, str]]]:
    """Key to (value, scope) of each time it is set, the last one wins."""
    command = ["config", "-z", "--show-scope", "--get-regexp", r"^overlayrun\."]
    words = os.fsdecode(git(command, cwd=root, check=False)).split("\0")[:-1]
    found: dict[str, list[tuple[str, str]]] = {}
    for scope, item in zip(words[::2], words[1::2], strict=True):
        name, _, value = item.partition("\n")
        found.setdefault(name.removeprefix(SECTION), []).append((value, scope))
    return found


def _shown(option: Option, values: list[tuple[str, str]] | None) -> tuple[str, str]:
    """Value and where it comes from, as text."""
    if values:
        text = " ".join(value for value, _ in values) if option.many else values[-1][0]
        return text, values[-1][1]
    default = getattr(option.default, "value", option.default)
    if isinstance(default, bool):
        return str(default).lower(), "default"
    if isinstance(default, float):
        return f"{default:g}s", "default"
    return str(default) if default else "", "default"


def _show_all(root: str, *, as_json: bool) -> None:
    values = _set_values(root)
    rows = [(key, *_shown(option, values.get(key)), option.help) for key, option in KEYS.items()]
    if as_json:
        settings: dict[str, Any] = {key: {"value": value, "from": where} for key, value, where, _ in rows}
        say_json({"settings": settings})
        return
    say_table(("KEY", "VALUE", "FROM", "MEANING"), rows)
