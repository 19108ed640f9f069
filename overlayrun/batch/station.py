"""The part of a worker that Dask runs: takes attempts, watches over them, sends back what they made."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Final

import dask.config
from distributed import Worker, get_worker

from overlayrun.batch.address import host_of, is_loopback
from overlayrun.batch.calls import RESOURCE, STATIONS, Answer, WorkerSettings
from overlayrun.batch.launcher import GONE, Launcher, Message, Order, key_of
from overlayrun.batch.layout import BatchLayout
from overlayrun.batch.leavings import free_branch
from overlayrun.batch.mirror import Mirror
from overlayrun.batch.parcel import LARGEST_BUNDLE, pack_files, version
from overlayrun.batch.security import security_of
from overlayrun.batch.task import Attempt
from overlayrun.errors import HostError, OverlayrunError, StoreError
from overlayrun.masking import mask_text
from overlayrun.store.location import find_repository
from overlayrun.workspace.layout import open_state

_LOOK: Final = 0.5  # seconds between looks at whether an attempt is still wanted
_GRACE: Final = 300.0  # seconds beyond its own limits after which an attempt is taken to hang
_PUSHES: Final = 30.0  # seconds for what ended with the worker to be pushed
_SMALL: Final = 256 << 10  # bytes that go with the answer: a fetch costs the coordinator more
_LONGEST: Final = 1000
_CONNECT: Final = 5.0
_PAUSES: Final = (0.5, 1.0, 2.0, 5.0, 10.0)  # seconds between tries to reach the scheduler
_CONFIG: Final = {
    # An agent waits for minutes: sampling stacks a hundred times a second would be most of our work.
    "distributed.worker.profile.enabled": False,
    "distributed.worker.http.routes": [],
    # What an agent uses is bounded by its sandbox; Dask sees this process alone.
    "distributed.worker.memory.monitor-interval": "1h",
}


@dataclass(frozen=True, slots=True)
class _Watched:
    """An attempt that runs here. until: on the monotonic clock; then it is taken to hang."""

    order: Order
    news: SimpleQueue[Message]
    wanted: Callable[[], bool]
    until: float | None


class _Station:
    """This host's attempts; its methods are called by threads of Dask's."""

    def __init__(self, settings: WorkerSettings, name: str, launcher: Launcher) -> None:
        self._settings = settings
        self._launcher = launcher
        self._cancelled: set[str] = set()
        self.name = name
        self.running: set[str] = set()

    def attempt(self, payload: Mapping[str, Any]) -> Answer:
        if payload.get("version") != version():
            theirs = str(payload.get("version"))[:40]
            return {"refused": f"worker {self.name} has overlayrun {version()}, the coordinator {theirs}"}
        attempt = Attempt.from_json(payload["attempt"])
        key = key_of(attempt.run, attempt.key)
        self.running.add(key)
        try:
            return self._make(payload, attempt)
        except OverlayrunError as err:
            return {"failed": mask_text(f"{err.brief}: {err.details}" if err.details else err.brief)}
        except OSError as err:
            return {"failed": str(err)}
        finally:
            self.running.discard(key)

    def wait(self, seconds: float) -> None:
        """Wait until what has ended is pushed."""
        end = time.monotonic() + seconds
        while self.running and time.monotonic() < end:
            time.sleep(0.02)

    def cancel_all(self) -> None:
        """End all that runs, in good order."""
        for key in self.running - self._cancelled:
            self.cancel(key)

    def cancel(self, key: str) -> None:
        self._cancelled.add(key)
        self._launcher.cancel(key)

    def _make(self, payload: Mapping[str, Any], attempt: Attempt) -> Answer:
        mirror = Mirror(self._settings.cache, payload["remote"])
        work = mirror.hold(attempt.run, attempt.base, payload["identity"])
        order = Order(work, self.name, attempt, payload["options"])
        told = self._watch(order, payload["topic"])
        if told["event"] == "lost":
            return {"lost": str(told["why"])}
        return self._pack(mirror, attempt, told["result"])

    def _watch(self, order: Order, topic: str) -> Message:
        """See an attempt to its end: cancel it when nobody wants it any more, or it hangs."""
        watched = _Watched(order, self._launcher.submit(order), _interest(), _end_of(order.attempt))
        if order.key in self._cancelled:  # before it was there to be cancelled
            self._launcher.cancel(order.key)
        while True:
            message = self._next(watched)
            if message is None:
                continue
            if message["event"] != "started":
                return message
            worker = get_worker()
            worker.log_event(topic, {"started": order.key})

    def _next(self, watched: _Watched) -> Message | None:
        try:
            return watched.news.get(timeout=_LOOK)
        except Empty:
            pass
        key = watched.order.key
        is_over = watched.until is not None and time.monotonic() > watched.until
        if key not in self._cancelled and (is_over or not watched.wanted()):
            self.cancel(key)
        return None

    def _pack(self, mirror: Mirror, attempt: Attempt, result: Mapping[str, Any]) -> Answer:
        place = BatchLayout(open_state(mirror.git_dir), attempt.run).attempt(attempt.key)
        answer: Answer = {"result": result, "files": pack_files(place)}
        if result["tip"] is None:
            _clear(mirror, attempt)
            return answer
        why = _push(mirror, attempt, result["tip"])
        bundle = None
        with suppress(StoreError):  # what is pushed can be fetched
            limit = _SMALL if why is None else LARGEST_BUNDLE
            bundle = mirror.bundle(attempt, f"{place.root}/sent.bundle", limit)
        if bundle is not None:
            answer["bundle"] = base64.b64encode(bundle).decode("ascii")
        elif why is not None:
            where = f"{attempt.ref} of {mirror.git_dir} on {self.name}"
            return {"failed": f"its commits could not be pushed, and are too large to send: {where}: {why}"}
        _clear(mirror, attempt)
        return answer


def _clear(mirror: Mirror, attempt: Attempt) -> None:
    """Drop the workspace of an attempt; its ref stays, and the branch is the coordinator's to make."""
    with suppress(OverlayrunError, OSError):  # `overlayrun gc` in the mirror's working tree finds it later
        free_branch(find_repository(mirror.work), open_state(mirror.git_dir), attempt, lambda _: None)


