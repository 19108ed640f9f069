"""A real project from PyPI: its own tests give inside a workspace what they give outside."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from conftest import UserRepo

pytestmark = pytest.mark.shared  # what another project's tests say

PROJECT: Final = "click==8.1.7"  # pure Python, 600 quick tests, which need pytest alone


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's source package, by pip from the registry that it is set to."""
    place = tmp_path_factory.mktemp("source")
    name = PROJECT.partition("=")[0]
    words = ["download", "--quiet", "--no-deps", "--no-binary", name, "--dest", str(place), PROJECT]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True, timeout=300)
    (archive,) = place.glob("*.tar.gz")
    subprocess.run(["tar", "--no-same-owner", "-xzf", str(archive), "-C", str(place)], check=True)
    archive.unlink()
    (unpacked,) = (path for path in place.iterdir() if path.is_dir())
    return unpacked


@pytest.fixture
def project(source: Path, repo: UserRepo) -> UserRepo:
    """The project as a repository in the user's home."""
    made = repo.at(repo.home / "code/project")
    made.root.parent.mkdir()
    subprocess.run(["cp", "-a", str(source), str(made.root)], check=True)
    made.git("init", "-q")
    made.write(".git/info/exclude", "__pycache__/\n.pytest_cache/\n*.egg-info/\n")
    made.commit("imported")
    made.env["PYTHONPATH"] = str(made.root / "src")
    # At its end pytest removes what older runs of this user left in the directory for temporary files: minutes of
    # work where one of them was this suite.
    made.env["TMPDIR"] = str(made.home / "tmp")
    (made.home / "tmp").mkdir()
    return made


def _results(text: str) -> list[str]:
    return sorted(
        re.findall(r"^(?:PASSED|FAILED|SKIPPED|ERROR|XFAIL|XPASS)\b.*?(?= - |$)", text, re.MULTILINE)
    )


COMMAND: Final = [
    sys.executable,
    *("-X", "faulthandler"),
    "-m",
    "pytest",
    "-q",
    "-rA",
    "--tb=no",
    "-p",
    "no:cacheprovider",
    "-W",
    "ignore",
    "tests",
]


def test_its_own_tests_give_the_same_inside(project: UserRepo) -> None:
    outside = subprocess.run(
        ["timeout", "--signal=ABRT", "150", *COMMAND],  # one that hangs says where
        cwd=project.root,
        env=project.env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert outside.returncode == 0, outside.stdout[-2000:] + outside.stderr[-4000:]
    assert len(_results(outside.stdout)) > 300, outside.stdout[-2000:]
    inside = project.overlayrun("-b", "b", "--", *COMMAND)
    assert _results(inside.out) == _results(outside.stdout), str(inside)
    assert inside.code == outside.returncode
    assert project.git("diff", "--stat", "main", "b") == ""
    again = project.overlayrun("-b", "b", "--", *COMMAND)
    assert _results(again.out) == _results(outside.stdout)


def test_a_change_and_a_commit_in_it_arrive(project: UserRepo) -> None:
    script = (
        f"echo '# changed' >>src/click/core.py; git commit -qam 'Change the core'; "
        f"{sys.executable} -c 'import click; print(click.__file__)'"
    )
    assert project.inside(script) == f"{project.root}/src/click/__init__.py\n"
    assert (
        project.git("diff", "--stat", "main", "b").splitlines()[-1].strip()
        == "1 file changed, 1 insertion(+)"
    )
    assert project.git("log", "-1", "--format=%s", "b") == "Change the core"
