"""Root in somebody else's repository: become its owner, before anything is made that he could not change.

On the launch path.
"""

from __future__ import annotations

import os
import pwd

from overlayrun.errors import HostError
from overlayrun.kernel import abi, namespaces, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def become_owner(directory: str, tell: Callable[[str], None]) -> None:
    """Give root's rights up for those of who owns the repository around a directory; for good.

    Root's files in it would lock the owner out, and the command must not be root. Whoever is not root, and
    root in a repository of his own, stays what he is. tell: shows a line to the user.
    Raises HostError where the owner can't read overlayrun itself.
    """
    if not namespaces.is_root_of_host():
        return
    info = _repository_info(directory)
    if info is None or info.st_uid == 0:
        return
    _take_over(info.st_uid, info.st_gid)
    if not os.access(__file__, os.R_OK) or not os.access(os.__file__, os.R_OK):
        raise HostError(
            f"the repository belongs to user {info.st_uid}, who can't read overlayrun or its Python",
            hint="install both where he can, not below root's home; or run it as him: runuser -u NAME",
        )
    if not os.access(directory, os.R_OK | os.X_OK):
        raise HostError(
            f"the repository belongs to user {info.st_uid}, who can't get to it: {directory}",
            hint="let him pass (chmod a+x the directories above it), or take it over: chown -R root",
        )
    tell(f"as user {info.st_uid}, who owns the repository, and not as root")


def _repository_info(directory: str) -> os.stat_result | None:
    """Of the nearest directory above that has a `.git`; None where there is none."""
    while True:
        try:
            os.lstat(f"{directory}/.git")
            return os.stat(directory)
        except OSError:
            if directory == "/":
                return None
            directory = os.path.dirname(directory)


def _take_over(uid: int, gid: int) -> None:
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:  # a container knows its owner by number alone
        os.setgroups([])
        home = os.environ.get("HOME", "/")
    else:
        gid, home = entry.pw_gid, entry.pw_dir
        os.initgroups(entry.pw_name, gid)
        os.environ["USER"] = os.environ["LOGNAME"] = entry.pw_name
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    # Or our own /proc/self, where the id maps are written, would stay root's (prctl(2), PR_SET_DUMPABLE).
    syscalls.prctl(abi.PR_SET_DUMPABLE, 1)
    own = os.environ.get("HOME", "")
    if not os.access(own, os.R_OK | os.W_OK | os.X_OK):
        os.environ["HOME"] = home
        for name in [name for name in os.environ if name.startswith("XDG_")]:
            del os.environ[name]
