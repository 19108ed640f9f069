"""File systems whose server may be dead: who asks one anything then waits for ever, and can't be killed.

On the launch path.
"""

from __future__ import annotations

import os
import select

from overlayrun.kernel import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

    from overlayrun.kernel.mountinfo import Mount

_KINDS: Final = (
    *("fuse", "nfs", "cifs", "smb", "9p", "ceph", "afs", "autofs", "virtiofs", "lustre", "beegfs"),
    *("orangefs", "gpfs", "glusterfs"),
)
_PATIENCE: Final = 1.0  # seconds


def silent_mounts(paths: Iterable[str], mounted: Iterable[Mount]) -> dict[str, str]:
    """Those of `paths` that lie on a file system that does not answer, and where that is mounted.

    The file system that holds the current directory does, or nobody would be here.
    """
    try:
        here = f"{os.getcwd()}/"
    except FileNotFoundError:
        here = "/"
    places = [mount.place for mount in mounted if mount.fstype.startswith(_KINDS)]
    places = sorted({place for place in places if not here.startswith(f"{place.rstrip('/')}/")}, reverse=True)
    asked: dict[str, bool] = {}
    found = {}
    for path in paths:
        place = next((place for place in places if f"{path}/".startswith(f"{place}/")), None)
        if place is None:
            continue
        if place not in asked:
            asked[place] = _answers(path)
        if not asked[place]:
            found[path] = place
    return found


def _answers(path: str) -> bool:
    """Whether a look at `path` comes to an end; the child that looks stays behind where it does not."""
    ends, held = os.pipe()
    pid = syscalls.clone(0)
    if pid == 0:
        try:
            # Nothing may wait for it, or be locked by it.
            os.closerange(0, held)
            os.closerange(held + 1, os.sysconf("SC_OPEN_MAX"))
            os.path.lexists(path)
        finally:
            os._exit(0)
    os.close(held)
    waiting = select.poll()
    waiting.register(ends, select.POLLIN)
    is_over = bool(waiting.poll(_PATIENCE * 1000))
    os.close(ends)
    if is_over:
        os.waitpid(pid, 0)
    else:
        os.kill(pid, 9)
    return is_over
