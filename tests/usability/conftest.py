"""Fixtures: programs that must be there, and a script that must do inside what it does outside."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from conftest import UserRepo

Needs = Callable[..., None]
Same = Callable[..., str]
_PATIENCE: Final = 120.0


@pytest.fixture
def needs(repo: UserRepo) -> Needs:
    """`needs("gcc", "make")`: a missing program fails in CI and skips elsewhere; scripts/test installs them."""

    def check(*programs: str) -> None:
        missing = [name for name in programs if shutil.which(name, path=repo.env["PATH"]) is None]
        if missing and os.environ.get("CI") == "true":
            pytest.fail(f"missing: {missing}; scripts/test installs what is needed")
        if missing:
            pytest.skip(f"missing: {missing}; scripts/test installs what is needed")

    return check


@pytest.fixture
def same(repo: UserRepo) -> Same:
    """`same(script, *options)`: run a script inside, then outside at the same path; both print the same.

    It gives what they print. Inside first, so that a change outside would be seen.
    """

    def check(script: str, *options: str, branch: str = "b") -> str:
        before = repo.picture()
        inside = repo.sh(script, *options, branch=branch)
        assert repo.picture() == before
        outside = run_outside(repo, script)
        assert (inside.code, inside.out) == (outside.returncode, outside.stdout), (
            f"{inside}\n{outside.stderr}"
        )
        assert inside.code == 0, str(inside)
        return inside.out

    return check


def run_outside(repo: UserRepo, script: str) -> subprocess.CompletedProcess[str]:
    """The same shell script in the user's own tree."""
    return subprocess.run(
        ["sh", "-c", script],
        cwd=repo.root,
        env=repo.env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        text=True,
        timeout=_PATIENCE,
    )
