"""What the proxy takes for a request and for a public address. Pure: bytes and text in, values out.

Strict, because whatever two readers understand differently is a way around the list of names.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from overlayrun.sandbox.network import host_name
from overlayrun.values import port

LONGEST_HEAD: Final = 8192
_SHOWN: Final = 80  # letters of a target that is no name
_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST: Final = re.compile(rf"({_TOKEN}) ([^ ]+) HTTP/1\.([01])")
# A value may hold no control character but a tab; a line that begins with a blank (obs-fold) has no name.
_HEADER: Final = re.compile(rf"({_TOKEN}):[ \t]*((?:[\x21-\x7e\x80-\xff][\t\x20-\x7e\x80-\xff]*)?)")
_AUTHORITY: Final = re.compile(r"([^:@/?#\[\]\\]+)(?::([0-9]{1,5}))?")
_PATH: Final = re.compile(r"[/?][\x21\x22\x24-\x7e]*|")  # visible ASCII, no fragment
# Of the connection between client and proxy, not of the message: RFC 9110, 7.6.1, and older habits.
_HOP_BY_HOP: Final = frozenset(
    "connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer upgrade".split()
)


class Refused(Exception):
    """A request that is not carried out. denied: what to count it under, None where no rule was broken."""

    def __init__(self, status: int, why: str, *, denied: str | None = None) -> None:
        super().__init__(why)
        self.status = status
        self.why = why
        self.denied = denied


@dataclass(frozen=True, slots=True)
class Request:
    """Where a client wants to go.

    head: what the server is sent first; empty for a tunnel. body: bytes of the client's that follow it, None
    for a tunnel, which has no end of its own.
    """

    host: str
    port: int
    head: bytes
    body: int | None


def parse_request(head: bytes) -> Request:
    """A request's head, up to and with its empty line, as a value. Raises Refused."""
    lines = head.decode("latin-1").split("\r\n")
    if lines[-2:] != ["", ""] or len(head) > LONGEST_HEAD:
        raise Refused(400, "the request's head has no end")
    line = _REQUEST.fullmatch(lines[0])
    if line is None:
        raise Refused(400, "no request line")
    method, target, minor = line.groups()
    headers = [_parse_header(text) for text in lines[1:-2]]
    if method == "CONNECT":
        host, number = _parse_authority(target, None)
        _check_host(headers, host, number)
        return Request(host, number, b"", None)
    return _parse_forward(f"{method} {{}} HTTP/1.{minor}", target, headers)


def _parse_header(line: str) -> tuple[str, str]:
    match = _HEADER.fullmatch(line)
    if match is None:
        raise Refused(400, "a header that is none")
    return match[1].lower(), match[2].rstrip(" \t")


def _parse_authority(text: str, default: int | None) -> tuple[str, int]:
    """Host and port of `host:port`; without user, address or anything else beside. default: for no port."""
    match = _AUTHORITY.fullmatch(text)
    shown = ascii(text[:_SHOWN])[1:-1]
    if match is None:
        raise Refused(403, "the target is no host's name", denied=shown)
    try:
        number = default if match[2] is None else port(match[2].lstrip("0"))
        host = host_name(match[1])
    except ValueError as err:
        raise Refused(403, str(err) or "that is no port", denied=shown) from err
    if number is None:
        raise Refused(400, "the target has no port")
    return host, number


def _check_host(headers: list[tuple[str, str]], host: str, number: int) -> None:
    """Refuse a Host that is not the target: a server goes by the one where the proxy went by the other."""
    values = [value for name, value in headers if name == "host"]
    if len(values) > 1:
        raise Refused(400, "more than one Host")
    for value in values:
        if _parse_authority(value, number) != (host, number):
            raise Refused(
                403, "Host and target differ", denied=f"{host}:{number} as {ascii(value[:_SHOWN])[1:-1]}"
            )


def _parse_forward(line: str, target: str, headers: list[tuple[str, str]]) -> Request:
    """A plain request in absolute form; what goes on is written anew, and ends the connection."""
    if not target[:7].lower() == "http://":
        raise Refused(400, "only http:// is forwarded; for all else: CONNECT")
    split = re.search(r"[/?#]", target[7:])
    end = 7 + split.start() if split else len(target)
    authority, path = target[7:end], target[end:]
    host, number = _parse_authority(authority, 80)
    if not _PATH.fullmatch(path):
        raise Refused(400, "the path has letters that belong in no path")
    _check_host(headers, host, number)
    body = _body_length(headers)
    dropped = _HOP_BY_HOP | {"host"} | _nominated(headers)
    kept = [f"{name}: {value}" for name, value in headers if name not in dropped]
    path = path if path.startswith("/") else f"/{path}"
    shown = host if number == 80 else f"{host}:{number}"
    lines = [line.format(path), f"host: {shown}", *kept, "connection: close", "", ""]
    return Request(host, number, "\r\n".join(lines).encode("latin-1"), body)


def _nominated(headers: list[tuple[str, str]]) -> set[str]:
    """Headers that Connection names as the connection's own; the body's length is not to be lost that way."""
    named = {
        word.strip().lower() for name, value in headers if name == "connection" for word in value.split(",")
    }
    return named - {"content-length", "transfer-encoding"}


def _body_length(headers: list[tuple[str, str]]) -> int:
    """Bytes of the body. A length is wanted: two readers of a chunked one can see two different ends."""
    if any(name == "transfer-encoding" for name, _ in headers):
        raise Refused(411, "a body without Content-Length")
    lengths = [value for name, value in headers if name == "content-length"]
    if not lengths:
        return 0
    if len(lengths) > 1 or not re.fullmatch(r"[0-9]{1,18}", lengths[0]):
        raise Refused(400, "no Content-Length that could be understood")
    return int(lengths[0])


_GLOBAL_6: Final = ipaddress.IPv6Network("2000::/3")  # all that is given out: IANA, IPv6 address space
_NOT_PUBLIC: Final = tuple(
    ipaddress.ip_network(text)
    for text in (
        *("192.0.0.0/24", "192.88.99.0/24"),  # protocols' own, 6to4 relays
        *("2001::/23", "2002::/16", "3fff::/20"),  # protocols' own with Teredo, 6to4, documentation
    )
)
_EMBEDDING: Final = ipaddress.IPv6Network("64:ff9b::/96")  # NAT64: RFC 6052


def is_public(text: str) -> bool:
    """Whether an address is the public Internet's: not of a host, a LAN, a cloud's metadata or a group.

    An IPv6 address that NAT64 takes for an IPv4 one is as public as that; one that maps it never is.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if address in _EMBEDDING:
            return is_public(str(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)))
        if address not in _GLOBAL_6:
            return False
    groups = address.is_multicast or address.is_reserved or address.is_unspecified
    return address.is_global and not groups and not any(address in network for network in _NOT_PUBLIC)
