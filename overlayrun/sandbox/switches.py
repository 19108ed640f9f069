"""Layers of the sandbox that can be switched off by name, each for a reason of the user's own."""

from __future__ import annotations

from overlayrun.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Final

# What keeps the command in its own tree (user, mount and process namespaces, overlayfs) is no layer to be
# switched off: without it there is no workspace.
LAYERS: Final[Mapping[str, str]] = {
    "read-only": "the rest of the disk is read-only",
    "tmp": "private /tmp and /var/tmp",
    "dev": "private /dev with terminals of its own",
    "proc": "private /proc",
    "masks": "secrets of HOME, sockets and other state are hidden",
    "ipc": "private shared memory and message queues",
    "uts": "private host name",
    "cgroup": "limits by control groups",
    "rlimits": "limits of each process",
    "watchdog": "an eye on disk and memory",
    "environment": "variables with secrets and handles are withheld",
    "streams": "files are given as pipes",
    "keyring": "a session keyring of its own",
    "namespaces": "no namespaces can be made inside",
    "no-new-privs": "set-uid programs gain nothing",
    "capabilities": "no privileges inside its own namespaces either",
    "dumpable": "pid 1 can't be looked into",
    "landlock": "a second barrier behind the mounts",
    "seccomp": "system calls that lead out are refused",
    "renames": "directories of the base can be renamed: each rename is looked at before",
}


def parse_without(names: Iterable[str]) -> frozenset[str]:
    """The layers to leave out; raises UsageError for a name that is none."""
    given = frozenset(names)
    unknown = sorted(given - LAYERS.keys())
    if unknown:
        raise UsageError(f"no layer is called {unknown[0]!a}", hint=f"layers: {' '.join(LAYERS)}")
    return given
