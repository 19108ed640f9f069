"""Kill -9 at each step that changes the disk: whatever the moment, the next run goes on and nothing is lost."""

from __future__ import annotations

import subprocess
from typing import Final

import pytest
from conftest import SHARE, UserRepo

# Steps of supervisor, keeper and git alike: strace kills whichever process reaches its n-th one.
_STEPS: Final = "rename,renameat2,fsync,unlink,unlinkat,mkdir,mkdirat,rmdir,mknodat,move_mount,mount,clone"
_PARTS: Final = 2
_MOST: Final = 400


def _killed_at(repo: UserRepo, step: int, *, follow: bool) -> bool:
    """Run a change of `new` with a kill at the given step; whether anything was killed."""
    inject = ["-e", f"trace={_STEPS}", "-e", f"inject={_STEPS}:signal=SIGKILL:when={step}"]
    script = f"echo {step} >new; echo {step} >deep.{step}"
    log = repo.home.parent / f"strace-{step}"
    done = subprocess.run(
        [
            "strace",
            *(["-f"] if follow else []),
            "-o",
            str(log),
            *inject,
            *repo.command("-b", "b", "--", "sh", "-c", script),
        ],
        cwd=repo.root,
        env=repo.env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode in (0, -9, 137, 125, 1), done
    return "killed by SIGKILL" in log.read_text(errors="replace")


@pytest.mark.parametrize("part", [SHARE])
def test_a_supervisor_killed_at_any_step_loses_nothing(repo: UserRepo, part: int) -> None:
    before = repo.picture()
    repo.inside("echo kept >kept")
    steps = 0
    for step in range(1 + part, _MOST, _PARTS):
        tree = repo.files("b")
        if not _killed_at(repo, step, follow=False):
            break
        steps += 1
        out = repo.inside("cat kept; ls new >/dev/null 2>&1 || true").split()
        assert out == ["kept"], step
        now = repo.files("b")
        assert tree.keys() <= now.keys(), step
        upper = {path.name for path in (repo.workspace() / "upper").glob("deep.*")}
        assert upper <= now.keys(), step
    assert steps > 5
    repo.git("fsck", "--strict")
    assert repo.picture() == before


def test_a_first_run_killed_at_any_step_frees_its_name(repo: UserRepo) -> None:
    """Supervisor, keeper or one of git's processes: the same branch can be started again each time."""
    killed = 0
    for step in range(1 + 2 * SHARE, 40, 4):
        killed += _killed_at(repo, step, follow=True)
        assert repo.inside("echo again >again; cat again") == "again\n", step
        done = repo.overlayrun("rm", "--force", "b")
        assert done.code == 0, (step, str(done))
    assert killed > 5
    repo.git("fsck", "--strict")
