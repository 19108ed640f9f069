"""Bring what a batch made to a remote: branches below one prefix, created and never moved; pull requests.

Runs on the host, with the user's credentials. What agents wrote is pushed as data, and shown as text.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final

from overlayrun.batch.artifacts import mask, secret_values
from overlayrun.batch.landing import is_chosen
from overlayrun.batch.result import TaskReport
from overlayrun.batch.transcript import one_line
from overlayrun.errors import HostError, StoreError, UsageError
from overlayrun.incoming import incoming
from overlayrun.model import CommitId
from overlayrun.store.git import clean_environment
from overlayrun.store.refs import parse_branch_name
from overlayrun.store.repo import Repo

_AT_ONCE: Final = 200  # refs of one push: a command line has its limit
_LARGEST_EVENT: Final = 32 << 20
_LONGEST_BODY: Final = 20_000  # GitHub takes 65,536 characters
_PATIENCE: Final = 120.0  # seconds that `gh` may take
_URL: Final = re.compile(r"https?://[A-Za-z0-9._~:/%@-]+/pull/[0-9]+")
# What a user sets so that git reaches a remote, by the beginnings of names; CI sets configuration so.
_REACHING: Final = ("GIT_SSH", "GIT_ASKPASS", "GIT_PROXY", "GIT_SSL", "GIT_HTTP", "GIT_CONFIG_")


class State(Enum):
    """What became of a publication."""

    PUBLISHED = "published"
    THERE = "there already"
    REFUSED = "refused"


class Allow(Enum):
    """What is refused where nobody asked for it."""

    FORK = "fork"  # to publish at all for a pull request from a fork
    CI_FILES = "ci files"  # to publish what changes files that CI runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """A task's work. base: commit that it was made from. title, body: plain text, of an agent in parts."""

    task: str
    base: str
    tip: str
    title: str
    body: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What became of it. branch: on the remote. pull_request: its URL. detail: why not."""

    publication: Publication
    branch: str
    state: State
    detail: str | None = None
    pull_request: str | None = None


def publications(reports: Sequence[TaskReport]) -> tuple[Publication, ...]:
    """Work of the tasks that succeeded, of judged ones the winners', in the order of the file."""
    found = []
    for report in reports:
        last = report.results[-1] if report.results else None
        if last is None or last.tip is None or not (report.succeeded and is_chosen(report)):
            continue
        prompt = _clean(report.task.prompt or "")
        title = one_line(prompt.strip().partition("\n")[0], 72) or f"Batch {last.run}: {last.task}"
        found.append(Publication(task=report.task.id, base=last.base, tip=last.tip, title=title, body=prompt))
    return tuple(found)


def publish(
    git_dir: str,
    remote: str,
    prefix: str,
    wanted: Sequence[Publication],
    *,
    allow: Collection[Allow] = (),
    environ: Mapping[str, str] = os.environ,
) -> tuple[Published, ...]:
    """Push each tip as the new branch `<prefix>/<task>`, and nothing else; in the order given.

    A branch that is there with another commit is refused, by itself; with the same, all is well. The rest
    goes in one atomic push where the remote can and has nothing against any of it, else each by itself.
    remote: a name or a URL. The user's pre-push hook runs.
    Raises UsageError for a prefix or remote that is none, and in CI for a pull request from a fork, whose
    author must not get branches into the repository; StoreError where the remote can't be asked.
    """
    branches = [branch_of(prefix, each.task) for each in wanted]
    check_source(remote, allow, environ)
    there = _branches(git_dir, remote, sorted(set(branches)), environ)
    repo = Repo(git_dir)
    found: list[Published] = []
    for each, branch in zip(wanted, branches, strict=True):
        state, detail = State.PUBLISHED, None
        if any(other.branch == branch for other in found):
            state, detail = State.REFUSED, "another task is published as that"
        elif there.get(branch, each.tip) != each.tip:
            state, detail = State.REFUSED, f"the remote's branch holds another commit: {there[branch][:10]}"
        elif branch in there:
            state = State.THERE
        elif Allow.CI_FILES not in allow and (names := _ci_files(repo, each)):
            state, detail = State.REFUSED, f"it changes what CI runs with the project's secrets: {names}"
        found.append(Published(publication=each, branch=branch, state=state, detail=detail))
    refused = _push_all(git_dir, remote, [one for one in found if one.state is State.PUBLISHED], environ)
    return tuple(
        replace(one, state=State.REFUSED, detail=refused[one.branch])
        if one.state is State.PUBLISHED and one.branch in refused
        else one
        for one in found
    )


