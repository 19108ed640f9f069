"""Certificates as Dask wants them. Loads Dask."""

from __future__ import annotations

from typing import Any

from distributed import Security

from overlayrun.batch.address import Tls


def security_of(tls: Tls | None) -> Any:
    """What Dask is to be talked to with."""
    make: Any = Security  # it has no types
    if tls is None:
        return make()
    files = {"tls_ca_file": tls.ca}
    for role in ("client", "worker", "scheduler"):
        files |= {f"tls_{role}_cert": tls.cert, f"tls_{role}_key": tls.key}
    return make(require_encryption=True, **files)
