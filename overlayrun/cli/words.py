"""Arguments and options that several commands share, and their completion."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import click  # noqa: TID251  # this is overlayrun/cli/
from click.shell_completion import CompletionItem  # noqa: TID251  # this is overlayrun/cli/

from overlayrun.cli.here import find_here
from overlayrun.errors import OverlayrunError
from overlayrun.workspace.catalogue import records

if TYPE_CHECKING:
    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType  # at run time it takes no arguments before click 8.5

Decorated = Callable[[Callable[..., Any]], Callable[..., Any]]


class _Branch(ParamType):
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
    # A default that is given, be it None, would make the argument optional.
    absent: dict[str, Any] = {} if required else {"default": ""}
    return click.argument("text", metavar=metavar, type=BRANCH, required=required, **absent)


json_option: Final[Decorated] = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON with a schema number."
)
