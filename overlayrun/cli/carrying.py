"""Files that run code on the user's machine: told, and asked about."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import click  # noqa: TID251  # this is overlayrun/cli/

from overlayrun.carriers import Carrier
from overlayrun.cli.render import on_terminal, say
from overlayrun.incoming import MEANING, Incoming
from overlayrun.reconcile.settings import ExecPolicy
from overlayrun.report import printable

_MOST: Final = 40  # lines before a question


def consent_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options with which the user agrees beforehand; `consented` reads them."""
    yes = click.option(
        "--yes-exec", is_flag=True, help="Let files in that run code on your machine when opened or built."
    )
    bare = click.option(
        "--allow-bare-layout", is_flag=True, help="Let directories in that git takes for repositories."
    )
    return yes(bare(command))


def consented(given: Mapping[str, Any]) -> dict[str, Any]:
    """The same options as settings of the reconciler, by field name."""
    left = {name: value for name, value in given.items() if name != "yes_exec"}
    return {**left, "exec": ExecPolicy.ALLOW if given.get("yes_exec") else None}


def carrier_lines(carriers: Sequence[Carrier]) -> Iterator[str]:
    """A line each."""
    for carrier in carriers:
        yield f"  {_shown(carrier.path)}: {carrier.why}"


def notes_of(found: Incoming) -> Iterator[str]:
    """All there is to tell of a change."""
    if found.carriers:
        yield f"{MEANING}:"
    yield from carrier_lines(found.carriers)
    yield from fault_lines(found)


def fault_lines(found: Incoming) -> Iterator[str]:
    """What is not let through without an option, or not at all."""
    for path in found.bare:
        yield f"bare git repository at {_shown(path)}: to merge it takes --allow-bare-layout"
    for fault in found.unsafe:
        yield f"unsafe content, which is not merged: {printable(fault)}"


def has_someone(*, as_json: bool) -> bool:
    """Whether there is somebody to ask."""
    return not as_json and sys.stdin.isatty() and on_terminal()


def is_wanted(branch: str, verb: str, carriers: Sequence[Carrier]) -> bool:
    """Show the list and ask."""
    say(f"branch {branch} brings {MEANING}:")
    for line in carrier_lines(carriers[:_MOST]):
        say(line)
    if len(carriers) > _MOST:
        say(f"  and {len(carriers) - _MOST} more: overlayrun diff --stat {branch}")
    return click.confirm(f"{verb} these?")


def _shown(path: bytes) -> str:
    return printable(path.decode("utf-8", "surrogateescape"))
