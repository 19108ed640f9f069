"""Programs that rename directories of the base: npm and pip, which put an older version aside."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from conftest import UserRepo

_NPM: Final = "npm install --silent --offline --no-audit --no-fund --no-update-notifier"
_WHEELS: Final = Path("/usr/share/python-wheels")  # of Debian's python3-venv


def _pack_for_npm(place: Path, version: str) -> None:
    texts = {
        "package.json": json.dumps({"name": "part", "version": version}),
        "index.js": f"module.exports = '{version}';\n",
        **{f"lib/d{number}/of-{version}": version for number in range(5)},
    }
    with tarfile.open(place / f"part-{version}.tgz", "w:gz") as archive:
        for name, text in texts.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))


def _pack_for_pip(place: Path, version: str) -> None:
    about = f"sample-{version}.dist-info"
    texts = {
        "sample/__init__.py": f"version = '{version}'\n",
        **{f"sample/d{number}/of_{version[0]}.py": "" for number in range(5)},
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: sample\nVersion: {version}\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    texts[f"{about}/RECORD"] = "".join(f"{name},,\n" for name in [*texts, f"{about}/RECORD"])
    with zipfile.ZipFile(place / f"sample-{version}-py3-none-any.whl", "w") as archive:
        for name, text in texts.items():
            archive.writestr(name, text)


@pytest.fixture
def installed(repo: UserRepo) -> UserRepo:
    """A repository that holds what version 1.0.0 of two packages installs."""
    packed = repo.root / "packed"
    packed.mkdir()
    for version in ("1.0.0", "2.0.0"):
        _pack_for_npm(packed, version)
        _pack_for_pip(packed, version)
    (pip,) = _WHEELS.glob("pip-*.whl")
    repo.write("pip", f'#!/bin/sh\nexec env/bin/python {pip}/pip install -q --no-index "$@"\n', 0o755)
    repo.write("package.json", '{"name": "project", "version": "1.0.0"}')
    script = f"/usr/bin/python3 -m venv --without-pip env && ./pip packed/sample-1* && {_NPM} ./packed/part-1.0.0.tgz"
    subprocess.run(["sh", "-c", script], cwd=repo.root, env=repo.env, check=True)
    repo.commit()
    return repo


@pytest.mark.shared
def test_npm_and_pip_replace_an_older_version(installed: UserRepo) -> None:
    if shutil.which("npm", path=installed.env["PATH"]) is None:
        assert os.environ.get("CI") != "true", "missing: npm; scripts/test installs it"
        pytest.skip("missing: npm")
    show = 'node -p "require(\'part\')"; env/bin/python -c "import sample; print(sample.version)"'
    out = installed.inside(
        f"{show}\n{_NPM} ./packed/part-2.0.0.tgz\n./pip --upgrade packed/sample-2*\n{show}"
    )
    assert out.split() == ["1.0.0", "1.0.0", "2.0.0", "2.0.0"]
    before, after = installed.files("main"), installed.files("b")
    changed = {path for path in before | after if before.get(path) != after.get(path)}
    (packages,) = {path.partition("/sample/")[0] for path in after if "/sample/d0/" in path}
    for old, new, top in (
        ("of-1.0.0", "of-2.0.0", "node_modules/part/lib"),
        ("of_1.py", "of_2.py", f"{packages}/sample"),
    ):
        assert {f"{top}/d{number}/{name}" for number in range(5) for name in (old, new)} <= changed
        assert f"{top}/d0/{old}" not in after
        assert f"{top}/d0/{new}" in after
    assert not [path for path in after if "/~" in path or "/.part-" in path or ".overlayrun" in path]
