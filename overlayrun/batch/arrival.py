"""Take over what an attempt made on another host: into quarantine, checked, then into the user's objects.

Nothing that the host said names a path or a ref here: the ref is the attempt's own, the commit must be there,
whole, well-formed, and stand on the attempt's base.
"""

from __future__ import annotations

import tempfile

from overlayrun.batch.bundles import take_bundle
from overlayrun.batch.mirror import check_remote, network_environment
from overlayrun.batch.task import Attempt
from overlayrun.errors import StoreError
from overlayrun.model import CommitId
from overlayrun.store.git import git
from overlayrun.store.quarantine import quarantined
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
    with quarantined(repo) as quarantine:
        git(command, git_dir=repo.git_dir, env={**quarantine.environment, **network_environment()})
        quarantine.accept(tip, attempt.base)
    _keep(repo, attempt, CommitId(tip))


def take_sent(repo: Repo, bundle: bytes, attempt: Attempt, tip: str) -> None:
    """The same from a bundle that the host sent (gitformat-bundle(5))."""
    with tempfile.NamedTemporaryFile(prefix="overlayrun-", suffix=".bundle") as file:
        file.write(bundle)
        file.flush()
        take_bundle(repo, file.name, tip, attempt.base, limit=len(bundle))
    _keep(repo, attempt, CommitId(tip))


def _keep(repo: Repo, attempt: Attempt, tip: CommitId) -> None:
    """Make the attempt's ref; it never moves. It is there already where the remote is this repository."""
    now = repo.ref(attempt.ref)
    if now is None:
        repo.move_refs([RefUpdate(attempt.ref, tip, None)], why="attempt")
    elif now != tip:
        raise StoreError(f"{attempt.ref} holds another commit already: {now[:10]}")
