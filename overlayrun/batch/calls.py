"""What a coordinator calls on a worker, by reference: both sides have the same overlayrun.

Loads no Dask: a worker forks its launcher before that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from overlayrun.batch.address import Tls

RESOURCE: Final = "agent"
"""Name of Dask's resource of which a worker has one for each slot."""
EXTRA: Final = 'pip install "overlayrun[dask]"'

Answer = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """What a worker is started with.

    scheduler: as `address.parse_scheduler` gives it. cache: directory of the mirrors. name: None for one
    after the host and this process.
    """

    scheduler: str
    slots: int
    cache: str
    tls: Tls | None = None
    name: str | None = None


class Station(Protocol):
    """What serves attempts in this process."""

    def attempt(self, payload: Mapping[str, Any]) -> Answer:
        """See `attempt_here`."""

    def cancel(self, key: str) -> None:
        """See `cancel_here`."""


STATIONS: Final[list[Station]] = []


def attempt_here(payload: Mapping[str, Any]) -> Answer:
    """Make an attempt on this worker, from base to pushed ref; called by Dask in a thread of its own.

    payload: `DaskEngine` says what is in it. The answer has one of `refused`, `lost`, `failed`: why; or
    `result` with what `Result.to_json` gives, `files` as `parcel.pack_files` does, and `bundle` with the
    commits unless they are many: then the coordinator fetches them from the remote.
    """
    if not STATIONS:
        return {"refused": "this is a worker of Dask, and none of overlayrun's"}
    return STATIONS[0].attempt(payload)


def cancel_here(key: str) -> None:
    """End an attempt on this worker in good order; called by Dask in its event loop."""
    for station in STATIONS:
        station.cancel(key)
