"""A conflict in other hands, in a process of its own, while everything else goes on landing.

The rungs, cheapest first: how the same three versions were resolved before; the resolver command; the
branch's snapshots one by one. What comes of them is a proposal, and passes the same examination.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import NoReturn

from overlayrun.errors import OverlayrunError
from overlayrun.kernel import namespaces
from overlayrun.model import TreeId
from overlayrun.reconcile.conflict import Case
from overlayrun.reconcile.replay import replay, resume
from overlayrun.reconcile.resolutions import remembered
from overlayrun.reconcile.resolvers import Resolution, resolve
from overlayrun.reconcile.settings import Settings
from overlayrun.store.location import Repository
from overlayrun.store.merger import MergeEngine
from overlayrun.store.repo import Repo
from overlayrun.workspace.layout import Layout


@dataclass(frozen=True, slots=True)
class Resolved:
    """What came of a conflict: a proposed tree, or why there is none; neither where nobody could try.

    workspace: branch in which a refused try can be looked at. log: file with what the resolver printed.
    how: in a few words for the user.
    """

    tree: TreeId | None = None
    refused: str | None = None
    workspace: str | None = None
    log: str | None = None
    how: str = ""


class Handoff:
    """One conflict being resolved. fd: readable once it is over (pidfd_open(2))."""

    def __init__(self, repository: Repository, layout: Layout, case: Case, settings: Settings) -> None:
        """The caller has one thread only."""
        self.case = case
        self._answer, write = os.pipe()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._answer)
            namespaces.die_with_parent(parent)
            _answer(write, lambda: _climb(repository, layout, case, settings))
        os.close(write)
        self.fd = os.pidfd_open(self.pid)

    def result(self) -> Resolved:
        """Wait for the end; a process that died proposes nothing."""
        data = b""
        while piece := os.read(self._answer, 65536):
            data += piece
        os.waitpid(self.pid, 0)
        os.close(self._answer)
        os.close(self.fd)
        return (
            Resolved(**json.loads(data)) if data else Resolved(refused="whoever ran the resolver was killed")
        )

    def end(self) -> None:
        """Stop it; what it started dies with it."""
        os.kill(self.pid, 9)
        self.result()


def _answer(write: int, climb: Callable[[], Resolved]) -> NoReturn:
    """In the child: tell what came of it, and end."""
    try:
        try:
            outcome = climb()
        except OverlayrunError as err:
            outcome = Resolved(refused=": ".join(part for part in (err.brief, err.details) if part))
        with open(write, "wb") as pipe:
            pipe.write(json.dumps(asdict(outcome)).encode())
    finally:
        os._exit(0)


def _climb(repository: Repository, layout: Layout, case: Case, settings: Settings) -> Resolved:
    """Up the rungs until one holds."""
    repo = Repo(repository.common_dir)
    if case.log is None and (tree := remembered(repo, case.merged)):
        return Resolved(tree, how="resolved as the same conflict was before")
    command, limit = settings.resolve, settings.resolve_timeout

    def ask(part: Case) -> Resolution:
        assert command is not None
        return resolve(repository, layout, part, command, timeout=limit, show=lambda _: None)

    first = ask(case) if command else None
    if first and first.tree:
        return _outcome(first)
    with MergeEngine(repo.git_dir, case.tip) as engine:
        at = replay(engine, repo, case)
        while command and at and at.step:
            part = ask(at.step)
            if part.tree is None:
                return _outcome(part)
            at = resume(engine, repo, case, at, part.tree, part.declared)
    if at and at.tree:
        return Resolved(at.tree, how="its snapshots were merged one by one")
    return _outcome(first) if first else Resolved()


def _outcome(resolution: Resolution) -> Resolved:
    how = "; ".join(("resolved", *resolution.notes))
    return Resolved(resolution.tree, resolution.refused, resolution.workspace, resolution.log, how)
