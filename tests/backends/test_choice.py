"""Which backend a new branch gets: by trying, once, with the reason told."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

import pytest
from conftest import UserRepo
from kernel.lab import scene

from overlayrun.backends.registry import BACKENDS, choose, fitting, try_all
from overlayrun.errors import UsageError
from overlayrun.model import BackendKind
from overlayrun.store.location import find_repository
from overlayrun.workspace.layout import Layout, open_state

# The state's disk is an overlay, as in a container, and what runs there is told.
_IN_A_CONTAINER: Final = """
import shlex, subprocess
enter()
os.chdir({place!r})
for name in 'lower', 'upper', 'work', 'disk':
    os.makedirs(name)
syscalls.mount('overlay', 'disk', 'overlay', 0, 'lowerdir=lower,upperdir=upper,workdir=work,userxattr')
os.chdir({root!r})
told = []
for command in {commands!r}:
    done = subprocess.run(command, capture_output=True, text=True)
    told.append([done.returncode, done.stdout, done.stderr])
answer(told)
"""


@pytest.fixture
def layout(repo: UserRepo) -> Layout:
    """The state directory of a repository."""
    return open_state(find_repository(str(repo.root)).common_dir)


def test_an_overlay_is_tried_once_and_then_known(layout: Layout) -> None:
    assert choose(layout, BackendKind.AUTO).name == "overlay"
    noted = Path(layout.backend)
    before = noted.stat().st_mtime_ns
    assert choose(layout, BackendKind.AUTO).name == "overlay"
    assert noted.stat().st_mtime_ns == before
    assert sorted(os.listdir(layout.root)) == ["backend", "bases", "carried", "layers", "workspaces"]


def test_a_note_of_another_boot_or_another_disk_is_not_believed(layout: Layout) -> None:
    choose(layout, BackendKind.AUTO)
    noted = Path(layout.backend)
    right = noted.read_bytes()
    noted.write_bytes(b"another-boot 1 2")
    assert choose(layout, BackendKind.AUTO).name == "overlay"
    assert noted.read_bytes() == right


def test_what_cannot_work_here_is_refused_with_the_reason(layout: Layout, tmp_path: Path) -> None:
    for name in ("btrfs", "reflink"):
        reason = BACKENDS[name].refusal(str(tmp_path))
        if reason is None:  # this disk has it
            continue
        with pytest.raises(UsageError, match=f"backend {name} can't work here: no "):
            choose(layout, BackendKind(name))
    assert os.listdir(tmp_path) == ["home"] or "source" not in os.listdir(tmp_path)


def test_a_tree_made_anew_on_another_disk_is_copied_where_it_must(layout: Layout, tmp_path: Path) -> None:
    assert fitting(layout, "copy") == "copy"
    for name in ("btrfs", "reflink"):
        works = BACKENDS[name].refusal(str(tmp_path)) is None
        assert fitting(layout, name) == (name if works else "copy")


def test_a_try_leaves_nothing_behind(tmp_path: Path) -> None:
    for wanted in (None, *BACKENDS):
        try_all(str(tmp_path / "scratch"), wanted)
        assert not (tmp_path / "scratch").exists()


def test_where_no_overlay_can_be_a_copy_is_taken_and_home_is_private(repo: UserRepo, tmp_path: Path) -> None:
    root = ["--allow-root-uid"] if os.geteuid() == 0 else []
    script = "mkdir new; echo 1 >new/f; mv new newer; cat src/app.py >>newer/f; test ! -e ~/.gitconfig; mount"
    commands = [
        repo.command(*root, "-b", "b", "--", "sh", "-c", script),
        repo.command(*root, "-b", "b", "--", "cat", "newer/f"),
        repo.command(*root, "--backend", "overlay", "-b", "c", "--", "true"),
        repo.command(*root, "--carry", "live", "-b", "d", "--", "true"),
        repo.command("doctor", "--json"),
    ]
    text = _IN_A_CONTAINER.format(place=str(tmp_path), root=str(repo.root), commands=commands)
    environment = {**repo.env, "OVERLAYRUN_STATE_DIR": str(tmp_path / "disk")}
    first, again, refused, live, doctor = scene(text, cwd=repo.root, **environment)
    assert first[0] == 0, first
    header = first[2]
    assert f"copy at {repo.root}; HOME private" in header
    assert "backend copy: no overlay (" in header
    assert f" on {repo.root} type overlay (rw" in first[1]  # the disk's own: a part of it is shown
    assert again[:2] == [0, "1\n" + (repo.root / "src/app.py").read_text()]
    assert "copy at" in again[2]
    assert refused[0] == 125
    assert "OVERLAYRUN_STATE_DIR" in refused[2]
    assert (live[0], "--carry live can't work here" in live[2]) == (125, True)
    assert sorted(repo.files("b").keys() - repo.files("main").keys()) == ["newer/f"]
    findings = {one["name"]: one for one in _findings(doctor[1])}
    assert findings["backend"]["state"] == "limited"
    assert findings["backend"]["found"].startswith("copy: no overlay (")
    assert findings["backend"]["cure"]


def _findings(text: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(text)["findings"]
    return found


def test_a_branch_stays_with_its_backend(repo: UserRepo) -> None:
    repo.inside("echo 1 >one", "--backend", "copy")
    assert repo.records()["b"]["backend"] == "copy"
    other = repo.overlayrun("--backend", "overlay", "-b", "b", "--", "true")
    assert other.code == 125
    assert "branch b was made with backend copy, and stays with it" in other.err
    repo.git("config", "overlayrun.backend", "overlay")  # a habit is not for what is there already
    assert repo.inside("cat one") == "1\n"
    assert "overlay at" in repo.sh("true", branch="c").err
    assert "copy at" in repo.sh("true", "--backend", "copy", branch="d").err


def test_a_record_of_old_has_the_overlay(repo: UserRepo) -> None:
    repo.inside("echo 1 >one")
    path = repo.records()["b"]["path"]
    record = json.loads(path.read_text())
    del record["backend"]
    path.write_text(json.dumps(record))
    assert repo.inside("cat one") == "1\n"
