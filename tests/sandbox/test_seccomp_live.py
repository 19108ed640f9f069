"""The filter of system calls on the real kernel: each story is a child that filters itself and tries things."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from overlayrun.kernel import calls
from overlayrun.kernel.probe import is_filtered

from .rules import MODERN, MOUNTING, REFUSED, TRACING, URING

HERE: Final = os.uname().machine

_PRELUDE: Final = """
import ctypes, errno, json, mmap, os, socket, sys
from overlayrun.kernel import abi, calls, syscalls
from overlayrun.sandbox import seccomp
libc = ctypes.CDLL(None, use_errno=True)
NUMBERS = calls.AARCH64 if os.uname().machine == "aarch64" else calls.X86_64
def call(number, *arguments):
    "Name of the errno, or 0: bad pointers, so that EFAULT and EINVAL tell a call that got through."
    ctypes.set_errno(0)
    return errno.errorcode[ctypes.get_errno()] if libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments)) < 0 else 0
def confine(ptrace=False, userns=False):
    syscalls.prctl(abi.PR_SET_NO_NEW_PRIVS, 1)
    seccomp.install(seccomp.assemble(os.uname().machine, ptrace=ptrace, userns=userns))
def try_bad_pointers(names):
    return {name: call(NUMBERS[name], *[-1] * 6) for name in names if name in NUMBERS}
"""


def child(text: str, *arguments: str, cwd: Path | None = None) -> Any:
    """What a process of its own prints as JSON."""
    done = run_child(text, *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def run_child(text: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _PRELUDE + text, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=60)


_TRIES: Final = """
import pty
names, mode = json.loads(sys.argv[1])
if mode is not None:
    confine(**mode)
