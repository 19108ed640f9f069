"""What `integrate` puts where, for each agent: items in lists of its configuration, and texts of our own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from overlayrun.agents import claude, codex

KNOWN_OPENCODE: Final = "1.18"
_VARIABLE: Final = "OPENCODE_EXPERIMENTAL_WORKSPACES"
_PLUGINS: Final = Path(__file__).parent / "opencode"
_VERSION_PATIENCE: Final = 30.0  # seconds; a cold start of OpenCode takes two
_BEGIN: Final = "# >>> overlayrun integrate opencode >>>"
_END: Final = "# <<< overlayrun integrate opencode <<<"
_STUB: Final = """\
// Made by `overlayrun integrate opencode`; `overlayrun integrate opencode --remove` takes it away.
import { existsSync } from "node:fs"
import { fileURLToPath } from "node:url"

const source = "SOURCE"

const server = async (...given) => {
  if (!existsSync(fileURLToPath(source))) {
    console.warn(`overlayrun: ${source} is gone; type: overlayrun integrate opencode, or --remove`)
    return {}
  }
  return (await import(source)).default.server(...given)
}

export default { id: "overlayrun", server }
"""


@dataclass(frozen=True, slots=True)
class Item:
    """A value to stand in the array at a path of keys."""

    path: tuple[str, ...]
    value: Any


@dataclass(frozen=True, slots=True)
class Recipe:
    """What one file is to hold: items in its JSON, or a text of our own at its end.

    has_comments: the agent reads JSON with comments there; another one ignores a file that has any.
    """

    path: str
    items: tuple[Item, ...] = ()
    text: str = ""
    has_comments: bool = False


@dataclass(frozen=True, slots=True)
class Agent:
    """One agent: its files, and what the user reads after they are written."""

    name: str
    recipes: Callable[[], list[Recipe]]
    advice: Callable[[], list[str]]


def _claude_recipes() -> list[Recipe]:
    return [
        Recipe(
            claude.settings_path(), tuple(Item(("hooks", event), group) for event, group in claude.hooks())
        )
    ]


def _claude_advice() -> list[str]:
    return [
        *_missing_command(),
        "now: overlayrun -- claude (or: overlayrun -- claude -w NAME); an open session keeps its old hooks",
        "from now on `claude -w` and sub-agents with a worktree of their own work inside overlayrun alone",
    ]


def _codex_recipes() -> list[Recipe]:
    return [
        Recipe(codex.hooks_path(), tuple(Item(("hooks", event), group) for event, group in codex.hooks()))
    ]


def _codex_advice() -> list[str]:
    return [
        *_missing_command(),
        "now: start codex outside of overlayrun once and trust the hooks there by /hooks;",
        "then: overlayrun -- codex",
    ]


def _missing_command() -> Iterator[str]:
    if shutil.which("overlayrun") is None:
        yield "overlayrun is not on PATH: the hooks can't call it until it is"


def _opencode_recipes() -> list[Recipe]:
    base = os.environ.get("OPENCODE_CONFIG_DIR") or f"{_config_home()}/opencode"
    stub = _STUB.replace("SOURCE", (_PLUGINS / "server.js").as_uri())
    tui = Item(("plugin",), (_PLUGINS / "tui.js").as_uri())
    return [
        Recipe(f"{base}/plugins/overlayrun.js", text=stub),
        Recipe(_tui_config(base), (tui,), has_comments=True),
        *_start_file(),
    ]


def _config_home() -> str:
    return os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")


def _tui_config(base: str) -> str:
    """The one that is there, else a tui.jsonc."""
    # OpenCode moves the theme of an old opencode.json into a tui.json where there is none: so we make none.
    plain = f"{base}/tui.json"
    return plain if os.path.lexists(plain) else f"{base}/tui.jsonc"


def _shell() -> str:
    return os.path.basename(os.environ.get("SHELL", ""))


def _start_file() -> Iterator[Recipe]:
    """Where the user's shell sets variables; nothing for a shell that is not known."""
    line = f"export {_VARIABLE}=1"
    if _shell() == "bash":
        yield Recipe(os.path.expanduser("~/.bashrc"), text=f"{_BEGIN}\n{line}\n{_END}\n")
    elif _shell() == "zsh":
        above = os.environ.get("ZDOTDIR") or os.path.expanduser("~")
        yield Recipe(f"{above}/.zshrc", text=f"{_BEGIN}\n{line}\n{_END}\n")
    elif _shell() == "fish":
        text = f"{_BEGIN}\nset -gx {_VARIABLE} 1\n{_END}\n"
        yield Recipe(f"{_config_home()}/fish/conf.d/overlayrun.fish", text=text)


def _opencode_advice() -> list[str]:
    told = list(_missing_command())
    version = _opencode_version()
    if version is None:
        told.append(f"opencode is not on PATH; known to work: {KNOWN_OPENCODE}")
    elif not f"{version}.".startswith(f"{KNOWN_OPENCODE}."):
        told.append(
            f"opencode here is {version}; known to work is {KNOWN_OPENCODE}, "
            "whose workspaces are experimental: later ones may differ"
        )
    if not any(_start_file()):
        told.append(f"your shell is not known here; set in its start file: {_VARIABLE}=1")
    return [*told, "now: open a new terminal, then: opencode"]


def _opencode_version() -> str | None:
    found = shutil.which("opencode")
    if found is None:
        return None
    try:
        with tempfile.TemporaryDirectory() as home:
            # Even this makes directories of OpenCode's in HOME.
            kept = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
            done = subprocess.run(
                [found, "--version"],
                env={**kept, "HOME": home},
                capture_output=True,
                check=False,
                timeout=_VERSION_PATIENCE,
                stdin=subprocess.DEVNULL,
            )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    words = done.stdout.decode(errors="replace").split()
    return words[-1] if words else "unknown"


AGENTS: Final[Mapping[str, Agent]] = {
    agent.name: agent
    for agent in (
        Agent("opencode", _opencode_recipes, _opencode_advice),
        Agent(claude.NAME, _claude_recipes, _claude_advice),
        Agent(codex.NAME, _codex_recipes, _codex_advice),
    )
}