def _push(mirror: Mirror, attempt: Attempt, tip: str) -> str | None:
    """Push what an attempt made; why that failed, else None."""
    try:
        mirror.push(attempt, tip)
    except StoreError as err:
        return mask_text(err.details or err.brief)[:_LONGEST]
    return None


def _interest() -> Callable[[], bool]:
    """Asks whether anybody still waits for the task of Dask's that runs in this thread.

    A coordinator that is gone, or has given the attempt up, no longer does. A scheduler that is gone says
    nothing about it: then the attempt goes on.
    """
    worker = get_worker()
    key = worker.get_current_task()

    def is_wanted() -> bool:
        task = worker.state.tasks.get(key)
        return worker.status.name != "running" or (task is not None and task.state != "cancelled")

    return is_wanted


def _end_of(attempt: Attempt) -> float | None:
    """When an attempt that holds its own limits is over at the latest; None where it has none."""
    task = attempt.task
    if task.timeout is None:
        return None
    looks = task.check_timeout * ((task.check is not None) + (task.judge is not None))
    return time.monotonic() + task.timeout + looks + _GRACE


def serve(settings: WorkerSettings, launcher: Launcher, tell: Callable[[str], None]) -> int:
    """Be a worker of the scheduler until a signal says stop; the exit status.

    Raises HostError when the launcher has died: nothing can be started here any more.
    """
    logging.getLogger("distributed").setLevel(logging.WARNING)
    name = settings.name or f"{socket.gethostname()}-{os.getpid()}"
    station = _Station(settings, name, launcher)
    STATIONS.append(station)
    try:
        with dask.config.set(_CONFIG):
            asyncio.run(_Connecting(settings, station, tell).until_stopped(launcher))
    finally:
        STATIONS.remove(station)
        launcher.close()
        station.wait(_PUSHES)
    return 0


