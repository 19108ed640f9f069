"""What each ability of the machine is needed for, as a table, and the judgement of one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Final

from overlayrun import refusals
from overlayrun.kernel.namespaces import is_root_of_host
from overlayrun.kernel.probe import Capabilities
from overlayrun.refusals import Refusal, closed, needs_release


class State(Enum):
    """OK; LIMITED: a run works without it, less well; MISSING: a run can't work."""

    OK = "ok"
    LIMITED = "limited"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. cure: what to type or change, "" where nothing is to be done."""

    name: str
    state: State
    found: str
    why: str
    cure: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """An ability of `Capabilities`.

    refusal: words for a failure. needs: abilities without which it is not tried. required: a run needs it.
    overlay: only a run with that backend does, and others work without.
    """

    ability: str
    name: str
    why: str
    refusal: Refusal
    needs: tuple[str, ...] = ()
    required: bool = True
    overlay: bool = False


_of_overlay: Final = partial(Check, overlay=True)
_MOUNTS: Final = ("user", "mnt", "tmpfs")
_ON_DISK: Final = (*_MOUNTS, "overlay")

# In the order in which a sandbox needs them: the first that is missing is the one to name.
KERNEL_CHECKS: Final = (
    Check(
        "user", "user namespaces", "they make an ordinary user free to mount, in the sandbox alone", closed
    ),
    Check(
        "mnt",
        "mount namespaces, own uid mapped",
        "the sandbox has its own view of the disk",
        closed,
        ("user",),
    ),
    Check("pid", "process namespaces", "nothing that the command starts outlives the run", closed, ("user",)),
    Check("ipc", "ipc namespaces", "the command can't reach shared memory of others", closed, ("user",)),
    Check(
        "cgroup_ns",
        "control group namespaces",
        "the command does not see its place on the host",
        closed,
        ("user",),
    ),
    Check("uts", "host name namespaces", "the command can't rename the machine", closed, ("user",)),
    Check("tmpfs", "private mounts", "/tmp and /run are the sandbox's own", closed, ("user", "mnt")),
    Check(
        "mount_api", "mount API", "layers below a covered place are reached", needs_release("5.15"), _MOUNTS
    ),
    Check(
        "mount_setattr", "read-only disk", "the command writes nowhere else", needs_release("5.15"), _MOUNTS
    ),
    Check("devpts", "private terminals", "the command can't reach other terminals", closed, _MOUNTS),
    Check(
        "proc",
        "private /proc",
        "the command sees no process of the host",
        refusals.processes,
        (*_MOUNTS, "pid"),
    ),
    _of_overlay(
        "overlay", "overlayfs", "it is the copy-on-write view, unprivileged", refusals.overlay, _MOUNTS
    ),
    Check("no_new_privs", "no_new_privs", "set-uid programs gain nothing", needs_release("5.15")),
    Check("close_range", "close_range", "no descriptor leaks into the sandbox", needs_release("5.15")),
    Check("seccomp", "seccomp filters", "they close system calls that lead out", needs_release("5.15")),
    Check(
        "descriptors",
        "layers by descriptor",
        "else mount(2) takes what fits in one page of paths",
        needs_release("6.13"),
        _ON_DISK,
        required=False,
    ),
    Check(
        "pidfd",
        "pidfd",
        "a process is signalled by handle, not by number",
        needs_release("5.15"),
        required=False,
    ),
    Check(
        "landlock", "Landlock", "a second barrier behind the mounts", needs_release("5.19"), required=False
    ),
    Check(
        "cgroup", "control groups", "limits of memory and processes a run", refusals.no_groups, required=False
    ),
)
DISK_CHECKS: Final = (
    _of_overlay("upper", "upper layer", "what the command changes is kept here", refusals.disk, _ON_DISK),
    _of_overlay(
        "volatile", "volatile upper layer", "writes inside are as fast as outside", refusals.disk, _ON_DISK
    ),
    _of_overlay("whiteout", "whiteouts", "a layer can say that a file is gone", refusals.disk, _ON_DISK),
    _of_overlay("opaque", "opaque directories", "a layer can replace a directory", refusals.disk, _ON_DISK),
    Check("lock", "file locks", "one run a workspace", refusals.disk),
    *(
        [
            _of_overlay(
                "id_map",
                "id-mapped mounts",
                "run by root, the command is nobody, and root's files are its own",
                refusals.no_id_map,
            )
        ]
        if is_root_of_host()
        else []
    ),
    Check(
        "xattr_whiteout",
        "whiteouts by attribute",
        "layers on file systems that hold no devices",
        needs_release("6.7"),
        _ON_DISK,
        required=False,
    ),
    Check(
        "reflink", "reflinks", "frozen copies share their blocks with yours", refusals.links, required=False
    ),
    Check("hard_link", "hard links", "carried directories take no room", refusals.links, required=False),
)


def judge(check: Check, able: Capabilities) -> Finding:
    """Try an ability, after those that it needs."""
    bad = State.MISSING if check.required and not check.overlay else State.LIMITED
    for need in check.needs:
        if not able[need].works:
            other = next(other for other in KERNEL_CHECKS if other.ability == need)
            state = State.MISSING if check.required and not other.overlay else State.LIMITED
            found, cure = f"not tried, for want of: {other.name}", f"first: {other.name}"
            return Finding(check.name, state, found, check.why, cure)
    tried = able[check.ability]
    if tried.works:
        return Finding(check.name, State.OK, tried.text, check.why)
    found, cure = check.refusal(check.ability, tried)
    return Finding(check.name, bad, found, check.why, cure)
