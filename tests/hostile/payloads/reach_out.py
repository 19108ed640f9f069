"""Connect to everything that a network mode should keep away."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import urllib.parse

from inside import GIVEN, ended, finish, probe

PORT = int(GIVEN["port"])
ADDRESSES = (
    ("127.0.0.1", PORT),
    ("127.1.2.3", PORT),
    ("0.0.0.0", PORT),
    ("::1", PORT),
    ("::", PORT),
    ("::ffff:127.0.0.1", PORT),
    ("localhost", PORT),
    ("10.0.2.2", PORT),
    ("10.0.2.3", 53),
    ("169.254.169.254", 80),
    ("192.168.0.1", 80),
    ("100.64.0.1", 80),
    ("fd00::1", 80),
    ("192.0.2.1", 443),
)


def connected(host: str, port: int) -> str:
    try:
        socket.create_connection((host, port), timeout=2).close()
    except OSError as err:
        return ended(-err.errno) if err.errno else type(err).__name__
    return "ok"


@probe("113 114 addresses")
def _() -> object:
    return {host: connected(host, port) for host, port in ADDRESSES}


@probe("115 names")
def _() -> object:
    try:
        socket.getaddrinfo("name.invalid.example", 80)
    except OSError as err:
        return type(err).__name__
    return "ok"


@probe("115 datagrams")
def _() -> object:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(0.3)
        client.sendto(b"\0" * 12, ("192.0.2.53", 53))
        return "ok"


@probe("115 raw sockets")
def _() -> object:
    socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close()
    return "ok"


@probe("115 interfaces")
def _() -> object:
    return sorted(name for _, name in socket.if_nameindex())


@probe("115 lo is up")
def _() -> object:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=2).close()
    return "ok"


@probe("115 more interfaces")
def _() -> object:
    """A message to the kernel that makes a dummy interface (RTM_NEWLINK)."""
    name = b"dummy0\0\0"
    attributes = struct.pack("HH", 4 + len(name), 3) + name
    body = struct.pack("BxHiII", 0, 0, 0, 0, 0) + attributes
    head = struct.pack("IHHII", 16 + len(body), 16, 0x605, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as client:
        client.send(head + body)
        answer = client.recv(4096)
    return ended(struct.unpack_from("i", answer, 16)[0])


def asked(request: bytes) -> str:
    """First line of the proxy's answer."""
    proxy = urllib.parse.urlsplit(os.environ.get("https_proxy", ""))
    if not proxy.hostname or not proxy.port:
        return "no proxy"
    with socket.create_connection((proxy.hostname, proxy.port), timeout=5) as client:
        with contextlib.suppress(OSError):
            client.sendall(request)
        try:
            return client.recv(4096).split(b"\r\n")[0].decode(errors="replace")
        except OSError as err:
            return type(err).__name__


def connect(host: str) -> bytes:
    return f"CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode("utf-8", "surrogateescape")


@probe("116 proxy")
def _() -> object:
    hosts = (
        "evil.com\0.allowed.example:443",
        "allowed.example.evil.com:443",
        "evilallowed.example:443",
        "user@allowed.example:443",
        "user:allowed.example@evil.com:443",
        f"127.0.0.1:{PORT}",
        f"0x7f.1:{PORT}",
        f"2130706433:{PORT}",
        f"[::ffff:127.0.0.1]:{PORT}",
        f"[::1]:{PORT}",
        f"localhost:{PORT}",
        "allowed.example:22",
        "allowed.example:443:443",
        "allowed.example%00:443",
        "xn--llowed-qta.example:443",
        "\u0430llowed.example:443",
        "169.254.169.254:80",
        "a" * 4096 + ":443",
    )
    told = {host[:60]: asked(connect(host)) for host in hosts}
    odd = {
        "two lines": b"CONNECT evil.com:443 HTTP/1.1\r\nCONNECT allowed.example:443 HTTP/1.1\r\n\r\n",
        "bare newline": b"CONNECT allowed.example:443 HTTP/1.1\nHost: evil.com\n\n",
        "another host": b"GET http://allowed.example/ HTTP/1.1\r\nHost: evil.com\r\n\r\n",
        "origin form": b"GET / HTTP/1.1\r\nHost: allowed.example\r\n\r\n",
        "a file": b"GET file:///etc/shadow HTTP/1.1\r\nHost: allowed.example\r\n\r\n",
        "no end": b"CONNECT " + b"x" * 100_000,
    }
    return {**told, **{name: asked(request) for name, request in odd.items()}}


@probe("121 listen")
def _() -> object:
    """Listen where a user of the host might look, and tell whether anybody came."""
    wanted = os.environ.get("SERVE")
    if not wanted:
        return "not asked"
    server = socket.create_server(("0.0.0.0", int(wanted)))
    server.settimeout(20)

    def wait() -> None:
        with contextlib.suppress(OSError):
            client, _ = server.accept()
            client.sendall(b"from inside\n")
            client.close()

    waiter = threading.Thread(target=wait)
    waiter.start()
    print("listening now", flush=True)
    waiter.join(20)
    return "done"


finish()
