"""From a record to what its sandbox shows. On the launch path."""

from __future__ import annotations

import os
import pwd
import stat

from overlayrun.files import remove_tree
from overlayrun.layers.marks import write_whiteout
from overlayrun.sandbox.plan import View
from overlayrun.sandbox.profiles import SECRETS, state_directories

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from overlayrun.store.location import Repository
    from overlayrun.workspace.layout import Layout
    from overlayrun.workspace.record import Record


def view_of(repository: Repository, layout: Layout, record: Record) -> View:
    """Everything that the workspace's sandbox mounts; makes the scratch directories anew."""
    place = layout.workspace(record.id)
    remove_tree(place.work)  # a volatile work directory can't be used twice (overlayfs.rst, "Volatile mount")
    for directory in (f"{place.work}/tree", f"{place.work}/git", f"{place.work}/home"):
        os.makedirs(directory)
    view = View(record.root, place.upper, place.git_upper, place.work)
    dirty = [place.dirty] if record.dirty else []
    carried = [f"{layout.root}/{layer}" for layer in record.carried_layers]
    view.stack = [*dirty, *carried, *(f"{layout.root}/{layer}/tree" for layer in record.stack)]
    view.git_stack = [f"{layout.root}/{record.stack[0]}/git"]
    for number, path in enumerate(record.live):
        os.makedirs(f"{place.work}/live{number}")
        view.live.append((f"{record.root}/{path}", place.live(number), f"{place.work}/live{number}"))
    view.objects = f"{repository.common_dir}/objects"
    view.sockets = f"{place.sockets}/inside"
    view.masked = list(_outside(repository.common_dir, layout, record))
    servers = os.path.realpath("/etc/resolv.conf")
    view.name_servers = servers if servers.startswith("/run/") and os.path.exists(servers) else None
    view.console = next((os.ttyname(fd) for fd in range(3) if os.isatty(fd)), None)
    _show_home(view, layout, record)
    return view


def _outside(common_dir: str, layout: Layout, record: Record) -> Iterator[str]:
    """The real git directory and the state, where the workspace's own mount does not cover them."""
    covered = [f"{record.root}/"]
    for path in (common_dir, layout.root):
        if not path.startswith(tuple(covered)):
            covered.append(f"{path}/")
            yield path


def _show_home(view: View, layout: Layout, record: Record) -> None:
    home = home_directory()
    inside = view.root == home or home.startswith(f"{view.root}/")
    if inside or not os.path.isdir(home):
        return  # the workspace's own view covers it
    view.home = home
    view.passed = state_directories(record.profile, home)
    if record.home == "private":
        return
    view.home_upper = layout.workspace(record.id).home_upper
    view.home_lowers = [home]
    view.submounts = [path for path in _mountpoints() if path.startswith(f"{home}/")]


def home_directory() -> str:
    """The user's HOME, without links."""
    return os.path.realpath(os.environ.get("HOME") or pwd.getpwuid(os.geteuid()).pw_dir)


def hide_secrets(upper: str) -> None:
    """Put whiteouts over the secrets of HOME into a new upper layer of it.

    Into the upper, because a layer of their own would lie inside HOME, which overlayfs refuses as
    overlapping.
    """
    home = home_directory()
    for secret in SECRETS:
        parent = os.path.dirname(secret)
        if parent and os.path.islink(f"{home}/{parent.partition('/')[0]}"):
            continue  # a directory of the upper would hide the link
        if parent and not os.path.isdir(f"{upper}/{parent}"):
            os.makedirs(f"{upper}/{parent}")
            if os.path.isdir(f"{home}/{parent}"):
                os.chmod(f"{upper}/{parent}", stat.S_IMODE(os.stat(f"{home}/{parent}").st_mode))
        write_whiteout(None, f"{upper}/{secret}")


def _mountpoints() -> list[str]:
    """Places of all mounts (proc_pid_mountinfo(5): field 5, with octal escapes)."""
    with open("/proc/self/mountinfo", "rb") as file:
        fields = [line.split(b" ")[4] for line in file.read().splitlines()]
    return [os.fsdecode(field.decode("unicode_escape").encode("latin-1")) for field in fields]
