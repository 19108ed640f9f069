"""A branch's snapshots as a story: what was asked, and the steps that were taken for it."""

from __future__ import annotations

from dataclasses import dataclass

from overlayrun.model import TreeId
from overlayrun.revision import start
from overlayrun.store.commits import parse_trailers
from overlayrun.store.repo import DiffStat, Repo, SnapshotInfo
from overlayrun.wording import TOLD, quoted
from overlayrun.workspace.record import Record


@dataclass(frozen=True, slots=True)
class Step:
    """One snapshot.

    back: the n of @{n}. before: tree of the snapshot before, or the start's. message: of its commit, whole.
    agent, session, model, tool: "" where nobody told. chapter: tells one prompt from another, "" for none;
    prompt: its text, "" where no snapshot has it.
    """

    snapshot: SnapshotInfo
    back: int
    before: TreeId
    message: str
    agent: str
    session: str
    model: str
    tool: str
    chapter: str
    prompt: str

    def change(self, repo: Repo) -> DiffStat:
        """Size of its change against the one before."""
        return repo.diff_stat(self.before, self.snapshot.tree)


def story(repo: Repo, record: Record) -> list[Step]:
    """Every snapshot of a workspace, newest first. Raises StoreError where git's store has lost one."""
    chain = list(repo.snapshots(record.id))
    before = start(repo, record).tree
    told: dict[str, str] = {}
    steps: list[Step] = []
    for back, snapshot in reversed(list(enumerate(chain))):
        message = repo.commit(snapshot.commit).message
        words = parse_trailers(message)
        chapter = words.get(TOLD, "")
        if chapter and (not steps or steps[-1].chapter != chapter):
            told[chapter] = quoted(message)
        agent, session, model, tool = (words.get(name, "") for name in ("Agent", "Session", "Model", "Tool"))
        prompt = told.get(chapter, "")
        steps.append(Step(snapshot, back, before, message, agent, session, model, tool, chapter, prompt))
        before = snapshot.tree
    return steps[::-1]
