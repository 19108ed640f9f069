"""The proxy of `--net allow=`, against servers on the loopback; names and what counts as public are the test's."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayrun import tunnel as tunnels
from overlayrun.proxy import Proxy
from overlayrun.proxy_rules import LONGEST_HEAD, Refused, is_public, parse_request
from overlayrun.sandbox.network import host_name, parse_net
from overlayrun.tunnel import serve, tunnel

pytestmark = pytest.mark.shared

_PATIENCE = 20.0
_RULES = "allow=allowed.example:*,private.example,*.wild.example"

# Case 116 of the hostile list: what is not the name that was allowed, however it is written.
_BYPASSES = [
    *(
        b"evil.com\0.allowed.example:443",
        b"allowed.example\0.evil.com:443",
        b"allowed.example%00.evil.com:443",
    ),
    *(
        b"allowed.example.evil.com:443",
        b"evilallowed.example:443",
        b"user@allowed.example:443",
        b"a:b@allowed.example:443",
    ),
    *(b"127.0.0.1:443", b"0x7f.1:443", b"2130706433:443", b"0177.0.0.1:443", b"127.1:443", b"[::1]:443"),
    *(
        b"[::ffff:127.0.0.1]:443",
        b"::1:443",
        b"private.example:22",
        b"xn--:443",
        b"xn--llowed-4ve.example:443",
    ),
    *(
        "\u0430llowed.example:443".encode(),
        b"a" * 4096 + b":443",
        b"*.wild.example:443",
        b"wild.example:443",
        b"*:443",
    ),
    *(b"allowed.example..:443", b".allowed.example:443", b"allowed.example/:443", b"allowed.example#:443"),
    *(
        b"allowed.example\\@evil.com:443",
        b"allowed.example:443:80",
        b"allowed.example:0",
        b"allowed.example:65536",
    ),
    *(
        b"allowed.example:+443",
        b"allowed.example:44 3",
        b"http://allowed.example:443",
        b"localhost:443",
        b"evil.com:443",
    ),
]

_MALFORMED = [
    *(
        b"",
        b"\r\n\r\n",
        b"CONNECT\r\n\r\n",
        b"CONNECT allowed.example:443\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
    ),
    *(b"CONNECT allowed.example:443 HTTP/2\r\n\r\n", b"CONNECT  allowed.example:443 HTTP/1.1\r\n\r\n"),
    *(b" CONNECT allowed.example:443 HTTP/1.1\r\n\r\n", b"connect allowed.example:443 HTTP/1.1\r\n\r\n"),
    *(b"CONNECT allowed.example:443 HTTP/1.1\n\n", b"CONNECT allowed.example:443 HTTP/1.1\n\r\n\r\n"),
    *(
        b"CONNECT allowed.example:443 HTTP/1.1\r\nCONNECT evil.com:443 HTTP/1.1\r\n\r\n",
        b"CONNECT allowed.example HTTP/1.1\r\n\r\n",
    ),
    *(
        b"CONNECT allowed.example:443 HTTP/1.1\r\nA: b\n\r\n\r\n",
        b"CONNECT allowed.example:443 HTTP/1.1\r\nA: b\rC: d\r\n\r\n",
    ),
    *(
        b"CONNECT allowed.example:443 HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
        b"CONNECT allowed.example:443 HTTP/1.1\r\nA : b\r\n\r\n",
    ),
    *(
        b"CONNECT allowed.example:443 HTTP/1.1\r\nA: \0\r\n\r\n",
        b"CONNECT allowed.example:443 HTTP/1.1\r\nnothing\r\n\r\n",
    ),
    b"CONNECT allowed.example:443 HTTP/1.1\r\nHost: allowed.example\r\nHost: allowed.example\r\n\r\n",
    b"CONNECT allowed.example:443 HTTP/1.1\r\nA: " + b"x" * LONGEST_HEAD + b"\r\n\r\n",
    *(b"GET https://allowed.example/ HTTP/1.1\r\n\r\n", b"GET ftp://allowed.example/ HTTP/1.1\r\n\r\n"),
    *(
        b"GET http://allowed.example/a#b HTTP/1.1\r\n\r\n",
        b"GET http://allowed.example/a\x7fb HTTP/1.1\r\n\r\n",
    ),
    b"POST http://allowed.example/ HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    *(
        b"POST http://allowed.example/ HTTP/1.1\r\nContent-Length: +1\r\n\r\n",
        b"POST http://allowed.example/ HTTP/1.1\r\nContent-Length: 1, 2\r\n\r\n",
    ),
]


def _status(head: bytes) -> int:
    with pytest.raises(Refused) as caught:
        parse_request(head)
    assert str(caught.value).isascii()
    return caught.value.status


@pytest.mark.parametrize("head", _MALFORMED, ids=range(len(_MALFORMED)))
def test_what_two_readers_could_read_differently_is_refused(head: bytes) -> None:
    assert _status(head) == 400


@pytest.mark.parametrize(
    "host", ["evil.com", "allowed.example:444", "allowed.example.evil.com", "127.0.0.1", ""]
)
@pytest.mark.parametrize("start", ["CONNECT allowed.example:443", "GET http://allowed.example:443/"])
def test_host_and_target_must_be_the_same(host: str, start: str) -> None:
    assert _status(f"{start} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()) == 403
    parse_request(f"{start} HTTP/1.1\r\nHost: ALLOWED.example.:443\r\n\r\n".encode())


def test_a_body_without_a_length_is_refused() -> None:
    head = b"POST http://allowed.example/ HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert _status(head) == 411


def test_a_plain_request_is_written_anew() -> None:
    request = parse_request(
        b"POST http://Allowed.Example.:8080?q=1 HTTP/1.1\r\nUser-Agent: t\r\nProxy-Connection: keep-alive\r\n"
        b"Connection: x-own, content-length\r\nX-Own: 1\r\nUpgrade: h2c\r\nProxy-Authorization: b\r\nTE: trailers\r\n"
        b"Content-Length: 5\r\nX-Kept: caf\xc3\xa9 \r\n\r\n"
    )
    assert (request.host, request.port, request.body) == ("allowed.example", 8080, 5)
    assert request.head == (
        b"POST /?q=1 HTTP/1.1\r\nhost: allowed.example:8080\r\nuser-agent: t\r\ncontent-length: 5\r\n"
        b"x-kept: caf\xc3\xa9\r\nconnection: close\r\n\r\n"
    )


@given(
    st.lists(
        st.sampled_from(
            [
                *map(bytes, [b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b"@", b"/", b"#"]),
                b"CONNECT ",
                b"GET ",
                b"http://",
                b"allowed.example",
                b"evil.com",
                b":443",
                b" HTTP/1.1",
                b"Host: ",
                b"Content-Length: 3",
            ]
        ),
        max_size=14,
    )
)
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
def test_whatever_is_taken_is_one_request_to_one_plain_name(parts: list[bytes]) -> None:
    try:
        request = parse_request(b"".join([*parts, b"\r\n\r\n"]))
    except Refused:
        return
    assert host_name(request.host) == request.host
    assert 0 < request.port < 65536
    if request.body is not None:
        lines = request.head.split(b"\r\n")
        assert re.fullmatch(rb"GET /[!-~]* HTTP/1\.1", lines[0])
        assert [line.split(b":")[0] for line in lines].count(b"host") == 1
        assert not [line for line in lines if b"\r" in line or b"\n" in line or b"\0" in line]


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "64:ff9b::808:808"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "127.255.255.254",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.0.1",
            "169.254.169.254",
        ),
        *(
            "100.64.0.1",
            "100.127.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.1",
        ),
        *("192.88.99.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255"),
        *(
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:8.8.8.8",
            "::127.0.0.1",
            "fe80::1",
            "fec0::1",
            "fc00::1",
            "fd00::1",
        ),
        *("ff02::1", "2001:db8::1", "2001::1", "2001:10::1", "3fff::1", "100::1", "5f00::1", "64:ff9b:1::1"),
        *(
            "64:ff9b::7f00:1",
            "64:ff9b::a00:1",
            "64:ff9b::a9fe:a9fe",
            "2002:808:808::1",
            "2002:7f00:1::1",
            "2002:a00:1::1",
        ),
        *("", "localhost", "8.8.8.8:80", "fe80::1%lo", "0x08080808", "8.8.8", "134744072"),
    ],
)
def test_all_other_addresses_are_not(address: str) -> None:
    assert not is_public(address)


@dataclass(slots=True)
class Lab:
    """A proxy and a server behind it, on the loopback. names: what the resolver says. asked: of what."""

    proxy: Proxy
    port: int
    origin: int
    names: dict[str, list[str]]
    seen: list[bytes] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    opened: list[asyncio.StreamWriter] = field(default_factory=list)

    async def open(self, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.opened.append(writer)
        writer.write(data)
        return reader, writer

    async def say(self, data: bytes) -> bytes:
        """All that comes back; the client's side stays open."""
        reader, _ = await self.open(data)
        return await reader.read()

    async def connect(
        self, target: str, more: bytes = b""
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await self.open(f"CONNECT {target} HTTP/1.1\r\n\r\n".encode() + more)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        return reader, writer


Origin = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say everything back once the client has ended."""
    data = await reader.read()
    writer.write(b"echo:" + data)
    await writer.drain()


@asynccontextmanager
async def _lab(origin: Origin = _echo) -> AsyncIterator[Lab]:
    lab = Lab(Proxy(parse_net(_RULES, strict=False)), 0, 0, {"allowed.example": ["127.0.0.1"]})

    async def resolve(host: str, _: int) -> Sequence[str]:
        lab.asked.append(host)
        if host not in lab.names:
            raise socket.gaierror("no such name")
        return lab.names[host]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.CancelledError):
            await origin(reader, writer)
        writer.close()

    # The loopback stands for a public host; every other address is judged as ever.
    lab.proxy = Proxy(
        lab.proxy.network, resolve=resolve, public=lambda text: text == "127.0.0.1" or is_public(text)
    )
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    lab.origin = server.sockets[0].getsockname()[1]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        lab.port = listener.getsockname()[1]
        serving = asyncio.create_task(serve(listener, lab.proxy.handle))
        try:
            async with asyncio.timeout(_PATIENCE):
                yield lab
        finally:
            server.close()
            for writer in lab.opened:
                writer.close()
            serving.cancel()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)


def _run(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(story())


def test_an_allowed_name_is_reached_and_bytes_pass_both_ways() -> None:
    async def story() -> None:
        async with _lab() as lab:
            reader, writer = await lab.connect(f"Allowed.Example.:{lab.origin}", b"early")
            writer.write(b" and late")
            writer.write_eof()
            assert await reader.read() == b"echo:early and late"
            assert lab.proxy.denied == {}

    _run(story)


def test_no_spelling_leads_to_another_place() -> None:
    async def story() -> None:
        async with _lab() as lab:
            for target in _BYPASSES:
                said = await lab.say(b"CONNECT " + target + b" HTTP/1.1\r\n\r\n")
                assert said.startswith((b"HTTP/1.1 403 ", b"HTTP/1.1 400 ")), (target, said)
                assert said.startswith(b"HTTP/1.1 403 ") or b" " in target or len(target) > 253, (
                    target,
                    said,
                )
                assert b"overlayrun:" in said
            assert lab.asked == []
            assert sum(lab.proxy.denied.values()) >= len(_BYPASSES) - 3
            assert all(name.isascii() and name.isprintable() for name in lab.proxy.denied)

    _run(story)


def test_a_bare_line_feed_is_answered_at_once() -> None:
    async def story() -> None:
        async with _lab() as lab:
            for head in (
                b"CONNECT a:1 HTTP/1.1\n\n",
                b"CONNECT a:1 HTTP/1.1\n\r\n",
                b"x" * (LONGEST_HEAD + 1),
            ):
                assert (await lab.say(head)).startswith(b"HTTP/1.1 400 ")

    _run(story)


def test_a_second_request_behind_the_first_is_not_carried_out() -> None:
    async def one_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(4)
        with suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                body += await reader.read()
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + head + body)

    async def story() -> None:
        async with _lab(one_request) as lab:
            place = f"http://allowed.example:{lab.origin}"
            second = f"GET {place}/second HTTP/1.1\r\nHost: evil.com\r\n\r\n"
            said = await lab.say(
                f"POST {place}/first HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody{second}".encode()
            )
            assert said.startswith(b"HTTP/1.1 200 OK\r\n\r\nPOST /first HTTP/1.1\r\n")
            assert said.endswith(b"connection: close\r\n\r\nbody")

    _run(story)


@pytest.mark.parametrize(
    "answers",
    [
        ["10.0.0.1"],
        ["169.254.169.254"],
        ["::1"],
        ["fd00::1"],
        ["127.0.0.1", "192.168.0.1"],
        ["::ffff:127.0.0.1"],
        [],
    ],
)
def test_a_private_answer_is_refused(answers: list[str]) -> None:
    async def story() -> None:
        async with _lab() as lab:
            lab.names["private.example"] = answers
            assert (await lab.say(b"CONNECT private.example:443 HTTP/1.1\r\n\r\n")).startswith(
                b"HTTP/1.1 502 "
            )
            assert lab.proxy.denied == {"private.example:443 (a private address)": 1}

    _run(story)


def test_the_address_that_was_looked_at_is_the_one_that_is_used() -> None:
    async def story() -> None:
        async with _lab() as lab:
            answers = iter([["127.0.0.1"], ["10.0.0.1"]])
            looked_up = lab.proxy.resolve

            async def rebinding(host: str, port: int) -> Sequence[str]:
                await looked_up(host, port)
                return next(answers)

            lab.proxy.resolve = rebinding
            await lab.connect(f"allowed.example:{lab.origin}")
            assert lab.asked == ["allowed.example"]
            said = await lab.say(f"CONNECT allowed.example:{lab.origin} HTTP/1.1\r\n\r\n".encode())
            assert said.startswith(b"HTTP/1.1 502 ")

    _run(story)


def test_what_is_not_there_is_told_and_is_no_denial() -> None:
    async def story() -> None:
        async with _lab() as lab:
            with socket.create_server(("127.0.0.1", 0)) as gone:
                port = gone.getsockname()[1]
            for target, status in ((f"allowed.example:{port}", b"504"), ("a.wild.example:443", b"502")):
                said = await lab.say(f"CONNECT {target} HTTP/1.1\r\n\r\n".encode())
                assert said.startswith(b"HTTP/1.1 " + status), said
            assert lab.proxy.denied == {}

    _run(story)


def test_names_without_end_are_counted_together() -> None:
    async def story() -> None:
        async with _lab() as lab:
            for number in range(150):
                await lab.say(f"CONNECT n{number}.evil.com:443 HTTP/1.1\r\n\r\n".encode())
            await lab.say(b"CONNECT n1.evil.com:443 HTTP/1.1\r\n\r\n")
            assert len(lab.proxy.denied) <= 101
            assert sum(lab.proxy.denied.values()) == 151
            rows = lab.proxy.report().decode().splitlines()
            assert rows[:2] == ["50 other names", "2 n1.evil.com:443"]

    _run(story)


def test_a_reader_that_does_not_read_holds_the_writer_up() -> None:
    sent = 0

    async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        for _turn in range(2000):
            writer.write(bytes(1 << 16))
            await writer.drain()
            sent += 1

    async def story() -> None:
        async with _lab(flood) as lab:
            client = socket.create_connection(("127.0.0.1", lab.port))
            with client:
                client.settimeout(0)
                head = f"CONNECT allowed.example:{lab.origin} HTTP/1.1\r\n\r\n".encode()
                await asyncio.get_running_loop().sock_sendall(client, head)
                before = -1
                while sent != before:
                    before = sent
                    await asyncio.sleep(0.3)
            assert 0 < sent < 1000  # what the kernel's own buffers take

    _run(story)


def test_no_more_connections_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnels, "_AT_ONCE", 2)

    async def story() -> None:
        async with _lab() as lab:
            held = [await lab.connect(f"allowed.example:{lab.origin}") for _ in range(2)]
            waiting = asyncio.create_task(lab.say(b"CONNECT evil.com:443 HTTP/1.1\r\n\r\n"))
            await asyncio.sleep(0.2)
            assert not waiting.done()
            held[0][1].write_eof()
            assert (await waiting).startswith(b"HTTP/1.1 403 ")

    _run(story)


def test_a_tunnel_in_which_nothing_moves_ends() -> None:
    async def story() -> None:
        ours, one = socket.socketpair()
        other, theirs = socket.socketpair()
        with ours, one, other, theirs:
            for end in (ours, one, other, theirs):
                end.settimeout(0)
            async with asyncio.timeout(_PATIENCE):
                await tunnel(one, other, idle=0.2)

    _run(story)