answer = try_bad_pointers(names)
# In an own child: what gets through changes it.
answer |= {
    "clone:user": call(NUMBERS["clone"], 0x10000000 | 0x800, 0, 0, 0, 0),  # a thread without memory: EINVAL
    "clone:net": call(NUMBERS["clone"], 0x40000000 | 0x800, 0, 0, 0, 0),
    "personality:exec": call(NUMBERS["personality"], 0x400000),
    "personality:random": call(NUMBERS["personality"], 0x40000),
    "personality:ask": call(NUMBERS["personality"], 0xFFFFFFFF),
    "unshare:files": call(NUMBERS["unshare"], 0x400),
}
families = {"alg": 38, "packet": 17, "vsock": 40, "tipc": 30, "bluetooth": 31, "xdp": 44, "rds": 21, "can": 29}
answer |= {f"socket:{name}": call(NUMBERS["socket"], family, 3, 0) for name, family in families.items()}
answer |= {f"netlink:{protocol}": call(NUMBERS["socket"], 16, 3, protocol) for protocol in (0, 4, 9, 15, 16)}
answer["socketpair:tipc"] = call(NUMBERS["socketpair"], 30, 1, 0, -1)
answer["socketpair:unix"] = call(NUMBERS["socketpair"], 1, 1, 0, -1)
answer["mknodat:whiteout"] = call(NUMBERS["mknodat"], -100, -1, 0o020666, 0)
answer["mknodat:fifo"] = call(NUMBERS["mknodat"], -100, -1, 0o010666, 0)
answer["renameat2:whiteout"] = call(NUMBERS["renameat2"], -100, -1, -100, -1, 4)
answer["renameat2:exchange"] = call(NUMBERS["renameat2"], -100, -1, -100, -1, 2)
print(json.dumps(answer))
"""

Tries = dict[str, str | int]
alone = pytest.mark.skipif(is_filtered(), reason="a filter of somebody else's lies on this process")
_FAMILIES: Final = ("alg", "packet", "vsock", "tipc", "bluetooth", "xdp", "rds", "can")


def tries(mode: dict[str, bool] | None, *names: str) -> Tries:
    answer: Tries = child(_TRIES, json.dumps([names, mode]))
    return answer


@pytest.fixture(scope="module")
def refused() -> Tries:
    return tries({}, *sorted(REFUSED | URING | TRACING | MOUNTING | MODERN))


@pytest.mark.parametrize("name", sorted(REFUSED | TRACING | MOUNTING))
def test_what_leads_out_is_not_permitted(refused: Tries, name: str) -> None:
    if name in calls.X86_64 and HERE == "x86_64":
        assert refused[name] == "EPERM"
    else:
        assert refused.get(name, "EPERM") == "EPERM"


@pytest.mark.parametrize("name", sorted(URING | MODERN))
def test_new_ways_out_are_as_on_a_kernel_without_them(refused: Tries, name: str) -> None:
    assert refused[name] == "ENOSYS"


def test_calls_are_judged_by_their_arguments(refused: Tries) -> None:
    judged = {name: verdict for name, verdict in refused.items() if ":" in name}
    assert judged == {
        "clone:user": "EPERM",
        "clone:net": "EPERM",
        "personality:exec": "EPERM",
        "personality:random": 0,
        "personality:ask": 0,
        "unshare:files": 0,
        **dict.fromkeys((f"socket:{name}" for name in _FAMILIES), "EAFNOSUPPORT"),
        "netlink:0": 0,
        **dict.fromkeys(("netlink:4", "netlink:9", "netlink:15", "netlink:16"), "EPROTONOSUPPORT"),
        "socketpair:tipc": "EAFNOSUPPORT",
        "socketpair:unix": "EFAULT",
        "mknodat:whiteout": "EPERM",
        "mknodat:fifo": "EFAULT",
        "renameat2:whiteout": "EINVAL",
        "renameat2:exchange": "EFAULT",
    }


@alone
def test_without_the_filter_these_are_not_refused() -> None:
    """Else the tests above would prove nothing."""
    # Only those that a bad argument makes harmless for root, too.
    open_calls = tries(
        None, "keyctl", "ptrace", "process_vm_readv", "pidfd_getfd", "kcmp", "clone3", "setns", "unshare"
    )
    for name in (
        "keyctl",
        "ptrace",
        "process_vm_readv",
        "pidfd_getfd",
        "setns",
        "clone:user",
        "mknodat:whiteout",
    ):
        assert open_calls[name] not in ("EPERM", "ENOSYS"), (name, open_calls[name])
    assert open_calls["clone3"] != "ENOSYS"
    assert open_calls["personality:exec"] == 0
    assert open_calls["netlink:15"] == 0
    assert open_calls["renameat2:whiteout"] == "EFAULT"


@alone
def test_what_the_user_allows_gets_through_and_nothing_else() -> None:
    allowed = tries(
        {"ptrace": True, "userns": True}, "ptrace", "mount", "clone3", "fsopen", "keyctl", "io_uring_setup"
    )
    assert allowed["ptrace"] in ("ESRCH", "EIO")
    assert allowed["clone:user"] == "EINVAL"
    assert allowed["clone3"] != "ENOSYS"
    assert allowed["fsopen"] != "ENOSYS"  # EPERM: no right to mount here
    assert allowed["keyctl"] == "EPERM"
    assert allowed["io_uring_setup"] == "ENOSYS"
    assert allowed["netlink:15"] == "EPROTONOSUPPORT"


_NAMESPACE: Final = """
confine(userns=sys.argv[1] == "userns")
try:
    os.getpid(), syscalls.unshare(abi.CLONE_NEWUSER | abi.CLONE_NEWNS)
    syscalls.mount("tmpfs", "/tmp", "tmpfs", 0)
    answer = os.listdir("/tmp")
except OSError as err:
    answer = errno.errorcode[err.errno]
print(json.dumps(answer))
"""


@alone
def test_a_namespace_can_be_made_where_the_user_allows_it() -> None:
    assert child(_NAMESPACE, "none") == "EPERM"
    assert child(_NAMESPACE, "userns") == []


_MACHINE_CODE: Final = """
# mov eax, 20 (getpid of i386); int 0x80; ret
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes((0xB8, 20, 0, 0, 0, 0xCD, 0x80, 0xC3)))
if sys.argv[2] == "filter":
    confine()
