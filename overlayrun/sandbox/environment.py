"""The command's environment: the user's, less handles of the host and secrets by name. On the launch path."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Final

# Handles of the host: agents' sockets, buses, displays, git's own plumbing.
_HANDLES: Final = (
    "SSH_AUTH_SOCK",
    "SSH_AGENT_PID",
    "GPG_AGENT_INFO",
    "XDG_RUNTIME_DIR",
    "DOCKER_HOST",
    "PWD",
    "OLDPWD",
)
_HANDLE_STARTS: Final = ("DBUS_", "GIT_", "OVERLAYRUN_")
# *_API_KEY stays: it is the model's, and an agent is of no use without it.
_SECRET_ENDS: Final = (
    "_TOKEN",
    "_SECRET",
    "_PASSWORD",
    "_PASSWD",
    "_PASSPHRASE",
    "_PRIVATE_KEY",
    "_ACCESS_KEY",
)


def is_withheld(name: str) -> bool:
    """Whether a variable stays out of the sandbox by default."""
    return name in _HANDLES or name.startswith(_HANDLE_STARTS) or name.upper().endswith(_SECRET_ENDS)


def sandbox_environment(
    host: Mapping[str, str], *, own: Mapping[str, str], wanted: Iterable[str]
) -> dict[str, str]:
    """Variables for the command.

    own: overlayrun's (OVERLAYRUN_BRANCH, OVERLAYRUN_ID, …). wanted: `--env` options, NAME to keep one or
    NAME=VALUE.
    """
    kept = {name: value for name, value in host.items() if not is_withheld(name)}
    for option in wanted:
        name, given, value = option.partition("=")
        if given:
            kept[name] = value
        elif name in host:
            kept[name] = host[name]
    return {**kept, **own}
