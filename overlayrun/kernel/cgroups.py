"""What is mounted, and control groups: whose trees they are, and one for a run where they are ours."""

from __future__ import annotations

import errno
import os
import time

from overlayrun.kernel.groups import UNIFIED, Group, group_of, read, write
from overlayrun.kernel.mountinfo import mounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from typing import Any, Final, TypeAlias

    from overlayrun.kernel.groups import Wanted

    # Own directories by controller, `UNIFIED` for the v2 tree, and where each tree begins.
    Trees: TypeAlias = Mapping[str, tuple[str, str]]

_NAME: Final = "overlayrun-"
_OUTSIDE: Final = "outside"
_BUS_PATIENCE: Final = 5.0  # seconds for systemd to do what it was asked
_MANAGER: Final = (
    "org.freedesktop.systemd1",
    "/org/freedesktop/systemd1",
    "org.freedesktop.systemd1.Manager",
)


def try_control_groups() -> str:
    """Make a group with limits, move a process into it, remove it.

    Gives the kind of tree and the limits that it has; raises OSError where none is ours.
    """
    wanted: dict[str, float] = {"memory": 1 << 40, "pids": 1 << 20}
    try:
        group = make_group("probe", {**wanted, "cpu": 1.0})
    except OSError:
        group = make_group("probe", wanted)
    try:
        pid = os.fork()
        if pid == 0:
            _enter(group)
        if os.waitpid(pid, 0)[1]:
            raise OSError(errno.EPERM, "no process can be moved into a group of our own")
    finally:
        group.close()
    return f"{group.version}: {' '.join(sorted(group.held))}"


def _enter(group: Group) -> None:
    try:
        group.add(os.getpid())
        os._exit(0)
    finally:
        os._exit(1)


def make_group(label: str, wanted: Wanted, *, freeze: bool = False) -> Group:
    """A new group with all the limits `wanted`, and one that can freeze if asked and possible.

    label: a part of its name, the workspace's id. In order: our own group of the v2 tree where it was handed
    over to us, a scope that systemd hands over, the nearest group above us that is ours, the v1 trees.
    The caller may end up in another group beside it, under the same limits from above as before.
    Raises OSError where none of these is ours; nothing of it is left then.
    """
    trees = _trees()
    backends: tuple[Callable[[str, Wanted, Trees], Group], ...] = (_in_own, _in_scope, _above, _in_v1)
    if not wanted:
        return _only_freezer(label, trees)
    refusal = OSError(errno.ENODEV, "no tree of control groups is mounted")
    for backend in backends:
        try:
            group = backend(label, wanted, trees)
        except OSError as err:
            # Of the refusals the first by a tree that is there says most.
            refusal = err if refusal.errno == errno.ENODEV else refusal
            continue
        if freeze and not group.can_freeze:
            _add_freezer(group, label, trees)
        return group
    raise refusal


def enter_group_of(data: Mapping[str, Any], pid: int) -> None:
    """Move a process into the group of a run, told by its `Group.to_json`, before it joins the sandbox.

    Raises OSError where it can't be: the process then stands outside the run's limits.
    """
    group = group_of(data)
    try:
        group.add(pid)
    except PermissionError:
        # From a login's scope into the run's: only systemd may move processes between what it handed over.
        parts = group.places.get(UNIFIED, "").split("/")
        units = [part for part in parts if part.startswith(_NAME) and part.endswith(".scope")]
        if not units:
            raise
        below = "/".join(["", *parts[parts.index(units[0]) + 1 :]])
        _call_manager("AttachProcessesToUnit", "ssau", units[0], below, "1", str(pid))


def _trees() -> Trees:
    """Own directory and top of each tree in sight (cgroups(7), "/proc/PID/cgroup")."""
    rows = [line.split(":", 2) for line in read("/proc/self/cgroup").splitlines()]
    own = {name: path for _, names, path in rows for name in names.split(",")}
    found = {}
    for mount in mounts():
        if not mount.fstype.startswith("cgroup"):
            continue
        for name in [UNIFIED] if mount.fstype == "cgroup2" else mount.options.split(","):
            if name in own:
                inner = own[name].removeprefix(mount.root).lstrip("/")
                found[name] = (f"{mount.place}/{inner}".rstrip("/"), mount.place)
    return found


def _make(parent: str, label: str) -> str:
    """A new directory below `parent`; what killed runs left there goes."""
    for name in os.listdir(parent):
        words = name.removeprefix(_NAME).rsplit("-", 1)
        if name.startswith(_NAME) and words[-1].isdigit() and not os.path.exists(f"/proc/{words[-1]}"):
            try:
                os.rmdir(f"{parent}/{name}")
            except OSError:  # processes of another process namespace are in it
                pass
    place = f"{parent}/{_NAME}{label}-{os.getpid()}"
    os.mkdir(place)
    return place


def _limited(places: Mapping[str, str], wanted: Wanted) -> Group:
    group = Group(places, tuple(wanted))
    try:
        group.limit(wanted)
    except OSError:
        group.close()
        raise
    return group


def _below(parent: str, label: str, wanted: Wanted) -> Group:
    return _limited({UNIFIED: _make(parent, label)}, wanted)


def _unified(trees: Trees) -> tuple[str, str]:
    if UNIFIED not in trees:
        raise OSError(errno.ENODEV, "no tree of control groups is mounted")
    return trees[UNIFIED]