class _Connecting:
    """Keeps this host's worker connected to the scheduler."""

    def __init__(self, settings: WorkerSettings, station: _Station, tell: Callable[[str], None]) -> None:
        self._settings = settings
        self._station = station
        self._tell = tell
        self._said = ""
        self._is_broken = False
        self._stop = asyncio.Event()

    async def until_stopped(self, launcher: Launcher) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._stop.set)
        launcher.listen(lambda: None if loop.is_closed() else loop.call_soon_threadsafe(self._break))
        failed = 0
        while not self._stop.is_set():
            try:
                await self._once()
                failed = 0
            except (OSError, ValueError, RuntimeError) as err:  # not there, not ours, our name still taken
                self._say(f"waiting for the scheduler at {self._settings.scheduler}: {_cause(err)}")
                await self._pause(_PAUSES[min(failed, len(_PAUSES) - 1)])
                failed += 1
        if self._is_broken:
            raise HostError(GONE, hint="start the worker again")

    def _break(self) -> None:
        self._is_broken = True
        self._stop.set()

    async def _once(self) -> None:
        """Connect, and serve until the connection or our time is over."""
        settings = self._settings
        local = is_loopback(host_of(settings.scheduler))
        worker = _Worker(
            settings.scheduler,
            nthreads=settings.slots,
            name=self._station.name,
            resources={RESOURCE: settings.slots},
            memory_limit=0,
            security=security_of(settings.tls),
            host="127.0.0.1" if local else None,
            dashboard_address="127.0.0.1:0",
            startup_information={"overlayrun": _version_of},
            local_directory=f"{settings.cache}/dask",
        )
        try:
            await asyncio.wait_for(worker, 60)
            slots = f"{settings.slots} slot{'s' * (settings.slots != 1)}"
            self._say(f"worker {self._station.name}: {slots} for {settings.scheduler}")
            await self._first(_finished(worker), self._stop.wait())
        finally:
            await worker.close(executor_wait=False)
        if self._stop.is_set():
            return
        self._say("the scheduler is gone; what runs here goes on until it is back")
        while self._station.running and not self._stop.is_set():
            await self._pause(_LOOK)
            if await self._is_back():  # who waited for them has given them up
                self._station.cancel_all()

    async def _is_back(self) -> bool:
        host, _, port = self._settings.scheduler.partition("://")[2].rpartition(":")
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(host.strip("[]"), int(port)), _CONNECT)
        except OSError:  # a TimeoutError is one
            return False
        writer.close()
        return True

    async def _pause(self, seconds: float) -> None:
        await self._first(asyncio.sleep(seconds), self._stop.wait())

    async def _first(self, *awaited: Any) -> None:
        """Wait for one of them."""
        tasks = [asyncio.ensure_future(each) for each in awaited]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _say(self, line: str) -> None:
        if line != self._said:
            self._tell(line)
        self._said = line


class _Worker(Worker):
    """A worker that closes at once: by itself it waits half a minute for attempts, which go on for hours."""

    async def close(self, timeout: float = 30, **given: Any) -> str | None:  # type: ignore[override]  # as Dask
        return await super().close(timeout, **{**given, "executor_wait": False})


async def _finished(worker: Any) -> None:
    """Wait until a worker has closed; the method has no types."""
    await worker.finished()


async def _version_of(_: Worker) -> str:
    return version()


def _cause(err: BaseException) -> str:
    """The first reason of an error, in one line."""
    while err.__cause__ is not None:
        err = err.__cause__
    return (str(err).splitlines() or [type(err).__name__])[0][:200]