def _clean(text: str) -> str:
    """Without secrets, those of this process's environment included."""
    return mask(text, secret_values(os.environ, {}))


def branch_of(prefix: str, task: str) -> str:
    """The branch that a task is published as. Raises UsageError."""
    try:
        return parse_branch_name(f"{parse_branch_name(prefix.rstrip('/'))}/{task}")
    except UsageError as err:
        raise UsageError(
            f"can't publish below {prefix!a}: {err.brief}", hint="as in: --prefix agents"
        ) from err


def expect_remote(git_dir: str, remote: str, prefix: str, environ: Mapping[str, str] = os.environ) -> None:
    """Raise what `publish` would for this remote and prefix, before there is anything to push."""
    check_source(remote, (Allow.FORK,), environ)
    _branches(git_dir, remote, [branch_of(prefix, "task")], environ)


def check_source(remote: str, allow: Collection[Allow], environ: Mapping[str, str]) -> None:
    """Raise UsageError for a remote that git takes for something else, and for pull requests from forks."""
    if not remote or remote.startswith("-") or "::" in remote or any(char < " " for char in remote):
        raise UsageError(
            f"not a usable remote: {remote[:100]!a}", hint="a name or URL, as in: --publish origin"
        )
    if Allow.FORK not in allow and is_from_fork(environ):
        raise UsageError(
            "nothing is published for a pull request from a fork",
            hint="its author decides what the agents did; look at it, then use --publish-forks",
        )


def is_from_fork(environ: Mapping[str, str]) -> bool:
    """Whether CI runs this for a pull request from a fork, or can't say that it does not.

    Source: GitHub's webhook events `pull_request` and `workflow_run`; GitLab's predefined variables.
    """
    ours, theirs = (environ.get(f"CI_MERGE_REQUEST_{name}PROJECT_ID") for name in ("", "SOURCE_"))
    if theirs and theirs != ours:
        return True
    name = environ.get("GITHUB_EVENT_NAME", "")
    if not name.startswith("pull_request") and name != "workflow_run":
        return False
    event = _read_event(environ.get("GITHUB_EVENT_PATH", ""))
    base = _at(event, "repository", "id")
    head = _at(event, "pull_request", "head", "repo", "id") or _at(
        event, "workflow_run", "head_repository", "id"
    )
    return base is None or head != base


def _read_event(path: str) -> Any:
    try:
        with open(path, "rb") as file:
            return json.loads(file.read(_LARGEST_EVENT))
    except (OSError, ValueError, RecursionError):
        return None


def _at(value: Any, *names: str) -> Any:
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _branches(
    git_dir: str, remote: str, branches: Sequence[str], environ: Mapping[str, str]
) -> dict[str, str]:
    """Those of the branches that the remote has, with their commits."""
    found: dict[str, str] = {}
    for begin in range(0, len(branches), _AT_ONCE):
        refs = [f"refs/heads/{branch}" for branch in branches[begin : begin + _AT_ONCE]]
        done = _run(["git", f"--git-dir={git_dir}", "ls-remote", "--refs", "--", remote, *refs], environ)
        if done.returncode:
            words = f"the remote {_clean(remote)!a} can't be asked"
            raise StoreError(words, details=_clean(_last_words(done.stderr)))
        lines = (line.partition("\t") for line in done.stdout.splitlines())
        found |= {ref.removeprefix("refs/heads/"): oid for oid, _, ref in lines if ref in refs}
    return found


def _reaching(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name.startswith(_REACHING)}


def _ci_files(repo: Repo, each: Publication) -> str | None:
    """Files that CI reads which it brings, in words.

    A workflow that runs on every branch would run the agent's version of it, with its token. What the
    project's own workflows run of the rest of a branch is theirs to decide.
    """
    trees = (repo.tree_of(CommitId(commit)) for commit in (each.base, each.tip))
    paths = [one.path for one in incoming(repo, *trees).carriers if one.why.startswith("CI runs it")]
    return one_line(", ".join(ascii(os.fsdecode(path))[1:-1] for path in paths)) or None


