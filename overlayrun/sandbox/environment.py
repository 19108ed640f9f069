"""The command's environment: the user's, less handles of the host and secrets by name. On the launch path."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Final

# Handles of the host: agents' sockets, buses, displays, git's own plumbing.
_HANDLES: Final = frozenset(
    {
        *("SSH_AUTH_SOCK", "SSH_AGENT_PID", "GPG_AGENT_INFO", "XDG_RUNTIME_DIR", "DOCKER_HOST", "KUBECONFIG"),
        *("DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY", "PULSE_SERVER", "TMUX", "TMUX_PANE", "STY"),
        *("PWD", "OLDPWD"),
    }
)
_HANDLE_STARTS: Final = ("DBUS_", "GIT_", "OVERLAYRUN_", "VSCODE_")
# *_API_KEY and the tokens below stay: they are the model's, and an agent is of no use without them.
_OF_MODEL: Final = frozenset({"ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN", "AWS_BEARER_TOKEN_BEDROCK"})
_SECRET_ENDS: Final = (
    *("_TOKEN", "_SECRET", "_PASSWORD", "_PASSWD", "_PASSPHRASE", "_CREDENTIALS", "_PAT"),
    *("_PRIVATE_KEY", "_ACCESS_KEY", "_ACCESS_KEY_ID", "_SECRET_KEY", "_SIGNING_KEY", "_ENCRYPTION_KEY"),
)
# With --strict nothing else comes in, unless it is named.
_STRICT: Final = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "COLORTERM", "NO_COLOR", "LANG", "TZ"}
)


def is_withheld(name: str) -> bool:
    """Whether a variable stays out of the sandbox by default."""
    if name in _OF_MODEL:
        return False
    return name in _HANDLES or name.startswith(_HANDLE_STARTS) or name.upper().endswith(_SECRET_ENDS)


def sandbox_environment(
    host: Mapping[str, str],
    *,
    own: Mapping[str, str],
    wanted: Iterable[str],
    strict: bool = False,
    withhold: bool = True,
) -> dict[str, str]:
    """Variables for the command.

    own: overlayrun's (OVERLAYRUN_BRANCH, OVERLAYRUN_ID, …). wanted: `--env` options, NAME to keep one or
    NAME=VALUE. strict: only what every program needs, and `wanted`. withhold: False keeps all.
    """
    if strict:
        kept = {name: value for name, value in host.items() if name in _STRICT or name.startswith("LC_")}
    else:
        kept = {name: value for name, value in host.items() if not (withhold and is_withheld(name))}
    for option in wanted:
        name, given, value = option.partition("=")
        if given:
            kept[name] = value
        elif name in host:
            kept[name] = host[name]
    return {**kept, **own}
