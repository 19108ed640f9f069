"""What an agent shares with the host, so that its sessions outlive a workspace. On the launch path.

Data alone. What the host would later execute or believe stays a view of the branch's own: an agent that could
write it would leave the sandbox by it (CVE-2026-25725 planted a settings file that was missing at the start).
Configuration is not listed at all, the view of HOME is copy-on-write.
"""

from __future__ import annotations

import os

from overlayrun.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Final


class State:
    """A place that an agent shares with the host. kept: names in it that the branch has for itself.

    variable, default: the directory above, by a variable or below HOME. `*` in name: of this project alone.
    A file is shared only where it is there: whoever logs in inside does so for the branch.
    """

    __slots__ = ("default", "is_file", "kept", "name", "variable")

    def __init__(
        self, variable: str, default: str, name: str, kept: str = "", *, is_file: bool = False
    ) -> None:
        self.variable = variable
        self.default = default
        self.name = name
        self.kept = kept.split()
        self.is_file = is_file


PROFILES: Final[Mapping[str, tuple[State, ...]]] = {
    # `bin` holds language servers and `rg`, which the host executes; `snapshot`, `repos` and `worktree` are
    # git directories, in which it runs git; a "wellknown" entry of auth.json names a server whose
    # configuration it loads, commands included. The database can't be parted: its journal lies beside it.
    # ~/.cache/opencode is not shared: packages in it and the list of models are loaded as code.
    "opencode": (
        State(
            "XDG_DATA_HOME",
            ".local/share",
            "opencode",
            "bin/ snapshot/ repos/ worktree/ plugin/ plugins/ auth.json mcp-auth.json",
        ),
        State("XDG_STATE_HOME", ".local/state", "opencode", "plugin-meta.json"),
    ),
    # Beside these lie settings, hooks, plugins, commands, skills and shell snapshots that the host sources;
    # file-history/ is what it puts back into the user's files. memory/ is read as instructions. The login is
    # rewritten in place, so that a refreshed token is the host's too; a rename over it is refused (EBUSY).
    "claude": (
        State("CLAUDE_CONFIG_DIR", ".claude", "projects/*", "memory/"),
        State("CLAUDE_CONFIG_DIR", ".claude", "todos"),
        State("CLAUDE_CONFIG_DIR", ".claude", ".credentials.json", is_file=True),
    ),
    # Beside these lie config.toml, AGENTS.md, rules, prompts, skills, hooks.json and memories.
    "codex": (
        State("CODEX_HOME", ".codex", "sessions"),
        State("CODEX_HOME", ".codex", "archived_sessions"),
        State("CODEX_HOME", ".codex", "history.jsonl", is_file=True),
        State("CODEX_HOME", ".codex", "auth.json", is_file=True),
    ),
}
NO_PROFILE: Final = "none"
_PLAIN: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789/._-~")
_OPENCODE_SETTINGS: Final = "OPENCODE_CONFIG_CONTENT"
_LOGINS: Final = frozenset({"auth.json", "mcp-auth.json", ".credentials.json"})


def profile_of(command: str) -> str | None:
    """Name of the profile that fits a command, None where none does."""
    name = os.path.basename(command)
    return name if name in PROFILES else None


def parse_profile(name: str) -> str:
    """A profile that the user names; raises UsageError for one that is not known."""
    if name != NO_PROFILE and name not in PROFILES:
        raise UsageError(
            f"no profile is called {name!a}", hint=f"profiles: {' '.join(PROFILES)} {NO_PROFILE}"
        )
    return name


def shared_state(profile: str | None, home: str, root: str) -> list[tuple[str, list[str]]]:
    """Paths that a profile shares, and the names in each that it keeps back.

    What is missing is made: a name that is kept back must be there to be covered, or it could be planted.
    root: the repository's, in which the command works.
    """
    found = []
    for state in PROFILES.get(profile or "", ()):
        above = os.environ.get(state.variable) or f"{home}/{state.default}"
        for name in _names(state, root):
            path = os.path.realpath(f"{above}/{name}")
            if not state.is_file:
                _make_kept(path, state.kept)
                found.append((path, [kept.rstrip("/") for kept in state.kept]))
            elif os.path.isfile(path):
                found.append((path, []))
    return found


def own_state(profile: str | None, home: str, root: str) -> list[tuple[str, list[str], bool]]:
    """What a branch has for itself of all that a profile could share: (path, logins, whether it is a file).

    logins: names of files in a directory that it begins with, as copies; of a file, its name if it is one.
    """
    found = []
    for state in PROFILES.get(profile or "", ()):
        above = os.environ.get(state.variable) or f"{home}/{state.default}"
        for name in _names(state, root):
            kept = [name] if state.name in _LOGINS else [kept for kept in state.kept if kept in _LOGINS]
            found.append((os.path.realpath(f"{above}/{name}"), kept, state.is_file))
    return found


def own_variables(profile: str | None) -> frozenset[str]:
    """Variables that would lead an agent from a state of the branch's own to the user's."""
    return frozenset({"OPENCODE_DB"} if profile == "opencode" else ())


def _names(state: State, root: str) -> Iterator[str]:
    """Claude Code names a project's sessions after its directory, with a hyphen for all but letters."""
    here = os.getcwd()
    places = dict.fromkeys([root, here] if here.startswith(f"{root}/") else [root])
    for place in places if "*" in state.name else ("",):
        yield state.name.replace(
            "*", "".join(sign if sign.isascii() and sign.isalnum() else "-" for sign in place)
        )


def _make_kept(path: str, kept: list[str]) -> None:
    os.makedirs(path, mode=0o700, exist_ok=True)
    for name in kept:
        if os.path.lexists(f"{path}/{name}".rstrip("/")):
            continue
        if name.endswith("/"):
            os.mkdir(f"{path}/{name}", 0o700)
        else:
            fd = os.open(f"{path}/{name}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            os.write(fd, b"{}\n")
            os.close(fd)


def plugin_variables(profile: str | None, environment: Mapping[str, str]) -> dict[str, str]:
    """What makes an agent tell us of each step; {} for one that has no such way.

    OpenCode adds the plugins of this variable to the user's own. Where it holds what we can't read, it stays.
    """
    if profile != "opencode":
        return {}
    place = os.path.join(os.path.dirname(os.path.dirname(__file__)), "agents/opencode/server.js")
    # urllib.parse would quote it, for 3 ms.
    plugin = "file://" + "".join(
        chr(byte) if chr(byte) in _PLAIN else f"%{byte:02X}" for byte in os.fsencode(place)
    )
    given = environment.get(_OPENCODE_SETTINGS)
    if given is None:
        return {_OPENCODE_SETTINGS: f'{{"plugin": ["{plugin}"]}}'}
    import json  # 4 ms that only this variable costs

    try:
        settings = json.loads(given)
        settings["plugin"] = [*settings.get("plugin", ()), plugin]
    except (ValueError, TypeError, AttributeError):
        return {}
    return {_OPENCODE_SETTINGS: json.dumps(settings)}
