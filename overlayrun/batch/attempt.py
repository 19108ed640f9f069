"""One attempt of a task, in a process of its own: the run, its check, its judge, what is kept of it."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from overlayrun.batch.artifacts import Made, mask, secret_values, write_artifacts
from overlayrun.batch.classify import End, Facts, classify
from overlayrun.batch.layout import BatchLayout
from overlayrun.batch.leavings import free_branch, keep, keep_left
from overlayrun.batch.result import CheckResult, Result
from overlayrun.batch.run_options import let_in, options_of
from overlayrun.batch.task import Attempt, Outcome
from overlayrun.batch.transcript import Transcript, read_transcript
from overlayrun.errors import HostError, OverlayrunError
from overlayrun.files import read_bytes, write_new, write_whole
from overlayrun.model import DirtyPolicy, RunOptions
from overlayrun.run import Witness, run_command
from overlayrun.store.importer import expect_unmoved
from overlayrun.store.location import Repository
from overlayrun.store.refs import base_ref, branch_ref, flush_refs
from overlayrun.workspace.layout import Layout
from overlayrun.workspace.record import Record

if TYPE_CHECKING:
    from overlayrun.supervisor import Entrust

_ENDING: Final = frozenset({signal.SIGTERM, signal.SIGHUP})
_LARGEST: Final = 256 << 20  # bytes of an output; a folder keeps less of it
_LAST: Final = 1 << 12  # bytes of a judge's output in which its last line is looked for
_MOST_NOTES: Final = 20
_SOME: Final = 1 << 16  # bytes of output in which something beside blanks is looked for
# A check looks at one commit, and leaves nothing.
_OF_CHECK: Final[Mapping[str, Any]] = {
    "rm": True,
    "branch": None,
    "message": None,
    "idle_timeout": None,
    "dirty": DirtyPolicy.IGNORE,
}
Tell = Callable[[str], None]

__all__ = [
    "Reports",
    "Shared",
    "free_branch",
    "keep_left",
    "last_number",
    "make_attempt",
    "options_of",
    "streams",
]


@dataclass(frozen=True, slots=True)
class Shared:
    """What all attempts of a batch have in common. options: of every run, where a task says nothing else.

    host: name of this machine in results. bundle: whether each attempt's commits are bundled.
    """

    repository: Repository
    layout: Layout
    options: RunOptions
    place: BatchLayout
    host: str = "local"
    bundle: bool = False


@dataclass(frozen=True, slots=True)
class Reports:
    """Who is told of an attempt on its way.

    tell: of each of overlayrun's own lines. begun: that the command starts. left: the id of a workspace that
    lies there afterwards, not yet flushed to the disk. entrust: see `Supervisor`.
    """

    tell: Tell
    begun: Callable[[], object]
    left: Tell
    entrust: Entrust | None = None


def make_attempt(shared: Shared, attempt: Attempt, reports: Reports) -> Result:
    """Make an attempt from its start to its result, which is on the disk afterwards.

    Called in a process of its own, whose standard streams are its to replace and in which
    `supervisor.block_signals` was called: TERM ends what runs. Raises OSError where the attempt's folder
    can't be written.
    """
    return _Attempting(shared, attempt, reports).through()


@dataclass(slots=True)
class _Course:
    """How an attempt went so far."""

    started: float
    end: End = End.ITSELF
    why: str | None = None
    status: int | None = None
    transcript: Transcript = field(default_factory=Transcript)
    printed: bool = False
    made: Made | None = None
    size: tuple[int, int, int] = (0, 0, 0)
    check: CheckResult | None = None
    score: float | None = None
    notes: list[str] = field(default_factory=list)

    def verdict(self) -> tuple[Outcome, str | None]:
        return classify(
            Facts(
                end=self.end,
                status=self.status,
                transcript=self.transcript,
                printed=self.printed,
                changed=self.made is not None,
                why=self.why,
                check=self.check,
            )
        )


class _Attempting:
    """One attempt on its way."""

    def __init__(self, shared: Shared, attempt: Attempt, reports: Reports) -> None:
        self.shared = shared
        self.attempt = attempt
        self.reports = reports
        self.tell = reports.tell
        self.place = shared.place.attempt(attempt.key)
        self.options = shared.options
        self.course = _Course(time.time())
        self.first_refs: list[str] = []

    def through(self) -> Result:
        course, task, place = self.course, self.attempt.task, self.place
        with streams(place.output, place.errors):
            self._run()
        course.transcript = read_transcript(task.agent, place.output, place.errors, course.status)
        course.printed = any(map(_has_text, (place.output, place.errors)))
        if course.made is not None and course.verdict()[0] in (Outcome.OK, *task.accept):
            self._look_at(course.made)
        return self._record()

    def _run(self) -> None:
        """The command, and its last snapshot; what it made is on the attempt's ref afterwards."""
        shared, attempt, course = self.shared, self.attempt, self.course
        witness = Witness()
        witness.made = self._mark
        witness.begin = self.reports.begun
        witness.flush = lambda record: self.reports.left(record.id)
        witness.largest = _LARGEST
        witness.entrust = self.reports.entrust
        try:
            self.options = options_of(shared.options, attempt)
            free_branch(shared.repository, shared.layout, attempt, self.tell)
            if signal.sigpending() & _ENDING:
                course.end, course.why = End.CANCELLED, "cancelled before it began"
                return
            course.status = self._command(self.options, attempt.task.command, witness)
            self._see(witness)
        except OverlayrunError as err:
            course.end, course.why = End.NOT_STARTED, self._say(err)

    def _mark(self, record: Record) -> None:
        """Say in a new workspace whose it is."""
        place = self.shared.layout.workspace(record.id)
        write_new(place.attempt, self.attempt.ref.encode())
        expect_unmoved(place.git_upper)
        self.first_refs = [branch_ref(record.branch), base_ref(record.id)]

    def _command(self, options: RunOptions, argv: tuple[str, ...], witness: Witness) -> int:
        """Run a command to its end. Raises OverlayrunError where it could not be started."""
        try:
            status = run_command(
                self.shared.repository, self.shared.layout, options, argv, self.tell, witness
            )
        except OSError as err:
            where = f": {err.filename!a}" if err.filename else ""
            raise HostError(f"the workspace could not be made: {err.strerror}{where}") from err
        if witness.outcome is None or witness.outcome.failure is not None:
            raise HostError((witness.outcome and witness.outcome.failure) or "the command was not started")
        return status

    def _see(self, witness: Witness) -> None:
        """Take down how the command ended and what it made."""
        course, outcome = self.course, witness.outcome
        assert outcome is not None
        course.status = outcome.status
        course.why = outcome.note
        if outcome.missing is not None:
            course.why = f"{self.attempt.task.command[0]}: {os.strerror(outcome.missing)}"
        if outcome.timed_out:
            course.end = End.TIMEOUT
        elif outcome.ended_by is not None:
            course.end = End.CANCELLED
        elif outcome.killed:
            course.end = End.KILLED
        if witness.unsaved is not None:
            course.end, course.why = End.NOT_RECORDED, self._say(witness.unsaved)
        ending = witness.ending
        if ending is None or ending.taken.tip in (None, self.attempt.base):
            return
        assert ending.taken.tip is not None
        git_dir = self.shared.repository.common_dir
        keep(git_dir, self.attempt.ref, ending.taken.tip)
        course.made = Made(
            git_dir=git_dir,
            base=self.attempt.base,
            tip=ending.taken.tip,
            ref=self.attempt.ref,
            bundle=self.shared.bundle,
        )
        course.size = (ending.stat.files, ending.stat.insertions, ending.stat.deletions)
        course.notes += ending.taken.notes
        left_out = ending.taken.left_out
        course.notes += [f"left out: {os.fsdecode(one.path)}" for one in left_out[:_MOST_NOTES]]
        if len(left_out) > _MOST_NOTES:
            course.notes.append(f"left out: {len(left_out) - _MOST_NOTES} more")

    def _look_at(self, made: Made) -> None:
        """The task's check of what was made, and the judge's if that passes."""
        task, course = self.attempt.task, self.course
        try:
            if task.check:
                with streams(self.place.check, self.place.check):
                    course.check = self._check(task.check, made.tip)
                if course.check.status:
                    return
            if task.judge and course.end is End.ITSELF:
                with streams(_judged(self.place.judge), self.place.judge):
                    judged = self._check(task.judge, made.tip)
                self._take_score(judged)
        except OverlayrunError as err:
            course.end, course.why = End.NOT_STARTED, f"the check could not be run: {self._say(err)}"

    def _check(self, command: str, tip: str) -> CheckResult:
        """A command on what was made, in a throwaway. Raises OverlayrunError."""
        options = RunOptions(
            **{**vars(self.options), **_OF_CHECK, "base": tip, "timeout": self.attempt.task.check_timeout}
        )
        began = time.monotonic()
        witness = Witness()
        witness.largest = _LARGEST
        witness.entrust = self.reports.entrust
        status = self._command(options, ("/bin/sh", "-c", command), witness)
        assert witness.outcome is not None
        if witness.outcome.ended_by is not None and not witness.outcome.timed_out:
            self.course.end, self.course.why = End.CANCELLED, "cancelled during its check"
        return CheckResult(command=command, status=status, seconds=time.monotonic() - began)

    def _take_score(self, judged: CheckResult) -> None:
        said = _judged(self.place.judge)
        data = read_bytes(said)
        with open(self.place.judge, "ab") as log:
            log.write(data)
        os.unlink(said)
        self.course.score = None if judged.status else last_number(data[-_LAST:])
        if self.course.score is None:
            status = f"status {judged.status}" if judged.status else "no number on its last line"
            self.course.notes.append(f"the judge gave no score: {status}")

    def _record(self) -> Result:
        """Write the attempt's folder, the result last."""
        course, attempt = self.course, self.attempt
        outcome, detail = course.verdict()
        secrets = secret_values(os.environ, let_in(self.options.env))
        course.notes += write_artifacts(self.place, course.transcript, secrets, course.made)
        files, insertions, deletions = course.size
        said = course.transcript
        result = Result(
            run=attempt.run,
            task=attempt.task.id,
            attempt=attempt.number,
            outcome=outcome,
            started=course.started,
            ended=time.time(),
            host=self.shared.host,
            branch=attempt.task.branch,
            base=attempt.base,
            ref=attempt.ref,
            detail=mask(detail, secrets) if detail else None,
            status=course.status,
            tip=course.made.tip if course.made else None,
            files=files,
            insertions=insertions,
            deletions=deletions,
            cost=said.cost,
            tokens_in=said.tokens_in,
            tokens_out=said.tokens_out,
            model=said.model and mask(said.model, secrets),
            session=said.session and mask(said.session, secrets),
            check=course.check,
            score=course.score,
            notes=tuple(mask(note, secrets) for note in (*course.notes, *said.notes)),
        )
        flush_refs(self.shared.repository.common_dir, self.first_refs)
        write_whole(self.place.result, json.dumps(result.to_json()).encode(), durable=True)
        return result

    def _say(self, err: OverlayrunError) -> str:
        """Tell of an error, and give its sentence."""
        for line in (err.brief, err.details, err.hint):
            if line:
                self.tell(line)
        return f"{err.brief}; {err.hint}" if err.hint else err.brief


def _judged(log: str) -> str:
    """Where a judge's standard output goes until its last line is read."""
    return f"{log}.raw"


@contextmanager
def streams(output: str, errors: str) -> Iterator[None]:
    """Let standard output and standard error of this process go to files, appended, while the block runs."""
    opened = []
    for path in (output, errors):
        opened.append(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600))
    kept = [os.dup(number) for number in (1, 2)]
    try:
        for number, fd in zip((1, 2), opened, strict=True):
            os.dup2(fd, number)
            os.close(fd)
        yield
    finally:
        for number, fd in zip((1, 2), kept, strict=True):
            os.dup2(fd, number)
            os.close(fd)


def last_number(data: bytes) -> float | None:
    """The number on the last line of a judge's output that is not blank; None for anything else."""
    lines = data.decode("utf-8", "replace").strip().splitlines()
    try:
        number = float(lines[-1])
    except (IndexError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _has_text(path: str) -> bool:
    """Whether a file begins with anything but blanks."""
    with open(path, "rb") as file:
        while data := file.read(_SOME):
            if data.strip():
                return True
    return False
