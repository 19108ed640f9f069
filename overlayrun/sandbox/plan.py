"""The sandbox's mounts as values, in the order in which they are made. Pure: touches no disk."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import TypeAlias

    Layer: TypeAlias = "Overlay | Parts | Bind | Tmpfs | Masks | ReadOnlyDisk | Devices | Processes"


class ReadOnlyDisk:
    """Everything the host has mounted, read-only and without set-uid gain."""

    __slots__ = ()
    name = "read-only disk"


class Tmpfs:
    """An empty private directory in memory. kind, memory: its size, see `limits.tmpfs_data`."""

    __slots__ = ("kind", "memory", "mode", "name", "target")

    def __init__(self, name: str, target: str, *, mode: int = 0o755, kind: str = "small") -> None:
        self.name = name
        self.target = target
        self.mode = mode
        self.kind = kind
        self.memory: int | None = None


class Devices:
    """A private /dev: null, zero, full, random, urandom, tty, and terminals and shared memory of its own.

    console: the user's terminal, shown as /dev/console, so that ttyname(3) finds a name for it. memory: for
    the size of shared memory, see `limits.tmpfs_data`.
    """

    __slots__ = ("console", "memory")
    name = "private /dev"

    def __init__(self, console: str | None) -> None:
        self.console = console
        self.memory: int | None = None


class Processes:
    """A /proc that shows the sandbox's processes alone."""

    __slots__ = ()
    name = "private /proc"


GIVE = "give"  # it is the workspace's own: the command gets it on the disk
SHOW = "show"  # as everybody sees it
READ = "read"  # the same, where everybody may read all of it


class Bind:
    """A part of the host's disk at a place of the sandbox.

    optional: a missing source is no error. writable: else read-only. submounts: with the mounts below the
    source. own: what belongs to root belongs to the command, in a run by root. unmapped: what to do where the
    disk can't show it so: GIVE, SHOW, READ or nothing, which ends the run. kept: names in it that go on to
    show what the sandbox had there before.
    """

    __slots__ = ("kept", "name", "optional", "own", "source", "submounts", "target", "unmapped", "writable")

    def __init__(self, name: str, source: str, target: str, *, writable: bool = False) -> None:
        self.name = name
        self.source = source
        self.target = target
        self.writable = writable
        self.optional = False
        self.submounts = False
        self.own = True
        self.unmapped = ""
        self.kept: Sequence[str] = ()


class Masks:
    """Paths that are covered by emptiness, those of them that are there."""

    __slots__ = ("paths",)
    name = "masks"

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths


class Overlay:
    """A copy-on-write view; without an upper it is read-only.

    lowers: top first, absolute paths. upper, work: on one file system, work empty. volatile: the kernel
    flushes nothing of the upper; only for what a snapshot can bring back. hidden: names of the last lower
    layer that do not show.
    """

    __slots__ = ("hidden", "lowers", "name", "target", "upper", "volatile", "work")

    def __init__(self, name: str, target: str, lowers: Sequence[str], upper: str, work: str) -> None:
        self.name = name
        self.target = target
        self.lowers = list(lowers)
        self.upper = upper
        self.work = work
        self.volatile = False
        self.hidden: Sequence[str] = ()


class Parts:
    """One view made of several overlays, a directory before those in it; see `sandbox.parts`."""

    __slots__ = ("name", "overlays")

    def __init__(self, name: str, overlays: Sequence[Overlay]) -> None:
        self.name = name
        self.overlays = overlays


# Where the sandbox's own things lie: in its private /run, so that no path of the user's is taken.
RUNTIME = "/run/overlayrun"
OBJECTS = f"{RUNTIME}/objects"
CONTROL = f"{RUNTIME}/control"
SSH_AGENT = f"{RUNTIME}/ssh-agent"
TREES = f"{RUNTIME}/trees"
_VIEW = "copy-on-write HOME"


