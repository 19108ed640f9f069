"""Fixtures for tests with a real agent; everything lives below the test's own temporary directory."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from .project import Project
from .scripted_model import MODEL_NAME, ScriptedModel

_OFFLINE: Final = {
    "OPENCODE_DISABLE_AUTOUPDATE": "1",
    "OPENCODE_DISABLE_DEFAULT_PLUGINS": "1",
    "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
    "OPENCODE_DISABLE_MODELS_FETCH": "1",
    "OPENCODE_DISABLE_SHARE": "1",
    # OpenCode installs its plugin package into each config directory at start, by npm's own code.
    "npm_config_fetch_retries": "0",
    "npm_config_offline": "true",
}
_GITCONFIG: Final = """\
[user]
	name = Test User
	email = test@example.invalid
[init]
	defaultBranch = main
"""


@pytest.fixture(scope="session")
def opencode() -> Path:
    """The real OpenCode, from OVERLAYRUN_TEST_OPENCODE or PATH. Its absence fails in CI, skips elsewhere."""
    named = os.environ.get("OVERLAYRUN_TEST_OPENCODE")
    found = named or shutil.which("opencode")
    if found and os.access(found, os.X_OK):
        return Path(found).absolute()
    if os.environ.get("CI") == "true":
        pytest.fail(f"no OpenCode at {named}" if named else "no OpenCode on PATH; scripts/test installs it")
    pytest.skip("no OpenCode: set OVERLAYRUN_TEST_OPENCODE, or run scripts/test, which installs it")


@pytest.fixture
def model() -> Iterator[ScriptedModel]:
    """A model server of the test's own."""
    with ScriptedModel() as server:
        yield server


@pytest.fixture
def project(tmp_path: Path, opencode: Path, model: ScriptedModel) -> Project:
    """A home directory with OpenCode set up for the scripted model, and a repository of two commits in it."""
    home = tmp_path / "home"
    repo = home / "project"
    config = home / ".config/opencode/opencode.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps(_opencode_config(model.base_url), indent=2))
    (home / ".gitconfig").write_text(_GITCONFIG)
    path = [str(Path(sys.executable).parent), str(opencode.parent), "/usr/local/bin", "/usr/bin", "/bin"]
    env = {"HOME": str(home), "PATH": ":".join(path), "LANG": "C.UTF-8", "TERM": "xterm-256color", **_OFFLINE}
    made = Project(home, repo, env)
    _fill(made)
    return made


def _fill(project: Project) -> None:
    (project.repo / "src").mkdir(parents=True)
    project.git("init", "--quiet")
    (project.repo / "README").write_text("A sample\n")
    project.git("add", "--all")
    project.git("commit", "--quiet", "--message=First")
    (project.repo / "src/app.py").write_text("answer = 41\n")
    project.git("add", "--all")
    project.git("commit", "--quiet", "--message=Second")


def _opencode_config(base_url: str) -> dict[str, Any]:
    limit = {"context": 100_000, "output": 10_000}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "Scripted",
        "options": {"baseURL": base_url, "apiKey": "none"},
        "models": {MODEL_NAME: {"name": MODEL_NAME, "tool_call": True, "limit": limit}},
    }
    return {
        "$schema": "https://opencode.ai/config.json",
        "provider": {"test": provider},
        "model": f"test/{MODEL_NAME}",
        "small_model": f"test/{MODEL_NAME}",
        "enabled_providers": ["test"],
        "autoupdate": False,
        "share": "disabled",
        "lsp": False,
        "formatter": False,
        "permission": {"edit": "allow", "bash": "allow", "external_directory": "allow"},
    }
