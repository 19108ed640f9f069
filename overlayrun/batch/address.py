"""Where a scheduler is, and by which certificates it is talked to."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from typing import Final, Self

from overlayrun.errors import UsageError

PORT: Final = 8786
"""Of a scheduler that says nothing else: Dask's own default."""
_ADDRESS: Final = re.compile(
    r"(?:(?P<scheme>[a-z+]+)://)?(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?/?"
)
# What is asked of the protocol by each scheme; None: what the host allows.
_SCHEMES: Final = {"dask": None, "dask+tls": "tls", "tls": "tls", "dask+tcp": "tcp", "tcp": "tcp"}


@dataclass(frozen=True, slots=True)
class Tls:
    """Paths of a certificate authority, and of a certificate with its key which it has signed; PEM."""

    ca: str
    cert: str
    key: str

    @classmethod
    def of_paths(cls, ca: str | None, cert: str | None, key: str | None) -> Self | None:
        """All three, or None for none. Raises UsageError for a part, and for a file that can't be read."""
        given = {"--tls-ca": ca, "--tls-cert": cert, "--tls-key": key}
        if not any(given.values()):
            return None
        for option, path in given.items():
            if not path:
                raise UsageError(f"{option} is missing", hint="TLS needs --tls-ca, --tls-cert and --tls-key")
            if not os.access(path, os.R_OK):
                raise UsageError(f"{option}: the file can't be read: {path}")
        return cls(*(os.path.abspath(path) for path in (ca, cert, key) if path))


def parse_scheduler(text: str, tls: Tls | None, *, insecure_tcp: bool) -> str:
    """`dask://HOST:PORT`, `tls://…`, `tcp://…` as Dask writes it: `tls://HOST:PORT` or `tcp://HOST:PORT`.

    Who reaches a scheduler runs code on all of its workers. So without TLS only this machine's own loopback
    is taken, unless insecure_tcp. Raises UsageError.
    """
    found = _ADDRESS.fullmatch(text.strip())
    scheme = (found["scheme"] or "dask") if found else ""
    port = int((found and found["port"]) or PORT)
    if found is None or scheme not in _SCHEMES or not 0 < port < 65536:
        raise UsageError(
            f"not a scheduler's address: {text[:100]!a}", hint="as in: dask://HOST:8786 or tls://HOST:8786"
        )
    host = found["host"]
    protocol = _SCHEMES[scheme] or ("tcp" if tls is None and (insecure_tcp or is_loopback(host)) else "tls")
    if protocol == "tls" and tls is None:
        raise UsageError(
            f"{text} needs TLS, and no certificates are given", hint="give --tls-ca, --tls-cert and --tls-key"
        )
    if protocol == "tcp" and not (insecure_tcp or is_loopback(host)):
        raise UsageError(
            f"plain TCP to another machine: {text}: whoever reaches a scheduler runs code on all its workers",
            hint="use tls:// with --tls-ca, --tls-cert and --tls-key, or an SSH tunnel to localhost; "
            "in a network where everybody may: --insecure-tcp",
        )
    return f"{protocol}://{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own loopback; names are not looked up."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def host_of(address: str) -> str:
    """Host of what `parse_scheduler` gives."""
    return address.partition("://")[2].rpartition(":")[0]