class View:
    """What a workspace shows, as absolute paths; the input of `sandbox_plan`.

    stack, git_stack: lower layers of the tree and of its `.git`, top first. whole: there are none, upper and
    git_upper are shown as they are. masked: paths to be covered,
    before the workspace is mounted; covered: after it. hidden: names below HOME that do not show.
    home_lowers: empty for a HOME of the branch's own. home_parts: what its view is made of instead.
    submounts: mounts below HOME, and what else of it shows as it is. mounted: places of all mounts below it,
    where the kernel makes no view of it in one piece. silent: those of mounts that don't answer.
    homes: (place of many homes, what shows of it). through: files below what is hidden that show, read-only.
    live: (path, upper, work) of ignored directories that show the user's own.
    passed: (path, names that are kept back) that the command shares with the host, read-write.
    binds: (source, writable) of the user's. ssh_agent: the user's socket.
    memory: the run's limit in bytes.
    """

    __slots__ = (
        "binds",
        "closed",
        "console",
        "covered",
        "git_stack",
        "git_upper",
        "hidden",
        "home",
        "home_lowers",
        "home_parts",
        "home_upper",
        "homes",
        "live",
        "masked",
        "memory",
        "mounted",
        "name_servers",
        "objects",
        "passed",
        "root",
        "silent",
        "sockets",
        "ssh_agent",
        "stack",
        "submounts",
        "through",
        "upper",
        "whole",
        "work",
    )

    def __init__(self, root: str, upper: str, git_upper: str, work: str) -> None:
        self.root = root
        self.upper = upper
        self.git_upper = git_upper
        self.work = work
        self.whole = False
        self.stack: list[str] = []
        self.git_stack: list[str] = []
        self.objects = ""
        self.sockets = ""
        self.masked: list[str] = []
        self.home: str | None = None
        self.home_lowers: list[str] = []
        self.home_parts: list[Overlay] = []
        self.home_upper = ""
        self.submounts: list[str] = []
        self.mounted: list[str] = []
        self.silent: list[str] = []
        self.live: list[tuple[str, str, str]] = []
        self.passed: list[tuple[str, list[str]]] = []
        self.homes: list[tuple[str, list[str]]] = []
        self.hidden: list[str] = []
        self.covered: list[str] = []
        self.through: list[str] = []
        self.ssh_agent: str | None = None
        self.binds: list[tuple[str, bool]] = []
        self.closed: list[str] = []
        self.name_servers: str | None = None
        self.console: str | None = None
        self.memory: int | None = None


def writable_places(layers: Sequence[Layer]) -> list[str]:
    """Where the mounts of a plan let the command write."""
    places = []
    for layer in layers:
        if isinstance(layer, Devices):
            places.append("/dev")
        elif isinstance(layer, Processes):
            places.append("/proc")  # a process writes its own name and limits there
        elif isinstance(layer, Parts):
            places.append(layer.overlays[0].target)
        elif isinstance(layer, (Tmpfs, Overlay)) or (isinstance(layer, Bind) and layer.writable):
            places.append(layer.target)
    return places


def overlay_places(layers: Sequence[Layer]) -> list[str]:
    """Mountpoints of all overlays of a plan."""
    places = []
    for layer in layers:
        parts = layer.overlays if isinstance(layer, Parts) else [layer]
        places += [part.target for part in parts if isinstance(part, Overlay)]
    return places


def sandbox_plan(view: View, without: frozenset[str] = frozenset()) -> list[Layer]:
    """Every mount of the sandbox, in order: what is named later lies on top.

    without: names of `switches.LAYERS` that are switched off.
    """
    groups: list[tuple[str, list[Layer]]] = [
        ("read-only", [ReadOnlyDisk()]),
        ("tmp", [Tmpfs("private /tmp", "/tmp", mode=0o1777, kind="tmp")]),
        ("tmp", [Tmpfs("private /var/tmp", "/var/tmp", mode=0o1777, kind="var-tmp")]),
        ("", [Tmpfs("private /run", "/run", kind="run")]),
        ("dev", [Devices(view.console)]),
        ("masks", list(_homes(view))),
        ("", [Tmpfs("way to the workspace", path) for path in view.closed]),
        ("", _home(view, masked="masks" not in without)),
        ("masks", [Masks(view.masked)]),
        ("", _workspace(view)),
        ("masks", [Masks(view.covered)] if view.covered else []),
        ("proc", [Processes()]),
        ("keyring", [Masks(["/proc/keys", "/proc/key-users"])]),
    ]
    layers = [layer for switch, group in groups if switch not in without for layer in group]
    for layer in layers:
        if isinstance(layer, (Tmpfs, Devices)):
            layer.memory = view.memory
    return layers


