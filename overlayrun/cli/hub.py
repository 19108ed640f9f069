"""`hub`: what the plugin of OpenCode starts, once for each of its user interfaces; not for typing."""

from __future__ import annotations

import json
import sys

import click  # noqa: TID251  # this is overlayrun/cli/

from overlayrun.agents.opencode.hub import run_hub
from overlayrun.agents.opencode.servers import Scene
from overlayrun.cli.configured import configured
from overlayrun.cli.opened import open_here


@click.command("hub", hidden=True, short_help="Serve the workspaces of one OpenCode until stdin ends.")
@click.option("--opencode", "program", default="opencode", metavar="PATH", help="The program.")
@click.option("--again", metavar="URL", help="Serve on where a hub that died did.")
def hub_command(*, program: str, again: str | None) -> None:
    """Serve the workspaces of one OpenCode on a loopback port, told in a line of JSON, until stdin ends."""
    opened = open_here()
    place = opened.repository
    network = configured(place.root, place.common_dir).get("net", "host")
    scene = Scene(opened.layout, place.root, program, has_own_network=network != "host")
    run_hub(scene, sys.stdin.fileno(), lambda told: click.echo(json.dumps({"schema": 1, **told})), again)
