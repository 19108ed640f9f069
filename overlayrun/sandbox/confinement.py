"""What a process gives up before it becomes the command: each step is a layer with a name.

The command, and all that `exec` or git's work brings into its sandbox, go through the same steps.
"""

from __future__ import annotations

import errno
import os

from overlayrun.kernel import abi, namespaces, syscalls
from overlayrun.sandbox import landlock, seccomp
from overlayrun.sandbox.limits import LimitOptions, apply_rlimits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any, Final, Self


class Confinement:
    """What is given up, as plain values: it travels to processes that join the sandbox.

    writable: paths that the mounts let be written. without: layers that are switched off. ptrace, userns:
    system calls that the user allows. root_uid: in a run by root, the command may be root. network: it has
    one of its own. shares_group: it stays in our process group, where the terminal's keys reach it.
    """

    __slots__ = (
        "limits",
        "network",
        "ptrace",
        "root_uid",
        "shares_group",
        "userns",
        "without",
        "writable",
    )

    def __init__(self, without: Iterable[str] = ()) -> None:
        self.without = frozenset(without)
        self.writable: Sequence[str] = ()
        self.ptrace = False
        self.userns = False
        self.root_uid = False
        self.shares_group = False
        self.network = False
        self.limits = LimitOptions()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        return {**plain, "without": sorted(self.without), "limits": self.limits.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        made = cls()
        for name in cls.__slots__:
            setattr(made, name, data[name])
        made.without, made.limits = frozenset(data["without"]), LimitOptions.from_json(data["limits"])
        return made

    @property
    def namespaces(self) -> int:
        """Flags of clone(2) for the sandbox."""
        optional = {"ipc": abi.CLONE_NEWIPC, "uts": abi.CLONE_NEWUTS}
        left_out = sum(flag for name, flag in optional.items() if name in self.without)
        own_network = abi.CLONE_NEWNET if self.network else 0
        return namespaces.SANDBOX_NAMESPACES & ~left_out | own_network


# What one process has assembled, those that it forks need not.
_PROGRAMS: Final[dict[tuple[bool, bool, bool, bool], bytes]] = {}


def filter_program(confinement: Confinement, *, heard: bool) -> bytes:
    """The seccomp filter; heard: see `seccomp.assemble`. Raises HostError."""
    # Who asks is looked up by his number, which another /proc does not have.
    renames = heard and not confinement.without & {"renames", "proc"}
    chosen = (confinement.ptrace, confinement.userns, heard, renames)
    if chosen not in _PROGRAMS:
        _PROGRAMS[chosen] = seccomp.assemble(
            os.uname().machine,
            ptrace=confinement.ptrace,
            userns=confinement.userns,
            heard=heard,
            renames=renames,
        )
    return _PROGRAMS[chosen]


def confine(confinement: Confinement, *, is_filtered: bool = False) -> None:
    """Give up everything; the next step is exec. Raises OSError where a step fails: then nothing may start.

    is_filtered: the filter is the parent's already. Raises HostError for a machine without a filter.
    """
    off = confinement.without
    if not confinement.shares_group:
        # kill(2) of process 0 goes by the group, and no namespace stands in its way to who is in it outside.
        os.setpgid(0, 0)
    if "rlimits" not in off:
        apply_rlimits(confinement.limits)
    if not is_filtered:
        leave_keyring(confinement)
    if "no-new-privs" not in off:
        syscalls.prctl(abi.PR_SET_NO_NEW_PRIVS, 1)
    if "landlock" not in off:
        landlock.restrict(
            confinement.writable, files=not confinement.userns, signals=confinement.shares_group
        )
    # Before the capabilities go, which stand in for no_new_privs where that is switched off.
    if "seccomp" not in off and not is_filtered:
        seccomp.install(filter_program(confinement, heard=False))
    if "capabilities" not in off:
        # Who is root inside needs this one to map root into a namespace of his own (user_namespaces(7)). It
        # gives nothing outside: such file capabilities hold where nobody is root, and no mount honours them.
        maps_root = confinement.userns and os.geteuid() == 0
        namespaces.drop_capabilities(but=abi.CAP_SETFCAP if maps_root else None)
    syscalls.close_range(3)


def leave_keyring(confinement: Confinement) -> None:
    """Keys of the user's session stay out of reach; the filter forbids to come back (keyrings(7))."""
    if "keyring" in confinement.without:
        return
    try:
        syscalls.join_session_keyring()
    except OSError as err:
        if err.errno != errno.ENOSYS:  # a kernel without keys has none to hide
            raise


def forbid_namespaces() -> None:
    """No process of this user namespace may make another one: a wall behind the filter (namespaces(7))."""
    fd = os.open("/proc/sys/user/max_user_namespaces", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, b"0")
    finally:
        os.close(fd)
