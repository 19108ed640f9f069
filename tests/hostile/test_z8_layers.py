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
from typing import Any, Final

import pytest
from conftest import Done

from hostile.world import World
from overlayrun.sandbox.switches import LAYERS

THEN_WORKS: Final[Mapping[str, frozenset[str]]] = {
    name: frozenset(attacks)
    for name, attacks in {
        "read-only": ["touch a file of the disk"],
        "tmp": ["see /tmp of the host"],
        "dev": ["see /dev of the host"],
        "proc": ["see processes of the host"],
        "masks": ["read secrets of HOME"],
        "ipc": ["see shared memory of the host"],
        "uts": ["share the host's name"],
        "rlimits": ["write core files", "write files of any size"],
        "environment": ["read secret variables"],
        "streams": ["open what stdout is"],
        "keyring": ["see keys of the user"],
        "namespaces": ["allow itself namespaces"],
        "no-new-privs": ["gain by set-uid programs"],
        "capabilities": ["keep privileges"],
        "dumpable": ["own pid 1"],
        "landlock": ["talk to abstract sockets of the host"],
        "seccomp": ["use io_uring", "run calls of 32 bits", "push keys"],
    }.items()
}
"""What an agent can do once a layer is off and all others are on. The layers of `_ALONE` have tests of their own."""
_ALONE: Final = frozenset({"cgroup", "watchdog"})
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
    assert all(THEN_WORKS.values())


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


def test_without_the_control_group_a_limit_of_memory_is_slow(world: World) -> None:
    """A group stops the first page too many; where none is to be had, the header says so."""
    program = "import mmap\nm = mmap.mmap(-1, 256 << 20)\nfor _ in range(64): m.write(b'x' * (4 << 20))"
    limited = _plain(world, program, "grouped", "--memory", "100M")
    if any("by control group" in line for line in limited.ours):
        assert limited.code == 137, str(limited)
        assert _plain(world, program, "ungrouped", "--memory", "100M", "--without", "cgroup").code == 0
    else:
        assert os.geteuid() != 0 or "cgroup" not in limited.err


def _plain(world: World, program: str, branch: str, *options: str) -> Done:
    with world.watched(branch) as watch:
        done = world.repo.overlayrun(*world.words(branch, *options), "--", "python3", "-c", program)
    assert watch.broken == []
    return done
