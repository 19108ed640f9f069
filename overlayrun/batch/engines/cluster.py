"""A Dask cluster as its coordinator sees it: who is there, what was started, what became of it.

Dask's client runs in a thread of its own, and tells its news by a queue; so no call here ever waits for a
machine that does not answer.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import re
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any, Final

import dask.config
from distributed import Client

from overlayrun.batch.address import Tls
from overlayrun.batch.calls import RESOURCE, attempt_here, cancel_here
from overlayrun.batch.security import security_of
from overlayrun.errors import HostError

_EACH: Final = 1.0  # seconds between looks at who is there
_CONNECT: Final = 15.0
_LEAST_SILENCE: Final = 11  # seconds; Dask refuses less for a connection
_ENDS: Final = 10.0  # seconds for goodbyes
_STEALING: Final = "distributed.scheduler.work-stealing"
_Client: Final[Any] = Client  # half of it has no types
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._:-]")
_LONGEST: Final = 80


@dataclass(frozen=True, slots=True)
class Member:
    """A worker of overlayrun's on the cluster. slots: all in all. version: of its overlayrun."""

    name: str
    address: str
    slots: int
    version: str


@dataclass(frozen=True, slots=True)
class Begun:
    """A command runs."""

    key: str


@dataclass(frozen=True, slots=True)
class Answered:
    """A worker has answered, as `calls.attempt_here` says."""

    key: str
    answer: Any


@dataclass(frozen=True, slots=True)
class Failed:
    """No answer will come."""

    key: str
    why: str


@dataclass(frozen=True, slots=True)
class Gone:
    """A worker is gone, and whatever runs there can't be heard any more."""

    address: str
    why: str


News = Begun | Answered | Failed | Gone


