"""The one table of run options, and a parser for the launch path that needs no click (30 ms).

`cli/main.py` builds its click command from the same table, so that help and completion can't differ from it.
"""

from __future__ import annotations

from overlayrun.errors import UsageError
from overlayrun.model import AgentState, BackendKind, CarryPolicy, DirtyPolicy, HomePolicy, RunOptions
from overlayrun.values import cores, count, port, seconds, size, wanted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, Final


class Option:
    """One run option. metavar: None for a flag. many: may be given several times."""

    __slots__ = ("convert", "default", "flags", "help", "many", "metavar", "name")

    def __init__(self, flags: str, metavar: str | None, help_text: str) -> None:
        self.flags = flags.split("/")
        self.name = self.flags[-1].lstrip("-").replace("-", "_")
        self.metavar = metavar
        self.help = help_text
        self.convert: Callable[[str], Any] = str
        self.default: Any = False if metavar is None else None
        self.many = False

    def of(self, convert: Callable[[str], Any], default: Any = None) -> Option:
        """The same with a converter, which raises ValueError, and a default."""
        self.convert = convert
        self.default = default
        return self

    def repeated(self) -> Option:
        """The same, to be given any number of times."""
        self.many, self.default = True, ()
        return self


def _choice(kind: type) -> str:
    return "|".join(item.value for item in kind)  # type: ignore[attr-defined]  # an Enum class


RUN_OPTIONS: Final[tuple[Option, ...]] = (
    Option("-b/--branch", "NAME", "Branch to work on; the same name again resumes it as it was left."),
    Option("--base", "REV", "Start from this commit instead of HEAD."),
    Option("--into", "BRANCH", "Branch that it will be merged into (default: the one checked out)."),
    Option("--dirty", _choice(DirtyPolicy), "What to do with your uncommitted changes.").of(
        DirtyPolicy, DirtyPolicy.INCLUDE
    ),
    Option(
        "--carry", _choice(CarryPolicy), "How ignored files come along (default: what this disk does best)."
    ).of(CarryPolicy),
    Option("--backend", _choice(BackendKind), "How a new branch gets its tree: see `overlayrun doctor`.").of(
        BackendKind, BackendKind.AUTO
    ),
    Option("--home", _choice(HomePolicy), "What the command sees as HOME.").of(HomePolicy, HomePolicy.COW),
    Option("--rm", None, "Throwaway: tell what would have changed, keep nothing."),
    Option("--keep", None, "With --rm: keep the branch after all if anything changed."),
    Option("--apply", None, "With --rm: apply the changes to your working tree at the end."),
    Option("--every", "SPAN", "Snapshot this often while something changes; 0 for never.").of(seconds, 30.0),
    Option("--freeze", None, "Stop all processes for the moment of an interval snapshot."),
    Option("--timeout", "SPAN", "End the command after this long.").of(seconds),
    Option("--idle-timeout", "SPAN", "End the command when it has printed nothing for this long.").of(
        seconds
    ),
    Option("-m/--message", "TEXT", "Message or prompt: it becomes the commit's."),
    Option("--env", "NAME[=VALUE]", "Let a variable in that is withheld, or set one.").repeated(),
    Option("--ssh-agent", None, "Let the command use your ssh agent: to push, or to fetch by ssh."),
    Option("--mask", "PATH", "Hide a path more: absolute, or below HOME.").repeated(),
    Option("--unmask", "PATH", "Show a secret of HOME that is masked, such as .npmrc.").repeated(),
    Option("--bind-ro", "PATH", "Show a path of the host that the sandbox hides.").repeated(),
    Option("--bind-rw", "PATH", "Share a path of the host, read and write.").repeated(),
    Option("--profile", "NAME", "Share this agent's own state (default: by the command's name; none)."),
    Option(
        "--agent-state", _choice(AgentState), "Sessions of a known agent: yours, or the branch's own alone."
    ).of(AgentState, AgentState.SHARED),
    Option("--net", "MODE", "Network: host, none, or allow=DOMAIN[:PORT],… through a proxy (default: host)."),
    Option("--publish", "PORT", "With a network of its own: show its port on the host's 127.0.0.1.")
    .of(port)
    .repeated(),
    Option("--memory", "SIZE", "Most memory that all processes together may take.").of(size),
    Option("--pids", "N", "Most processes and threads at a time.").of(count),
    Option("--cpus", "N", "Most processors' worth of time.").of(cores),
    Option("--disk", "SIZE", "Most disk that the command's changes may take.").of(size, 50 << 30),
    Option("--allow-ptrace", None, "Let the command trace its own children: debuggers, strace."),
    Option(
        "--allow-userns",
        None,
        "Let it make sandboxes of its own (bwrap, Chromium); a wall less to the kernel.",
    ),
    Option("--allow-root-uid", None, "Run by root: let the command be the host's root user."),
    Option("--strict", None, "Unattended: private HOME, few variables, no network but --net allow=…"),
    Option("--without", "LAYER", "Switch a layer of the sandbox off by name.").repeated(),
    Option("-q/--quiet", None, "No header and no summary."),
)


_BY_FLAG: Final = {flag: option for option in RUN_OPTIONS for flag in option.flags}


def run_options(given: Mapping[str, Any]) -> RunOptions:
    """Values by option name, defaults for those that are missing."""
    return RunOptions(**{option.name: given.get(option.name, option.default) for option in RUN_OPTIONS})


def parse_run(words: Sequence[str]) -> tuple[dict[str, Any], list[str]] | None:
    """Options given and command of `[run options] -- COMMAND`; None where it is not that.

    Raises UsageError for a value that an option can't take.
    """
    given: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return given, rest
        flag, joined, value = word.partition("=") if word.startswith("--") else (word[:2], word[2:], word[2:])
        option = _BY_FLAG.get(flag)
        if option is None or (joined and option.metavar is None):
            return None
        if option.metavar is None:
            given[option.name] = True
            continue
        if not joined:
            if not rest:
                return None
            value = rest.pop(0)
        _take(given, option, value)
    return None


def _take(given: dict[str, Any], option: Option, value: str) -> None:
    try:
        converted = option.convert(value)
    except ValueError as err:
        raise UsageError(
            f"{option.flags[-1]} can't be {value!r}",
            hint=f"it takes {wanted(option.metavar or '')}; see: overlayrun run --help",
        ) from err
    given[option.name] = [*given.get(option.name, ()), converted] if option.many else converted
