"""From a record to what its sandbox shows. On the launch path."""

from __future__ import annotations

import os
import pwd
import stat
import sys

from overlayrun.errors import HostError, UsageError
from overlayrun.files import remove_tree
from overlayrun.kernel import namespaces
from overlayrun.kernel.mountinfo import mounts
from overlayrun.model import AgentState
from overlayrun.sandbox.home import OwnHome
from overlayrun.sandbox.parts import divide
from overlayrun.sandbox.plan import View, home_overlay, sandbox_plan
from overlayrun.sandbox.profiles import own_state, shared_state
from overlayrun.sandbox.secrets import Masks, find_masks, listening_sockets
from overlayrun.sandbox.seeds import AGENT as SEEDED
from overlayrun.sandbox.seeds import seed_tree
from overlayrun.workspace.catalogue import survey, user_state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Final, Self

    from overlayrun.kernel.mountinfo import Mount
    from overlayrun.model import RunOptions
    from overlayrun.sandbox.plan import Layer
    from overlayrun.store.location import Repository
    from overlayrun.workspace.layout import Layout, WorkspaceLayout
    from overlayrun.workspace.record import Record

_PRIVATE: Final = ("/run/", "/tmp/", "/dev/", "/var/tmp/", "/var/run/", "/proc/")  # the sandbox's own
_AUTOMATIC: Final = "autofs"  # what it would mount is for the host alone to see
_FEW: Final = 3
_FOLDERS: Final = "fuse.overlayrun"  # branches of all kinds: what `overlayrun open` shows
# What ssh reads and what holds no key: public ones tell it which key of the agent to ask for.
_SSH_SHOWN: Final = ("known_hosts", "known_hosts2", "config", "config.d")


class Choices:
    """What the user lets one run see besides, or withholds from it.

    binds: (path, writable). mask, unmask: paths, absolute or below HOME. ssh_agent: its socket.
    """

    __slots__ = ("binds", "mask", "ssh_agent", "unmask")

    def __init__(self) -> None:
        self.binds: list[tuple[str, bool]] = []
        self.mask: Sequence[str] = ()
        self.unmask: Sequence[str] = ()
        self.ssh_agent: str | None = None

    @classmethod
    def of(cls, options: RunOptions) -> Self:
        """Those of a run's options. Raises UsageError."""
        made = cls()
        made.binds = [
            *((os.path.realpath(path), False) for path in options.bind_ro),
            *((os.path.realpath(path), True) for path in options.bind_rw),
        ]
        made.mask, made.unmask = options.mask, options.unmask
        if options.ssh_agent:
            made.ssh_agent = _ssh_agent()
            made.unmask = [*options.unmask, *_ssh_files()]
        return made


def _ssh_agent() -> str:
    path = os.environ.get("SSH_AUTH_SOCK", "")
    try:
        if stat.S_ISSOCK(os.stat(path).st_mode):
            return os.path.realpath(path)
    except OSError:
        pass
    raise UsageError("no ssh agent is running here", hint='start one: eval "$(ssh-agent)"; ssh-add')


def _ssh_files() -> list[str]:
    try:
        names = os.listdir(f"{home_directory()}/.ssh")
    except OSError:
        return []
    return [f".ssh/{name}" for name in names if name in _SSH_SHOWN or name.endswith(".pub")]


def view_of(repository: Repository, layout: Layout, record: Record, choices: Choices | None = None) -> View:
    """Everything that the workspace's sandbox mounts; makes the scratch directories anew.

    choices: None where no command will run. Raises UsageError for state that can't be the branch's own.
    """
    will_run = choices is not None
    choices = choices or Choices()
    place = layout.workspace(record.id)
    remove_tree(place.work)  # a volatile work directory can't be used twice (overlayfs.rst, "Volatile mount")
    for directory in (f"{place.work}/tree", f"{place.work}/git", f"{place.work}/home"):
        os.makedirs(directory)
    view = View(record.root, place.upper, place.git_upper, place.work)
    if record.is_whole:
        view.whole = True
    else:
        _stack(view, layout, record)
    if will_run and record.profile == SEEDED:
        _seed(view, record)
    for number, path in enumerate(record.live):
        os.makedirs(f"{place.work}/live{number}")
        view.live.append((f"{record.root}/{path}", place.live(number), f"{place.work}/live{number}"))
    view.objects = f"{repository.common_dir}/objects"
    view.sockets = f"{place.sockets}/inside"
    view.binds, view.ssh_agent = choices.binds, choices.ssh_agent
    servers = os.path.realpath("/etc/resolv.conf")
    view.name_servers = servers if servers.startswith("/run/") and os.path.exists(servers) else None
    view.console = next((os.ttyname(fd) for fd in range(3) if os.isatty(fd)), None)
    home = home_directory()
    mounted = [*mounts()]
    _show_home(view, home, place, record, mounted)
    if will_run and view.home:
        _furnish_home(view, record)
    logins = None if record.agent_state == "none" else record.profile
    _hide(view, find_masks(home, logins, [*choices.mask, user_state()], choices.unmask), home)
    shown = [mount.place for mount in mounted if mount.fstype == _FOLDERS]
    view.masked += _outside(record, [repository.common_dir, layout.root, *shown])
    _hide_repositories(view, mounted)
    view.homes = list(_other_homes(view, home, as_root=record.root_uid))
    if namespaces.is_root_of_host() and not record.root_uid:
        view.closed = list(dict.fromkeys(_closed_to_others(view)))
    return view


