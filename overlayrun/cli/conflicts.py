"""`conflicts`: which branches would conflict with the target and with each other, path by path."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click  # noqa: TID251  # this is overlayrun/cli/

from overlayrun.cli.opened import open_here
from overlayrun.cli.render import say, say_json, say_table
from overlayrun.cli.targets import target_of
from overlayrun.cli.words import BRANCH, branch_argument, json_option
from overlayrun.reconcile.forecast import Forecast, forecast
from overlayrun.reconcile.queue import Queue
from overlayrun.reconcile.settings import read_settings
from overlayrun.workspace.catalogue import find


@click.command("conflicts", short_help="Which branches would conflict if they were merged now.")
@branch_argument(required=False)
@click.option(
    "--into", metavar="BRANCH", type=BRANCH, help="With this target instead of what is checked out."
)
@json_option
def conflicts_command(*, text: str, into: str | None, as_json: bool) -> int:
    """Tell which branches would conflict with the target, and with each other, if they were merged now.

    With a branch, path by path for that one. Nothing is changed. Exit code 1 if there is any conflict.
    """
    opened = open_here()
    record = find(opened.layout, text) if text else None
    settings = read_settings(opened.repository.root)
    target = target_of(opened, into or (record.target if record else None))
    queue = Queue(opened.layout, opened.repo, target, settings)
    with _progress() as progress:
        about = record.branch if record else None
        found = forecast(opened.layout, opened.repo, queue, about=about, progress=progress)
    if as_json:
        say_json({"target": target, "conflicts": [_shape(each, target) for each in found]})
    elif not found:
        say(f"no conflict with {target}" + ("" if record else ", and none among the branches"))
    elif record:
        rows = [(each.other or target, path, kind) for each in found for path, kind in each.conflicts]
        say_table(("WITH", "PATH", "KIND"), rows)
    else:
        say_table(("BRANCH", "WITH", "FILES", "PATHS"), [_row(each, target) for each in found])
    return int(bool(found))


def _row(each: Forecast, target: str) -> list[str]:
    paths = ", ".join(path for path, _ in each.conflicts)
    return [each.branch, each.other or target, str(len(each.conflicts)), paths]


def _shape(each: Forecast, target: str) -> dict[str, Any]:
    paths = [{"path": path, "kind": kind} for path, kind in each.conflicts]
    return {"branch": each.branch, "with": each.other or target, "paths": paths}


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, while there is much to merge."""
    if not os.isatty(sys.stderr.fileno()):
        yield lambda _done, _total: None
        return
    from rich.console import Console  # 60 ms, and only a terminal needs it
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("merging for trial", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
