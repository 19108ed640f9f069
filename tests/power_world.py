"""A machine whose power can be cut: a file system on a loop device, and processes in namespaces of their own.

A cut drops what the file system has not written (FS_IOC_SHUTDOWN without a flush of its log), then kills every
process of the machine. The kernel goes on: each start covers its boot id and the time of its boot by others.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from conftest import PATIENCE, Done, Running, wait_until

_SHUTDOWN: Final = (
    0x8004587D  # FS_IOC_SHUTDOWN: _IOR('X', 125, __u32), linux/fs.h; XFS_IOC_GOINGDOWN is the same
)
_NO_LOG_FLUSH: Final = 2  # EXT4_GOING_FLAGS_NOLOGFLUSH, XFS_FSOP_GOING_FLAGS_NOLOGFLUSH
_MEGABYTES: Final = {"ext4": 512, "xfs": 640, "btrfs": 160}
_FORCE: Final = {"ext4": ("-F", "-E", "lazy_itable_init=1,lazy_journal_init=1"), "xfs": (), "btrfs": ()}

# In a user namespace a new /proc may be mounted only beside one of which no part is covered.
_START: Final = """
set -e
mount -t proc proc "$1/proc"
mount -t "$2" -o "$3" "$4" "$1/disk"
mount --bind "$1/boot_id" /proc/sys/kernel/random/boot_id
sed "s/^btime .*/btime $(($(date +%s) + 1))/" /proc/stat >"$1/stat"
mount --bind "$1/stat" /proc/stat
echo up
exec sleep 1000000
"""


class Machine:
    """One disk, off or running; `place` holds the image, `disk` is where a running machine has it mounted.

    Nobody else sees that mount: a sandbox of another test would keep it for as long as it lives.
    """

    def __init__(self, place: Path, kind: str = "ext4") -> None:
        self.place = place
        self.kind = kind
        self.disk = place / "disk"
        self.image = place / "image"
        self._boot: subprocess.Popen[bytes] | None = None
        self._init = 0
        self._device = ""
        for name in ("disk", "proc"):
            (place / name).mkdir(parents=True)
        (place / "boot_id").touch()

    def format(self) -> None:
        """An empty disk."""
        with self.image.open("wb") as file:
            file.truncate(_MEGABYTES[self.kind] << 20)
        subprocess.run([f"mkfs.{self.kind}", "-q", *_FORCE[self.kind], self.image], check=True)

    def copy_disk(self, template: Path) -> None:
        """The disk of another machine, which is off."""
        subprocess.run(["cp", "--sparse=always", "--reflink=auto", template, self.image], check=True)

    def start(self, options: str = "rw") -> None:
        """Switch on: attach and mount the disk, with another boot id than ever before."""
        (self.place / "boot_id").write_text(f"{uuid.uuid4()}\n")
        attach = ["losetup", "--find", "--show", str(self.image)]
        self._device = subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip()
        words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        script = ["sh", "-c", _START, "sh", str(self.place), self.kind, options, self._device]
        with (self.place / "log").open("ab") as log:
            self._boot = subprocess.Popen([*words, *script], stdout=subprocess.PIPE, stderr=log)
        assert self._boot.stdout is not None
        assert self._boot.stdout.readline() == b"up\n", (self.place / "log").read_text()
        self._init = int(Path(f"/proc/{self._boot.pid}/task/{self._boot.pid}/children").read_text())

    def cut(self) -> None:
        """Cut the power: what is not on the disk is gone, and so is every process."""
        if self.kind == "btrfs":
            return self._clone()
        fd = os.open(self.see(self.disk), os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, _NO_LOG_FLUSH.to_bytes(4, "little"))
        finally:
            os.close(fd)
        return self.off()

    def _clone(self) -> None:
        """Btrfs can't be shut down: what the device holds at one moment is cloned, and is its disk from now on.

        Nobody writes to the image while it is cloned; its own file system must be able to (xfs).
        """
        clone = self.place / "clone"
        subprocess.run(["cp", "--reflink=always", self.image, clone], check=True)
        self.off()
        clone.rename(self.image)

    def off(self) -> None:
        """Kill every process of the machine and let its disk go."""
        if self._boot is None:
            return
        assert self._boot.stdout is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._init, signal.SIGKILL)
        self._boot.wait()
        self._boot.stdout.close()
        self._boot = None
        mounted = Path(f"/sys/fs/{self.kind}/{Path(self._device).name}")
        wait_until(lambda: not mounted.exists(), f"{self._device} is let go")
        subprocess.run(["losetup", "--detach", self._device], check=True)

    def see(self, path: Path) -> Path:
        """Where the test itself finds a file of the running machine."""
        return Path(f"/proc/{self._init}/root{path}")

    def inside(self, argv: Sequence[str], cwd: Path, env: Mapping[str, str]) -> list[str]:
        """A command line that runs `argv` on this machine."""
        variables = [f"{name}={value}" for name, value in env.items()]
        enter = ["nsenter", f"--target={self._init}", "--mount", "--pid", "--"]
        return [*enter, "env", "-i", f"--chdir={cwd}", *variables, *argv]


class Desk:
    """The user's repository on a machine's disk.

    env: of a shell there, less what names the HOME. owner: uid and gid of the user; root mounts all the same.
    """

    def __init__(self, machine: Machine, env: Mapping[str, str], owner: int = 0) -> None:
        self.machine = machine
        self.owner = owner
        self.root = machine.disk / "repo"
        home = str(machine.disk / "home")
        self.env = {**env, "HOME": home, "XDG_STATE_HOME": f"{home}/state", "XDG_CACHE_HOME": f"{home}/cache"}

    @property
    def seen(self) -> Path:
        """The repository as the test itself finds it."""
        return self.machine.see(self.root)

    def do(self, *argv: str) -> Done:
        """Run a command to its end; whatever happens, overlayrun never raises."""
        command = self._command(*argv)
        done = subprocess.run(command, capture_output=True, check=False, timeout=PATIENCE)
        ended = Done(done.returncode, os.fsdecode(done.stdout), os.fsdecode(done.stderr))
        assert "Traceback" not in ended.err, str(ended)
        assert ended.code != 70, str(ended)
        return ended

    def must(self, *argv: str) -> str:
        """What a command prints that must not fail."""
        done = self.do(*argv)
        assert done.code == 0, f"{argv}: {done}"
        return done.out

    def _command(self, *argv: str) -> list[str]:
        become = ["setpriv", f"--reuid={self.owner}", f"--regid={self.owner}", "--clear-groups"]
        return self.machine.inside([*(become if self.owner else ()), *argv], self.root, self.env)

    @contextmanager
    def at_work(self, script: str) -> Iterator[Running]:
        """Let a script of the shell run on while the test does; it ends with the machine."""
        log = self.machine.place / f"{uuid.uuid4().hex}.log"
        command = self._command("sh", "-c", script)
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            yield Running(process, log)
        finally:
            self.machine.off()
            process.wait()
