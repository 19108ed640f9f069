"""Each way in which a machine can forbid the sandbox is named, with its own cure."""

from __future__ import annotations

from errno import ENOMEM
from pathlib import Path
from typing import Final

import pytest

from overlayrun.doctor import explain
from overlayrun.errors import MountError

from .lab import scene

# scenario, what the line must name, what the cure must name
CLOSED: Final = {
    "no-user-namespaces": (
        "enter(); set_switch('user/max_user_namespaces', 0); answer_reason()",
        "user namespaces: user.max_user_namespaces is 0",
        "sysctl user.max_user_namespaces=10000",
    ),
    "no-mount-namespaces": (
        "enter(); set_switch('user/max_mnt_namespaces', 0); answer_reason()",
        "mount namespaces, own uid mapped: user.max_mnt_namespaces is 0",
        "sysctl user.max_mnt_namespaces=10000",
    ),
    "no-process-namespaces": (
        "enter(); set_switch('user/max_pid_namespaces', 0); answer_reason()",
        "process namespaces: user.max_pid_namespaces is 0",
        "sysctl user.max_pid_namespaces=10000",
    ),
    "namespaces-used-up": (
        "import os; enter(); set_switch('user/max_user_namespaces', 1)\n"
        "read, write = os.pipe(); holder = os.fork()\n"
        "if holder == 0: enter(); os.write(write, b'.'); os.read(os.pipe()[0], 1)\n"
        "os.read(read, 1); answer_reason(); os.kill(holder, 9)",
        "user.max_user_namespaces is 1 here and used up",
        "sysctl user.max_user_namespaces=10000",
    ),
    "debian-switch": (
        "enter(1000); show_kernel_switch('unprivileged_userns_clone', 0)\n"
        "forbid(CLONE, EPERM, abi.CLONE_NEWUSER); answer_reason()",
        "user namespaces: kernel.unprivileged_userns_clone is 0",
        "sysctl kernel.unprivileged_userns_clone=1",
    ),
    "ubuntu-forbids-mounts": (
        "enter(1000); show_kernel_switch('apparmor_restrict_unprivileged_userns', 1)\n"
        "forbid(MOUNT, EACCES); answer_reason()",
        "AppArmor forbids it (kernel.apparmor_restrict_unprivileged_userns is 1)",
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
    ),
    "ubuntu-forbids-namespaces": (
        "enter(1000); show_kernel_switch('apparmor_restrict_unprivileged_userns', 1)\n"
        "forbid(CLONE, EPERM, abi.CLONE_NEWUSER); answer_reason()",
        "user namespaces: AppArmor forbids it",
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
    ),
    "container-filter": (
        "forbid(CLONE, EPERM, abi.CLONE_NEWUSER); answer_reason()",
        "user namespaces: a seccomp filter lies on this process: clone: Operation not permitted",
        "--security-opt seccomp=unconfined",
    ),
    "killing-filter": (
        "forbid(CLONE, KILL, abi.CLONE_NEWUSER); answer_reason()",
        "user namespaces: a seccomp filter lies on this process: killed by a seccomp filter (SIGSYS)",
        "--security-opt seccomp=unconfined",
    ),
    "container-forbids-mounts": (
        "forbid(MOUNT, EPERM); answer_reason()",
        "mount namespaces, own uid mapped: a seccomp filter lies on this process: mount: Operation",
        "--security-opt seccomp=unconfined",
    ),
    "chroot": (
        "import os; enter(); os.makedirs('jail/proc'); os.makedirs('jail/tmp')\n"
        "syscalls.mount('/proc', 'jail/proc', None, 0x1000 | abi.MS_REC)\n"
        "os.chroot('jail'); os.chdir('/'); answer_reason()",
        "user namespaces: the kernel forbids it in a chroot: clone: Operation not permitted",
        "outside the chroot",
    ),
    "no-processes-left": (
        "forbid(CLONE, EAGAIN); answer_reason()",
        "user namespaces: this user may start no more processes",
        "ulimit -u",
    ),
    "no-mount-setattr": (
        "forbid(abi.NR_MOUNT_SETATTR, ENOSYS); answer_reason()",
        "read-only disk: mount_setattr: Function not implemented",
        "Linux 5.15 or newer",
    ),
    "covered-processes": (
        "enter(0); mount('tmpfs', '/proc/sys'); answer_reason()",
        "private /proc: parts of /proc are covered here",
        "--security-opt systempaths=unconfined",
    ),
    "old-mount-api": (
        "forbid(abi.NR_FSOPEN, ENOSYS); answer_reason()",
        "mount API: fsopen: Function not implemented",
        "Linux 5.15 or newer",
    ),
    "no-close-range": (
        "forbid(abi.NR_CLOSE_RANGE, ENOSYS); answer_reason()",
        "close_range: close_range: Function not implemented",
        "Linux 5.15 or newer",
    ),
    "no-filters": (
        "forbid(abi.NR_SECCOMP, EPERM); answer_reason()",
        "seccomp filters: a seccomp filter lies on this process: seccomp: Operation not permitted",
        "--security-opt seccomp=unconfined",
    ),
}


@pytest.mark.parametrize(("text", "reason", "cure"), CLOSED.values(), ids=CLOSED.keys())
def test_the_reason_is_named_with_its_cure(tmp_path: Path, text: str, reason: str, cure: str) -> None:
    brief, hint = scene(text, cwd=tmp_path)
    assert brief.startswith("the sandbox can't be made here: ")
    assert reason in brief
    assert cure in hint
    assert "\n" not in brief + hint


# scenario, ability that a run does without, what the finding must say
LIMITED: Final = {
    "no-descriptors": ("forbid(abi.NR_FSCONFIG, EINVAL, 5, second=True)", "descriptors", "Invalid argument"),
    "no-landlock": ("forbid(abi.NR_LANDLOCK_CREATE_RULESET, ENOSYS)", "landlock", "not implemented"),
    "landlock-switched-off": (
        "forbid(abi.NR_LANDLOCK_CREATE_RULESET, EOPNOTSUPP)",
        "landlock",
        "Operation not supported",
    ),
    "no-pidfd": ("forbid(434, ENOSYS)", "pidfd", "not implemented"),
    "no-control-groups": ("enter(); mount('tmpfs', '/sys/fs/cgroup')", "cgroup", "none is ours to divide"),
}


@pytest.mark.parametrize(("text", "ability", "words"), LIMITED.values(), ids=LIMITED.keys())
def test_what_a_run_does_without_is_limited_and_no_reason(text: str, ability: str, words: str) -> None:
    state, found, cure = scene(f"{text}; answer_ability({ability!r})")
    assert state == "limited"
    assert words in found
    assert cure
    brief, _ = scene(f"{text}; answer_reason()")
    assert brief == "the sandbox could not be made"


def test_what_needs_a_missing_ability_is_not_tried_and_says_so() -> None:
    state, found, cure = scene("forbid(CLONE, EPERM, abi.CLONE_NEWUSER); answer_ability('overlay')")
    assert (state, found, cure) == (
        "missing",
        "not tried, for want of: user namespaces",
        "first: user namespaces",
    )


def test_where_nothing_is_missing_the_failure_itself_is_told() -> None:
    brief, hint = explain(OSError(ENOMEM, "clone: Cannot allocate memory"))
    assert brief == "the sandbox could not be made: clone: Cannot allocate memory"
    assert "doctor" in hint
    assert explain(MountError("HOME: Invalid argument", hint="look there")) == (
        "HOME: Invalid argument",
        "look there",
    )
