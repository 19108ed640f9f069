"""The sandbox's mounts as values, in the order in which they are made. Pure: touches no disk."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    Layer: TypeAlias = "Overlay | Bind | Tmpfs | ReadOnlyDisk | Devices | Processes"


class ReadOnlyDisk:
    """Everything the host has mounted, read-only and without set-uid gain."""

    __slots__ = ()
    name = "read-only disk"


class Tmpfs:
    """An empty private directory in memory."""

    __slots__ = ("mode", "name", "target")

    def __init__(self, name: str, target: str, *, mode: int = 0o755) -> None:
        self.name = name
        self.target = target
        self.mode = mode


class Devices:
    """A private /dev: null, zero, full, random, urandom, tty, and terminals and shared memory of its own.

    console: the user's terminal, shown as /dev/console, so that ttyname(3) finds a name for it.
    """

    __slots__ = ("console",)
    name = "private /dev"

    def __init__(self, console: str | None) -> None:
        self.console = console


class Processes:
    """A /proc that shows the sandbox's processes alone."""

    __slots__ = ()
    name = "private /proc"


class Bind:
    """A part of the host's disk at a place of the sandbox.

    optional: a missing source is no error. writable: else read-only. submounts: with the mounts below the
    source.
    """

    __slots__ = ("name", "optional", "source", "submounts", "target", "writable")

    def __init__(self, name: str, source: str, target: str, *, writable: bool = False) -> None:
        self.name = name
        self.source = source
        self.target = target
        self.writable = writable
        self.optional = False
        self.submounts = False


class Overlay:
    """A copy-on-write view. lowers: top first, absolute paths; upper and work on one file system, work empty.

    volatile: the kernel flushes nothing of the upper; only for what a snapshot can bring back.
    """

    __slots__ = ("lowers", "name", "target", "upper", "volatile", "work")

    def __init__(self, name: str, target: str, lowers: Sequence[str], upper: str, work: str) -> None:
        self.name = name
        self.target = target
        self.lowers = list(lowers)
        self.upper = upper
        self.work = work
        self.volatile = False


# Where the sandbox's own things lie: in its private /run, so that no path of the user's is taken.
RUNTIME = "/run/overlayrun"
OBJECTS = f"{RUNTIME}/objects"
CONTROL = f"{RUNTIME}/control"


class View:
    """What a workspace shows, as absolute paths; the input of `sandbox_plan`.

    stack, git_stack: lower layers of the tree and of its `.git`, top first. masked: directories to be hidden.
    home_lowers: None where HOME needs no view of its own. submounts: mounts below HOME.
    live: (path, upper, work) of ignored directories that show the user's own.
    passed: directories that the command shares with the host, read-write. binds: (source, writable) of the
    user's.
    """

    __slots__ = (
        "binds",
        "console",
        "git_stack",
        "git_upper",
        "home",
        "home_lowers",
        "home_upper",
        "live",
        "masked",
        "name_servers",
        "objects",
        "passed",
        "root",
        "sockets",
        "stack",
        "submounts",
        "upper",
        "work",
    )

    def __init__(self, root: str, upper: str, git_upper: str, work: str) -> None:
        self.root = root
        self.upper = upper
        self.git_upper = git_upper
        self.work = work
        self.stack: list[str] = []
        self.git_stack: list[str] = []
        self.objects = ""
        self.sockets = ""
        self.masked: list[str] = []
        self.home: str | None = None
        self.home_lowers: list[str] | None = None
        self.home_upper = ""
        self.submounts: list[str] = []
        self.live: list[tuple[str, str, str]] = []
        self.passed: list[str] = []
        self.binds: list[tuple[str, bool]] = []
        self.name_servers: str | None = None
        self.console: str | None = None


def sandbox_plan(view: View) -> list[Layer]:
    """Every mount of the sandbox, in order: what is named later lies on top."""
    layers: list[Layer] = [
        ReadOnlyDisk(),
        Tmpfs("private /tmp", "/tmp", mode=0o1777),
        Tmpfs("private /var/tmp", "/var/tmp", mode=0o1777),
        Tmpfs("private /run", "/run"),
        Devices(view.console),
        *_home(view),
        *(Tmpfs("mask", path, mode=0o700) for path in view.masked),
    ]
    tree = Overlay("workspace", view.root, view.stack, view.upper, f"{view.work}/tree")
    git = Overlay("private .git", f"{view.root}/.git", view.git_stack, view.git_upper, f"{view.work}/git")
    tree.volatile = git.volatile = True
    live = [Overlay("live directory", path, [path], upper, work) for path, upper, work in view.live]
    layers += [tree, git, *live, Bind("history", view.objects, OBJECTS)]
    if view.sockets:
        layers.append(Bind("control socket", view.sockets, CONTROL))
    layers += [Bind("agent state", path, path, writable=True) for path in view.passed]
    layers += [Bind("bind", path, path, writable=writable) for path, writable in view.binds]
    if view.name_servers:
        layers.append(Bind("name servers", view.name_servers, view.name_servers))
    layers.append(Processes())
    return layers


def _home(view: View) -> list[Layer]:
    if view.home is None:
        return []
    if view.home_lowers is None:
        return [Tmpfs("private HOME", view.home, mode=0o700)]
    home: list[Layer] = [
        Overlay("copy-on-write HOME", view.home, view.home_lowers, view.home_upper, f"{view.work}/home")
    ]
    for path in view.submounts:
        below = Bind("mount below HOME", path, path)
        below.submounts = below.optional = True
        home.append(below)
    return home
