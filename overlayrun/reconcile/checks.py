"""Checks: a command on the tree of a candidate, in a throwaway workspace; its result and log are kept.

A result is known by tree, command and environment, so that the same question is never asked twice. Only a
pass is believed again: what failed may have failed by chance.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from overlayrun.errors import HostError
from overlayrun.files import write_whole
from overlayrun.model import CommitId, TreeId
from overlayrun.reconcile.background import Background
from overlayrun.sandbox.environment import sandbox_environment
from overlayrun.workspace.layout import Layout

COULD_NOT_START: Final = 125  # ours, not the check's
TIMED_OUT: Final = 124
# So a check that ends with 125, by an agent's will perhaps, has failed and stops nobody else.
_GUARDED: Final = "/bin/sh -c {} || status=$?; test ${{status:-0}} -ne 125 || status=1; exit ${{status:-0}}"
# Of a terminal, a session or a moment: no tool's result hangs on them.
_VOLATILE: Final = frozenset(
    {"TERM", "COLUMNS", "LINES", "SHLVL", "_", "WINDOWID", "TMUX", "TMUX_PANE", "STY"}
)
_VOLATILE_STARTS: Final = ("XDG_SESSION", "SSH_", "TERM_", "VTE_", "GITHUB_", "CI_", "RUNNER_")


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be checked: `tree`, which `commit` brings. branches: those it holds, the last one new."""

    commit: CommitId
    tree: TreeId
    branches: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """A check that ran. status: its exit status. seconds: it took; started: seconds since the epoch."""

    tree: str
    commit: str
    command: str
    branches: tuple[str, ...]
    status: int
    seconds: float
    started: float
    log: str

    @property
    def passed(self) -> bool:
        """Whether it exited 0."""
        return self.status == 0

    @property
    def why(self) -> str:
        """Why it did not pass, in a few words."""
        if self.status == TIMED_OUT:
            return f"the check timed out after {self.seconds:.0f} s"
        return f"the check failed with status {self.status}"


class Checks:
    """Asks one command's questions below a state directory."""

    def __init__(self, layout: Layout, root: str, command: str, timeout: float) -> None:
        """root: the user's working tree. timeout: seconds for one check."""
        self._layout = layout
        self._root = root
        self._timeout = timeout
        self._environment = _fingerprint(sandbox_environment(os.environ, own={}, wanted=()))
        self.command = command

    def known(self, question: Question) -> Answer | None:
        """An answer that was given before, if it was a pass."""
        found = [one for one in _answers(self._place(question)) if one.passed]
        return found[-1] if found else None

    def _place(self, question: Question) -> str:
        key = json.dumps([question.tree, self.command, self._environment]).encode()
        return f"{self._layout.checks}/{hashlib.sha256(key).hexdigest()[:32]}"

    def start(self, question: Question) -> Running:
        """Start the command on a candidate's tree."""
        place = self._place(question)
        os.makedirs(place, mode=0o700, exist_ok=True)
        number = len(os.listdir(place)) + 1
        name = f"{place}/{number}-{os.getpid()}"
        options = ("--rm", "--quiet", "--base", question.commit, "--dirty", "ignore")
        limit = ("--timeout", f"{self._timeout:g}s")
        began = time.time()
        command = _GUARDED.format(shlex.quote(self.command))
        job = Background([*options, *limit], command, cwd=self._root, log=f"{name}.log")
        return Running(question, job, began, self.command)


@dataclass(frozen=True, slots=True)
class Running:
    """A check that runs."""

    question: Question
    job: Background
    began: float
    command: str

    def answer(self) -> Answer:
        """Keep the result of one that has ended. Raises HostError where it could not be started."""
        status = self.job.wait()
        if status == COULD_NOT_START:
            raise HostError(
                "a check could not be started", details=tail(self.job.log), hint="overlayrun doctor"
            )
        question = self.question
        answer = Answer(
            tree=question.tree,
            commit=question.commit,
            command=self.command,
            branches=question.branches,
            status=status,
            seconds=self.job.seconds,
            started=self.began,
            log=self.job.log,
        )
        data = json.dumps(asdict(answer)).encode()
        write_whole(self.job.log.removesuffix(".log") + ".json", data, durable=False)
        return answer


def _fingerprint(environment: Mapping[str, str]) -> str:
    kept = {k: v for k, v in environment.items() if k not in _VOLATILE and not k.startswith(_VOLATILE_STARTS)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _answers(place: str) -> list[Answer]:
    """Every readable result in a directory, oldest first."""
    found = []
    try:
        names = [name for name in os.listdir(place) if name.endswith(".json")]
    except FileNotFoundError:
        return []
    for name in names:
        try:
            with open(f"{place}/{name}", encoding="utf-8") as file:
                data: dict[str, Any] = json.load(file)
            found.append(Answer(**{**data, "branches": tuple(data["branches"])}))
        except (OSError, ValueError, TypeError, KeyError):  # torn by a power cut, or of another version
            continue
    return sorted(found, key=lambda answer: answer.started)


def answers_about(layout: Layout, branch: str) -> Iterator[Answer]:
    """Every check of a tree that a branch was part of, newest first."""
    try:
        places = os.listdir(layout.checks)
    except FileNotFoundError:
        return
    every = [answer for place in places for answer in _answers(f"{layout.checks}/{place}")]
    for answer in sorted(every, key=lambda answer: -answer.started):
        if branch in answer.branches:
            yield answer


def tail(log: str, *, limit: int = 4000) -> str:
    """The last bytes of a log, as text."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - limit))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