def _hide_repositories(view: View, mounted: Iterable[Mount]) -> None:
    """Other repositories' state; with all that is mounted there where nobody answers."""
    there, silent = survey(mounted)
    view.silent = [*dict.fromkeys(silent.values())]
    view.masked += [*there, *view.silent]
    view.submounts = [path for path in view.submounts if path not in view.silent]


def _stack(view: View, layout: Layout, record: Record) -> None:
    dirty = [layout.workspace(record.id).dirty] if record.dirty else []
    carried = [f"{layout.root}/{layer}" for layer in record.carried_layers]
    view.stack = [*dirty, *carried, *(f"{layout.root}/{layer}/tree" for layer in record.stack)]
    view.git_stack = [f"{layout.root}/{record.stack[0]}/git"]


def _seed(view: View, record: Record) -> None:
    """What spares an agent its installation; no snapshot takes it (`seeds.unkept`)."""
    if view.whole:
        seed_tree([view.upper], record.root, view.upper)
        return
    # Below the changes and above the tree: nothing of it ever is in the upper, where a snapshot looks.
    seeds = f"{view.work}/seeds"
    if seed_tree([view.upper, *view.stack], record.root, seeds):
        above = bool(record.dirty) + len(record.carried_layers)
        view.stack[above:0] = [seeds]


def _closed_to_others(view: View) -> Iterator[str]:
    """What root can pass through on the way to what is shown, and nobody can't.

    An empty directory in its place hides nothing that nobody could have seen.
    """
    for place in (view.root, view.home or view.root, *(path for path, _ in view.binds)):
        above = place
        found = None
        while (above := os.path.dirname(above)) != "/":
            if not os.stat(above).st_mode & stat.S_IXOTH:
                found = above
        if found and not f"{found}/".startswith(f"{view.home}/"):
            yield found


def _outside(record: Record, paths: Iterable[str]) -> Iterator[str]:
    """The real git directory, the state and folders, where the workspace's own mount does not cover them."""
    covered = [f"{record.root}/"]
    for path in paths:
        if not path.startswith(tuple(covered)):
            covered.append(f"{path}/")
            yield path


def _show_home(
    view: View, home: str, place: WorkspaceLayout, record: Record, mounted: Iterable[Mount]
) -> None:
    inside = view.root == home or home.startswith(f"{view.root}/")
    if inside or home == "/" or not os.path.isdir(home):
        return  # the workspace's own view covers it, or there is none, as in some containers
    view.home = home
    if record.agent_state == AgentState.SHARED.value:
        view.passed = shared_state(record.profile, home, record.root)
    view.home_upper = place.home_upper
    if record.home == "private" or not os.access(home, os.R_OK | os.X_OK):  # somebody else's: see owner.py
        return
    view.home_lowers = [home]
    below = f"{home}/"
    found = {mount.place: mount.fstype for mount in mounted if mount.place.startswith(below)}
    # Where root maps owners, the views are made in the host's own namespace, and no mount is locked.
    view.mounted = [] if not found or (namespaces.is_root_of_host() and not record.root_uid) else [*found]
    shown = [place for place, kind in found.items() if kind not in (_FOLDERS, _AUTOMATIC)]
    view.submounts = _outermost(shown, view.root)


def _outermost(places: Iterable[str], *covered: str) -> list[str]:
    """Those that don't lie below another, or below what is covered: mounts come with all that is on them."""
    found: list[str] = []
    for place in sorted(places):
        if not place.startswith(tuple(f"{above}/" for above in (*found, *covered))):
            found.append(place)
    return found


def layers_of(view: View, without: frozenset[str] = frozenset()) -> list[Layer]:
    """Every mount of the sandbox, as `sandbox_plan` has them, with HOME in parts where it must be.

    Raises HostError where there is no room for that.
    """
    if view.mounted:
        whole = home_overlay(view, masked="masks" not in without)
        try:
            divided = divide(whole, view.mounted, [view.root], f"{view.work}/home-copies")
        except OSError as err:
            raise HostError(
                f"the view of HOME can't be made: {err.strerror}: {err.filename}",
                hint="make room: overlayrun gc; or: --home private",
            ) from err
        view.home_parts = divided.overlays
        view.submounts = _outermost([*divided.read_only, *view.submounts])
    return sandbox_plan(view, without)


