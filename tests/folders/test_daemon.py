"""The process behind the folders: killed at any moment, ended by a signal, refused a place."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from conftest import SHARE, UserRepo, wait_until

KILLS = 2


def daemon_of(repo: UserRepo) -> int:
    told = json.loads(repo.overlayrun("status", "--json").out)["folders"]
    number: int = told["pid"]
    return number


def write_until_it_dies(place: Path, number: int) -> list[str]:
    """Names of files that were written and closed."""
    written = []
    with suppress(OSError):
        for step in range(10_000):
            name = f"{number}-{step}"
            (place / name).write_text(name)
            written.append(name)
    return written


def test_a_daemon_that_is_killed_at_any_moment_loses_no_write(repo: UserRepo) -> None:
    place = repo.root / ".overlay/branches/b"
    chance = random.Random(SHARE)
    kept: list[str] = []
    for number in range(KILLS):
        done = repo.overlayrun("open")  # also over what the killed one left
        assert done.code == 0, str(done)
        if number == 0:
            place.mkdir()
        killer = subprocess.Popen(
            ["sh", "-c", f"sleep {chance.uniform(0.2, 3.0)}; kill -KILL {daemon_of(repo)}"]
        )
        kept += write_until_it_dies(place, number)
        assert killer.wait() == 0
        (repo.root / "README").write_text(f"{number}\n")  # the user's own tree is there as ever
    assert len(kept) > KILLS
    assert repo.overlayrun("ls").code == 0  # the next command takes the missing snapshot
    files = repo.files("b")
    assert set(kept) <= files.keys()
    assert all(repo.show("b", name) == name for name in (kept[0], kept[-1]))
    assert repo.inside("ls | wc -l", branch="b").strip() >= str(len(kept))


def test_a_signal_ends_it_with_everything_in_snapshots(repo: UserRepo, tmp_path: Path) -> None:
    place = tmp_path / "home/folders"
    with repo.started("open", "--foreground", str(place)) as run:
        run.expect("branches are folders in")
        branch = place / "branches/b"
        branch.mkdir()
        (branch / "file").write_text("kept\n")
        hidden = repo.inside(
            f"ls {place}/ 2>&1 || echo none", branch="c"
        )  # an agent sees nothing of the others' folders
        assert hidden.endswith("none\n")
        run.process.send_signal(signal.SIGTERM)
        assert run.process.wait(30) == 0, run.text()
    assert repo.show("b", "file") == "kept\n"
    assert not os.path.lexists(place)
    assert repo.git("status", "--porcelain") == ""
    assert "folders" not in (repo.root / ".git/info/exclude").read_text()


def test_a_place_that_is_not_free_is_refused(repo: UserRepo, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").write_text("the user's\n")
    for place, word in ((full, "not empty"), (full / "file", "no directory"), (repo.root, "own files")):
        done = repo.overlayrun("open", str(place))
        assert done.code == 3, str(done)
        assert word in done.ours[0], str(done)
    for place in (repo.root / "src", repo.root / ".git/folders", tmp_path):
        assert repo.overlayrun("open", str(place)).code == 3
    assert (full / "file").read_text() == "the user's\n"
    assert repo.inside("overlayrun open 2>&1 || echo refused", branch="b").strip().endswith("refused")


def test_it_goes_on_when_its_terminal_ends(repo: UserRepo) -> None:
    with repo.terminal("sh", "-c", f"{' '.join(repo.command('open'))}; kill -HUP 0") as terminal:
        terminal.expect("branches are folders in")
        terminal.end()
    os.kill(daemon_of(repo), 0)
    time.sleep(0.1)
    (repo.root / ".overlay/branches/b").mkdir()
    # A mount below HOME would keep an ordinary user from a view of it.
    around = repo.overlayrun("-b", "c", "--", "true", env={"HOME": str(repo.root.parent)})
    assert around.code == 0, str(around)
    assert repo.overlayrun("open", "--stop").code == 0
    wait_until(lambda: not (repo.root / ".overlay/branches").exists(), "the end")
