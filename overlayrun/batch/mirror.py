"""A host's copy of a remote, in which attempts run: a bare mirror of what they need, a working tree below it.

    <cache>/<name>-<digest of the URL>/
      lock  mirror.git/  work/        work: a worktree with HEAD detached, and no file checked out

Attempts stand on frozen bases, which are made from git's objects; nothing ever looks into `work`.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from overlayrun.batch.bundles import write_bundle
from overlayrun.batch.task import Attempt
from overlayrun.errors import HostError, StoreError, UsageError
from overlayrun.files import read_bytes
from overlayrun.store.git import GitFailed, git

_MOST_PACKS: Final = 50
# By mirror: for whom this process has set it up last, and commits seen there. Most attempts start where
# others have, and git would be asked three times.
_HELD: Final[dict[str, tuple[Mapping[str, str], set[str]]]] = {}
_ID: Final = re.compile(r"[0-9a-f]{40}")
# What a user sets so that git reaches a remote; each is dropped where git works on files.
_NETWORK: Final = ("GIT_SSH", "GIT_SSH_COMMAND", "GIT_SSH_VARIANT", "GIT_ASKPASS", "GIT_PROXY_COMMAND")
_SETTINGS: Final = (
    ("gc.auto", "0"),  # an attempt may be reading what a `git gc` takes away
    ("maintenance.auto", "false"),
    ("core.logAllRefUpdates", "false"),
)


def offer_ref(run: str, commit: str) -> str:
    """The ref by which a coordinator offers a base to its workers, on the remote."""
    return f"refs/overlayrun/offers/{run}/{commit}"


def check_remote(url: str) -> str:
    """A remote's URL or path that is safe as an argument of git. Raises UsageError."""
    if not url or url.startswith("-") or "::" in url.partition("/")[0] or any(c < " " for c in url):
        raise UsageError(
            f"not a usable remote: {url[:100]!a}", hint="a URL as in: ssh://git@host/repository.git"
        )
    return url


def network_environment() -> dict[str, str]:
    """How the user reaches remotes, for git processes that go there."""
    return {name: os.environ[name] for name in _NETWORK if name in os.environ}


class Mirror:
    """The mirror of one remote; any number of processes may use it at a time."""

    __slots__ = ("_url", "git_dir", "root", "work")

    def __init__(self, cache: str, url: str) -> None:
        self._url = check_remote(url)
        name = re.sub(r"[^A-Za-z0-9._-]", "", url.rstrip("/").rpartition("/")[2])[:40].strip(".-")
        digest = hashlib.sha256(url.encode("utf-8", "surrogateescape")).hexdigest()[:12]
        self.root = os.path.realpath(f"{cache}/{name or 'repository'}-{digest}")
        self.git_dir = f"{self.root}/mirror.git"
        self.work = f"{self.root}/work"

    def hold(self, run: str, commit: str, identity: Mapping[str, str]) -> str:
        """Have a commit and its history; returns the working tree. Fetches only what is missing.

        identity: name and address of who asked for the run, for the commits that attempts make.
        Raises StoreError where the remote can't be reached or does not have it, HostError for a full disk.
        """
        if not _ID.fullmatch(commit):
            raise StoreError(f"not a commit's id: {commit[:80]!a}")
        whose, commits = _HELD.get(self.git_dir, (None, set()))
        if whose == identity and commit in commits and os.path.exists(f"{self.work}/.git"):
            return self.work
        try:
            with self._locked():
                self._make()
                if not self.has(commit):
                    self._fetch(offer_ref(run, commit), commit)
                self._sign(identity)
                if not os.path.exists(f"{self.work}/.git"):
                    self._git("worktree", "add", "--force", "--no-checkout", "--detach", self.work, commit)
        except OSError as err:
            raise HostError(f"the repository cache can't be written: {err}") from err
        _HELD[self.git_dir] = (identity, {commit} | (commits if whose == identity else set()))
        return self.work

    def has(self, commit: str) -> bool:
        """Whether a commit is here; git never leaves one without its history."""
        try:
            self._git("cat-file", "-e", f"{commit}^{{commit}}")
        except GitFailed:
            return False
        return True

    def push(self, attempt: Attempt, tip: str) -> None:
        """Create the attempt's ref on the remote, never move it. Raises StoreError with what git said."""
        try:
            self._git(
                *("-c", "push.gpgSign=false", "push", "--quiet", "--no-verify", "--no-follow-tags"),
                *(f"--force-with-lease={attempt.ref}:", "--", self._url, f"{tip}:{attempt.ref}"),
                network=True,
            )
        except GitFailed:
            if self.remote_has(attempt.ref) != tip:  # the answer to an earlier push may have been lost
                raise

    def remote_has(self, ref: str) -> str | None:
        """What a ref of the remote points at, None where it is missing or nobody can be asked."""
        try:
            listed = self._git("ls-remote", "--quiet", "--", self._url, ref, network=True)
        except GitFailed:
            return None
        return next((line.split("\t")[0] for line in listed.splitlines() if line.endswith(f"\t{ref}")), None)

    def bundle(self, attempt: Attempt, path: str, limit: int) -> bytes | None:
        """A thin bundle of what the attempt made, under its ref, of at most `limit` bytes; else None.

        path: where it is written on its way.
        """
        span = (attempt.ref, f"^{attempt.base}")
        if int(self._git("rev-list", "--objects", "--disk-usage", *span)) > limit:
            return None
        write_bundle(path, self.git_dir, attempt.base, attempt.ref)
        data = read_bytes(path)
        os.unlink(path)
        return data if len(data) <= limit else None

    def _make(self) -> None:
        if os.path.exists(f"{self.git_dir}/HEAD"):
            return
        git(["init", "--quiet", "--bare", self.git_dir])
        for key, value in _SETTINGS:
            self._git("config", key, value)

    def _sign(self, identity: Mapping[str, str]) -> None:
        for key in ("user.name", "user.email"):
            now = git(["config", "--local", "--get", key], git_dir=self.git_dir, check=False)
            value = identity.get(key, "")
            if value.strip("-") and os.fsdecode(now).rstrip("\n") != value:
                self._git("config", "--local", "--replace-all", key, value.lstrip("-"))  # never an option

    def _fetch(self, ref: str, commit: str) -> None:
        options = [
            *("-c", "fetch.fsckObjects=true", "fetch", "--quiet", "--no-tags", "--no-write-fetch-head"),
            *("--no-auto-maintenance", "--no-recurse-submodules", "--refmap=", "--", self._url),
        ]
        try:
            self._git(*options, f"+{ref}:{ref}", network=True)
        except GitFailed:
            # Nobody could offer it there; most servers give any commit that a branch holds.
            self._git(*options, f"+{commit}:{ref}", network=True)
        if not self.has(commit):
            raise StoreError(f"the remote has another commit in the place of {commit[:10]}")
        packs = [name for name in os.listdir(f"{self.git_dir}/objects/pack") if name.endswith(".pack")]
        if len(packs) > _MOST_PACKS:  # joins packs, and removes no object
            self._git("repack", "--quiet", "-d", "--geometric=2")

    def _git(self, *args: str, network: bool = False) -> str:
        environment = network_environment() if network else {}
        return os.fsdecode(git(args, git_dir=self.git_dir, env=environment))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        os.makedirs(self.root, mode=0o700, exist_ok=True)
        fd = os.open(f"{self.root}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)
