"""The engine for many machines, by what the command line says; Dask is an extra."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from overlayrun.batch.address import Tls, parse_scheduler
from overlayrun.batch.attempt import Shared
from overlayrun.batch.calls import EXTRA
from overlayrun.batch.engines.api import Engine
from overlayrun.cli.telling import tell
from overlayrun.errors import HostError, UsageError
from overlayrun.store.git import git


def dask_engine(shared: Shared, address: str, given: Mapping[str, Any]) -> Engine:
    """An engine on the workers of a scheduler. given: options by name. Raises UsageError, HostError."""
    scheduler, tls, remote = reach(shared.repository.root, address, given)
    try:
        from overlayrun.batch.engines.dask import DaskEngine, DaskSettings
    except ImportError as err:
        raise HostError("batches on many machines need Dask, which is not installed", hint=EXTRA) from err
    return DaskEngine(shared, DaskSettings(scheduler=scheduler, remote=remote, tls=tls), tell)


def reach(root: str, address: str, given: Mapping[str, Any]) -> tuple[str, Tls | None, str]:
    """Scheduler, certificates, and the remote that workers use. Raises UsageError."""
    tls = Tls.of_paths(given.get("tls_ca"), given.get("tls_cert"), given.get("tls_key"))
    scheduler = parse_scheduler(address, tls, insecure_tcp=bool(given.get("insecure_tcp")))
    return scheduler, tls, given.get("remote") or _origin(root)


def _origin(root: str) -> str:
    url = git(["remote", "get-url", "origin"], cwd=root, check=False).decode().strip()
    if not url:
        raise UsageError(
            "the workers need a repository to fetch from and push to, and this one has no remote `origin`",
            hint="name it: --remote URL",
        )
    if url.startswith("."):
        raise UsageError(f"origin is {url!a}, which means nothing on a worker", hint="name it: --remote URL")
    return url
