"""`worker`: a machine's slots for batches, offered to a Dask scheduler."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

import click  # noqa: TID251  # this is overlayrun/cli/

from overlayrun.batch.address import Tls, parse_scheduler
from overlayrun.batch.calls import WorkerSettings
from overlayrun.batch.worker import run_worker
from overlayrun.cli.batch_options import TLS_OPTIONS
from overlayrun.cli.telling import tell

_CACHE: Final = "overlayrun/mirrors"


def _tls_options(command: Callable[..., Any]) -> Any:
    for option in reversed(TLS_OPTIONS):
        command = option(command)
    return command


@click.command("worker", short_help="Offer this machine's slots to a batch on many machines.")
@click.option("--scheduler", metavar="ADDRESS", required=True, help="Dask's scheduler, as tls://HOST:8786.")
@click.option(
    "--slots",
    metavar="N",
    type=click.IntRange(min=1),
    default=os.cpu_count() or 1,
    show_default=True,
    help="Attempts at a time on this machine.",
)
@click.option(
    "--repo-cache",
    metavar="DIR",
    type=click.Path(file_okay=False),
    help="Mirrors of repositories. [default: ~/.cache/overlayrun/mirrors]",
)
@click.option("--name", metavar="NAME", help="What it is called in reports. [default: host name and process]")
@_tls_options
def worker_command(
    *, scheduler: str, slots: int, repo_cache: str | None, name: str | None, **given: Any
) -> int:
    """Make attempts of batches that run elsewhere, until Ctrl-C.

    The batch itself is started with `overlayrun batch TASKS --engine dask://HOST:8786`, by the same
    version of overlayrun. A worker needs git access to the batch's --remote. Whoever reaches the
    scheduler runs code on its workers: so it is TLS, or this machine's own loopback.
    """
    tls = Tls.of_paths(given["tls_ca"], given["tls_cert"], given["tls_key"])
    address = parse_scheduler(scheduler, tls, insecure_tcp=given["insecure_tcp"])
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    settings = WorkerSettings(
        scheduler=address,
        slots=slots,
        cache=os.path.abspath(repo_cache or f"{cache}/{_CACHE}"),
        tls=tls,
        name=name,
    )
    return run_worker(settings, tell)
