"""What an agent shares with the host: its own state directories, so that its sessions outlive a workspace."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

# Below HOME, or where the XDG variable says. Configuration is not listed: the view of HOME is copy-on-write,
# so that an agent can't plant a plugin in it.
_STATE: Final[Mapping[str, tuple[tuple[str, str, str], ...]]] = {
    "opencode": (
        ("XDG_DATA_HOME", ".local/share", "opencode"),
        ("XDG_STATE_HOME", ".local/state", "opencode"),
        ("XDG_CACHE_HOME", ".cache", "opencode"),
    ),
}

# Below HOME; hidden from every command.
SECRETS: Final = (
    ".ssh",
    ".gnupg",
    ".aws",
    ".azure",
    ".kube",
    ".docker/config.json",
    ".netrc",
    ".git-credentials",
    ".pgpass",
    ".pypirc",
    ".config/gcloud",
    ".config/gh",
    ".config/glab",
    ".config/hub",
    ".config/op",
    ".config/rclone",
    ".config/sops",
    ".password-store",
    ".local/share/keyrings",
    ".bash_history",
    ".zsh_history",
    ".mozilla",
    ".config/chromium",
    ".config/google-chrome",
    ".thunderbird",
)


def profile_of(command: str) -> str | None:
    """Name of the profile that fits a command, None where none does."""
    name = os.path.basename(command)
    return name if name in _STATE else None


def state_directories(profile: str | None, home: str) -> list[str]:
    """Absolute paths that a profile passes through, made (0700) where they are missing."""
    paths = []
    for variable, default, name in _STATE.get(profile or "", ()):
        above = os.environ.get(variable) or f"{home}/{default}"
        path = os.path.realpath(f"{above}/{name}")
        os.makedirs(path, mode=0o700, exist_ok=True)
        paths.append(path)
    return paths
