"""Z8: each layer off in turn lets something through that is stopped with it, and never touches the host."""

from __future__ import annotations

import ctypes  # noqa: TID251  # shared memory and keys of the user's, made without the package under test
import json
import os
import platform
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest
from conftest import Done

from hostile.world import World
from overlayrun.sandbox.switches import LAYERS

THEN_WORKS: Final[Mapping[str, frozenset[str]]] = {
    name: frozenset(attacks)
    for name, attacks in {
        "read-only": ["find the disk writable"],
        "tmp": ["see /tmp of the host"],
        "dev": ["see /dev of the host"],
        "proc": ["see processes of the host"],
        "masks": ["read secrets of HOME"],
        "ipc": ["see shared memory of the host"],
        "uts": ["share the host's name"],
        "rlimits": ["write core files", "write files of any size"],
        "environment": ["read secret variables"],
        "streams": ["open what stdout is"],
        # The host's root has no id inside: no key of his is shown there in any case.
        "keyring": ["see keys of the user"] if os.geteuid() else [],
        "namespaces": ["allow itself namespaces"],
        "no-new-privs": ["gain by set-uid programs"],
        "capabilities": ["keep privileges"],
        "dumpable": ["own pid 1"],
        "landlock": ["talk to abstract sockets of the host"],
        "seccomp": ["use io_uring", "run calls of 32 bits", "push keys"],
    }.items()
}
"""What an agent can do once a layer is off and all others are on. The layers of `_ALONE` have tests of their own."""
_ALONE: Final = frozenset({"cgroup", "renames", "watchdog"})
_SHM_KEY: Final = 0x4F4C0000 | os.getpid() & 0xFFFF
_ADD_KEY, _KEYCTL = (248, 250) if platform.machine() == "x86_64" else (217, 219)  # asm/unistd.h
_JOIN_SESSION, _OWN_SESSION = 1, -3  # linux/keyctl.h


class _Host:
    """What there is to be taken on the host, and a program that looks for it from inside."""

    def __init__(self, world: World, stack: ExitStack) -> None:
        self.world = world
        self.stack = stack
        self.outside = world.place / "outside"
        self.outside.mkdir()
        (self.outside / "file").write_text("the user's\n")
        self.log = world.place / "log"
        server = stack.enter_context(socket.socket(socket.AF_UNIX))
        server.bind(f"\0olr-host-{world.test_id}")
        server.listen()
        self.libc = ctypes.CDLL(None, use_errno=True)
        segment = self.libc.shmget(_SHM_KEY, 4096, 0o1600)
        assert segment >= 0
        stack.callback(self.libc.shmctl, segment, 0, None)
        secret = world.place / "secret"
        secret.write_text(world.secret)
        self.secret = os.open(secret, os.O_RDONLY)
        stack.callback(os.close, self.secret)

    def _take_keyring(self) -> None:
        """Before exec: a session keyring of the user's with a secret in it, as a login makes one."""
        secret = self.world.secret.encode()
        self.libc.syscall(_KEYCTL, _JOIN_SESSION, None)
        self.libc.syscall(
            _ADD_KEY, b"user", f"olr-{self.world.test_id}".encode(), secret, len(secret), _OWN_SESSION
        )

    def run(self, *options: str) -> tuple[dict[str, bool], str]:
        """Which tries worked, and what overlayrun said."""
        world = self.world
        given = {
            "mark": world.test_id,
            "secret_paths": world.secret_paths()[:5],
            "outside": str(self.outside),
            "shm": _SHM_KEY,
            "uts": os.stat("/proc/self/ns/uts").st_ino,
            "pid": os.getpid(),
            "comm": Path("/proc/self/comm").read_text(),
            "descriptor": self.secret,
        }
        self.log.write_text("before\n")
        argv = ["python3", f"{world.payloads}/try_layers.py", json.dumps(given)]
        with self.log.open("ab") as log:
            done = subprocess.run(
                world.repo.command(*world.words("layers", *options), "--", *argv),
                cwd=world.repo.root,
                env=world.repo.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.PIPE,
                pass_fds=[self.secret],
                preexec_fn=self._take_keyring,
                check=False,
                timeout=60,
            )
        said = done.stderr.decode(errors="replace")
        assert done.returncode == 0, said
        worked: dict[str, Any] = json.loads(self.log.read_text().splitlines()[-1])
        return worked, said


@pytest.fixture(scope="module")
def host(world: World) -> Iterator[_Host]:
    with ExitStack() as stack:
        yield _Host(world, stack)


@pytest.fixture(scope="module")
def with_all(host: _Host) -> dict[str, bool]:
    """What works with every layer."""
    return host.run()[0]


def test_every_layer_has_its_row() -> None:
    assert THEN_WORKS.keys() | _ALONE == LAYERS.keys()
    assert {name for name, attacks in THEN_WORKS.items() if not attacks} <= {"keyring"}


def test_with_all_layers_nothing_works(with_all: dict[str, bool]) -> None:
    assert len(with_all) >= 25
    assert [name for name, did in with_all.items() if did] == []


@pytest.mark.parametrize("layer", THEN_WORKS)
def test_without_a_layer_just_its_own_attacks_work(
    host: _Host, with_all: dict[str, bool], layer: str
) -> None:
    with host.world.watched("layers") as watch:
        worked, said = host.run("--without", layer)
    assert watch.broken == [], "no single layer keeps the host as it is"
    assert not os.listdir(host.world.pwn)
    assert sorted(path.name for path in host.outside.iterdir()) == ["file"]
    assert (host.outside / "file").read_text() == "the user's\n"
    assert layer in said, "a layer that is off must be shown"
    expected = THEN_WORKS[layer] & with_all.keys()
    assert {name for name in with_all if worked[name]} == expected


def test_without_the_watchdog_a_limit_of_disk_is_none(world: World) -> None:
    """The other half of case 94, in which more than the limit ends the run."""
    program = "import os, time\nfor n in range(8):\n    open(f'big{n}', 'wb').write(os.urandom(1 << 20) * 8)\ntime.sleep(2)"
    done = _plain(world, program, "unwatched", "--disk", "40M", "--without", "watchdog")
    assert done.code == 0, str(done)


@pytest.mark.parametrize("off", [False, True])
def test_without_its_layer_no_control_group_holds_a_limit(world: World, off: bool) -> None:  # noqa: FBT001  # a parameter
    """Where a group is to be had (the header says so), the command is in it, and just then."""
    branch = f"group-{off}"
    words = world.words(branch, "--memory", "300M", *(["--without", "cgroup"] if off else []))
    with (
        world.watched(branch) as watch,
        world.repo.started(*words, "--", "sh", "-c", "echo ready; read line") as run,
    ):
        run.expect("ready\n")
        groups = [Path(f"/proc/{pid}/cgroup").read_text() for pid in world.inside()]
        run.type("")
        assert run.end() == 0, run.text()
    assert watch.broken == []
    assert groups
    told = "by control group" in run.text()
    assert not (off and told)
    assert {"overlayrun" in group for group in groups} == {told}
    assert told or off or os.geteuid() != 0


def _plain(world: World, program: str, branch: str, *options: str) -> Done:
    with world.watched(branch) as watch:
        done = world.repo.overlayrun(*world.words(branch, *options), "--", "python3", "-c", program)
    assert watch.broken == []
    return done
