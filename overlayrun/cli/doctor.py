"""`doctor`: tries what overlayrun needs of this machine, and with --sandbox what a command can do."""

from __future__ import annotations

import os
from typing import Any, Final

import click  # noqa: TID251  # this is overlayrun/cli/

from overlayrun.checks import Finding, State
from overlayrun.cli.configured import configured
from overlayrun.cli.here import find_here
from overlayrun.cli.options import parse_run, run_options
from overlayrun.cli.render import coloured, on_terminal, say, say_json
from overlayrun.cli.words import json_option
from overlayrun.doctor import examine
from overlayrun.errors import UsageError
from overlayrun.folders.examination import examine_folders
from overlayrun.inspection import Inspection, Place, Reach, inspect
from overlayrun.report import printable
from overlayrun.store.location import Repository
from overlayrun.workspace.layout import Layout, state_directory

_COLOURS: Final = {State.OK: "green", State.LIMITED: "yellow", State.MISSING: "red"}
_REACH_COLOURS: Final = {
    Reach.READ_ONLY: "white",
    Reach.COPY_ON_WRITE: "green",
    Reach.PRIVATE: "cyan",
    Reach.SHARED: "red",
    Reach.MASKED: "yellow",
}
_PROOF_COLOURS: Final = {"ok": "green", "limited": "yellow", "FAIL": "red"}
_FAILED: Final = 3


@click.command(
    "doctor",
    short_help="Try what overlayrun needs of this machine.",
    context_settings={"ignore_unknown_options": True},
)
@click.option("--sandbox", is_flag=True, help="Show and try what a run lets its command see and do.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[RUN OPTIONS]...")
@json_option
def doctor_command(*, sandbox: bool, words: tuple[str, ...], as_json: bool) -> int:
    """Try for real every ability that overlayrun needs; exit code 1 where something is missing.

    With --sandbox: what a run in the repository around lets its command see and write, and a try of
    each from inside. Run options may follow, such as --net none. Exit code 3 where one fails.
    """
    if sandbox:
        return _try_sandbox(words, as_json=as_json)
    if words:
        raise UsageError(f"doctor takes no {words[0]!a}", hint="overlayrun doctor --help")
    repository = _repository()
    state = state_directory(repository.common_dir) if repository else None
    findings = [*examine(repository), *examine_folders(Layout(state) if state else None)]
    missing = sum(finding.state is State.MISSING for finding in findings)
    if as_json:
        say_json({"findings": [_shape(finding) for finding in findings], "missing": missing})
        return 1 if missing else 0
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        _say_finding(finding, width)
    return 1 if missing else 0


def _try_sandbox(words: tuple[str, ...], *, as_json: bool) -> int:
    own = [word for word in words if word != "--"]
    parsed = parse_run([*own, "--", "true"])
    if parsed is None:
        raise UsageError(
            f"these are no run options: {' '.join(map(ascii, own))}", hint="overlayrun run --help"
        )
    here = find_here()
    given = {**configured(here.repository.root, here.repository.common_dir), **parsed[0]}
    found = inspect(here.repository, here.layout, run_options(given), own)
    failed = sum(proof.failed for proof in found.proofs)
    if as_json:
        say_json(_inspection_shape(found))
        return _FAILED if failed else 0
    (_say_tree if on_terminal() else _say_places)(found.places)
    say()
    for proof in found.proofs:
        state = coloured(proof.state.ljust(7), _PROOF_COLOURS[proof.state])
        say(f"{state}  {printable(proof.name)}: {proof.found}")
    say()
    say(
        f"{failed} of {len(found.proofs)} tries FAILED"
        if failed
        else f"all {len(found.proofs)} tries as promised"
    )
    return _FAILED if failed else 0


def _say_places(places: tuple[Place, ...]) -> None:
    width = max(len(place.reach.value) for place in places)
    for place in places:
        note = f"  ({printable(place.note)})" if place.note else ""
        say(f"{place.reach.value.ljust(width)}  {printable(place.path)}{note}")


def _say_tree(places: tuple[Place, ...]) -> None:
    from rich.console import Console  # 60 ms, and only a terminal needs it
    from rich.text import Text
    from rich.tree import Tree

    nodes: dict[str, Tree] = {}
    for place in places:  # by path: what a place lies in comes before it
        above = max(
            (path for path in nodes if f"{place.path}/".startswith(f"{path.rstrip('/')}/")),
            default="",
            key=len,
        )
        name = os.path.relpath(place.path, above) if above else place.path
        line = Text.assemble(printable(name), "  ", (place.reach.value, _REACH_COLOURS[place.reach]))
        line.append(f"  {printable(place.note)}" if place.note else "", style="dim")
        nodes[place.path] = nodes[above].add(line) if above else Tree(line)
    Console(highlight=False).print(nodes[places[0].path])


def _inspection_shape(found: Inspection) -> dict[str, Any]:
    return {
        "places": [
            {"path": place.path, "reach": place.reach.value, "note": place.note} for place in found.places
        ],
        "proofs": [
            {"name": proof.name, "state": proof.state.lower(), "found": proof.found} for proof in found.proofs
        ],
        "failed": sum(proof.failed for proof in found.proofs),
    }


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
