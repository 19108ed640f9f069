"""Why the machine refuses what a run needs, and the cure, both in words for its user."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final

from overlayrun.kernel import probe
from overlayrun.kernel.attempt import Try

Words = tuple[str, str]  # what was found, the cure
Refusal = Callable[[str, Try], Words]  # of an ability, by its name

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
_ANY_RULE: Final = (
    "start overlayrun outside any sandbox; see whether SELinux or AppArmor forbids it: sudo dmesg"
)
_ENOUGH: Final = 10_000  # namespaces; a sandbox takes one of each kind
ELSEWHERE: Final = (
    "keep the state on a local disk (ext4, xfs, btrfs; in a container: a volume): "
    "export OVERLAYRUN_STATE_DIR=/path/on/that/disk"
)
"""The cure for a state directory where no layer can lie."""


def is_container() -> bool:
    """Whether Docker or Podman says that it made this system."""
    return any(os.path.exists(path) for path in ("/.dockerenv", "/run/.containerenv"))


def closed(ability: str, tried: Try) -> Words:
    """Who forbids a namespace, or a mount in one."""
    if tried.errno in (errno.ENOSPC, errno.EUSERS):
        return _used_up(ability)
    if tried.errno == errno.EAGAIN:
        return (
            f"this user may start no more processes: {tried.text}",
            "end some, or raise the limit: ulimit -u",
        )
    return _by_switch(ability, tried) or _by_surroundings(ability, tried)


def _by_switch(ability: str, tried: Try) -> Words | None:
    """Switches of Debian and Ubuntu, which bind ordinary users."""
    if os.geteuid() == 0:
        return None
    if ability == "user" and probe.read_switch("kernel/unprivileged_userns_clone") == 0:
        return "kernel.unprivileged_userns_clone is 0", _DEBIAN
    name = "kernel.apparmor_restrict_unprivileged_userns"
    if probe.read_switch(name.replace(".", "/")) == 1:
        return f"AppArmor forbids it ({name} is 1): {tried.text}", _APPARMOR
    return None


def _by_surroundings(ability: str, tried: Try) -> Words:
    if ability == "user" and probe.is_chrooted():
        return f"the kernel forbids it in a chroot: {tried.text}", "start overlayrun outside the chroot"
    if probe.is_filtered():
        outside = "" if is_container() else "start overlayrun outside the sandbox that set it; "
        return f"a seccomp filter lies on this process: {tried.text}", f"{outside}{_CONTAINER}"
    if tried.errno in (errno.EINVAL, errno.ENOSYS):
        return f"this kernel was built without it: {tried.text}", "use a kernel with CONFIG_USER_NS=y"
    if is_container():
        return f"the container forbids it: {tried.text}", _CONTAINER
    return f"the system forbids it: {tried.text}", _ANY_RULE


def _used_up(ability: str) -> Words:
    name = f"max_{ability}_namespaces"
    limit = probe.read_switch(f"user/{name}")
    if limit is None:
        return "namespaces or mounts are used up", "end what holds them: lsns, findmnt; or raise fs.mount-max"
    cure = f"sudo sysctl user.{name}={max(_ENOUGH, 2 * limit)}"
    if limit == 0:
        return f"user.{name} is 0", cure
    return f"user.{name} is {limit} here and used up, or namespaces nest too deeply (32)", cure


def processes(ability: str, tried: Try) -> Words:
    """No private /proc."""
    if tried.errno == errno.EPERM and probe.has_covered_processes():
        return (
            "parts of /proc are covered here, as containers do it, and the kernel then forbids a new one",
            "start the container with --security-opt systempaths=unconfined (Podman: unmask=ALL)",
        )
    return closed(ability, tried)


def overlay(ability: str, tried: Try) -> Words:
    """No overlayfs in a user namespace."""
    if tried.errno == errno.ENODEV:
        return "this kernel has no overlayfs, or its module is not loaded", "sudo modprobe overlay"
    if is_older(5, 11):
        return f"Linux {os.uname().release} has overlayfs for root alone", "use Linux 5.15 or newer"
    return closed(ability, tried)


def disk(_: str, tried: Try) -> Words:
    """The state's file system can't."""
    return f"this file system can't: {tried.text}", ELSEWHERE


def no_id_map(_: str, tried: Try) -> Words:
    """Root can't make root's files somebody else's."""
    cure = (
        "give the repository to an ordinary user and run as him; where root may be let in: --allow-root-uid"
    )
    if tried.errno == errno.EINVAL:
        return f"this file system has none: {tried.text}", f"{ELSEWHERE}; or {cure}"
    return f"root has no right to: {tried.text}", cure


def needs_release(release: str) -> Refusal:
    """Words for what came with a release of Linux."""

    def refusal(ability: str, tried: Try) -> Words:
        if tried.errno == errno.EPERM and probe.is_filtered():
            return closed(ability, tried)
        return (
            tried.text,
            f"use Linux {release} or newer, and a kernel or container that does not switch it off",
        )

    return refusal


def no_groups(_: str, tried: Try) -> Words:
    """No control group of ours."""
    return (
        f"none is ours to divide: {tried.text}",
        "for limits: systemd-run --user --scope -p Delegate=yes -- overlayrun -- COMMAND",
    )


def links(ability: str, tried: Try) -> Words:
    """A file system that shares nothing between files."""
    instead = (
        "copied or hard linked instead (xfs and btrfs have them)"
        if ability == "reflink"
        else "copied instead"
    )
    return tried.text, f"nothing is to be done: files are {instead}"


def is_older(major: int, minor: int) -> bool:
    """Whether the running kernel is older than a release."""
    first, second = os.uname().release.split(".")[:2]
    return (int(first), int("".join(digit for digit in second if digit.isdigit()) or 0)) < (major, minor)
