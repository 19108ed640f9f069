"""Arguments and options that several commands share, and their completion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from overlayrun.cli.here import find_here
from overlayrun.errors import OverlayrunError
from overlayrun.workspace.catalogue import records

Decorated = Callable[[Callable[..., Any]], Callable[..., Any]]


class _Branch(click.ParamType):
    """A branch, `B@{n}` or `A..B`: found later, completed here."""

    name = "branch"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Branches with a workspace; after `..` too."""
        before, dots, begun = incomplete.rpartition("..")
        try:
            known = [record.branch for record in records(find_here().layout) if not record.throwaway]
        except OverlayrunError:
            return []
        return [CompletionItem(f"{before}{dots}{name}") for name in known if _begins(name, begun)]


def _begins(name: str, begun: str) -> bool:
    return name.startswith((begun, f"overlay/{begun}"))


BRANCH: Final = _Branch()


def branch_argument(metavar: str = "BRANCH", *, required: bool = True) -> Decorated:
    """The argument `text`: a branch, as the user types it."""
    return click.argument("text", metavar=metavar, type=BRANCH, required=required, default=None if required else "")


json_option: Final[Decorated] = click.option("--json", "as_json", is_flag=True, help="Print JSON with a schema number.")
