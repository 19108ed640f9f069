"""Cases 143 to 146: root as the user (case 146 is test_faults)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hostile.world import World


@pytest.mark.root
def test_case_143_nobody_inside_is_the_hosts_root(world: World) -> None:
    """From outside the command's user is never 0, and what only root reads stays closed."""
    script = "echo ready; head -c 9 /etc/shadow 2>/dev/null; read line; echo w >work"
    with (
        world.watched("root") as watch,
        world.repo.started(*world.words("root"), "--", "sh", "-c", script) as run,
    ):
        run.expect("ready")
        inside = world.inside()
        assert inside, "the command's processes were not found"
        uids = {os.stat(f"/proc/{pid}").st_uid for pid in inside}
        run.type("")
        assert run.end() == 0, run.text()
    assert watch.broken == []
    assert "root" not in run.text().partition("ready\n")[2].partition("overlayrun:")[0]
    assert 0 not in uids
    assert (world.repo.workspace("root") / "upper/work").stat().st_uid == os.geteuid()


@pytest.mark.root
def test_case_143_what_only_root_writes_stays(world: World, tmp_path: Path) -> None:
    """A file of root's in a directory that is shown, the disk, owners."""
    mine = tmp_path / "roots"
    mine.mkdir()
    (mine / "f").write_text("root's\n")
    (mine / "f").chmod(0o600)
    attack = world.sh(
        f"cat {mine}/f; echo evil >{mine}/f; touch {mine}/new; mknod /tmp/sda b 8 0; head -c 1 /tmp/sda; "
        f"chown 1:1 {world.repo.root}/README; true",
        "--bind-ro",
        str(mine),
        branch="root-shared",
    )
    attack.assert_sound()
    assert sorted(os.listdir(mine)) == ["f"]
    assert (mine / "f").read_text() == "root's\n"


@pytest.mark.root
def test_case_143_root_inside_is_a_choice_that_is_shown(world: World) -> None:
    attack = world.sh("head -c 4 /etc/hostname; id -u", "--allow-root-uid", branch="root-uid")
    attack.assert_sound()
    assert "root" in "\n".join(attack.done.ours).lower()
