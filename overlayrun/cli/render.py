"""Values as text: plain lines for pipes, colours and tables for terminals, JSON for programs."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click  # noqa: TID251  # this is overlayrun/cli/

from overlayrun.alone import Alone
from overlayrun.report import printable

SCHEMA: Final = 1  # of every --json answer; raised when a name in one changes its meaning or goes
_GAP: Final = "  "
_LEAST: Final = 16  # characters of a last column that is cut
_UNITS: Final = ("KB", "MB", "GB", "TB")


def say(line: str = "") -> None:
    """One line on standard output."""
    click.echo(line)


def say_json(data: Mapping[str, Any]) -> None:
    """One JSON object on standard output; characters beyond ASCII as escapes, so that a terminal is safe."""
    click.echo(json.dumps({"schema": SCHEMA, **data}, indent=2))


def on_terminal() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout.isatty()


def has_colours() -> bool:
    """Whether to colour: on a terminal, unless NO_COLOR is set (no-color.org) or it can't."""
    return on_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def coloured(text: str, colour: str) -> str:
    """`text` in a colour, where there are colours."""
    return click.style(text, fg=colour) if has_colours() else text


def say_table(heads: Sequence[str], rows: Sequence[Sequence[str]], spare: Sequence[str] = ()) -> None:
    """A table with a line a row; its last column is cut at the edge of a terminal, never in a pipe.

    spare: heads of columns that a narrow terminal goes without, the first to go first.
    """
    safe = [[printable(cell) for cell in row] for row in rows]
    if on_terminal():
        _say_rich(heads, safe, spare)
        return
    widths = [max(map(len, column)) for column in zip(heads, *safe, strict=True)]
    for row in [heads, *safe]:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        say(_GAP.join(cells).rstrip())


def _say_rich(heads: Sequence[str], rows: Sequence[Sequence[str]], spare: Sequence[str]) -> None:
    from rich.cells import cell_len, set_cell_size
    from rich.console import Console  # 60 ms, and only a terminal needs it
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    columns = {head: [head, *cells] for head, *cells in zip(heads, *rows, strict=True)}
    widths = {head: max(map(cell_len, cells)) for head, cells in columns.items()}
    widths[heads[-1]] = min(widths[heads[-1]], _LEAST)
    going = list(spare)
    while going and sum(widths.values()) + len(_GAP) * (len(widths) - 1) > console.width:
        widths.pop(going.pop(0), None)
    for number, cells in enumerate(zip(*(columns[head] for head in widths), strict=True)):
        padded = (
            set_cell_size(cell, width) for cell, width in zip(cells[:-1], widths.values(), strict=False)
        )
        line = Text(_GAP.join([*padded, cells[-1]]).rstrip(), style="bold" if not number else "")
        line.truncate(console.width, overflow="ellipsis")
        console.print(line)


def say_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """Names and values below each other; values are safe to print."""
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        say(f"{name.ljust(width)}{_GAP}{value}".rstrip())


def disk_text(taken: Alone) -> str:
    """What a workspace takes on the disk."""
    return "up to " * taken.is_bound + size_text(taken.size)


def size_text(count: int) -> str:
    """Bytes with a unit of 1024, as `du -h`."""
    value, unit = float(count), "B"
    for larger in _UNITS:
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


def span_text(seconds: float) -> str:
    """A span in its largest unit, cut off."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, int(seconds))} s"


def ago(moment: float) -> str:
    """How long ago a moment was (seconds since the epoch)."""
    return f"{span_text(time.time() - moment)} ago"


def moment_text(moment: float) -> str:
    """A moment in the user's time zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


def count_text(number: int, what: str) -> str:
    """A number with its noun."""
    return f"{number} {what}{'s' * (number != 1)}"
