"""Cases 113 to 121: what each network mode reaches. No packet of these tests leaves the machine."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from hostile.world import Attack, World


class Server:
    """Listens on both loopback addresses and remembers who came."""

    def __init__(self, stack: ExitStack) -> None:
        self.came: list[str] = []
        first = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.port: int = first.getsockname()[1]
        second = stack.enter_context(socket.create_server(("::1", self.port), family=socket.AF_INET6))
        for server in (first, second):
            threading.Thread(target=self._serve, args=(server,), daemon=True).start()

    def _serve(self, server: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, where = server.accept()
                self.came.append(str(where))
                client.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with ExitStack() as stack:
        yield Server(stack)


def _attack(world: World, server: Server, branch: str, *options: str) -> Attack:
    server.came.clear()
    given = json.dumps({"port": server.port})
    argv = ["python3", f"{world.payloads}/reach_out.py", given]
    return world.attack(argv, *options, "--timeout", "50", branch=branch)


@pytest.fixture(scope="module")
def cut_off(world: World, server: Server) -> tuple[Attack, list[str]]:
    return _attack(world, server, "net-none", "--net", "none"), list(server.came)


@pytest.fixture(scope="module")
def listed(world: World, server: Server) -> tuple[Attack, list[str]]:
    return _attack(world, server, "net-allow", "--net", "allow=allowed.example"), list(server.came)


def _nothing_reached(found: tuple[Attack, list[str]]) -> None:
    attack, came = found
    attack.assert_sound()
    assert {host: how for host, how in attack.part("113 114 addresses").items() if how == "ok"} == {}
    assert came == []


def test_case_113_the_hosts_loopback(cut_off: tuple[Attack, list[str]]) -> None:
    _nothing_reached(cut_off)


def test_case_113_the_hosts_loopback_beside_a_proxy(listed: tuple[Attack, list[str]]) -> None:
    _nothing_reached(listed)


def test_case_114_metadata_and_lan(listed: tuple[Attack, list[str]]) -> None:
    attack, _ = listed
    assert attack.part("116 proxy")["169.254.169.254:80"].startswith("HTTP/1.1 403")


def test_case_115_no_network_at_all(cut_off: tuple[Attack, list[str]]) -> None:
    attack, _ = cut_off
    assert attack.part("115 names") == "gaierror"
    assert attack.part("115 datagrams") in {"ENETUNREACH", "EHOSTUNREACH", "EPERM"}
    assert attack.part("115 raw sockets") in {"EPERM", "EACCES"}
    assert attack.part("115 interfaces") == ["lo"]
    assert attack.part("115 lo is up") == "ok"
    assert attack.part("115 more interfaces") in {"EPERM", "EACCES"}
    assert attack.part("116 proxy")["two lines"] == "no proxy"


def test_case_116_ways_around_the_list(listed: tuple[Attack, list[str]]) -> None:
    attack, _ = listed
    answers = attack.part("116 proxy")
    passed = {host: answer for host, answer in answers.items() if " 2" in answer[:12] or answer == "no proxy"}
    assert passed == {}
    assert answers["evilallowed.example:443"].startswith("HTTP/1.1 403")
    assert answers["allowed.example:22"].startswith("HTTP/1.1 403")
    assert "blocked: " in "\n".join(attack.done.ours)


def test_case_118_an_empty_list_means_none(world: World, server: Server) -> None:
    attack = _attack(world, server, "net-empty", "--net", "allow=")
    _nothing_reached((attack, list(server.came)))


@pytest.mark.parametrize(
    "mode", ["allow=bad name", "allow=ok.example,", "allow=*", "everything", "", "allow=a..b"]
)
def test_case_118_what_can_not_be_read_is_refused(world: World, mode: str) -> None:
    done = world.repo.overlayrun(*world.words("net-wrong", "--net", mode), "--", "sh", "-c", "echo ran")
    assert done.code == 125, str(done)
    assert "ran" not in done.out
    assert "Traceback" not in done.err
    assert "net-wrong" not in world.repo.records()


def test_case_118_without_the_option_it_is_the_hosts(world: World, server: Server) -> None:
    attack = _attack(world, server, "net-host")
    attack.assert_sound()
    assert attack.part("113 114 addresses")["127.0.0.1"] == "ok"
    assert server.came


def test_case_120_without_its_variables_the_proxy_is_no_way_out(listed: tuple[Attack, list[str]]) -> None:
    """The payload's own sockets ask no proxy: nothing is reachable but lo."""
    attack, _ = listed
    assert attack.part("113 114 addresses")["192.0.2.1"] in {"ENETUNREACH", "EHOSTUNREACH", "EPERM"}
    assert attack.part("115 interfaces") == ["lo"]
    assert attack.part("115 more interfaces") in {"EPERM", "EACCES"}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


@pytest.mark.parametrize("published", [False, True])
def test_case_121_servers_inside(world: World, server: Server, published: bool) -> None:  # noqa: FBT001  # a parameter
    port = _free_port()
    words = world.words(f"serving-{published}", "--net", "none", "--env", f"SERVE={port}", "--timeout", "40")
    words += ["--publish", str(port)] if published else []
    argv = ["python3", f"{world.payloads}/reach_out.py", json.dumps({"port": server.port})]
    with (
        world.watched(f"serving-{published}") as watch,
        world.repo.started(*words, "--", *argv) as run,
    ):
        run.expect("listening now")
        if published:
            others = [("127.0.0.2", port), ("::1", port)]
            for address in others:
                with pytest.raises(OSError):  # noqa: PT011  # whatever says that nobody listens
                    socket.create_connection(address, timeout=2).close()
            with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
                client.settimeout(10)
                assert client.recv(100) == b"from inside\n"
            assert run.end() == 0, run.text()
        else:
            with pytest.raises(OSError):  # noqa: PT011  # as above
                socket.create_connection(("127.0.0.1", port), timeout=2).close()
            run.process.terminate()
            run.end()
    assert watch.broken == []
