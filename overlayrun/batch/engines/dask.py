"""Attempts on many machines: an engine on Dask's scheduler and overlayrun's workers.

The coordinator keeps the window: it names the worker of each attempt and never gives one more than it has
slots for. Dask carries messages and says who is gone; it retries nothing and moves nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from overlayrun.batch.address import Tls
from overlayrun.batch.arrival import take_pushed, take_sent
from overlayrun.batch.attempt import Shared
from overlayrun.batch.bundles import write_bundle
from overlayrun.batch.engines.api import Ended, Event, Host, Lost, Started
from overlayrun.batch.engines.cluster import Answered, Begun, Cluster, Failed, Gone, News
from overlayrun.batch.launcher import key_of
from overlayrun.batch.mirror import check_remote, network_environment, offer_ref
from overlayrun.batch.parcel import (
    LARGEST_BUNDLE,
    checked_result,
    decode,
    ours_result,
    unpack_files,
    version,
)
from overlayrun.batch.promote import promote
from overlayrun.batch.result import Result
from overlayrun.batch.run_options import options_to_json
from overlayrun.batch.task import Attempt, AttemptKey, Outcome
from overlayrun.errors import HostError, OverlayrunError, StoreError
from overlayrun.files import write_whole
from overlayrun.model import CommitId
from overlayrun.store.git import GitFailed, git
from overlayrun.store.repo import Repo
from overlayrun.store.settings import read_settings

_CLOSING: Final = 60.0  # seconds for what runs to end, be snapshotted and pushed
_LONGEST: Final = 500
_HINT: Final = (
    "start it with DASK_DISTRIBUTED__SCHEDULER__WORK_STEALING=False "
    "and DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES=0"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DaskSettings:
    """scheduler: as `address.parse_scheduler` gives it. remote: URL by which workers fetch and push.

    lost_after: seconds in which nothing is heard of a worker, after which it is lost.
    """

    scheduler: str
    remote: str
    tls: Tls | None = None
    lost_after: float = 25.0


@dataclass(frozen=True, slots=True)
class _Flight:
    """An attempt that is out."""

    attempt: Attempt
    host: str
    address: str


class DaskEngine:
    """Runs attempts on the workers of a scheduler. See `api.Engine`."""

    def __init__(self, shared: Shared, settings: DaskSettings, tell: Callable[[str], None]) -> None:
        """tell: takes what the user must know. Raises HostError where no scheduler answers."""
        self._shared = shared
        self._settings = settings
        self._tell = tell
        self._repo = Repo(shared.repository.common_dir)
        check_remote(settings.remote)
        self._topic = f"overlayrun-{shared.place.run}"
        self._flights: dict[str, _Flight] = {}
        self._offered: dict[str, str] = {}
        self._refused: set[str] = set()
        self._cluster = Cluster(settings.scheduler, settings.tls, self._topic, settings.lost_after)
        if self._cluster.steals_work:
            tell(f"the scheduler steals work, which moves no attempt but costs time; {_HINT}")

    def submit(self, attempt: Attempt, host: str) -> None:
        """Start an attempt on a worker. Raises HostError where that one is not there any more."""
        member = self._cluster.members().get(host)
        if member is None:
            raise HostError(f"worker {host} is gone")
        self._offer(attempt)
        key = key_of(attempt.run, attempt.key)
        self._flights[key] = _Flight(attempt, host, member.address)
        self._cluster.submit(key, self._payload(attempt), member.address)

    def poll(self, seconds: float) -> Sequence[Event]:
        """What happened since the last call; waits for something for at most so long."""
        events: list[Event] = []
        for news in self._cluster.news(seconds):
            events += self._read(news)
        return events

    def cancel(self, key: AttemptKey) -> None:
        """End an attempt on its worker; nothing happens to one that is over."""
        name = key_of(self._shared.place.run, key)
        if name in self._flights:
            self._cluster.cancel(name, self._flights[name].address)

    def hosts(self) -> Sequence[Host]:
        """The workers that are there now and have our version."""
        ours, found = version(), []
        for member in self._cluster.members().values():
            if member.version == ours:
                found.append(Host(member.name, member.slots))
            elif member.address not in self._refused:
                self._refused.add(member.address)
                theirs = f"worker {member.name} has overlayrun {member.version}, this is {ours}"
                self._tell(f"{theirs}: it gets no tasks")
        return found

    def close(self) -> None:
        """End whatever runs, and wait for it."""
        for flight in list(self._flights.values()):
            self.cancel(flight.attempt.key)
        end = time.monotonic() + _CLOSING
        while self._flights and time.monotonic() < end:
            self.poll(1.0)
        self._cluster.close()
        for ref in self._offered.values():
            self._push(f":{ref}")

    def _payload(self, attempt: Attempt) -> dict[str, Any]:
        """What `station` reads; small, and plain values alone."""
        who = read_settings(self._repo.git_dir).identity.decode("utf-8", "replace")
        name, _, address = who.partition(" <")
        return {
            "version": version(),
            "remote": self._settings.remote,
            "attempt": attempt.to_json(),
            "options": options_to_json(self._shared.options),
            "identity": {"user.name": name, "user.email": address.rstrip(">")},
            "topic": self._topic,
        }

    def _offer(self, attempt: Attempt) -> None:
        """Let the remote have a base, where it may not be on any branch."""
        if attempt.base in self._offered:
            return
        self._offered[attempt.base] = ref = offer_ref(attempt.run, attempt.base)
        failed = self._push(f"{attempt.base}:{ref}")
        if failed:
            self._tell(
                f"base {attempt.base[:10]} could not be pushed, workers look for it on the remote: {failed}"
            )

    def _push(self, what: str) -> str | None:
        """Push one ref to the remote; why it failed, else None."""
        options = ["-c", "push.gpgSign=false", "push", "--quiet", "--no-verify", "--no-follow-tags"]
        words = [*options, "--recurse-submodules=no", "--", self._settings.remote, what]
        try:
            git(words, git_dir=self._repo.git_dir, env=network_environment())
        except GitFailed as err:
            return (err.details or err.brief).splitlines()[-1][:_LONGEST]
        return None

    def _read(self, news: News) -> list[Event]:
        """What news mean; those of attempts that nobody waits for mean nothing."""
        if isinstance(news, Gone):
            lost = [key for key, flight in self._flights.items() if flight.address == news.address]
            return [self._lose(key, news.why) for key in lost]
        flight = self._flights.get(news.key)
        if flight is None:
            return []
        if isinstance(news, Begun):
            return [Started(flight.attempt.key, flight.host)]
        if isinstance(news, Failed):
            return [self._lose(news.key, news.why)]
        return [self._land(flight, news)]

    def _lose(self, key: str, why: str) -> Lost:
        flight = self._flights.pop(key)
        self._cluster.forget(key)
        return Lost(flight.attempt.key, flight.host, why[:_LONGEST])

    def _land(self, flight: _Flight, news: Answered) -> Event:
        answer = news.answer if isinstance(news.answer, Mapping) else {}
        for word in ("refused", "lost"):
            if word in answer:
                return self._lose(news.key, str(answer[word]))
        del self._flights[news.key]
        result = self._receive(flight, answer)
        place = self._shared.place.attempt(flight.attempt.key)
        write_whole(place.result, json.dumps(result.to_json()).encode(), durable=True)
        return Ended(flight.attempt.key, result)

    def _receive(self, flight: _Flight, answer: Mapping[str, Any]) -> Result:
        """Take an answer over: files, commits, branch. What is wrong with it becomes the result."""
        attempt, host = flight.attempt, flight.host
        place = self._shared.place.attempt(attempt.key)
        try:
            unpack_files(place, answer.get("files") or {})
            if "result" not in answer:
                return ours_result(attempt, host, Outcome.INFRA, str(answer.get("failed"))[:_LONGEST])
            result = checked_result(attempt, host, answer["result"])
            if result.tip is not None:
                self._take(attempt, result.tip, answer)
        except (StoreError, HostError) as err:
            why = f"{err.brief}: {err.details}" if err.details else err.brief
            kept = (
                f"its result could not be taken over, and may be kept in {attempt.ref} of the remote: {why}"
            )
            return ours_result(attempt, host, Outcome.INFRA, kept[:_LONGEST])
        return self._promote(attempt, result)

    def _take(self, attempt: Attempt, tip: str, answer: Mapping[str, Any]) -> None:
        if "bundle" in answer:
            take_sent(self._repo, decode(answer["bundle"], LARGEST_BUNDLE), attempt, tip)
        else:
            take_pushed(self._repo, self._settings.remote, attempt, tip)
        if self._shared.bundle:
            place = self._shared.place.attempt(attempt.key)
            write_bundle(place.bundle, self._repo.git_dir, attempt.base, attempt.ref)

    def _promote(self, attempt: Attempt, result: Result) -> Result:
        """Let the task's branch stand there; where it can't, the attempt's ref keeps the work still."""
        shared = self._shared
        tip = CommitId(result.tip) if result.tip else None
        try:
            promote(shared.repository, shared.layout, shared.options, attempt, tip, lambda _: None)
        except OverlayrunError as err:
            note = f"branch {attempt.task.branch} was not made: {err.brief}"
            return replace(result, notes=(*result.notes, note))
        return result
