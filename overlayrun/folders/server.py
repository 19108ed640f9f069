"""The process of the folders' file system: started, mounted, and cleared away.

It is mounted by fusermount3, for root as for everybody. A shell waits beside it for its death, and takes the
mount away then, however it died: fusermount3's own auto_unmount does so for root and allow_other alone.

Root could mount a branch's overlay in its folder, and a first walk would take half the time. It has not been
done: rmdir(2) of a mountpoint never reaches us, and a file that a program holds open there would go on
changing an upper that a run has taken over meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import signal
import socket
import subprocess
import threading
import time
import traceback
from dataclasses import dataclass
from typing import Final

from overlayrun.errors import HostError
from overlayrun.folders.channel import ControlEnd, FolderEnd, pair
from overlayrun.folders.filesystem import FileSystem
from overlayrun.kernel import namespaces
from overlayrun.kernel.mountinfo import mounts
from overlayrun.kernel.passed import receive

_HELPER: Final = "fusermount3"
_DEVICE: Final = "/dev/fuse"
_TYPE: Final = "overlayrun"
# Its input ends with the process; where somebody mounted there again meanwhile, that is left alone.
_UNDERTAKER: Final = f'read -r stopped && exit; ls "$1" || exec {_HELPER} -u -q -z -- "$1"'
_PATIENCE: Final = 2.0  # seconds
_MOST_OPEN: Final = 65536
_INSTALL: Final = "Install it: apt install fuse3 (dnf install fuse3, apk add fuse3)."


@dataclass(frozen=True, slots=True)
class Served:
    """A mounted file system. pid: of its process, the caller's child; end: to be served."""

    mountpoint: str
    pid: int
    end: ControlEnd


