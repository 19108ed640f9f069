"""overlayrun started by overlayrun, in a repository whose files may be anybody's."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from overlayrun.program import this_program


@pytest.mark.parametrize("name", ["overlayrun", "click"])
def test_no_module_of_the_repositorys_stands_in_for_one_of_ours(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.py").write_text("raise SystemExit('planted')\n")
    done = subprocess.run(
        [*this_program(), "--version"], cwd=tmp_path, capture_output=True, check=False, text=True
    )
    assert (done.returncode, done.stdout[:11]) == (0, "overlayrun "), done.stderr