def notes_of(view: View) -> Iterator[str]:
    """What else the user must know of what `layers_of` shows, each in one line."""
    if view.home_parts:
        copied = [part.target for part in view.home_parts if part.lowers != [part.target]]
        yield (
            f"other mounts and large files in HOME are read-only ({_listed(view, view.submounts)}); "
            f"files right in {_listed(view, copied)} are copies of this moment"
        )
    if view.silent:
        yield f"hidden, because nobody answers there: {_listed(view, view.silent)}"


def _listed(view: View, paths: Sequence[str]) -> str:
    home = f"{view.home}/"
    names = [f"~/{path[len(home) :]}".rstrip("/") if f"{path}/".startswith(home) else path for path in paths]
    return ", ".join(names[:_FEW]) + (f" and {len(names) - _FEW} more" if len(names) > _FEW else "")


def _furnish_home(view: View, record: Record) -> None:
    """Put into the branch's HOME what its agent finds there: logins of its own, an empty state of its own."""
    assert view.home
    own = OwnHome(view.home_upper, view.home, is_view=bool(view.home_lowers))
    if record.has_own_agent_state:
        _give_own_state(own, view, record)
    if not own.is_view:
        # Files that a profile keeps back are a branch's own.
        for source in [f"{path}/{name}" for path, kept in view.passed for name in kept]:
            own.give_copy(source)
    if record.profile == SEEDED:
        own.seed([*view.submounts, view.root])


def _give_own_state(own: OwnHome, view: View, record: Record) -> None:
    covered = tuple(f"{path}/" for path in view.submounts)
    for path, logins, is_file in own_state(record.profile, own.home, record.root):
        if not path.startswith(f"{own.home}/") or f"{path}/".startswith(covered):
            raise UsageError(
                f"--agent-state private needs the agent's state in HOME, and {path!a} is not",
                hint="unset the variable that names it, or: --agent-state shared",
            )
        if is_file:
            own.give_copy(path, empty=not logins)
            continue
        own.give_directory(path)
        for name in logins:
            own.give_copy(f"{path}/{name}")


def home_directory() -> str:
    """The user's HOME, without links."""
    return os.path.realpath(os.environ.get("HOME") or pwd.getpwuid(os.geteuid()).pw_dir)


def _hide(view: View, masks: Masks, home: str) -> None:
    """Sort what is hidden by how: below the view of HOME, or by covers before or after the workspace."""
    view.through = masks.through if view.home else []
    elsewhere = [*masks.elsewhere]
    if not view.home:  # the workspace shows HOME, or none is there
        elsewhere += [f"{home}/{name}" for name in masks.below]
    elif view.home_lowers:
        view.hidden = [*masks.below]
        hidden = tuple(f"{home}/{name}/" for name in masks.below)
        # A mount that is a secret itself is left out; secrets on other mounts are covered.
        view.submounts = [path for path in view.submounts if not f"{path}/".startswith(hidden)]
        mounted = tuple(f"{path}/" for path in view.submounts)
        elsewhere += [path[:-1] for path in hidden if path.startswith(mounted)]
    inside = f"{view.root}/"
    view.masked = [path for path in elsewhere if not path.startswith(inside)]
    view.covered = [path for path in elsewhere if path.startswith(inside)] + list(_sockets(view))


def _sockets(view: View) -> Iterator[str]:
    """Servers of the host that the command could connect to: a read-only disk does not forbid that.

    Through the view of HOME nobody can: an overlay's inode is not the one that was bound (tried, it gives
    ECONNREFUSED). What is bound while the run goes on is not found.
    """
    shown = tuple(f"{path}/" for path in (*(path for path, _ in view.passed), *view.submounts))
    chosen = tuple(path for path, _ in view.binds)
    viewed = (*_PRIVATE, f"{view.root}/", *([f"{view.home}/"] if view.home else []))
    for path in listening_sockets():
        if (path.startswith(shown) or not path.startswith(viewed)) and not path.startswith(chosen):
            yield path


def _other_homes(view: View, home: str, *, as_root: bool) -> Iterator[tuple[str, list[str]]]:
    """Places with homes of others, and what of them the command needs.

    Their modes are meant for people, and are often 0755. Shown is what PATH leads to (/home/linuxbrew), what
    overlayrun itself runs from, where the workspace lies, and what the user binds. /root is closed by its
    mode to all but root.
    """
    commands = os.environ.get("PATH", "").split(":")
    own = [view.root, sys.base_prefix, *(path for path, _ in (*view.passed, *view.binds))]
    needed = [*own, *commands, *map(os.path.realpath, commands)]
    for place in ("/home", "/root") if as_root else ("/home",):
        if place in (home, view.root):
            continue
        below = [
            path for path in needed if path.startswith(f"{place}/") and not f"{path}/".startswith(f"{home}/")
        ]
        shown = {"/".join(path.split("/")[:3]) for path in below}
        if not {f"{place}/{name}" for name in _names(place)} <= {*shown, home}:
            yield place, sorted(shown)


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []
