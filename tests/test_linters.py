"""The linters find nothing; their settings are in pyproject.toml."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

pytestmark = pytest.mark.shared  # what the linters say

ROOT: Final = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["ruff", "check", "--no-cache", "--output-format=concise"], id="ruff-check"),
        pytest.param(["ruff", "format", "--no-cache", "--check"], id="ruff-format"),
        pytest.param(["mypy", "--strict"], id="mypy"),
    ],
)
def test_linter_finds_nothing(arguments: list[str], tmp_path: Path) -> None:
    if importlib.util.find_spec(arguments[0]) is None:
        pytest.skip(f"{arguments[0]} is not installed; the extra `test` has it")
    # A cache of its own: the checkout may belong to another user.
    environment = {**os.environ, "MYPY_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
