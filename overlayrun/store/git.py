"""Run git as a process, under an environment that no caller and no agent can bend. On the launch path."""

from __future__ import annotations

import os

from overlayrun.errors import HostError, StoreError
from overlayrun.streams import pump

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Final

# Where the user keeps the configuration is the user's choice; every other GIT_* variable could point git
# elsewhere.
_KEPT: Final = frozenset({"GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM", "GIT_EXEC_PATH"})


class GitFailed(StoreError):
    """A git process ended with another status than 0. code: its exit status, or minus the signal's number."""

    def __init__(self, args: Sequence[str], code: int, stderr: bytes) -> None:
        words = stderr.decode("utf-8", "replace").strip()
        verb = next((a for a in args if not a.startswith("-") and "=" not in a), "git")
        super().__init__(f"git {verb} failed with status {code}", details=words or None)
        self.code = code


def git(
    args: Sequence[str],
    *,
    git_dir: str | None = None,
    cwd: str | None = None,
    input: bytes = b"",  # noqa: A002  # the name that subprocess.run gives it
    env: Mapping[str, str] | None = None,
    check: bool = True,
) -> bytes:
    """Run `git *args`, feed it `input`, return its stdout.

    git_dir: absolute; without it git looks from `cwd` upward. env: added last, on top of
    `clean_environment()`.
    Raises GitFailed on another exit status than 0 unless `check` is False; HostError where git is missing.
    """
    where = ([f"--git-dir={git_dir}"] if git_dir else []) + (["-C", cwd] if cwd else [])
    status, stdout, stderr = _communicate(
        ["git", *where, *args], {**clean_environment(), **(env or {})}, input, None
    )
    if status and check:
        raise GitFailed(args, status, stderr)
    return stdout


def git_shown(
    args: Sequence[str], *, git_dir: str, cwd: str, env: Mapping[str, str], show: Callable[[bytes], object]
) -> None:
    """Run git for its effect, and call `show` with each piece of its stderr as it comes. Raises GitFailed."""
    argv = ["git", f"--git-dir={git_dir}", "-C", cwd, *args]
    status, _, stderr = _communicate(argv, {**clean_environment(), **env}, b"", show)
    if status:
        raise GitFailed(args, status, stderr)


def clean_environment() -> dict[str, str]:
    """This process's environment without what redirects git, with what makes its answers stable."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("GIT_") or k in _KEPT}
    kept |= {
        "GIT_OPTIONAL_LOCKS": "0",  # a status of ours must not rewrite the user's index
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "LC_ALL": "C",
    }
    return kept | config_environment([])


def config_environment(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Variables that set git configuration for one process, above every file; values may hold anything."""
    # A bare repository that an agent planted in a tree is never opened by discovery (git-config(1),
    # safe.bareRepository).
    pairs = [("safe.bareRepository", "explicit"), *pairs]
    variables = {"GIT_CONFIG_COUNT": str(len(pairs))}
    for number, (key, value) in enumerate(pairs):
        variables[f"GIT_CONFIG_KEY_{number}"] = key
        variables[f"GIT_CONFIG_VALUE_{number}"] = value
    return variables


def _communicate(
    argv: list[str],
    env: Mapping[str, str],
    data: bytes,
    progress: Callable[[bytes], object] | None,
) -> tuple[int, bytes, bytes]:
    """Exit status (minus the number for a signal), stdout and stderr."""
    ends = [os.pipe() for _ in range(3)]
    (in_read, in_write), (out_read, out_write), (err_read, err_write) = ends
    try:
        pid = os.posix_spawnp(
            argv[0],
            argv,
            env,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, in_read, 0),
                (os.POSIX_SPAWN_DUP2, out_write, 1),
                (os.POSIX_SPAWN_DUP2, err_write, 2),
            ],
        )
    except OSError as err:
        for fd in (in_write, out_read, err_read):
            os.close(fd)
        raise HostError("git can't be started", details=str(err), hint="install git 2.39 or newer") from err
    finally:
        for fd in (in_read, out_write, err_write):
            os.close(fd)
    stdout, stderr = pump(in_write, data, [out_read, err_read], seen={err_read: progress} if progress else {})
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), stdout, stderr
