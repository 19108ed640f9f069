"""Branches that are ready to land, and what must be true of a repository whatever a reconciler did to it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from conftest import Done, UserRepo

# Commits of which the second has the first in its history: known once, true for good.
_FORWARD: Final[set[tuple[str, str]]] = set()


def agent(repo: UserRepo, branch: str, **files: str) -> str:
    """A branch in which a command wrote `files`; its commit. A name's `_` stands for a dot."""
    script = "\n".join(f"printf %s '{text}' >{name.replace('_', '.')}" for name, text in files.items())
    repo.inside(script, "--dirty", "ignore", branch=branch)
    return repo.git("rev-parse", branch)


def agents(repo: UserRepo, *branches: str) -> None:
    """Branches that add a file of their own name each."""
    for branch in branches:
        agent(repo, branch, **{branch: f"{branch}\n"})


def reconcile(repo: UserRepo, *args: str) -> Done:
    return repo.overlayrun("reconcile", *args)


def landed(done: Done) -> list[str]:
    """Branches that a command said it had landed, in its order."""
    start = "branch "
    lines = [line for line in done.out.splitlines() if line.startswith(start) and " is merged: " in line]
    return [line.removeprefix(start).partition(" ")[0] for line in lines]


def queue(repo: UserRepo, *args: str) -> dict[str, str]:
    """State by branch, in the queue's order."""
    return {one["branch"]: one["state"] for one in asked(repo, "queue", *args)["branches"]}


def asked(repo: UserRepo, *args: str) -> dict[str, Any]:
    """The answer of a command to --json."""
    done = repo.overlayrun(*args, "--json")
    try:
        answer: dict[str, Any] = json.loads(done.out)
    except ValueError:
        raise AssertionError(str(done)) from None
    return answer


def checks(repo: UserRepo, branch: str) -> list[dict[str, Any]]:
    """Every check that a branch was part of, the newest first."""
    found: list[dict[str, Any]] = asked(repo, "log", "--checks", branch)["checks"]
    return found


def notes(repo: UserRepo) -> dict[str, str]:
    """What the reconciler keeps in refs."""
    return {name: at for name, at in repo.refs().items() if name.startswith("refs/overlayrun/queue/")}


def undelivered(repo: UserRepo) -> list[str]:
    """Refs that say that something has landed and waits."""
    return [name for name in notes(repo) if name.split("/")[3] in ("tip", "from")]


def first_parents(repo: UserRepo, revision: str = "main") -> list[str]:
    """Subjects along the target's own line, newest first."""
    return repo.git("log", "--first-parent", "--format=%s", revision).splitlines()


def landings(repo: UserRepo, branch: str) -> int:
    """How many commits of the target's own line brought a branch."""
    return first_parents(repo).count(f"Merge branch '{branch}' into main")


def is_in(repo: UserRepo, old: str, new: str) -> bool:
    """Whether a commit is in the history of another."""
    return (
        subprocess.run(
            ["git", "merge-base", "--is-ancestor", old, new],
            cwd=repo.root,
            env=repo.env,
            capture_output=True,
            check=False,
        ).returncode
        == 0
    )


def locks(repo: UserRepo) -> list[str]:
    """Locks of git's that somebody left."""
    git_dir = repo.root / ".git"
    found = []
    for directory, names, files in os.walk(git_dir):
        if Path(directory) == git_dir and "overlayrun" in names:
            names.remove("overlayrun")
        found += [f"{directory}/{name}" for name in files if name.endswith(".lock")]
    return found


def assert_sound(repo: UserRepo) -> None:
    """Git and doctor find nothing wrong."""
    said = repo.git("fsck", "--strict", "--no-dangling", "--no-progress")
    assert said == "", said
    assert locks(repo) == []
    repo.git("status", "--porcelain")


def assert_delivered(repo: UserRepo) -> None:
    """The working tree and the index are the target's, and nothing waits."""
    assert repo.git("status", "--porcelain") == ""
    assert undelivered(repo) == []


def renew(repo: UserRepo, work: Mapping[str, Mapping[str, str]]) -> None:
    """Let branches go on at once, as their owner may by git: each is one commit on main that writes its files."""
    who = "Agent <agent@example.invalid> 1700000000 +0000"
    stream = []
    for branch, files in work.items():
        stream += [
            f"commit refs/heads/{branch}",
            f"committer {who}",
            _data(f"work of {branch}"),
            "from refs/heads/main^0",
        ]
        stream += [line for name, text in files.items() for line in (f"M 100644 inline {name}", _data(text))]
    repo.raw_git("fast-import", "--quiet", "--force", data="\n".join([*stream, ""]).encode())


def _data(text: str) -> str:
    return f"data {len(text.encode())}\n{text}"


def times_brought(repo: UserRepo, start: str, path: str) -> int:
    """How many commits of main's own line since `start` changed a path."""
    words = [
        "log",
        "--first-parent",
        "--diff-merges=first-parent",
        "--no-patch",
        "--format=%H",
        f"{start}..main",
        "--",
        path,
    ]
    return len(repo.git(*words).split())


def assert_only_forward(repo: UserRepo) -> None:
    """Main's reflog has no step of ours that drops a commit, and none that is not told of."""
    before = None
    for line in (repo.root / ".git/logs/refs/heads/main").read_text().splitlines():
        old, new = line.split(" ", 2)[:2]
        assert before in (None, old), line
        before = new
        if "\toverlayrun: " in line and (old, new) not in _FORWARD:
            assert is_in(repo, old, new), line
            _FORWARD.add((old, new))
    assert before == repo.git("rev-parse", "main")
