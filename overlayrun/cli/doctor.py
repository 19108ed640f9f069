"""`doctor`: tries what overlayrun needs of this machine, and says the cure of what is missing."""

from __future__ import annotations

from typing import Any, Final

import click  # noqa: TID251  # this is overlayrun/cli/

from overlayrun.checks import Finding, State
from overlayrun.cli.here import find_here
from overlayrun.cli.render import coloured, say, say_json
from overlayrun.cli.words import json_option
from overlayrun.doctor import examine
from overlayrun.errors import UsageError
from overlayrun.report import printable
from overlayrun.store.location import Repository

_COLOURS: Final = {State.OK: "green", State.LIMITED: "yellow", State.MISSING: "red"}


@click.command("doctor", short_help="Try what overlayrun needs of this machine.")
@json_option
def doctor_command(*, as_json: bool) -> int:
    """Try for real every ability that overlayrun needs; exit code 1 where something is missing."""
    findings = examine(_repository())
    missing = sum(finding.state is State.MISSING for finding in findings)
    if as_json:
        say_json({"findings": [_shape(finding) for finding in findings], "missing": missing})
        return 1 if missing else 0
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        _say_finding(finding, width)
    return 1 if missing else 0


def _repository() -> Repository | None:
    """The one around the current directory; the doctor works without."""
    try:
        return find_here().repository
    except UsageError:
        return None


def _say_finding(finding: Finding, width: int) -> None:
    state = coloured(finding.state.value.ljust(7), _COLOURS[finding.state])
    say(f"{state}  {finding.name.ljust(width)}  {printable(finding.found)}".rstrip())
    if finding.state is State.OK:
        return
    for mark, text in (("why: ", finding.why), ("cure: ", finding.cure)):
        for line in text.splitlines():
            say(f"{'':9}{'':{width}}  {mark}{printable(line)}")


def _shape(finding: Finding) -> dict[str, Any]:
    return {
        "name": finding.name,
        "state": finding.state.value,
        "found": finding.found,
        "why": finding.why,
        "cure": finding.cure,
    }