def missing() -> HostError | None:
    """What this machine lacks for folders, with its cure; None if nothing."""
    if shutil.which(_HELPER) is None:
        return HostError(f"{_HELPER} is not installed", hint=_INSTALL)
    try:
        os.close(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as err:
        hint = "Load its module: modprobe fuse. In a container: --device /dev/fuse."
        return HostError(f"{_DEVICE} can't be opened: {os.strerror(err.errno or errno.EIO)}", hint=hint)
    return None


def start(mountpoint: str, owner: tuple[int, int] | None = None) -> Served:
    """Mount the folders at a directory, in a process that ends with this one, which has one thread.

    owner: (uid, gid) of the folders; without, the caller. Raises HostError.
    """
    lacking = missing()
    if lacking is not None:
        raise lacking
    clear_stale(mountpoint)
    _raise_open_files()
    ours, theirs = pair()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            _serve(
                theirs.detach(), os.path.realpath(mountpoint), owner or (os.geteuid(), os.getegid()), parent
            )
        finally:
            traceback.print_exc()  # only an error of ours comes here
            os._exit(1)
    theirs.close()
    end = ControlEnd(ours)
    try:
        end.wait_until_mounted()
    except HostError:
        os.waitpid(pid, 0)
        raise
    return Served(mountpoint, pid, end)


def _raise_open_files() -> None:
    """Of this process, which holds two descriptors a branch, and of the one that it makes."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = _MOST_OPEN if hard == resource.RLIM_INFINITY else min(hard, _MOST_OPEN)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _serve(fd: int, mountpoint: str, owner: tuple[int, int], parent: int) -> None:
    """The process of the file system, to its end."""
    namespaces.die_with_parent(parent)
    os.chdir("/")
    os.umask(0)
    end = socket.socket(fileno=_alone_with(fd))
    # A stop of the terminal's group is the control process's to handle: it unmounts.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)
    folder_end = FolderEnd(end)
    try:
        device = _mount(mountpoint)
    except HostError as err:
        folder_end.failed(err.brief, err.hint)
        os._exit(1)
    says = _undertaker(mountpoint)
    file_system = FileSystem(device, folder_end, owner, mountpoint)
    obeyed = (file_system.let_go, file_system.changed)
    threading.Thread(target=folder_end.listen, args=obeyed, daemon=True).start()
    folder_end.mounted()
    file_system.run()
    os.write(says, b"stopped\n")
    os._exit(0)


def _alone_with(fd: int) -> int:
    """Close all descriptors but the standard ones and this one, which gets a number of its own.

    A lock of the control process, held open here, would outlive it.
    """
    kept = os.dup2(fd, 3, inheritable=False) if fd != 3 else fd
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))
    return kept


def _mount(mountpoint: str) -> int:
    """/dev/fuse, mounted by the helper, which sends it (fusermount3 of libfuse, `_FUSE_COMMFD`)."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    options = ["fsname=overlayrun", f"subtype={_TYPE}", "default_permissions", "nosuid", "nodev"]
    if os.geteuid() == 0:  # fusermount3 grants it to others only where /etc/fuse.conf says so
        options.append("allow_other")
    argv = [_HELPER, "-o", ",".join(options), "--", mountpoint]
    environment = os.environ | {"_FUSE_COMMFD": str(theirs.fileno())}
    helper = subprocess.Popen(
        argv, env=environment, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    theirs.close()
    _, fds, _ = receive(ours, 1, 1)
    if not fds:
        said = helper.communicate()[1].decode(errors="replace").strip()
        raise HostError(f"can't mount at {mountpoint}: {said or 'no reason given'}")
    ours.close()
    helper.communicate()
    return fds[0]


def _undertaker(mountpoint: str) -> int:
    """Start who takes the mount away when this process is dead; a descriptor to tell him, or to die with."""
    waits, says = os.pipe()
    argv = ["sh", "-c", _UNDERTAKER, "sh", mountpoint]
    quiet = subprocess.DEVNULL
    # In a session of its own: no signal to ours reaches it.
    process = subprocess.Popen(argv, stdin=waits, stdout=quiet, stderr=quiet, start_new_session=True)
    process.returncode = 0  # nobody waits for it
    os.close(waits)
    return says


def stop(served: Served) -> None:
    """Unmount, and wait for the process to end. What users still have open there fails from now on.

    Trees are let go before, which takes over what programs wrote to mappings and did not flush.
    """
    unmount(served.mountpoint)
    # Killed in the middle of an answer it could leave who waits for it, and itself, asleep in the kernel.
    if not _has_ended(served.pid, _PATIENCE):
        with contextlib.suppress(ProcessLookupError):
            os.kill(served.pid, signal.SIGKILL)
        _has_ended(served.pid, _PATIENCE)


def _has_ended(pid: int, seconds: float) -> bool:
    """Whether a child of ours ends within so many seconds."""
    deadline = time.monotonic() + seconds
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(pid, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
    return True


def unmount(mountpoint: str) -> None:
    """Take the mount away, now or, where somebody uses it, from sight now and else when he is done."""
    for options in (["-u", "-q"], ["-u", "-q", "-z"]):
        done = subprocess.run([_HELPER, *options, "--", mountpoint], capture_output=True, check=False)
        if done.returncode == 0 or not is_mounted(mountpoint):
            return


def is_mounted(mountpoint: str) -> bool:
    """Whether folders of ours are mounted there, alive or not."""
    wanted = os.path.realpath(mountpoint)
    return any(mount.place == wanted and mount.fstype == f"fuse.{_TYPE}" for mount in mounts())


def clear_stale(mountpoint: str) -> None:
    """Take away what a killed process left mounted there. Raises HostError where a living one has it."""
    if not is_mounted(mountpoint):
        return
    try:
        os.listdir(mountpoint)  # what stat would say, the kernel remembers
    except OSError as err:
        if err.errno != errno.ENOTCONN:
            raise HostError(f"{mountpoint}: {os.strerror(err.errno or errno.EIO)}") from err
        unmount(mountpoint)
    else:
        raise HostError(f"{mountpoint} is open already", hint="Close it first: overlayrun open --stop")