if sys.argv[1] == "int80":
    code = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    code()
else:
    call(0x40000000 | 39)
"""


@pytest.mark.skipif(HERE != "x86_64", reason="int 0x80 and x32 are x86_64's")
@pytest.mark.parametrize("way", ["int80", "x32"])
def test_other_architectures_calls_are_deadly(way: str) -> None:
    assert run_child(_MACHINE_CODE, way, "filter").returncode == -signal.SIGSYS
    assert run_child(_MACHINE_CODE, way, "open").returncode != -signal.SIGSYS


_TERMINAL: Final = """
import fcntl, struct, termios
master, slave = os.openpty()
os.setsid()
fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
def ask(request):
    byte = ctypes.create_string_buffer(b"x")
    return call(NUMBERS["ioctl"], slave, request, ctypes.addressof(byte))
requests = {"sti": 0x5412, "sti-high": 0x100005412, "linux": 0x541C, "linux-high": 0xF0000541C, "discipline": 0x5423}
before = {name: ask(request) for name, request in requests.items()}
confine()
after = {name: ask(request) for name, request in requests.items()}
fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 5, 6, 0, 0))
after["size"] = struct.unpack("HHHH", fcntl.ioctl(slave, termios.TIOCGWINSZ, bytes(8)))[:2]
termios.tcsetattr(slave, termios.TCSANOW, termios.tcgetattr(slave))
print(json.dumps([before, after]))
"""


def test_nothing_is_typed_into_the_terminal_in_the_users_name() -> None:
    before, after = child(_TERMINAL)
    assert after.pop("size") == [5, 6]
    assert set(after.values()) == {"EPERM"}
    assert "EPERM" not in {before["linux"], before["discipline"], before["sti"]}


_WORK: Final = """
import multiprocessing.pool, socket, subprocess, threading
confine()
answer = {"interfaces": len(socket.if_nameindex()) > 0, "address": len(socket.getaddrinfo("127.0.0.1", 80)) > 0}
done = []
threads = [threading.Thread(target=done.append, args=(n,)) for n in range(4)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
answer["threads"] = sorted(done)
answer["children"] = subprocess.run("echo $(echo a | tr a b); setarch -R echo c", shell=True, capture_output=True, text=True).stdout
pid = os.fork()
if not pid: os._exit(7)
answer["fork"] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
with multiprocessing.pool.Pool(2) as pool:
    answer["pool"] = pool.map(abs, [-1, -2])
os.mkfifo("fifo"); os.rename("fifo", "fifo2"); os.close(os.memfd_create("x"))
answer["landlock"] = call(NUMBERS["landlock_create_ruleset"], -1, 8, 0)
answer["seccomp"] = call(NUMBERS["seccomp"], 99, 0, 0)
confine()  # a second filter on top
answer["policy"] = call({"x86_64": 239, "aarch64": 236}[os.uname().machine], 0, 0, 0, 0, 0)
print(json.dumps(answer))
"""


def test_ordinary_work_goes_on(tmp_path: Path) -> None:
    answer = child(_WORK, cwd=tmp_path)
    assert answer.pop("landlock") in ("EFAULT", "ENOSYS", "EOPNOTSUPP")
    assert answer.pop("policy") in (0, "ENOSYS")  # get_mempolicy(2): a kernel may have none
    assert answer == {
        "interfaces": True,
        "address": True,
        "threads": [0, 1, 2, 3],
        "children": "b\nc\n",
        "fork": 7,
        "pool": [1, 2],
        "seccomp": "EINVAL",
    }


def test_no_filter_without_no_new_privileges() -> None:
    """The kernel's own rule; root may, so it is asked for an ordinary user's case alone."""
    text = "seccomp.install(seccomp.assemble(os.uname().machine, ptrace=False, userns=False))"
    done = run_child("os.geteuid() or os.setresuid(65534, 65534, 65534)\n" + text)
    assert done.returncode == 1
    assert "seccomp: Permission denied" in done.stderr
