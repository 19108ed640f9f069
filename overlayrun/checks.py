"""What each ability of the machine is needed for, and what to do where it is missing: a table and its words."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from overlayrun.kernel import probe
from overlayrun.kernel.attempt import Try
from overlayrun.kernel.probe import Capabilities


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


Words = tuple[str, str]  # what was found, the cure
Refusal = Callable[[str, Try], Words]


@dataclass(frozen=True, slots=True)
class Check:
    """An ability of `Capabilities`. needs: abilities without which it is not tried. refusal: words for a failure."""

    ability: str
    name: str
    why: str
    refusal: Refusal
    needs: tuple[str, ...] = ()
    required: bool = True


_CONTAINER: Final = (
    "start the container with --security-opt seccomp=unconfined --security-opt apparmor=unconfined "
    "--security-opt systempaths=unconfined, or use the host"
)
_APPARMOR: Final = (
    "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0; to keep it: "
    "echo kernel.apparmor_restrict_unprivileged_userns=0 | sudo tee /etc/sysctl.d/60-overlayrun.conf"
)
_DEBIAN: Final = (
    "sudo sysctl kernel.unprivileged_userns_clone=1; to keep it: "
    "echo kernel.unprivileged_userns_clone=1 | sudo tee /etc/sysctl.d/60-overlayrun.conf"
)
_ENOUGH: Final = 10_000  # namespaces; a sandbox takes one of each kind
_ELSEWHERE: Final = (
    "keep the state on a local disk (ext4, xfs, btrfs; in a container: a volume): "
    "export OVERLAYRUN_STATE_DIR=/path/on/that/disk"
)


def is_container() -> bool:
    """Whether Docker or Podman says that it made this system."""
    return any(os.path.exists(path) for path in ("/.dockerenv", "/run/.containerenv"))


def _closed(ability: str, tried: Try) -> Words:
    """Who forbids a namespace, or a mount in one."""
    if tried.errno in (errno.ENOSPC, errno.EUSERS):
        return _used_up(ability)
    ordinary = os.geteuid() != 0
    if ability == "user" and ordinary and probe.read_switch("kernel/unprivileged_userns_clone") == 0:
        return "kernel.unprivileged_userns_clone is 0", _DEBIAN
    if ordinary and probe.read_switch("kernel/apparmor_restrict_unprivileged_userns") == 1:
        return (
            f"AppArmor forbids it (kernel.apparmor_restrict_unprivileged_userns is 1): {tried.text}",
            _APPARMOR,
        )
    if ability == "user" and probe.is_chrooted():
        return f"the kernel forbids it in a chroot: {tried.text}", "start overlayrun outside the chroot"
    if probe.is_filtered():
        cure = (
            _CONTAINER
            if is_container()
            else f"start it outside the sandbox that set the filter; {_CONTAINER}"
        )
        return f"a seccomp filter lies on this process: {tried.text}", cure
    if tried.errno in (errno.EINVAL, errno.ENOSYS):
        return f"this kernel was built without it: {tried.text}", "use a kernel with CONFIG_USER_NS=y"
    if is_container():
        return f"the container forbids it: {tried.text}", _CONTAINER
    return (
        f"the system forbids it: {tried.text}",
        "start overlayrun outside any sandbox; look for a rule of SELinux or AppArmor in the kernel's log (dmesg)",
    )


def _used_up(ability: str) -> Words:
    name = f"max_{ability}_namespaces"
    limit = probe.read_switch(f"user/{name}")
    if limit is None:
        return "the number of namespaces is used up", "end what holds them: lsns"
    cure = f"sudo sysctl user.{name}={max(_ENOUGH, 2 * limit)}"
    if limit == 0:
        return f"user.{name} is 0", cure
    return f"user.{name} is {limit} here and used up, or namespaces nest too deeply (32)", cure


def _processes(ability: str, tried: Try) -> Words:
    if tried.errno == errno.EPERM and probe.has_covered_processes():
        return (
            "parts of /proc are covered here, as containers do it, and the kernel then forbids a new one",
            "start the container with --security-opt systempaths=unconfined (Podman: unmask=ALL)",
        )
    return _closed(ability, tried)


def _overlay(ability: str, tried: Try) -> Words:
    if tried.errno == errno.ENODEV:
        return "this kernel has no overlayfs, or its module is not loaded", "sudo modprobe overlay"
    if is_older(5, 11):
        return f"Linux {os.uname().release} has overlayfs for root alone", "use Linux 5.15 or newer"
    return _closed(ability, tried)


def _disk(_: str, tried: Try) -> Words:
    return f"this file system can't: {tried.text}", _ELSEWHERE


def _older(release: str) -> Refusal:
    def refusal(ability: str, tried: Try) -> Words:
        if tried.errno == errno.EPERM and probe.is_filtered():
            return _closed(ability, tried)
        return (
            tried.text,
            f"use Linux {release} or newer, and a kernel or container that does not switch it off",
        )

    return refusal


def _no_groups(_: str, tried: Try) -> Words:
    return (
        f"none is ours to divide: {tried.text}",
        "systemd-run --user --scope -p Delegate=yes -- overlayrun -- COMMAND; without it rlimits and a watchdog hold",
    )


def _links(_: str, tried: Try) -> Words:
    return tried.text, f"nothing is to be done: files are copied instead; or {_ELSEWHERE}"


def is_older(major: int, minor: int) -> bool:
    """Whether the running kernel is older than a release."""
    first, second = os.uname().release.split(".")[:2]
    return (int(first), int("".join(digit for digit in second if digit.isdigit()) or 0)) < (major, minor)


_MOUNTS: Final = ("user", "mnt", "tmpfs")
_ON_DISK: Final = (*_MOUNTS, "overlay")

# In the order in which a sandbox needs them: the first that is missing is the one to name.
KERNEL_CHECKS: Final = (
    Check(
        "user", "user namespaces", "they make an ordinary user free to mount, in the sandbox alone", _closed
    ),
    Check(
        "mnt",
        "mount namespaces, own uid mapped",
        "the sandbox has its own view of the disk",
        _closed,
        ("user",),
    ),
    Check(
        "pid", "process namespaces", "nothing that the command starts outlives the run", _closed, ("user",)
    ),
    Check("ipc", "ipc namespaces", "the command can't reach shared memory of others", _closed, ("user",)),
    Check("uts", "host name namespaces", "the command can't rename the machine", _closed, ("user",)),
    Check("tmpfs", "private mounts", "/tmp and /run are the sandbox's own", _closed, ("user", "mnt")),
    Check("mount_api", "mount API", "layers below a covered place are reached", _older("5.15"), _MOUNTS),
    Check("mount_setattr", "read-only disk", "the command writes nowhere else", _older("5.15"), _MOUNTS),
    Check("devpts", "private terminals", "the command can't reach other terminals", _closed, _MOUNTS),
    Check("proc", "private /proc", "the command sees no process of the host", _processes, (*_MOUNTS, "pid")),
    Check("overlay", "overlayfs", "it is the copy-on-write view, unprivileged", _overlay, _MOUNTS),
    Check("no_new_privs", "no_new_privs", "set-uid programs gain nothing", _older("5.15")),
    Check("close_range", "close_range", "no descriptor leaks into the sandbox", _older("5.15")),
    Check("seccomp", "seccomp filters", "they close system calls that lead out", _older("5.15")),
    Check(
        "descriptors",
        "layers by descriptor",
        "else mount(2) takes what fits in one page of paths",
        _older("6.13"),
        _ON_DISK,
        required=False,
    ),
    Check(
        "pidfd", "pidfd", "a process is signalled by handle, not by number", _older("5.15"), required=False
    ),
    Check("landlock", "Landlock", "a second barrier behind the mounts", _older("5.19"), required=False),
    Check("cgroup", "control groups", "limits of memory and processes a run", _no_groups, required=False),
)
DISK_CHECKS: Final = (
    Check("upper", "upper layer", "what the command changes is kept here", _disk, _ON_DISK),
    Check("volatile", "volatile upper layer", "writes inside are as fast as outside", _disk, _ON_DISK),
    Check("whiteout", "whiteouts", "a layer can say that a file is gone", _disk, _ON_DISK),
    Check("opaque", "opaque directories", "a layer can replace a directory", _disk, _ON_DISK),
    Check("lock", "file locks", "one run a workspace", _disk),
    Check(
        "xattr_whiteout",
        "whiteouts by attribute",
        "layers on file systems that hold no devices",
        _older("6.7"),
        _ON_DISK,
        required=False,
    ),
    Check("reflink", "reflinks", "frozen copies share their blocks with yours", _links, required=False),
    Check("hard_link", "hard links", "carried directories take no room", _links, required=False),
)


def judge(check: Check, able: Capabilities) -> Finding:
    """Try an ability, after those that it needs."""
    bad = State.MISSING if check.required else State.LIMITED
    for need in check.needs:
        if not able[need].works:
            name = next(other.name for other in KERNEL_CHECKS if other.ability == need)
            return Finding(check.name, bad, f"not tried, for want of: {name}", check.why, f"first: {name}")
    tried = able[check.ability]
    if tried.works:
        return Finding(check.name, State.OK, tried.text, check.why)
    found, cure = check.refusal(check.ability, tried)
    return Finding(check.name, bad, found, check.why, cure)
