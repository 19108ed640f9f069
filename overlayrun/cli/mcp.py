"""`mcp`: these commands as tools for an agent."""

from __future__ import annotations

import sys
from typing import Final

import click  # noqa: TID251  # this is overlayrun/cli/

from overlayrun.cli.telling import tell
from overlayrun.errors import HostError

_MISSING: Final = (
    "one package is missing here: pipx inject overlayrun 'mcp>=2', or: pip install 'overlayrun[mcp]'"
)


@click.command("mcp", short_help="Serve these commands to an agent by MCP.")
def mcp_command() -> None:
    r"""Serve these commands as tools to an agent of yours, by MCP on standard input and output.

    It works in the repository of the directory where it is started. Tools: list, status, log, diff, create,
    fork, run, snapshot, merge, discard.

    \b
      claude mcp add overlayrun -- overlayrun mcp
      codex mcp add overlayrun -- overlayrun mcp
      opencode.json: {"mcp": {"overlayrun": {"type": "local", "command": ["overlayrun", "mcp"]}}}
    """
    try:
        from overlayrun.agents.mcp import serve  # the SDK costs 800 ms
    except ImportError as err:
        if (err.name or "").startswith("overlayrun"):
            raise
        raise HostError(_MISSING) from err
    if sys.stdin.isatty():
        tell("an MCP client is meant to start this, see: overlayrun mcp --help; Ctrl-C ends it")
    serve()
