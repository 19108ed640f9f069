"""System calls and files of the kernel that lead out of a sandbox."""

from __future__ import annotations

import ctypes  # noqa: TID251  # machine code of the attacker's own
import fcntl
import mmap
import os
import platform
import resource
import signal
import socket
import struct
import subprocess

from inside import GIVEN, LIBC, call, ended, finish, in_child, probe, raw, read_some

NEWUSER, NEWNS, NEWNET = 0x10000000, 0x00020000, 0x40000000
BUFFER = b"\0" * 256


def run(*words: str) -> str:
    """Output of a program that may fail or not be there."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=20)
    except OSError as err:
        return ended(-(err.errno or 1))
    return f"exit {done.returncode}: {done.stdout[:200]}{done.stderr[:200]}"


def clone(flags: int) -> str:
    answer = raw("clone", flags)
    if answer == 0:
        os._exit(0)
    if answer > 0:
        os.waitpid(answer, 0)
    return ended(answer)


@probe("65 user namespaces")
def _() -> object:
    return {
        "unshare user": in_child(lambda: call("unshare", NEWUSER)),
        "unshare user and mount": in_child(lambda: call("unshare", NEWUSER | NEWNS)),
        "unshare net": in_child(lambda: call("unshare", NEWNET)),
        "clone": clone(NEWUSER | signal.SIGCHLD),
        "clone3": call("clone3", struct.pack("8Q", NEWUSER, 0, 0, 0, signal.SIGCHLD, 0, 0, 0), 64),
        "setns": in_child(lambda: call("setns", os.open("/proc/self/ns/mnt", os.O_RDONLY), 0)),
    }


@probe("65 mounts in a namespace of one's own")
def _() -> object:
    def nested() -> str:
        if raw("unshare", NEWUSER | NEWNS) < 0:
            return "no namespace"
        return call("mount", b"none", b"/tmp", b"tmpfs", 0, None)

    return in_child(nested)


def machine_code(code: bytes) -> int:
    """Run it as a function that gives an int; the caller is a child, which it may kill."""
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return int(ctypes.CFUNCTYPE(ctypes.c_int)(address)())


@probe("66 other architectures")
def _() -> object:
    if platform.machine() != "x86_64":
        return "not this machine"
    # mov eax, 20 (getpid of i386); int 0x80; ret
    return {
        "int 0x80": in_child(lambda: machine_code(b"\xb8\x14\0\0\0\xcd\x80\xc3")),
        "x32": in_child(lambda: LIBC.syscall(ctypes.c_long(0x40000000 | 39))),
    }


@probe("67 io_uring")
def _() -> object:
    return call("io_uring_setup", 8, BUFFER)


@probe("68 keys")
def _() -> object:
    return {
        "add_key": call("add_key", b"user", b"olr", b"x", 1, -3),
        "request_key": call("request_key", b"user", f"olr-{GIVEN['mark']}".encode(), None, 0),
        "keyctl": call("keyctl", 0, -3, 0),
        "keyctl read": call("keyctl", 11, -3, BUFFER, 256),
        "/proc/keys": GIVEN["mark"] in read_some("/proc/keys"),
    }


@probe("69 calls")
def _() -> object:
    pid = os.getpid()
    handle = struct.pack("Ii", 8, 1) + b"\0" * 8
    return {
        "bpf": call("bpf", 0, struct.pack("4I", 1, 4, 4, 1) + b"\0" * 112, 128),
        "perf_event_open": call("perf_event_open", struct.pack("2I", 1, 112) + b"\0" * 104, 0, -1, -1, 0),
        "userfaultfd": call("userfaultfd", 0),
        "userfaultfd of user mode": call("userfaultfd", 1),
        "kexec_load": call("kexec_load", 0, 0, None, 0),
        "init_module": call("init_module", BUFFER, 1, b""),
        "finit_module": call("finit_module", 0, b"", 0),
        "delete_module": call("delete_module", b"olr", 0),
        "open_by_handle_at": call("open_by_handle_at", -100, handle, 0),
        "process_vm_readv": call("process_vm_readv", pid, None, 0, None, 0, 0),
        "process_vm_writev": call("process_vm_writev", pid, None, 0, None, 0, 0),
        "pidfd_getfd": call("pidfd_getfd", max(raw("pidfd_open", os.getppid(), 0), 0), 0, 0),
        "kcmp": call("kcmp", pid, pid, 0, 0, 1),
        "quotactl": call("quotactl", 0x80000100, b"/dev/null", 0, BUFFER),
        "acct": call("acct", None),
        "swapon": call("swapon", b"/tmp/x", 0),
        "swapoff": call("swapoff", b"/tmp/x"),
        "syslog": call("syslog", 3, BUFFER, 256),
        "reboot": call("reboot", 0, 0, 0, None),
        "settimeofday": call("settimeofday", struct.pack("2q", 1, 0), None),
        "clock_settime": call("clock_settime", 0, struct.pack("2q", 1, 0)),
        "sethostname": call("sethostname", b"x", 1),
        "fanotify_init": call("fanotify_init", 0, 0),
    }


@probe("70 sockets")
def _() -> object:
    families = {
        "AX25": 3,
        "PACKET": 17,
        "RDS": 21,
        "CAN": 29,
        "TIPC": 30,
        "BLUETOOTH": 31,
        "ALG": 38,
        "NFC": 39,
        "VSOCK": 40,
        "XDP": 44,
    }
    tried = {}
    for name, family in families.items():
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
            try:
                socket.socket(family, kind).close()
                tried[name] = "ok"
                break
            except OSError as err:
                tried[name] = ended(-(err.errno or 1))
    for protocol in (9, 4, 12, 16):  # audit, sock_diag, netfilter, generic
        try:
            socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol).close()
            tried[f"netlink {protocol}"] = "ok"
        except OSError as err:
            tried[f"netlink {protocol}"] = ended(-(err.errno or 1))
    return tried


@probe("70 ordinary sockets")
def _() -> object:
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE).close()
    socket.socket(socket.AF_INET6).close()
    socket.socketpair()
    return "ok"


def opened(path: str, flags: int) -> str:
    try:
        os.close(os.open(path, flags))
    except OSError as err:
        return ended(-(err.errno or 1))
    return "ok"


def listed(path: str) -> str:
    try:
        os.listdir(path)
    except OSError as err:
        return ended(-(err.errno or 1))
    return "ok"


@probe("71 pid 1")
def _() -> object:
    return {
        "fd": listed("/proc/1/fd"),
        "mem": opened("/proc/1/mem", os.O_RDWR),
        "environ": opened("/proc/1/environ", os.O_RDONLY),
        "maps": opened("/proc/1/maps", os.O_RDONLY),
        "exe": opened("/proc/1/exe", os.O_PATH),
        "root": listed("/proc/1/root"),
        "cwd": listed("/proc/1/cwd"),
        "ns": opened("/proc/1/ns/mnt", os.O_RDONLY),
    }


@probe("73 processes")
def _() -> object:
    mine = {int(name) for name in os.listdir("/proc") if name.isdigit()}
    seen = set()
    for pid in range(1, 70000):
        try:
            os.kill(pid, 0)
            seen.add(pid)
        except ProcessLookupError:
            continue
        except PermissionError:
            seen.add(pid)
    return {"beyond": len(seen - mine), "count": len(seen)}


@probe("73 ptrace")
def _() -> object:
    return {
        "traceme": in_child(lambda: call("ptrace", 0, 0, None, None)),
        "seize": call("ptrace", 0x4206, os.getppid(), None, None),
        "pid 1": call("ptrace", 16, 1, None, None),
    }


@probe("76 files of the kernel")
def _() -> object:
    writable = (
        "/proc/sys/kernel/core_pattern",
        "/proc/sysrq-trigger",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/vm/drop_caches",
        "/proc/sys/user/max_user_namespaces",
        "/sys/fs/cgroup/cgroup.procs",
        "/sys/power/state",
        "/sys/kernel/uevent_helper",
    )
    readable = ("/dev/kmsg", "/proc/kcore", "/proc/kmsg", "/dev/mem", "/sys/kernel/debug/sched/debug")
    tried = {path: opened(path, os.O_WRONLY) for path in writable}
    return {**tried, **{path: opened(path, os.O_RDONLY) for path in readable}}


@probe("76 core limit")
def _() -> object:
    return resource.getrlimit(resource.RLIMIT_CORE)


@probe("77 set-uid programs")
def _() -> object:
    status = dict(
        line.split(":\t", 1) for line in read_some("/proc/self/status").splitlines() if ":\t" in line
    )
    return {
        "nnp": status["NoNewPrivs"],
        "caps": [status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")],
        "seccomp": status["Seccomp"],
        "su": run("su", "-c", "id -u", "root"),
        "sudo": run("sudo", "-n", "id", "-u"),
        "newuidmap": run("newuidmap", str(os.getpid()), "0", "0", "1"),
        "setuid": in_child(lambda: os.setuid(0) or "ok") if os.getuid() else "EPERM",
        "setgroups": in_child(lambda: os.setgroups([0]) or "ok"),
    }


@probe("78 landlock again")
def _() -> object:
    made = raw("landlock_create_ruleset", struct.pack("Q", 1 << 1), 8, 0)
    return {"ruleset": ended(made) if made < 0 else "ok", "still": opened("/etc/passwd", os.O_WRONLY)}


@probe("79 devices")
def _() -> object:
    return sorted(os.listdir("/dev"))


@probe("79 device calls")
def _() -> object:
    def asked(number: int) -> str:
        fd = os.open("/dev/null", os.O_RDWR)
        try:
            fcntl.ioctl(fd, number, b"\0")
        except OSError as err:
            return ended(-(err.errno or 1))
        return "ok"

    return {"TIOCSTI": asked(0x5412), "with more bits": asked(0x100005412), "TIOCLINUX": asked(0x541C)}


@probe("85 pid 1 lives")
def _() -> object:
    for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGSEGV):
        try:
            os.kill(1, number)
        except PermissionError:
            pass
    os.kill(1, 0)
    return "alive"


@probe("106 abstract socket of the host")
def _() -> object:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"\0olr-host-{GIVEN['mark']}")
    return "connected"


@probe("105 sockets in HOME")
def _() -> object:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(os.path.expanduser("~/.agent.sock"))
    return "connected"


@probe("107 shared memory")
def _() -> object:
    LIBC.shmget(0x0112, 4096, 0o1666)
    with open("/proc/sysvipc/shm", encoding="ascii") as lines:
        return len(lines.readlines()) - 1


@probe("100 secrets")
def _() -> object:
    found = {}
    for path in GIVEN["secret_paths"]:
        try:
            found[path] = read_some(path)
        except OSError as err:
            found[path] = ended(-(err.errno or 1))
    return found


finish()
