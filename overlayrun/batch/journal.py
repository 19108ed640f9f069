"""A batch's run on disk: its directory, its lock, its plan and its journal."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Self

from overlayrun.batch.facts import Record
from overlayrun.batch.layout import BatchLayout
from overlayrun.batch.settings import Settings
from overlayrun.batch.task import Task
from overlayrun.errors import HostError, OverlayrunError, UsageError, WorkspaceBroken, WorkspaceBusy
from overlayrun.files import flush_directory, read_bytes, write_whole
from overlayrun.workspace.layout import Layout
from overlayrun.workspace.lock import lock
from overlayrun.workspace.names import branch_names

VERSION: Final = 1
LATEST: Final = "latest"
_PATIENCE: Final = 5.0  # seconds in which what a killed batch started is gone
_STEP: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What a run is to do; never changes while it lasts.

    base, target: commit and branch that were checked out. bases: commit by what tasks call it. engine: its
    name. given: what the command line needs to take the run up again, JSON.
    """

    run: str
    created: float
    repository: str
    base: str
    target: str | None
    engine: str
    tasks: tuple[Task, ...]
    settings: Settings
    bases: Mapping[str, str] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        tasks = [task.to_json() for task in self.tasks]
        return {**plain, "tasks": tasks, "settings": self.settings.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        tasks = tuple(Task.from_json(task) for task in data["tasks"])
        return cls(**{**data, "tasks": tasks, "settings": Settings.from_json(data["settings"])})


def create_run(layout: Layout) -> BatchLayout:
    """Make the directory of a new run, `mmdd-word-word`; no two processes get the same."""
    os.makedirs(layout.batches, mode=0o700, exist_ok=True)
    while True:
        place = BatchLayout(layout, f"{time.strftime('%m%d')}-{_word()}-{_word()}")
        try:
            os.mkdir(place.root, 0o700)
        except FileExistsError:
            continue
        os.mkdir(place.reports, 0o700)
        return place


def _word() -> str:
    return next(branch_names("run")).rpartition("-")[2]


def runs(layout: Layout) -> list[str]:
    """Names of the runs that were planned, newest last."""
    found = []
    for name in os.listdir(layout.batches) if os.path.isdir(layout.batches) else ():
        try:
            found.append((os.stat(BatchLayout(layout, name).plan).st_mtime_ns, name))
        except OSError:  # it never got as far as a plan
            continue
    return [name for _, name in sorted(found)]


def find_run(layout: Layout, text: str) -> BatchLayout:
    """The run that `text` names: all of its name, a beginning that only it has, or `latest`.

    Raises UsageError that names the candidates.
    """
    known = runs(layout)
    matching = [name for name in known if name == text] or [name for name in known if name.startswith(text)]
    if text == LATEST:
        matching = known[-1:]
    if len(matching) == 1:
        return BatchLayout(layout, matching[0])
    if not matching:
        listed = ", ".join(known[-10:]) or "none"
        raise UsageError(f"no run of a batch is called {text[:80]!a}", hint=f"there are: {listed}")
    raise UsageError(f"{text!a} could be {', '.join(matching)}", hint="type more of the name")


def write_plan(place: BatchLayout, planned: Planned) -> None:
    """Write what a run is to do, whole, to the disk."""
    data = json.dumps({"version": VERSION, **planned.to_json()}, ensure_ascii=True, indent=1)
    write_whole(place.plan, data.encode(), durable=True)


def read_plan(place: BatchLayout) -> Planned:
    """What a run is to do. Raises WorkspaceBroken where it can't be read."""
    try:
        data = json.loads(read_bytes(place.plan))
        version = data.pop("version")
        if version == VERSION:
            return Planned.from_json(data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        raise WorkspaceBroken(f"the plan of this run can't be read: {place.plan}: {err}") from err
    raise _newer(place.plan)


@contextmanager
def locked(place: BatchLayout) -> Iterator[None]:
    """Have a run for oneself. Raises WorkspaceBusy.

    Forked attempts hold the lock too, so that it is free only when all of a killed batch is gone: a moment
    later than the batch itself.
    """
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            held = lock(place.lock)
            break
        except WorkspaceBusy as err:
            if time.monotonic() > end:
                raise WorkspaceBusy(
                    f"run {place.run} is going on",
                    hint="wait for its end, or stop it with Ctrl-C where it runs",
                ) from err
            time.sleep(_STEP)
    try:
        yield
    finally:
        os.close(held)


class Journal:
    """The records of a run, appended and never changed. A context manager."""

    def __init__(self, path: str, run: str) -> None:
        """Open or begin the journal; a last line that a kill tore is cut off. Raises OverlayrunError."""
        self._path = path
        self._lines: list[bytes] = []
        self.records, whole = read_journal(path)
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as err:
            raise HostError(f"the journal can't be opened: {path}: {err.strerror}") from err
        if os.fstat(self._fd).st_size > whole:
            os.ftruncate(self._fd, whole)
        if not whole:
            self.append({"event": "journal", "version": VERSION, "run": run, "at": time.time()})
            self.flush()
            flush_directory(os.path.dirname(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def append(self, record: Record) -> None:
        """Add a record; it is on the disk after the next `flush`."""
        self._lines.append(json.dumps(record, ensure_ascii=True).encode() + b"\n")

    def flush(self) -> None:
        """Put what was appended on the disk by one write and one flush. Raises HostError; no line is torn."""
        if not self._lines:
            return
        data = b"".join(self._lines)
        size = os.fstat(self._fd).st_size
        try:
            written = os.write(self._fd, data)
            while written < len(data):  # the disk is full, and the next call says so
                written += os.write(self._fd, data[written:])
            os.fdatasync(self._fd)
        except OSError as err:
            os.ftruncate(self._fd, size)
            raise HostError(f"the journal can't be written: {self._path}: {err}") from err
        self._lines.clear()


def read_journal(path: str) -> tuple[Sequence[Record], int]:
    """Records of a journal, without its first, and how many bytes of it are whole; none where it is missing.

    A last line that is no record was torn by a kill or a power cut, and nobody acted on it. Raises
    WorkspaceBroken where another line is none, OverlayrunError for a journal of a newer version.
    """
    try:
        lines = read_bytes(path).splitlines(keepends=True)
    except FileNotFoundError:
        return [], 0
    found: list[Record] = []
    whole = 0
    for number, line in enumerate(lines, 1):
        record = _record(line)
        if record is None and number == len(lines):
            break
        if record is None:
            raise WorkspaceBroken(f"line {number} of the journal is damaged: {path}")
        found.append(record)
        whole += len(line)
    if found and found[0].get("version") != VERSION:
        raise _newer(path)
    return found[1:], whole


def _record(line: bytes) -> Record | None:
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and {"event", "at"} <= record.keys() else None


def _newer(path: str) -> OverlayrunError:
    return OverlayrunError(
        f"{path} was written by a newer overlayrun", hint="update overlayrun, then try again"
    )
