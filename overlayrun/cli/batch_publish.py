"""`batch --publish`: branches to a remote, from a run here or from the results of another job."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from overlayrun.batch.publish import (
    Allow,
    Publication,
    Published,
    State,
    open_pull_requests,
    publications,
    publish,
)
from overlayrun.batch.result import BatchReport
from overlayrun.batch.takeover import Received, import_bundles
from overlayrun.cli.batch_lines import safe
from overlayrun.cli.opened import Opened
from overlayrun.cli.render import say, say_json
from overlayrun.cli.telling import tell
from overlayrun.errors import UsageError


def publish_run(opened: Opened, report: BatchReport, given: Mapping[str, Any]) -> list[Published]:
    """Publish what succeeded in a run."""
    return _publish(opened, publications(report.tasks), report.target, given)


def check_publication(given: Mapping[str, Any]) -> None:
    """Raise UsageError for what could only fail once the tasks are done."""
    if given.get("publish") and not given.get("prefix"):
        raise UsageError(
            "--publish needs a beginning for the branches' names",
            hint="as in: --publish origin --prefix agents",
        )
    for option in ("prefix", "pull_requests", "publish_forks", "publish_ci_files"):
        if given.get(option) and not given.get("publish"):
            raise UsageError(f"--{option.replace('_', '-')} belongs to --publish", hint="--publish origin")


def _publish(
    opened: Opened, wanted: Sequence[Publication], into: str | None, given: Mapping[str, Any]
) -> list[Published]:
    chosen = {Allow.FORK: "publish_forks", Allow.CI_FILES: "publish_ci_files"}
    allow = [allowed for allowed, option in chosen.items() if given.get(option)]
    done = publish(opened.repository.common_dir, given["publish"], given["prefix"], wanted, allow=allow)
    if given.get("pull_requests") and into:
        done = open_pull_requests(opened.repository.root, done, into, given["pull_requests"])
    return list(done)


def published_lines(done: Sequence[Published]) -> Iterator[str]:
    """A line each."""
    for each in done:
        more = [each.pull_request, each.detail and safe(each.detail)]
        told = ": ".join(part for part in more if part)
        yield f"{each.publication.task}: {each.state.value}: {each.branch}" + (f": {told}" if told else "")


def published_status(done: Sequence[Published]) -> int:
    """Exit code: 1 where something was refused."""
    return int(any(each.state is State.REFUSED for each in done))


def publish_results(opened: Opened, given: Mapping[str, Any]) -> int:
    """Take in the results of other jobs (`--from`) and publish them; the exit code."""
    check_publication(given)
    if not given.get("publish"):
        raise UsageError("--from belongs to --publish", hint="--from DIR --publish origin --prefix agents")
    head = opened.repository.head
    if head is None:
        raise UsageError("this repository has no commit yet", hint="publish from a clone of what the job had")
    places = [place for source in given["source"] for place in _reports(source)]
    received = [each for place in places for each in import_bundles(place, opened.repo.git_dir, head)]
    sound = [each.publication for each in received if each.problem is None]
    done = _publish(opened, sound, opened.repository.branch, given)
    faults = [each for each in received if each.problem is not None]
    if given["as_json"]:
        say_json({"published": [_shape(each) for each in done], "faults": [_fault(each) for each in faults]})
    else:
        for line in published_lines(done):
            say(line)
        for each in faults:
            tell(f"{each.publication.task}: not taken: {safe(each.problem or '')}")
    return int(bool(faults)) or published_status(done)


def _reports(source: str) -> list[str]:
    """The folder, or the folders in it, if they are what several jobs left."""
    if os.path.lexists(f"{source}/summary.json"):
        return [source]
    below = sorted(entry.path for entry in os.scandir(source) if entry.is_dir(follow_symlinks=False))
    return [path for path in below if os.path.lexists(f"{path}/summary.json")] or [source]


def _shape(each: Published) -> dict[str, Any]:
    return {
        "task": each.publication.task,
        "branch": each.branch,
        "tip": each.publication.tip,
        "state": each.state.value,
        "detail": each.detail,
        "pull_request": each.pull_request,
    }


def _fault(each: Received) -> dict[str, Any]:
    return {"task": each.publication.task, "ref": each.ref, "problem": each.problem}
