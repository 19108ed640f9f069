"""`overlayrun worker`: a host's slots for attempts, offered to a Dask scheduler."""

from __future__ import annotations

from collections.abc import Callable
from threading import active_count

from overlayrun.batch.calls import EXTRA, WorkerSettings
from overlayrun.batch.launcher import Launcher
from overlayrun.errors import HostError


def run_worker(settings: WorkerSettings, tell: Callable[[str], None]) -> int:
    """Offer slots until told to stop (INT, TERM, HUP); the exit status.

    A scheduler that is not there yet, or goes away, is waited for: what runs goes on and is pushed.
    tell: shows a line. Raises HostError where Dask is not installed.
    """
    assert active_count() == 1, "sandboxes are forked, and that takes a process with one thread"
    launcher = Launcher.start(settings.slots)
    try:
        from overlayrun.batch.station import serve  # loads Dask, which starts threads
    except ImportError as err:
        launcher.close()
        raise HostError("a worker needs Dask, which is not installed", hint=EXTRA) from err
    return serve(settings, launcher, tell)
