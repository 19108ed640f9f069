"""Cases 65 to 80, and those of other sections that one program can try: everything below the agent is closed."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from hostile.world import Attack, World

CLOSED = {"EPERM", "EACCES", "ENOSYS", "ENOENT", "EROFS"}


@pytest.fixture(scope="module")
def called(world: World) -> Iterator[Attack]:
    with ExitStack() as stack:
        for address in (f"\0olr-host-{world.test_id}", "agent.sock"):
            server = stack.enter_context(socket.socket(socket.AF_UNIX))
            if address == "agent.sock":  # by a short path: a socket's may have 107 bytes at most
                here = os.getcwd()
                os.chdir(world.home)
                stack.callback((world.home / ".agent.sock").unlink)
                server.bind(".agent.sock")
                os.chdir(here)
            else:
                server.bind(address)
            server.listen()
        yield world.payload("call_kernel", branch="kernel")


def _open(answers: dict[str, str]) -> dict[str, str]:
    return {name: answer for name, answer in answers.items() if answer not in CLOSED}


def test_case_065_nested_user_namespace(called: Attack) -> None:
    tried = called.part("65 user namespaces")
    assert _open(tried) == {}
    assert tried["clone3"] == "ENOSYS", "libc must fall back to clone, whose flags a filter can read"
    assert called.part("65 mounts in a namespace of one's own") != "ok"


def test_case_066_other_architectures(called: Attack) -> None:
    tried = called.part("66 other architectures")
    assert tried == "not this machine" or set(tried.values()) == {"signal 31"}, tried


def test_case_067_io_uring(called: Attack) -> None:
    called.refused("67 io_uring", "ENOSYS")


def test_case_068_keyring(called: Attack) -> None:
    tried = called.part("68 keys")
    assert tried.pop("/proc/keys") is False
    assert {name: answer for name, answer in tried.items() if answer != "EPERM"} == {}


def test_case_069_calls_that_nobody_needs(called: Attack) -> None:
    assert _open(called.part("69 calls")) == {}


def test_case_070_odd_socket_families(called: Attack) -> None:
    tried = called.part("70 sockets")
    assert {
        name: how for name, how in tried.items() if how not in {"EPERM", "EAFNOSUPPORT", "EPROTONOSUPPORT"}
    } == {}
    assert called.part("70 ordinary sockets") == "ok"


def test_case_071_pid_1_can_not_be_looked_into(called: Attack) -> None:
    assert _open(called.part("71 pid 1")) == {}


def test_case_073_other_processes(called: Attack) -> None:
    assert called.part("73 processes")["beyond"] == 0
    assert called.part("73 processes")["count"] < 10
    assert _open(called.part("73 ptrace")) == {}


def test_case_076_files_of_the_kernel(called: Attack) -> None:
    assert _open(called.part("76 files of the kernel")) == {}
    assert called.part("76 core limit") == [0, 0]


def test_case_077_set_uid_programs(called: Attack) -> None:
    tried = called.part("77 set-uid programs")
    assert tried["nnp"] == "1"
    assert set(tried["caps"]) == {"0" * 16}
    assert tried["seccomp"] == "2"
    for name in ("su", "sudo", "newuidmap"):
        assert not tried[name].startswith("exit 0"), tried
    assert tried["setuid"] in {"EPERM", "EINVAL"}
    assert tried["setgroups"] in {"EPERM", "EINVAL"}


def test_case_078_landlock_never_widens(called: Attack) -> None:
    tried = called.part("78 landlock again")
    assert tried["still"] in CLOSED
    assert tried["ruleset"] in {"ok", "ENOSYS", "EOPNOTSUPP"}, "programs may still confine themselves"


def test_case_079_devices(called: Attack) -> None:
    harmless = "null zero full random urandom tty pts ptmx shm fd stdin stdout stderr console mqueue"
    assert set(called.part("79 devices")) <= set(harmless.split())
    tried = called.part("79 device calls")
    assert set(tried.values()) == {"EPERM"}, tried


def test_case_080_nothing_of_other_processes(called: Attack) -> None:
    assert called.part("73 processes")["count"] < 10


def test_case_085_pid_1_can_not_be_killed(called: Attack) -> None:
    assert called.part("85 pid 1 lives") == "alive"


def test_case_100_secrets(called: Attack) -> None:
    seen = called.part("100 secrets")
    assert {path: how for path, how in seen.items() if how not in {*CLOSED, "", "ENOTDIR"}} == {}


def test_case_105_a_socket_in_home(called: Attack) -> None:
    assert called.part("105 sockets in HOME") in {*CLOSED, "ECONNREFUSED"}


def test_case_106_abstract_sockets(called: Attack) -> None:
    assert called.part("106 abstract socket of the host") in {"EPERM", "ECONNREFUSED"}


def test_case_107_shared_memory(called: Attack) -> None:
    """The agent's own segment is the only one that it sees; on the host there is none of it."""
    assert called.part("107 shared memory") == 1
    with open("/proc/sysvipc/shm", encoding="ascii") as lines:
        assert not [line for line in lines if line.split()[0] == str(0x0112)]


