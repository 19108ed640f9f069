"""`restore`: back to a snapshot."""

from __future__ import annotations

import click  # noqa: TID251  # this is overlayrun/cli/

from overlayrun.cli.opened import locked, open_here
from overlayrun.cli.render import say, say_json
from overlayrun.cli.words import branch_argument, json_option
from overlayrun.errors import UsageError
from overlayrun.restore import restore
from overlayrun.revision import parse_revision


@click.command("restore", short_help="Put a branch back to one of its snapshots.")
@branch_argument()
@click.argument("place", required=False, default="", metavar="[@{N}]")
@json_option
def restore_command(*, text: str, place: str, as_json: bool) -> None:
    """Put a branch back to one of its snapshots: `restore B @{2}`, or `restore B@{2}`.

    What is there now becomes a snapshot first, and going back is a new one: nothing is lost.
    """
    if place and not place.startswith("@"):
        raise UsageError(
            f"not a snapshot: {place!a}", hint=f"write it like: overlayrun restore {text!a} @{{1}}"
        )
    opened = open_here()
    wanted = parse_revision(opened.layout, opened.repo, text + place)
    if "@" not in text + place or wanted.snapshot is None:
        branch = wanted.record.branch
        raise UsageError(f"back to which snapshot of {branch}?", hint=f"overlayrun restore {branch} @{{1}}")
    branch, number = wanted.record.branch, wanted.snapshot.number
    with locked(opened, branch, f"end it, then: overlayrun restore {branch} @{{N}}") as record:
        taken = restore(opened.repository, opened.layout, record, wanted.snapshot)
    if as_json:
        say_json({"branch": branch, "restored": number, "number": taken.number, "commit": taken.commit})
        return
    say(f"branch {branch} is as in snapshot {number} again; this is snapshot {taken.number}")