def _shared_out(place: str, wanted: Collection[str]) -> bool:
    return set(wanted) <= set(read(f"{place}/cgroup.subtree_control").split())


def _in_own(label: str, wanted: Wanted, trees: Trees) -> Group:
    """Below our own group of the v2 tree, where it is handed over to us and we are alone in it."""
    place, _ = _unified(trees)
    lacking = wanted.keys() - set(read(f"{place}/cgroup.controllers").split())
    if lacking:
        what = " and ".join(sorted(lacking))
        raise OSError(errno.ENODEV, f"the control group has no {what} limits to give", place)
    undo = [] if _shared_out(place, wanted) else _share_out(place, label, wanted)
    try:
        group = _below(place, label, wanted)
    except OSError:
        _revert(undo)
        raise
    group.undo = undo
    return group


def _share_out(place: str, label: str, wanted: Collection[str]) -> list[tuple[str, str | None]]:
    """Let the groups below `place` have limits; gives what undoes it.

    Only a group without processes may do so ("no internal processes"); if we are its only one, we step aside.
    """
    control = f"{place}/cgroup.subtree_control"
    text = " ".join(f"+{name}" for name in sorted(wanted))
    try:
        write(control, text)
    except OSError as err:
        if err.errno != errno.EBUSY or read(f"{place}/cgroup.procs").split() != [str(os.getpid())]:
            raise
    else:
        return []
    aside = _make(place, f"{label}-{_OUTSIDE}")
    undo = [(control, text.replace("+", "-")), (f"{place}/cgroup.procs", str(os.getpid())), (aside, None)]
    try:
        write(f"{aside}/cgroup.procs", str(os.getpid()))
        write(control, text)
    except OSError:
        _revert(undo)
        raise
    return undo


def _revert(undo: list[tuple[str, str | None]]) -> None:
    group = Group({})
    group.undo = undo
    group.close()


def _in_scope(label: str, wanted: Wanted, _: Trees) -> Group:
    """Below a scope that systemd hands over: this process moves into it, as systemd-run(1) does.

    Source: org.freedesktop.systemd1(5), StartTransientUnit; systemd's CGROUP_DELEGATION.md. Limits set there
    by the user's manager reach as far as it was given controllers itself.
    """
    if not os.path.isdir("/run/systemd/system"):  # sd_booted(3)
        raise OSError(errno.ENODEV, "systemd does not run")
    unit = f"{_NAME}{label}-{os.getpid()}.scope"
    properties = ("3", "PIDs", "au", "1", str(os.getpid()), "Delegate", "b", "true")
    collected = ("CollectMode", "s", "inactive-or-failed", "0")
    _call_manager("StartTransientUnit", "ssa(sv)a(sa(sv))", unit, "fail", *properties, *collected)
    end = time.monotonic() + _BUS_PATIENCE
    while not _unified(trees := _trees())[0].endswith(f"/{unit}"):
        if time.monotonic() > end:
            raise OSError(errno.ETIMEDOUT, "systemd did not hand over a scope")
        time.sleep(0.005)
    return _in_own(label, wanted, trees)


def _call_manager(*words: str) -> None:
    """Call a method of the systemd manager whose we are: the machine's for root, else the user's."""
    manager = "--user" if os.geteuid() else "--system"
    argv = ["busctl", manager, f"--timeout={_BUS_PATIENCE:g}", "--quiet", "call", *_MANAGER, *words]
    null = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in range(3)]
    pid = os.posix_spawnp(argv[0], argv, os.environ, file_actions=null, setsigmask=())
    if os.waitpid(pid, 0)[1]:
        raise OSError(errno.ECONNREFUSED, "systemd hands over no scope")


def _above(label: str, wanted: Wanted, trees: Trees) -> Group:
    """Below the nearest group above ours that gives its children these limits already, if it is ours."""
    place, top = _unified(trees)
    while len(place) > len(top):
        place = os.path.dirname(place)
        if _shared_out(place, wanted):
            return _below(place, label, wanted)
    raise OSError(errno.ENODEV, "no control group above shares out limits", place)


def _in_v1(label: str, wanted: Wanted, trees: Trees) -> Group:
    lacking = wanted.keys() - trees.keys()
    if lacking:
        raise OSError(
            errno.ENODEV, f"no tree of control groups for {' and '.join(sorted(lacking))} is mounted"
        )
    return _limited(_make_each({name: trees[name][0] for name in wanted}, label), wanted)


def _make_each(parents: Mapping[str, str], label: str) -> dict[str, str]:
    """A directory below each parent; one for two controllers that share a tree."""
    made: dict[str, str] = {}
    try:
        for parent in parents.values():
            if parent not in made:
                made[parent] = _make(parent, label)
    except OSError:
        for place in made.values():
            os.rmdir(place)
        raise
    return {name: made[parent] for name, parent in parents.items()}


def _only_freezer(label: str, trees: Trees) -> Group:
    group = Group({})
    _add_freezer(group, label, trees)
    if not group.can_freeze:
        raise OSError(errno.ENODEV, "no tree of control groups is ours that can freeze")
    return group


def _add_freezer(group: Group, label: str, trees: Trees) -> None:
    """Give a group a place that can freeze, if there is one: v2 first, where the frozen can be killed."""
    for name in (UNIFIED, "freezer"):
        try:
            group.places.update(_make_each({name: trees[name][0]}, label))
        except (KeyError, OSError):
            continue
        return
