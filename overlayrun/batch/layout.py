"""Every path of a batch's run on disk."""

from __future__ import annotations

from overlayrun.batch.task import AttemptKey
from overlayrun.workspace.layout import Layout


class AttemptLayout:
    """Files of one attempt, below `root`: safe to upload, once it has ended."""

    __slots__ = ("root",)

    def __init__(self, root: str) -> None:
        self.root = root

    @property
    def output(self) -> str:
        """Standard output as the command wrote it; raw, removed when the masked files are written."""
        return f"{self.root}/output.raw"

    @property
    def errors(self) -> str:
        """Standard error, raw, as `output`."""
        return f"{self.root}/errors.raw"

    @property
    def stdout(self) -> str:
        """Standard output as text; of an agent that prints JSON, what it said and did."""
        return f"{self.root}/stdout.log"

    @property
    def stderr(self) -> str:
        """Standard error."""
        return f"{self.root}/stderr.log"

    @property
    def events(self) -> str:
        """The agent's own JSON events, a line each; for known agents alone."""
        return f"{self.root}/events.jsonl"

    @property
    def overlayrun(self) -> str:
        """What overlayrun itself said of the run."""
        return f"{self.root}/overlayrun.log"

    @property
    def check(self) -> str:
        """Output of the check, both streams."""
        return f"{self.root}/check.log"

    @property
    def judge(self) -> str:
        """Output of the judge, both streams."""
        return f"{self.root}/judge.log"

    @property
    def diff(self) -> str:
        """What it changed, as a patch; secrets masked."""
        return f"{self.root}/diff.patch"

    @property
    def bundle(self) -> str:
        """Its commits since the base (git-bundle(1)), with --bundle."""
        return f"{self.root}/result.bundle"

    @property
    def result(self) -> str:
        """The `Result`, JSON: there once the attempt has ended in good order."""
        return f"{self.root}/result.json"


class BatchLayout:
    """Paths of one run of a batch; `root` is `batches/<run>` of the state directory."""

    __slots__ = ("root", "run")

    def __init__(self, layout: Layout, run: str) -> None:
        self.run = run
        self.root = f"{layout.batches}/{run}"

    @property
    def lock(self) -> str:
        """File whose flock the coordinator holds."""
        return f"{self.root}/lock"

    @property
    def plan(self) -> str:
        """Tasks and options, JSON: what `--resume` goes by."""
        return f"{self.root}/plan.json"

    @property
    def journal(self) -> str:
        """What happened, a JSON line each; append-only."""
        return f"{self.root}/journal.jsonl"

    @property
    def reports(self) -> str:
        """Directory of what people and CI read; `--report` copies it."""
        return f"{self.root}/report"

    def attempt(self, key: AttemptKey) -> AttemptLayout:
        """Files of one attempt."""
        return AttemptLayout(f"{self.reports}/tasks/{key[0]}/{key[1]}")