class Cluster:
    """The client's side of one cluster, from its making to `close`."""

    def __init__(self, address: str, tls: Tls | None, topic: str, lost_after: float) -> None:
        """topic: by which workers tell of this batch. lost_after: seconds of silence after which one is lost.

        Raises HostError where no scheduler answers.
        """
        self._address = address
        self._tls = tls
        self._topic = topic
        self._lost_after = lost_after
        self._news: SimpleQueue[News] = SimpleQueue()
        self._members: Mapping[str, Member] = {}
        self._heard: dict[str, tuple[float, float]] = {}
        self._client: Any = None
        self._asked: Any = None
        self._started: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._leave = asyncio.Event()
        self._connected = Event()
        self._closing = False
        self._failure = ""
        self.steals_work = False
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._run, name="dask", daemon=True)
        self._patience = min(_CONNECT, lost_after)
        self._thread.start()
        if not self._connected.wait(_CONNECT + _ENDS) or self._failure:
            self.close()
            raise HostError(
                f"no Dask scheduler answers at {address}",
                details=self._failure or None,
                hint="start one: dask scheduler --host ADDRESS",
            )

    def members(self) -> Mapping[str, Member]:
        """Workers of overlayrun's by name, as of a second ago; none while the scheduler does not answer."""
        client = self._client
        if client is None or client.status != "running" or client.scheduler_comm is not self._asked:
            return {}  # connected anew, perhaps to another scheduler
        return self._members

    def news(self, seconds: float) -> list[News]:
        """What happened since the last call; waits for something for at most so long."""
        found: list[News] = []
        with suppress(Empty):
            found.append(self._news.get(timeout=max(0.0, seconds)))
            while True:
                found.append(self._news.get_nowait())
        return found

    def submit(self, key: str, payload: Mapping[str, Any], address: str) -> None:
        """Start an attempt on the worker at an address and nowhere else."""
        self._soon(self._begin, self._submit, key, payload, address)

    def cancel(self, key: str, address: str) -> None:
        """Let a worker end an attempt in good order; it answers still."""
        self._soon(self._begin, self._cancel, key, address)

    def forget(self, key: str) -> None:
        """Nobody waits for an attempt any more: its worker, if it can be reached, ends it."""
        self._soon(self._forget, key)

    def close(self) -> None:
        """Take leave; attempts that run are ended by their workers."""
        self._closing = True
        self._soon(self._leave.set)
        self._thread.join(_ENDS + _EACH)

    def _soon(self, call: Callable[..., object], *args: Any) -> None:
        """Call something in the client's thread; nothing happens once that has ended."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, *args)

    def _begin(self, work: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        task = asyncio.ensure_future(work(*args))
        self._tasks.add(task)  # the loop itself holds tasks by weak references alone
        task.add_done_callback(self._tasks.discard)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        silence = max(_LEAST_SILENCE, int(self._lost_after))
        try:
            with dask.config.set({"distributed.comm.timeouts.tcp": f"{silence}s"}):
                self._loop.run_until_complete(self._stay_connected())
        finally:
            self._failure = self._failure or "the connection has ended"
            self._lose_all(self._failure)
            self._connected.set()
            self._loop.close()

    async def _stay_connected(self) -> None:
        while not self._closing:
            try:
                await self._connect()
            except OSError as err:
                if not self._connected.is_set():
                    self._failure = str(err)
                    self._connected.set()
                    return
            self._client = None
            self._lose_all("the scheduler is gone")
            await self._rest()

    async def _connect(self) -> None:
        """Stay connected as long as it goes well."""
        client = _Client(
            self._address,
            asynchronous=True,
            set_as_default=False,
            security=security_of(self._tls),
            timeout=self._patience,
        )
        try:
            await client
            self._client = client
            stealing = await client.run_on_scheduler(dask.config.get, _STEALING, default=False)
            self.steals_work = str(stealing).lower() == "true"
            while client.status == "running" and not self._closing:
                await self._look(client)
                self._connected.set()
                await self._rest()
        finally:
            for key in list(self._started):
                self._forget(key)
            with suppress(OSError, TimeoutError, ValueError):
                for topic in (self._topic, "all"):
                    client.unsubscribe_topic(topic)
                await asyncio.wait_for(client.close(), _ENDS)

    async def _rest(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._leave.wait(), _EACH)

    async def _look(self, client: Any) -> None:
        """See who is there. A client that had to connect again has lost its subscriptions: each time anew."""
        client.subscribe_topic(self._topic, self._hear)
        client.subscribe_topic("all", self._see)
        try:
            said = await asyncio.wait_for(client.scheduler.identity(), self._lost_after)
        except (OSError, TimeoutError):
            self._lose_all("the scheduler does not answer")
            return
        self._asked = client.scheduler_comm
        found = {}
        for address, worker in said["workers"].items():
            member = _member(address, worker)
            if member is not None and self._is_heard_of(address, float(worker["last_seen"])):
                found[member.name] = member
        there = {member.address for member in found.values()}
        for member in self._members.values():
            if member.address not in there:
                self._news.put(Gone(member.address, "nothing was heard of its worker for too long"))
        self._members = found

    def _is_heard_of(self, address: str, last_seen: float) -> bool:
        """Whether the scheduler has heard of a worker lately. By our own clock: theirs may differ."""
        now = time.monotonic()
        seen, since = self._heard.get(address, (last_seen, now))
        if seen != last_seen:
            since = now
        self._heard[address] = (last_seen, since)
        return now - since <= self._lost_after

    def _lose_all(self, why: str) -> None:
        for member in self._members.values():
            self._news.put(Gone(member.address, why))
        self._members = {}

    def _hear(self, event: tuple[float, Any]) -> None:
        """What workers say of this batch."""
        message = event[1]
        if isinstance(message, Mapping) and isinstance(message.get("started"), str):
            self._news.put(Begun(message["started"]))

    def _see(self, event: tuple[float, Any]) -> None:
        """What the scheduler says of its workers, at once."""
        message = event[1]
        if isinstance(message, Mapping) and message.get("action") == "remove-worker":
            address = str(message.get("worker"))
            self._members = {
                name: member for name, member in self._members.items() if member.address != address
            }
            self._news.put(Gone(address, "the connection to its worker is closed"))

    async def _submit(self, key: str, payload: Mapping[str, Any], address: str) -> None:
        if self._client is None or self._client.status != "running":
            self._news.put(Failed(key, "the scheduler is gone"))
            return
        future = self._client.submit(
            attempt_here,
            dict(payload),
            key=f"overlayrun/{key}",
            workers=[address],
            allow_other_workers=False,
            resources={RESOURCE: 1},
            retries=0,
            pure=False,
        )
        self._started[key] = asyncio.current_task()  # type: ignore[assignment]  # a coroutine runs in a task
        try:
            self._news.put(await _outcome(key, future))
        finally:
            self._started.pop(key, None)
            with suppress(OSError, RuntimeError):
                await future.cancel(force=True)

    async def _cancel(self, key: str, address: str) -> None:
        if self._client is not None:
            with suppress(OSError, ValueError):
                await self._client.run(cancel_here, key, workers=[address], on_error="ignore")

    def _forget(self, key: str) -> None:
        task = self._started.pop(key, None)
        if task is not None:
            task.cancel()


async def _outcome(key: str, future: Any) -> News:
    try:
        failure = await future.exception()
        if failure is None:
            return Answered(key, await future)
        return Failed(key, f"{type(failure).__name__}: {str(failure)[:500]}")
    except (concurrent.futures.CancelledError, OSError, KeyError) as err:
        return Failed(key, f"{type(err).__name__}: {str(err)[:500]}")


def _member(address: str, worker: Mapping[str, Any]) -> Member | None:
    """A worker as the scheduler describes it; None for one that is none of overlayrun's."""
    slots = (worker.get("resources") or {}).get(RESOURCE, 0)
    if not isinstance(slots, int | float) or slots < 1 or worker.get("status") != "running":
        return None
    name = _UNSAFE.sub("_", str(worker.get("name") or address))[:_LONGEST]
    return Member(name, address, int(slots), _UNSAFE.sub("_", str(worker.get("overlayrun")))[:_LONGEST])
