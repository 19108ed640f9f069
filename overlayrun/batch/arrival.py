"""Take over what an attempt made on another host: into quarantine, checked, then into the user's objects.

Nothing that the host said names a path or a ref here: the ref is the attempt's own, the commit must be there,
whole, well-formed, and stand on the attempt's base.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from overlayrun.batch.mirror import check_remote, network_environment
from overlayrun.batch.task import Attempt
from overlayrun.errors import StoreError
from overlayrun.model import CommitId
from overlayrun.store.git import GitFailed, git
from overlayrun.store.pack import flush
from overlayrun.store.refs import RefUpdate
from overlayrun.store.repo import Repo


def take_pushed(repo: Repo, remote: str, attempt: Attempt, tip: str) -> None:
    """Fetch the attempt's ref from the remote, where its host says it has pushed `tip`.

    Afterwards the attempt's ref keeps it here. Raises StoreError for anything that is not as it should be:
    then nothing of it is here.
    """
    options = [
        *("-c", "fetch.fsckObjects=true", "-c", "fetch.unpackLimit=1", "fetch", "--quiet", "--no-tags"),
        *("--no-write-fetch-head", "--no-auto-maintenance", "--no-recurse-submodules", "--refmap="),
    ]
    command = [*options, "--", check_remote(remote), attempt.ref]
    with _quarantine(repo) as (quarantine, environment):
        git(command, git_dir=repo.git_dir, env={**environment, **network_environment()})
        _accept(repo, attempt, tip, quarantine, environment)


def take_bundle(repo: Repo, bundle: bytes, attempt: Attempt, tip: str) -> None:
    """The same from a bundle that the host sent (gitformat-bundle(5))."""
    header, _, pack = bundle.partition(b"\n\n")
    if f"{tip} {attempt.ref}".encode() not in header.split(b"\n") or not pack.startswith(b"PACK"):
        raise StoreError(f"what was sent is no bundle of {attempt.ref}")
    # And not by `git fetch`: that of git 2.39 checks no object that comes in a bundle (tried).
    command = ["index-pack", "--strict", "--fsck-objects", "--stdin", "--fix-thin"]
    with _quarantine(repo) as (quarantine, environment):
        git(command, git_dir=repo.git_dir, input=pack, env=environment)
        _accept(repo, attempt, tip, quarantine, environment)


def _accept(repo: Repo, attempt: Attempt, tip: str, quarantine: str, environment: dict[str, str]) -> None:
    _check(repo, attempt, tip, environment)
    _move_in(repo, quarantine)
    _keep(repo, attempt, CommitId(tip))


def _check(repo: Repo, attempt: Attempt, tip: str, environment: dict[str, str]) -> None:
    """Raise StoreError unless `tip` is a commit, descends from the base, and all that it holds is there."""
    try:
        for words in (
            ["cat-file", "-e", f"{tip}^{{commit}}"],
            ["merge-base", "--is-ancestor", attempt.base, tip],
            ["rev-list", "--objects", "--quiet", tip, f"^{attempt.base}"],
        ):
            git(words, git_dir=repo.git_dir, env=environment)
    except GitFailed as err:
        raise StoreError(
            f"the commit {tip[:10]} of {attempt.task.id} is missing, or not made from {attempt.base[:10]}",
            details=err.details,
        ) from err


def _keep(repo: Repo, attempt: Attempt, tip: CommitId) -> None:
    """Make the attempt's ref; it never moves. It is there already where the remote is this repository."""
    now = repo.ref(attempt.ref)
    if now is None:
        repo.move_refs([RefUpdate(attempt.ref, tip, None)], why="attempt")
    elif now != tip:
        raise StoreError(f"{attempt.ref} holds another commit already: {now[:10]}")


@contextmanager
def _quarantine(repo: Repo) -> Iterator[tuple[str, dict[str, str]]]:
    """A directory for new objects, and the environment in which git puts them there."""
    # The name is one that `git prune` clears away after a crash.
    path = tempfile.mkdtemp(prefix="tmp_objdir-overlayrun-", dir=repo.objects)
    # A list with colons, unless an item is quoted as in C.
    objects = '"{}"'.format(repo.objects.replace("\\", "\\\\").replace('"', '\\"'))
    try:
        os.mkdir(f"{path}/pack")
        yield path, {
            "GIT_OBJECT_DIRECTORY": path,
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": objects,
            "GIT_GRAFT_FILE": "/dev/null",
        }
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _move_in(repo: Repo, quarantine: str) -> None:
    """Move packs into the store, flushed, the index of each last: git looks for packs by their index."""
    names = sorted(os.listdir(f"{quarantine}/pack"), key=lambda name: name.endswith(".idx"))
    os.makedirs(f"{repo.objects}/pack", exist_ok=True)
    for name in names:
        flush(f"{quarantine}/pack/{name}")
        os.rename(f"{quarantine}/pack/{name}", f"{repo.objects}/pack/{name}")
    if names:
        flush(f"{repo.objects}/pack")