def tree_plan(view: View, without: frozenset[str] = frozenset()) -> list[Layer]:
    """The mounts of a workspace's tree alone, where the host's mounts are: for a sandbox of another one.

    without: as for `sandbox_plan`.
    """
    covered = [path for path in view.covered if path.startswith(f"{view.root}/")]
    layers: list[Layer] = [Tmpfs("private /run", "/run")]
    layers += [Tmpfs("way to the workspace", path) for path in view.closed]
    layers += _tree(view)
    if covered and "masks" not in without:
        layers.append(Masks(covered))
    return layers


def has_more_mounts(layers: Sequence[Layer]) -> bool:
    """Whether a tree of `tree_plan` has other mounts in it than its `.git`."""
    shown = sum(isinstance(layer, (Overlay, Bind)) for layer in layers)
    return shown > 2 or any(isinstance(layer, Masks) for layer in layers)


def _tree(view: View) -> list[Layer]:
    live = [Overlay("live directory", path, [path], upper, work) for path, upper, work in view.live]
    if view.whole:
        whole = Bind("workspace", view.upper, view.root, writable=True)
        own_git = Bind("private .git", view.git_upper, f"{view.root}/.git", writable=True)
        whole.unmapped = own_git.unmapped = GIVE
        return [whole, own_git, *live]
    tree = Overlay("workspace", view.root, view.stack, view.upper, f"{view.work}/tree")
    git = Overlay("private .git", f"{view.root}/.git", view.git_stack, view.git_upper, f"{view.work}/git")
    tree.volatile = git.volatile = True
    return [tree, git, *live]


def _workspace(view: View) -> list[Layer]:
    history = Bind("history", view.objects, OBJECTS)
    history.unmapped = READ
    layers: list[Layer] = [*_tree(view), history]
    if view.sockets:
        sockets = Bind("control socket", view.sockets, CONTROL)
        sockets.unmapped = GIVE
        layers.append(sockets)
    for path, kept in view.passed:
        state = Bind("agent state", path, path, writable=True)
        state.kept = kept
        layers.append(state)
    for path, writable in view.binds:
        bind = Bind("bind", path, path, writable=writable)
        bind.unmapped = "" if writable else SHOW
        layers.append(bind)
    if view.ssh_agent:
        layers.append(Bind("ssh agent", view.ssh_agent, SSH_AGENT))
    if view.name_servers:
        servers = Bind("name servers", view.name_servers, view.name_servers)
        servers.own = False
        layers.append(servers)
    return layers


def _homes(view: View) -> Iterator[Layer]:
    for place, shown in view.homes:
        yield Tmpfs("other homes", place, mode=0o555)
        yield from (_as_it_is("shown home", path) for path in shown)


def _home(view: View, *, masked: bool) -> list[Layer]:
    if view.home is None:
        return []
    if not view.home_lowers:
        own = Bind("private HOME", view.home_upper, view.home, writable=True)
        own.unmapped = GIVE
        return [own, *(_as_it_is("unmasked", path) for path in view.through)]
    shown: Layer = Parts(_VIEW, view.home_parts) if view.home_parts else home_overlay(view, masked=masked)
    below = [_as_it_is("mount below HOME", path) for path in view.submounts]
    return [shown, *below, *(_as_it_is("unmasked", path) for path in view.through)]


def home_overlay(view: View, *, masked: bool) -> Overlay:
    """The view of HOME in one piece."""
    assert view.home
    overlay = Overlay(_VIEW, view.home, view.home_lowers, view.home_upper, f"{view.work}/home")
    overlay.hidden = view.hidden if masked else ()
    return overlay


def _as_it_is(name: str, path: str) -> Bind:
    bind = Bind(name, path, path)
    bind.submounts = bind.optional = True
    bind.unmapped = SHOW
    return bind