def _push_all(
    git_dir: str, remote: str, left: Sequence[Published], environ: Mapping[str, str]
) -> dict[str, str]:
    """Push some at a time; branches that the remote did not take, and why."""
    found: dict[str, str] = {}
    for begin in range(0, len(left), _AT_ONCE):
        several = left[begin : begin + _AT_ONCE]
        refused = _push(git_dir, remote, several, environ, atomic=True)
        others = [each for each in several if "atomic" in refused.get(each.branch, "")]
        if others:
            # One branch's refusal, or a remote that can't do all or none, is no reason to keep the others.
            again = _push(git_dir, remote, others, environ, atomic=False)
            refused = {branch: why for branch, why in refused.items() if "atomic" not in why} | again
        found |= refused
    return found


def _push(
    git_dir: str, remote: str, several: Sequence[Published], environ: Mapping[str, str], *, atomic: bool
) -> dict[str, str]:
    """Branches that the remote did not take, and why."""
    leases = [f"--force-with-lease=refs/heads/{each.branch}:" for each in several]  # it must not be there
    refs = [f"{each.publication.tip}:refs/heads/{each.branch}" for each in several]
    options = [
        "--porcelain",
        "--no-follow-tags",
        "--no-recurse-submodules",
        *(["--atomic"] if atomic else []),
    ]
    done = _run(["git", f"--git-dir={git_dir}", "push", *options, *leases, "--", remote, *refs], environ)
    if done.returncode == 0:
        return {}
    # Lines of git-push(1), "Output": flag, from and to, summary, with tabs between.
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    told = {row[1].partition(":refs/heads/")[2]: (row[0], row[2]) for row in rows if len(row) == 3}
    words = _last_words(done.stderr)
    answers = {each.branch: told.get(each.branch, ("!", words)) for each in several}
    return {branch: _clean(one_line(why)) for branch, (flag, why) in answers.items() if flag == "!"}


def _run(argv: Sequence[str], environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run git on its way to a remote; whatever it prints is text."""
    env = {**clean_environment(), **_reaching(environ)}
    return subprocess.run(
        argv, env=env, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )


def _last_words(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("fatal:", "error:", "ERROR:"))]
    return one_line((told or lines or ["git did not say why"])[0])


def open_pull_requests(
    root: str,
    published: Sequence[Published],
    into: str,
    most: int,
    *,
    environ: Mapping[str, str] = os.environ,
) -> tuple[Published, ...]:
    """Ask GitHub's `gh` for a pull request of each published branch, `most` new ones at most.

    root: working tree whose remotes say which repository. One that exists is taken as it is. What can't be
    opened has its reason in `detail`. Raises HostError where there is no `gh`.
    """
    found = []
    opened = 0
    for each in published:
        if each.state is State.REFUSED or opened >= most:
            found.append(each)
            continue
        done = _gh(root, each, into, environ)
        url = _URL.search(done.stdout if done.returncode == 0 else done.stderr)
        is_new = done.returncode == 0
        opened += is_new
        if url and (is_new or "already exists" in done.stderr):
            found.append(replace(each, pull_request=url[0]))
        else:
            found.append(replace(each, detail=f"no pull request: {_clean(_last_words(done.stderr))}"))
    return tuple(found)


def _gh(
    root: str, each: Published, into: str, environ: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    argv = ["gh", "pr", "create", f"--head={each.branch}", f"--base={into}", "--body-file=-"]
    try:
        return subprocess.run(
            [*argv, f"--title={_clean(each.publication.title)}"],
            cwd=root,
            env={**environ, "GH_PROMPT_DISABLED": "1", "NO_COLOR": "1"},
            input=_body(each.publication),
            timeout=_PATIENCE,
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
        )
    except FileNotFoundError as err:
        raise HostError("pull requests need GitHub's `gh` on PATH", hint="https://cli.github.com") from err
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(argv, 1, "", "gh did not answer in time")


def _body(publication: Publication) -> str:
    """Markdown that shows the text as it is: in a fence that it can't close, nothing mentions or links."""
    text = _clean(publication.body)[:_LONGEST_BODY].encode("utf-8", "replace").decode()
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    head = f"Made by task `{publication.task}` of a batch of agents, from {publication.base[:10]}."
    return f"{head}\n\n{fence}text\n{text}\n{fence}\n" if text.strip() else f"{head}\n"
