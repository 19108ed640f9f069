"""Whose network a command has, seen from inside, in a network of the test's own: cases 113 to 121.

No packet can leave it. An address of its loopback stands for a public host, names come from its /etc/hosts.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from conftest import Done, Running, UserRepo, wait_until

_PUBLIC: Final = "8.8.4.4"
_NAMES: Final = (
    f"{_PUBLIC} allowed.example other.example www.allowed.example\n"
    "127.0.0.1 localhost home.allowed.example\n10.0.0.3 lan.allowed.example\n"
)
_LOCAL_PORT: Final = 18777
# The machine around it all: a loopback with a public address too, servers there, names of its own.
_MACHINE: Final = """
import fcntl, http.server, os, socket, struct, sys, threading
from overlayrun.kernel import syscalls
from overlayrun.sandbox.network import bring_up_loopback
public, port, hosts = sys.argv[1], int(sys.argv[2]), sys.argv[3]
bring_up_loopback()
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
    request = struct.pack("16sH2s4s8x", b"lo:1", socket.AF_INET, b"", socket.inet_aton(public))
    fcntl.ioctl(any_socket, 0x8916, request)  # SIOCSIFADDR: netdevice(7)
syscalls.mount(hosts, "/etc/hosts", None, 0x1000)  # MS_BIND

class Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"hello {self.path} {self.headers['Host']}".encode())

    def log_message(self, *_):
        pass

class Server(http.server.ThreadingHTTPServer):
    def __init__(self, host, number):
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, number), Hello)

for place in ((public, 80), (public, 443), (public, 22), ("127.0.0.1", port), ("::1", port)):
    threading.Thread(target=Server(*place).serve_forever, daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
os._exit(0)
"""
# What the command tries; its answers are one line of JSON.
_PROBES: Final = """
import json, os, socket
answers = {}

def attempt(name, call):
    try:
        answers[name] = call()
    except OSError as err:
        answers[name] = f"refused {err.errno}"

def reach(host, port, data=b""):
    with socket.create_connection((host, port), 5) as to:
        to.sendall(data)
        to.shutdown(socket.SHUT_WR)
        said = b""
        while data and (part := to.recv(65536)):
            said += part
        return said.decode("latin-1") or "connected"

def ask(request):
    host, _, port = os.environ["https_proxy"].removeprefix("http://").partition(":")
    return reach(host, int(port), request)

def status(request):
    return ask(request).split(" ")[1]

def udp(address):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as to:
        return to.sendto(b"query", (address, 53))

def own_server(host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 8000), family=family):
        return reach(host, 8000)

for host, port in (("127.0.0.1", LOCAL), ("::1", LOCAL), ("0.0.0.0", LOCAL), ("localhost", LOCAL), ("10.0.2.2", LOCAL),
                   (PUBLIC, 80), ("allowed.example", 443), ("169.254.169.254", 80), ("192.168.0.1", 80),
                   ("100.64.0.1", 80), ("fd00::1", 80)):
    attempt(f"direct {host}", lambda: reach(host, port))
attempt("udp", lambda: udp(PUBLIC))
attempt("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close())
attempt("vsock", lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).connect((2, 80)))
attempt("own 127.0.0.1", lambda: own_server("127.0.0.1"))
attempt("own ::1", lambda: own_server("::1"))
answers["environment"] = {name: value for name, value in os.environ.items()
                          if name.startswith(("OVERLAYRUN", "COMPOSE")) or name.lower().endswith("proxy")}
EXTRA
print(json.dumps(answers), flush=True)
"""
_THROUGH_PROXY: Final = """
tunnel = "CONNECT {} HTTP/1.1\\r\\n\\r\\nGET /in HTTP/1.0\\r\\nHost: {}\\r\\n\\r\\n"
answers["tunnel"] = ask(tunnel.format("allowed.example:443", "x").encode())
answers["plain"] = ask(b"GET http://allowed.example/plain HTTP/1.1\\r\\nHost: allowed.example\\r\\n\\r\\n")
answers["below"] = ask(tunnel.format("www.allowed.example:443", "x").encode())
for target in ("allowed.example:22", "other.example:443", "telemetry.example.com:443", "telemetry.example.com:443",
               "telemetry.example.com:443", "127.0.0.1:18777", "0x7f.1:80", "[::1]:18777", "evil.com\\0.allowed.example:443",
               "user@allowed.example:443", "home.allowed.example:80", "lan.allowed.example:80"):
    answers[f"to {target}"] = status(f"CONNECT {target} HTTP/1.1\\r\\n\\r\\n".encode())