_SPY = """
import os, time
got = set()
end = time.monotonic() + 60
me = os.getpid()
while time.monotonic() < end and not os.path.exists("stop"):
    for pid in os.listdir("/proc"):
        if not pid.isdigit() or int(pid) in (me, int(os.environ["SPY_PARENT"])):
            continue
        for name in ("mem", "exe", "root", "fd", "environ", "maps", "cwd"):
            try:
                path = f"/proc/{pid}/{name}"
                if name == "fd":
                    [os.readlink(f"{path}/{fd}") for fd in os.listdir(path)]
                elif name in ("exe", "root", "cwd"):
                    os.readlink(path)
                else:
                    with open(path, "rb", 0) as file:
                        if name == "maps" and not file.read(1):
                            continue  # of one that is dying, and has no memory any more
                # Asked afterwards: who is not yet the command now was not when it was opened.
                program = open(f"/proc/{pid}/comm").read().strip()
                if program not in ("true", "sh"):
                    got.add(f"{program} {name}")
            except OSError:
                pass
open("spied", "w").write(repr(sorted(got)))
"""


def test_case_072_who_joins_can_not_be_looked_into(world: World) -> None:
    """`exec` enters a sandbox whose processes wait for it: until it is the command itself, nobody can open it."""
    script = 'SPY_PARENT=$$ python3 -c "$0" & echo ready; read line; : >stop; wait'
    with (
        world.watched("spied") as watch,
        world.repo.started(*world.words("spied"), "--", "sh", "-c", script, _SPY) as run,
    ):
        run.expect("ready")
        for _ in range(12):
            joined = world.repo.overlayrun("exec", "spied", "--", "true")
            assert joined.code == 0, str(joined)
        run.type("")
        assert run.end() == 0, run.text()
    assert watch.broken == []
    assert world.repo.show("spied", "spied") == "[]"


def test_case_075_standard_streams_can_not_be_opened_again(world: World) -> None:
    """A file that the user redirects to is not the agent's to read, cut or open for writing."""
    log, given = world.place / "log", world.place / "given"
    log.write_text("before\n")
    given.write_text("typed\n")
    script = """
    import json, os, stat
    told = {}
    for fd, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (1, os.O_WRONLY | os.O_TRUNC), (2, os.O_RDWR)):
        kind = stat.S_IFMT(os.fstat(fd).st_mode)
        try:
            again = os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK)
            told[f"{fd} {flags}"] = stat.S_ISREG(os.fstat(again).st_mode)
        except OSError as err:
            told[f"{fd} {flags}"] = False
        try:
            os.ftruncate(fd, 0)
            told[f"{fd} cut"] = True
        except OSError:
            told[f"{fd} cut"] = False
    print("after"); print(json.dumps(told)); print(input())
    """
    words = [
        *world.words("streams"),
        "--",
        "python3",
        "-c",
        "\n".join(line[4:] for line in script.splitlines()),
    ]
    import subprocess

    with world.watched("streams") as watch, log.open("ab") as out, given.open("rb") as typed:
        done = subprocess.run(
            world.repo.command(*words),
            cwd=world.repo.root,
            env=world.repo.env,
            stdin=typed,
            stdout=out,
            stderr=subprocess.STDOUT,
            check=False,
            timeout=60,
        )
    text = log.read_text()
    assert done.returncode == 0, text
    assert watch.broken == []
    assert text.startswith("before\n"), text
    told = json.loads(next(line for line in text.splitlines() if line.startswith("{")))
    assert [what for what, did in told.items() if did] == []
    assert "\ntyped\n" in text
    assert given.read_text() == "typed\n"
