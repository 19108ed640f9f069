"""`config`: the settings in force, and setting them."""

from __future__ import annotations

import os
from typing import Any, Final

import click  # noqa: TID251  # this is overlayrun/cli/
from click.shell_completion import CompletionItem  # noqa: TID251  # this is overlayrun/cli/

from overlayrun.cli.configured import KEYS, SECTION, parse
from overlayrun.cli.here import find_here
from overlayrun.cli.options import Option
from overlayrun.cli.render import say, say_json, say_table
from overlayrun.cli.words import ParamType, json_option
from overlayrun.errors import UsageError
from overlayrun.reconcile.settings import FILE, TABLE, Settings, file_values
from overlayrun.reconcile.settings import KEYS as RECONCILE_KEYS
from overlayrun.store.git import git
from overlayrun.values import shown

# Every setting: of runs, and of the reconciler.
_ALL: Final = {
    **KEYS,
    **{
        f"{TABLE}.{name}": Option(f"--{TABLE}.{name}", key.metavar, key.help).of(
            key.read, getattr(Settings(), name.replace("-", "_"))
        )
        for name, key in RECONCILE_KEYS.items()
    },
}


_ALL[f"{TABLE}.only"].repeated()


class _Key(ParamType):
    name = "key"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Every key."""
        return [CompletionItem(key) for key in _ALL if key.startswith(incomplete)]


@click.command("config", short_help="Show or set the defaults of runs and of the reconciler.")
@click.argument("key", required=False, type=_Key())
@click.argument("value", required=False)
@click.option("--global", "everywhere", is_flag=True, help="Set it for all your repositories.")
@click.option("--unset", is_flag=True, help="Back to the default.")
@json_option
def config_command(
    *, key: str | None, value: str | None, everywhere: bool, unset: bool, as_json: bool
) -> None:
    """Show the settings in force; KEY shows one, KEY VALUE sets it.

    They are git configuration, section `overlayrun`, and stand for the option of the same name: of a run, or
    of `merge` and `reconcile` where they begin with `reconcile.`. What overlayrun.toml says is weaker.
    """
    root = find_here().repository.root
    if key is None:
        _show_all(root, as_json=as_json)
        return
    option = _option(key)
    values = _in_file(root) | _set_values(root)
    if unset:
        git(["config", *_scope(everywhere=everywhere), "--unset-all", _name(key)], cwd=root, check=False)
    elif value is not None:
        parse(option, value)
        _set(root, option, key, value, everywhere=everywhere)
    elif as_json:
        say_json({_short(key): _shown(option, values.get(_short(key)))[0]})
    else:
        say(_shown(option, values.get(_short(key)))[0])


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
    option = _ALL.get(_short(key))
    if option is None:
        raise UsageError(f"there is no setting {key!a}", hint=f"settings: {' '.join(sorted(_ALL))}")
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


def _in_file(root: str) -> dict[str, list[tuple[str, str]]]:
    """The same of what overlayrun.toml sets."""
    found = {}
    for name, value in file_values(root).items():
        texts = value if isinstance(value, tuple) else (getattr(value, "value", value),)
        found[f"{TABLE}.{name.replace('_', '-')}"] = [(shown(text), FILE) for text in texts]
    return found


def _shown(option: Option, values: list[tuple[str, str]] | None) -> tuple[str, str]:
    """Value and where it comes from, as text."""
    if values:
        text = " ".join(value for value, _ in values) if option.many else values[-1][0]
        return text, values[-1][1]
    return shown(getattr(option.default, "value", option.default)), "default"


def _show_all(root: str, *, as_json: bool) -> None:
    values = _in_file(root) | _set_values(root)
    rows = [(key, *_shown(option, values.get(key)), option.help) for key, option in _ALL.items()]
    if as_json:
        settings: dict[str, Any] = {key: {"value": value, "from": where} for key, value, where, _ in rows}
        say_json({"settings": settings})
        return
    say_table(("KEY", "VALUE", "FROM", "MEANING"), rows)