answers["other host"] = status(b"GET http://allowed.example/ HTTP/1.1\\r\\nHost: other.example\\r\\n\\r\\n")
with socket.create_connection(("127.0.0.1", 3128)) as to:
    to.sendall(b"CONNECT allowed.example:443 HTTP/1.1\\n\\n")
    answers["bare line feeds"] = to.recv(100).split()[1].decode()
"""


@dataclass(slots=True)
class Machine(UserRepo):
    """A user and a repository on a machine with a network of its own. enter: words that go there."""

    enter: tuple[str, ...] = ()

    def command(self, *args: str) -> list[str]:
        return [*self.enter, "env", "-C", str(self.root), *UserRepo.command(self, *args)]

    def get(self, url: str) -> str:
        """What a server says to the machine's own user; nothing where none is reached."""
        code = f"import urllib.request as r; print(r.urlopen({url!r}, timeout=5).read().decode())"
        argv = [*self.enter, sys.executable, "-c", code]
        done = subprocess.run(argv, env=self.env, capture_output=True, text=True, check=False)
        return done.stdout.strip()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    place = tmp_path_factory.mktemp("machine")
    (place / "hosts").write_text(_NAMES)
    (place / "hosts").chmod(0o644)
    own_user = [] if os.geteuid() == 0 else ["-U", "--map-current-user", "--keep-caps"]
    argv = [
        "unshare",
        *own_user,
        "-mn",
        sys.executable,
        "-c",
        _MACHINE,
        _PUBLIC,
        str(_LOCAL_PORT),
        str(place / "hosts"),
    ]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as around:
        assert around.stdin is not None
        assert around.stdout is not None
        assert around.stdout.readline() == b"ready\n"
        joined = [] if os.geteuid() == 0 else ["-U", "--preserve-credentials"]
        yield _machine(place, ("nsenter", f"--target={around.pid}", *joined, "-m", "-n", "--"))
        around.stdin.close()


