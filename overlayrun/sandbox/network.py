"""What a command may reach: the host's network, none, or names through a proxy. On the launch path."""

from __future__ import annotations

import fcntl
import os
import struct
from enum import Enum

from overlayrun.errors import UsageError
from overlayrun.kernel import abi, syscalls
from overlayrun.values import port

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

# In a network namespace of its own every port is free: squid's, which many tools know as a proxy's.
PROXY_PORT: Final = 3128
_WEB: Final = frozenset({80, 443})
_LETTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_")
_LONGEST_NAME: Final = 253  # RFC 1035, 2.3.4, less the root's dot
_LONGEST_LABEL: Final = 63
_HINT: Final = "it takes: host, none, allow=example.com,*.example.org,example.net:8443"


class NetworkKind(Enum):
    """Whose network a command has."""

    HOST = "host"
    NONE = "none"
    ALLOW = "allow"


class Rule:
    """Names that may be reached. ports: None for every port. below: the names below `name`, not itself."""

    __slots__ = ("below", "name", "ports")

    def __init__(self, name: str, ports: Iterable[int] | None = _WEB, *, below: bool = False) -> None:
        self.name = name
        self.ports = None if ports is None else frozenset(ports)
        self.below = below

    def allows(self, name: str, number: int) -> bool:
        """Whether a name, as `host_name` gives it, may be reached on a port."""
        matches = name.endswith(f".{self.name}") if self.below else name == self.name
        return matches and (self.ports is None or number in self.ports)


class Network:
    """The network of a run. rules: what the proxy lets through; empty but for ALLOW."""

    __slots__ = ("kind", "rules")

    def __init__(self, kind: NetworkKind, rules: Iterable[Rule] = ()) -> None:
        self.kind = kind
        self.rules = tuple(rules)

    @property
    def is_own(self) -> bool:
        """Whether the command gets a network namespace of its own, with nothing but a loopback."""
        return self.kind is not NetworkKind.HOST

    def allows(self, name: str, number: int) -> bool:
        """Whether the proxy lets a name, as `host_name` gives it, be reached on a port."""
        return any(rule.allows(name, number) for rule in self.rules)

    def describe(self) -> str:
        """A few words for the header of a run."""
        if self.kind is not NetworkKind.ALLOW:
            return f"network {self.kind.value}"
        return f"network through a proxy to {len(self.rules)} name{'' if len(self.rules) == 1 else 's'}"


def parse_net(text: str | None, *, strict: bool) -> Network:
    """The network that `--net` asks for; without it the host's, and none for a strict run.

    An empty list of names is no network, never an open one. Raises UsageError for whatever is not understood.
    """
    if text is None:
        return Network(NetworkKind.NONE if strict else NetworkKind.HOST)
    kind, given, names = text.partition("=")
    if kind == NetworkKind.ALLOW.value and given:
        rules = [_rule(entry.strip()) for entry in names.split(",")] if names.strip() else []
        return Network(NetworkKind.ALLOW if rules else NetworkKind.NONE, rules)
    if given or kind not in (NetworkKind.HOST.value, NetworkKind.NONE.value):
        raise UsageError(f"--net can't be {text!a}", hint=_HINT)
    if strict and kind == NetworkKind.HOST.value:
        raise UsageError("--strict has no host network", hint="leave --strict out, or: --net allow=DOMAIN,…")
    return Network(NetworkKind(kind))


def _rule(entry: str) -> Rule:
    name, given, number = entry.partition(":")
    below = name.startswith("*.")
    try:
        ports = _ports(number) if given else _WEB
        plain = host_name(name[2:] if below else name)
    except ValueError as err:
        words = f": {err}" if str(err) else ""
        raise UsageError(f"--net can't allow {entry!a}{words}", hint=_HINT) from err
    if below and "." not in plain:
        raise UsageError(f"--net can't allow {entry!a}: anybody can have a name there", hint=_HINT)
    return Rule(plain, ports, below=below)


def _ports(text: str) -> frozenset[int] | None:
    if text == "*":
        return None
    try:
        return frozenset({port(text)})
    except ValueError:
        raise ValueError("that is no port") from None


def host_name(text: str) -> str:
    """A host's name in its one spelling: lower case, without the root's dot. Raises ValueError with a reason.

    Refused are addresses in every spelling that some library reads as one (0x7f.1, 2130706433), and letters
    beyond ASCII: two libraries may turn the same ones into different names (IDNA 2003 and 2008).
    """
    if not text.isascii():
        raise ValueError("write a name beyond ASCII in its xn-- form")
    name = text.lower().removesuffix(".")
    labels = name.split(".")
    if len(name) > _LONGEST_NAME or not all(_is_label(label) for label in labels):
        raise ValueError("that is no host's name")
    # What ends in a number is an address: https://url.spec.whatwg.org/#ends-in-a-number-checker
    if labels[-1].isdigit() or labels[-1].startswith("0x"):
        raise ValueError("names only, no addresses")
    return name


def _is_label(label: str) -> bool:
    return 0 < len(label) <= _LONGEST_LABEL and _LETTERS.issuperset(label) and label.strip("-") == label


def proxy_environment(number: int = PROXY_PORT) -> dict[str, str]:
    """Variables by which tools find the proxy on port `number` of the sandbox's loopback.

    Both cases: curl reads `http_proxy` in lower case alone, others the upper one. Node has a switch for it.
    """
    proxy = f"http://127.0.0.1:{number}"
    own = "localhost,127.0.0.1,::1"
    shared = {"HTTP_PROXY": proxy, "HTTPS_PROXY": proxy, "ALL_PROXY": proxy, "NO_PROXY": own}
    return {**shared, **{name.lower(): value for name, value in shared.items()}, "NODE_USE_ENV_PROXY": "1"}


def bring_up_loopback() -> None:
    """Switch the loopback of this process's network namespace on, so that servers inside can be reached.

    By pid 1 of the sandbox, before it gives its privileges up. Source: netdevice(7), SIOCSIFFLAGS.
    """
    fd = syscalls.socket(abi.AF_INET, abi.SOCK_DGRAM)
    try:
        request = fcntl.ioctl(fd, abi.SIOCGIFFLAGS, struct.pack("16sH22x", b"lo", 0))
        flags: int = struct.unpack_from("H", request, 16)[0]
        fcntl.ioctl(fd, abi.SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", flags | abi.IFF_UP))
    finally:
        os.close(fd)
