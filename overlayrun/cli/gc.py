"""`gc`: remove what no workspace needs any more."""

from __future__ import annotations

import os
from typing import Any, Final

import click  # noqa: TID251  # this is overlayrun/cli/

from overlayrun.cli.opened import open_here
from overlayrun.cli.render import count_text, say, say_json, say_table, size_text
from overlayrun.cli.words import ParamType, json_option
from overlayrun.collect import Garbage, collect, garbage
from overlayrun.removal import clear_half_made
from overlayrun.store.scratch import clear_abandoned

_SPANS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_SIZES: Final = {"k": 2.0**10, "m": 2.0**20, "g": 2.0**30, "t": 2.0**40}


class _Amount(ParamType):
    """A number with a unit's letter."""

    def __init__(self, name: str, units: dict[str, float], plain: float) -> None:
        self.name = name
        self.units = units
        self.plain = plain

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Fails with click's own error."""
        if not isinstance(value, str):
            return float(value)
        text = value.lower().removesuffix("b")
        factor = self.units.get(text[-1:], self.plain)
        try:
            amount = float(text[:-1] if text[-1:] in self.units else text) * factor
        except ValueError:
            amount = -1.0
        if not 0 <= amount < float("inf"):
            self.fail(f"{value!a} is no {self.name}; write it like 7{''.join(self.units)[-1]}", param, ctx)
        return amount


@click.command("gc", short_help="Remove layers and landed workspaces that nobody uses.")
@click.option("-n", "--dry-run", is_flag=True, help="Only tell what would go.")
@click.option(
    "--max-age",
    type=_Amount("span", _SPANS, 1.0),
    default="14d",
    show_default=True,
    metavar="SPAN",
    help="Keep what was used since.",
)
@click.option(
    "--max-size",
    type=_Amount("size", _SIZES, 1.0),
    metavar="SIZE",
    help="Then also remove younger ones until all of it takes less.",
)
@json_option
def gc_command(*, dry_run: bool, max_age: float, max_size: float | None, as_json: bool) -> None:
    """Remove frozen layers that no workspace stands on, leftovers, and workspaces whose branch has landed.

    Work that is nowhere else is never removed; a landed branch keeps its git branch.
    """
    opened = open_here()
    most = None if max_size is None else int(max_size)
    there = os.path.isdir(opened.layout.root)  # a repository that was never used has no state
    if there and not dry_run:
        clear_half_made(opened.layout, opened.repository.common_dir)
        clear_abandoned()
    items = garbage(opened.layout, max_age=max_age, max_size=most) if there else []
    freed = sum(item.size for item in items) if dry_run or not there else collect(opened.layout, items)
    if as_json:
        say_json({"dry_run": dry_run, "freed": freed, "items": [_shape(item) for item in items]})
        return
    if items:
        say_table(("SIZE", "WHY", "PATH"), [(size_text(item.size), item.why, item.path) for item in items])
    verb = "would come free" if dry_run else "came free"
    say(f"{count_text(len(items), 'item')}: {size_text(freed)} {verb}")


def _shape(item: Garbage) -> dict[str, Any]:
    branch = item.record.branch if item.record else None
    return {"path": item.path, "bytes": item.size, "why": item.why, "branch": branch}