def _machine(place: Path, enter: tuple[str, ...]) -> Machine:
    home, root = place / "home", place / "repo"
    home.mkdir()
    root.mkdir()
    (home / ".gitconfig").write_text(
        "[user]\n\tname = T\n\temail = t@example.invalid\n[init]\n\tdefaultBranch = main\n"
    )
    env = {"HOME": str(home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8", "GIT_CONFIG_NOSYSTEM": "1"}
    env |= {"XDG_STATE_HOME": str(home / ".local/state"), "HTTPS_PROXY": "http://proxy.invalid:1"}
    made = Machine(root, home, env, enter=enter)
    made.git("init", "--quiet")
    made.commit("first", README="read me\n")
    return made


def _probes(extra: str = "") -> list[str]:
    code = _PROBES.replace("LOCAL", str(_LOCAL_PORT)).replace("PUBLIC", repr(_PUBLIC)).replace("EXTRA", extra)
    return [sys.executable, "-c", code]


def _answers(text: str) -> dict[str, Any]:
    line = next(line for line in text.splitlines() if line.startswith("{"))
    found: dict[str, Any] = json.loads(line)
    return found


def _direct(answers: dict[str, Any]) -> dict[str, str]:
    return {name: answer for name, answer in answers.items() if name.startswith("direct ")}


@dataclass(frozen=True, slots=True)
class Story:
    """A run through the proxy, while it lived and after. answers: the first command's. joined: of `exec`."""

    answers: dict[str, Any]
    joined: Done
    others: dict[str, Any]
    log: str
    code: int
    shown: str


@pytest.fixture(scope="module")
def none(machine: Machine) -> dict[str, Any]:
    """What the probes found with `--net none`."""
    done = machine.overlayrun("--rm", "--net", "none", "--", *_probes())
    assert done.code == 0, str(done)
    return _answers(done.out)


@pytest.fixture(scope="module")
def story(machine: Machine) -> Story:
    """A run through the proxy: probes, `exec` beside it, a second run, then the proxy is killed."""
    # The shell goes on after the probes, and asks once more when it is told to.
    again = "import socket; socket.create_connection(('127.0.0.1', 3128), 5)"
    script = '"$@"; echo probed; read _; "$1" -c "$AGAIN" 2>&1 | tail -1; echo work >new; exit 7'
    argv = ("-b", "b", "--env", f"AGAIN={again}", "--net", "allow=allowed.example,*.allowed.example", "--")
    with machine.started(*argv, "sh", "-c", script, "sh", *_probes(_THROUGH_PROXY)) as run:
        run.expect("probed")
        with_proxy = (
            'import os, urllib.request as r; print(r.urlopen("http://allowed.example/exec").read().decode())'
        )
        joined = machine.overlayrun("exec", "b", "--", sys.executable, "-c", with_proxy)
        beside = machine.overlayrun("--rm", "-q", "--", *_probes())
        os.kill(_proxy_of(run), signal.SIGTERM)
        run.expect("the proxy is gone")
        run.type("")
        code = run.end()
        return Story(
            _answers(run.text()),
            joined,
            _answers(beside.out),
            run.text(),
            code,
            machine.overlayrun("show", "b").out,
        )


def _children(pid: int) -> list[list[str]]:
    """`/proc/<pid>/stat` of each child, from its state on, its id before that."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            head, _, rest = entry.read_text().rpartition(")")
            fields = [head.split()[0], *rest.split()]
            if fields[2] == str(pid):
                found.append(fields)
    return found


def _proxy_of(run: Running) -> int:
    """The one child that has a session of its own: it shares neither terminal nor signals."""
    (pid,) = [int(fields[0]) for fields in _children(run.process.pid) if fields[4] == fields[0]]
    return pid


def test_case_113_and_115_without_a_network_nothing_is_reached(none: dict[str, Any]) -> None:
    assert len(_direct(none)) == 11
    assert all(answer.startswith("refused") for answer in _direct(none).values()), _direct(none)
    assert none["udp"].startswith("refused")
    assert none["raw"].startswith("refused")
    assert none["vsock"].startswith("refused")


def test_case_115_servers_of_its_own_work(none: dict[str, Any]) -> None:
    assert (none["own 127.0.0.1"], none["own ::1"]) == ("connected", "connected")


def test_the_hosts_network_is_the_hosts(story: Story) -> None:
    reached = {name for name, answer in _direct(story.others).items() if answer == "connected"}
    assert reached >= {"direct 127.0.0.1", "direct ::1", f"direct {_PUBLIC}", "direct allowed.example"}


def test_names_on_the_list_are_reached(story: Story) -> None:
    assert story.answers["tunnel"].startswith("HTTP/1.1 200 ")
    assert story.answers["tunnel"].endswith("hello /in x")
    assert story.answers["plain"].endswith("hello /plain allowed.example")
    assert story.answers["below"].endswith("hello /in x")


def test_case_114_and_116_and_117_nothing_else_is(story: Story) -> None:
    private = {"to home.allowed.example:80", "to lan.allowed.example:80"}
    told = {name: answer for name, answer in story.answers.items() if name.startswith("to ")}
    assert {name for name, answer in told.items() if answer == "502"} == private
    assert {answer for name, answer in told.items() if name not in private} == {"403"}
    assert (story.answers["other host"], story.answers["bare line feeds"]) == ("403", "400")


def test_case_120_there_is_no_way_beside_the_proxy(story: Story) -> None:
    assert all(answer.startswith("refused") for answer in _direct(story.answers).values()), _direct(
        story.answers
    )
    assert story.answers["udp"].startswith("refused")


def test_a_joined_command_has_the_same_network(story: Story) -> None:
    assert story.joined.out == "hello /exec allowed.example\n", str(story.joined)


def test_case_119_when_the_proxy_dies_nothing_gets_out_any_more(story: Story) -> None:
    assert "nothing gets out of the sandbox" in story.log
    assert "ConnectionRefusedError" in story.log
    assert story.code == 7


def test_what_was_blocked_is_told_and_kept(machine: Machine) -> None:
    code = _probes(_THROUGH_PROXY)
    done = machine.overlayrun("-b", "told", "--net", "allow=allowed.example,*.allowed.example", "--", *code)
    assert done.code == 0, str(done)
    blocked = [line for line in done.ours if line.startswith("blocked: ")]
    assert blocked[0] == "blocked: telemetry.example.com:443, 3 times"
    assert blocked[-1] == f"blocked: {len(machine.records()['told']['last_run']['blocked']) - 5} more"
    kept = machine.records()["told"]["last_run"]["blocked"]
    assert kept["telemetry.example.com:443"] == 3
    assert kept["lan.allowed.example:80 (a private address)"] == 1
    assert kept["evil.com\\x00.allowed.example:443"] == 1
    assert "telemetry.example.com:443 (3 times)" in machine.overlayrun("show", "told").out


def test_the_users_own_proxy_is_not_asked_for(story: Story) -> None:
    told = story.answers["environment"]
    assert {told[name] for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")} == {
        "http://127.0.0.1:3128"
    }
    assert story.others["environment"]["HTTPS_PROXY"] == "http://proxy.invalid:1"


def test_runs_at_the_same_time_have_ports_and_names_of_their_own(story: Story) -> None:
    one, other = (answers["environment"] for answers in (story.answers, story.others))
    assert one["OVERLAYRUN_BRANCH"] == "b"
    assert one["OVERLAYRUN_ID"] != other["OVERLAYRUN_ID"]
    assert one["OVERLAYRUN_PORTS"] == f"{one['OVERLAYRUN_PORT']}-{int(one['OVERLAYRUN_PORT']) + 9}"
    assert one["OVERLAYRUN_PORTS"] != other["OVERLAYRUN_PORTS"]
    assert one["COMPOSE_PROJECT_NAME"] == f"b-{one['OVERLAYRUN_ID']}"


def test_case_121_a_published_port_is_on_the_hosts_loopback_alone(machine: Machine) -> None:
    servers = (
        "import http.server as h, threading, functools\n"
        "for host, port in (('127.0.0.1', 18800), ('0.0.0.0', 18801)):\n"
        "    server = h.HTTPServer((host, port), h.SimpleHTTPRequestHandler)\n"
        "    threading.Thread(target=server.serve_forever, daemon=True).start()\n"
        "print('serving', flush=True); input()\n"
    )
    argv = ("--rm", "--net", "none", "--publish", "18800", "--", sys.executable, "-c", servers)
    with machine.started(*argv) as run:
        run.expect("serving")
        wait_until(lambda: machine.get("http://127.0.0.1:18800/README") == "read me", "the published port")
        assert not machine.get(f"http://{_PUBLIC}:18800/README")
        assert not machine.get("http://127.0.0.1:18801/README")
        run.process.kill()
        wait_until(lambda: not machine.get("http://127.0.0.1:18800/README"), "the end of the published port")
        # Nothing of it holds the port: it can be had again.
        wait_until(lambda: machine.overlayrun("--rm", *argv[1:5], "--", "true").code == 0, "a free port")


def test_a_port_that_is_taken_is_told_with_a_cure(machine: Machine) -> None:
    done = machine.overlayrun("-b", "p", "--net", "none", "--publish", str(_LOCAL_PORT), "--", "true")
    assert (done.code, done.out) == (125, "")
    assert done.ours == [
        f"port {_LOCAL_PORT} can't be published: Address already in use",
        f"hint: end what listens there (ss -ltnp 'sport = :{_LOCAL_PORT}'), or let the command use another port",
    ]
    assert "p" not in machine.records()


def test_publishing_says_nothing_to_do_with_the_hosts_network(machine: Machine) -> None:
    done = machine.overlayrun("--rm", "--publish", str(_LOCAL_PORT), "--", "true")
    assert done.code == 0
    assert [line for line in done.ours if line.startswith("--publish")]


def test_case_118_empty_is_none_missing_is_the_default_and_an_error_refuses(machine: Machine) -> None:
    reach = [
        sys.executable,
        "-c",
        f"import socket; socket.create_connection(('{_PUBLIC}', 80), 5); print('out')",
    ]
    assert machine.overlayrun("--rm", "--net", "allow=", "--", *reach).out == ""
    assert machine.overlayrun("--rm", "--", *reach).out == "out\n"
    assert machine.overlayrun("--rm", "--strict", "--", *reach).out == ""
    for text in ("allow", "allow=*", "allow=10.0.0.1", "allow=a.example,", "allowed.example", ""):
        done = machine.overlayrun("-b", "refused", "--net", text, "--", *reach)
        assert (done.code, done.out) == (125, ""), str(done)
    assert "refused" not in machine.records()
