"""`completion`: the script that makes a shell complete our words."""

from __future__ import annotations

from typing import Final

import click  # noqa: TID251  # this is overlayrun/cli/
from click.shell_completion import get_completion_class  # noqa: TID251  # this is overlayrun/cli/

from overlayrun.cli.main import GROUP
from overlayrun.cli.render import say

_VARIABLE: Final = "_OVERLAYRUN_COMPLETE"  # the one that click's main() looks at


@click.command("completion", short_help="Print the completion script of a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(*, shell: str) -> None:
    r"""Print the completion script of a shell.

    \b
      bash:  echo 'eval "$(overlayrun completion bash)"' >> ~/.bashrc
      zsh:   echo 'eval "$(overlayrun completion zsh)"' >> ~/.zshrc
      fish:  overlayrun completion fish > ~/.config/fish/completions/overlayrun.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    say(kind(GROUP, {}, "overlayrun", _VARIABLE).source())
