"""Cases 127 to 142 have their tests beside the parts; here is what an agent plants for later runs and commands."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import pytest

from hostile.world import COVERED_ELSEWHERE, MERGE_ANYWAY, Attack, World

_TESTS: Final = Path(__file__).parent.parent


@pytest.mark.parametrize("number", COVERED_ELSEWHERE)
def test_a_case_that_is_covered_elsewhere_has_its_test(number: int) -> None:
    path, _, name = COVERED_ELSEWHERE[number].partition("::")
    assert f"\ndef {name}(" in (_TESTS.parent / path).read_text()


class Victim:
    """A directory of the user's that planted links lead to."""

    def __init__(self, world: World) -> None:
        self.place = world.home / "victim"
        for name in ("gh", "heads", "config.json", "refs", "projects", "HEAD", "index", "overlayrun", "x/f"):
            path = self.place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"mine: {name}\n")
        self.before = self.picture()

    def picture(self) -> dict[str, tuple[int, int, bytes]]:
        found = {}
        for path in sorted(self.place.rglob("*")):
            info = path.lstat()
            data = path.read_bytes() if path.is_file() else b""
            found[str(path)] = (info.st_mode, info.st_ino, data)
        return found


@pytest.fixture(scope="module")
def victim(world: World) -> Victim:
    return Victim(world)


@pytest.fixture(scope="module")
def planted(world: World, victim: Victim) -> Attack:
    """Links at every place into which a later run or command of ours writes."""
    there = victim.place
    secrets = ".ssh .gnupg .aws .azure .kube .docker .config .netrc .local .password-store .cargo .codex .claude .cache"
    script = f"""
        cd "$HOME"
        for name in {secrets}; do rm -rf $name 2>/dev/null; ln -s {there} $name || echo "no link $name"; done
        printf '[core]\\n\\tfsmonitor = touch %s;false\\n\\thooksPath = %s\\n\\tpager = touch %s\\n' \\
            {world.pwn}/fsmonitor "$HOME" {world.pwn}/pager >.gitconfig
        printf '[alias]\\n\\trev-parse = !touch %s\\n' {world.pwn}/alias >>.gitconfig
        mkdir -p bin; printf '#!/bin/sh\\ntouch %s\\n' {world.pwn}/git >bin/git; chmod +x bin/git
        cd "{world.repo.root}"
        echo work >work; mkdir sub; echo f >sub/f
        rm -rf src; ln -s {there} src; ln -s {there} deeper
        cd .git
        for name in refs logs info hooks packed-refs HEAD index config; do
            rm -rf $name; ln -s {there} $name; done
        rm -rf objects/info objects/pack; ln -s {there} objects/info; ln -s {there} objects/pack
        ln -s {there} overlayrun; ln -s {there} worktrees
    """
    return world.sh(script, branch="planted")


def _later(world: World, victim: Victim, planted: Attack, *words: str) -> None:
    assert planted.branch in world.repo.records()
    done = world.repo.overlayrun(*words)
    assert "Traceback" not in done.err, str(done)
    assert done.code in (0, 1, 3, 125), str(done)
    assert victim.picture() == victim.before, words
    assert not os.listdir(world.pwn), words


def test_planted_links_lead_a_later_run_nowhere(world: World, victim: Victim, planted: Attack) -> None:
    """Masks are made anew for each run, in a HOME that the agent arranged."""
    again = world.sh("cat work; ls -l .git >/dev/null; echo again >again", branch="planted")
    again.assert_sound()
    assert again.done.out == "work\n", str(again.done)
    assert victim.picture() == victim.before
    assert world.repo.show("planted", "again") == "again\n"
    assert world.repo.files("planted")["src"].startswith("120000")


@pytest.mark.parametrize("name", ["id_ed25519", "credentials"])
def test_a_planted_directory_does_not_uncover_a_secret(world: World, name: str) -> None:
    """What is masked stays masked when the agent made the place its own before."""
    directory = ".ssh" if name == "id_ed25519" else ".aws"
    first = world.sh(
        f'rm -rf "$HOME/{directory}"; mkdir -p "$HOME/{directory}/sub"; mv "$HOME/{directory}" "$HOME/other"; '
        f'mkdir "$HOME/{directory}"; echo mine >"$HOME/{directory}/mine"; echo w >w',
        branch=f"uncover-{name.replace('_', '')}",
    )
    first.assert_sound()
    second = world.sh(
        f'cat "$HOME/{directory}"/* "$HOME"/other/* "$HOME/{directory}/{name}" 2>/dev/null; true',
        branch=first.branch,
    )
    second.assert_sound()
    assert world.secret not in second.done.out


@pytest.mark.parametrize(
    "words",
    [
        ["snapshot", "planted"],
        ["restore", "planted@{1}"],
        ["sync", "planted"],
        ["diff", "planted"],
        ["apply", "--dry-run", "planted"],
        ["gc", "--dry-run"],
        ["doctor"],
    ],
    ids=lambda words: words[0],
)
def test_planted_links_lead_later_commands_nowhere(
    world: World, victim: Victim, planted: Attack, words: list[str]
) -> None:
    if words[0] == "apply" and "--dry-run" not in world.repo.overlayrun("apply", "--help").out:
        words = ["conflicts", "planted"]
    _later(world, victim, planted, *words)


def test_a_link_that_came_home_is_not_written_through(world: World, victim: Victim) -> None:
    """First a link, brought into the user's tree; then another branch with a file below that name."""
    repo = world.repo
    first = world.sh(f"ln -s {victim.place} x", branch="link")
    first.assert_sound()
    second = world.sh("mkdir x; echo evil >x/f; echo evil >x/gh", branch="below")
    second.assert_sound()
    before = repo.picture()
    try:
        brought = repo.overlayrun("apply", *MERGE_ANYWAY, "link")
        assert brought.code == 0, str(brought)
        assert (repo.root / "x").is_symlink()
        followed = repo.overlayrun("apply", *MERGE_ANYWAY, "below")
        assert "Traceback" not in followed.err
        assert victim.picture() == victim.before
        merged = repo.overlayrun("merge", *MERGE_ANYWAY, "below")
        assert "Traceback" not in merged.err
        assert victim.picture() == victim.before
    finally:
        if (repo.root / "x").is_symlink():
            (repo.root / "x").unlink()
        repo.git("reset", "--quiet", "--hard")
        repo.git("clean", "--quiet", "-d", "--force")
        assert before
    assert (repo.root / "x").exists() is (
        repo.git("rev-parse", "main") != repo.git("rev-parse", "private/mine")
    )


def test_overlayruns_own_place_inside_can_not_be_bent(world: World) -> None:
    """Its socket and the history's objects are mounts that the agent can't take away, move or fill."""
    script = """
        sleep 0.3; cd /run/overlayrun
        for try in 'rm -rf control' 'mv control away' 'mv objects away' 'touch objects/x' 'touch control/x' \\
            'rm -f control/control' 'ln -s /etc objects/pack/x' 'chmod 777 objects' 'mkdir objects/zz'; do
            $try 2>/dev/null && echo "did: $try"; done
        cd /; rmdir /run/overlayrun 2>/dev/null && echo "did: rmdir"
        # Away it can be moved: what stands there then is the agent's own, and only its own git looks at it.
        mv /run/overlayrun /run/away; mkdir -p /run/overlayrun/objects /run/overlayrun/control
        cd "$0" && echo w >work
    """
    attack = world.attack(["sh", "-c", script, str(world.repo.root)], branch="bent")
    attack.assert_sound()
    did = [line for line in attack.done.out.splitlines() if line.startswith("did:")]
    assert did == []
    assert world.repo.show("bent", "work") == "w\n"


@pytest.mark.shared
def test_names_of_branches_are_no_options_and_no_programs(world: World) -> None:
    """They reach git's command lines: whatever they are, nothing runs and no other ref moves."""
    names = (
        "--upload-pack=touch x",
        "-x",
        "$(touch x)",
        "a;touch x",
        "`touch x`",
        "@{-1}",
        "refs/heads/main",
        "a\nb",
    )
    for name in names:
        with world.watched("none") as watch:
            done = world.repo.overlayrun("-b", name, "--", "sh", "-c", "echo w >w")
        assert done.code == 125, (name, str(done))
        assert watch.broken == [], name
    assert not (world.repo.root / "x").exists()


@pytest.mark.shared
def test_commits_made_inside_can_not_name_other_refs(world: World) -> None:
    """Branches, tags, notes and symbolic refs of the agent's repository stay in it."""
    attack = world.sh(
        "git config user.name a; git config user.email a@x; echo w >work; git add work; git commit -qm w; "
        "git branch private/mine -f; git tag v9; git notes add -m n; git stash -q || true; "
        "git symbolic-ref refs/heads/private/other refs/heads/main; git update-ref refs/overlayrun/base/x HEAD; "
        "git symbolic-ref HEAD refs/heads/main; git update-ref refs/remotes/origin/main HEAD",
        branch="many-refs",
    )
    attack.assert_sound()
    refs = world.repo.refs()
    assert not [name for name in refs if name.startswith(("refs/tags/", "refs/notes/", "refs/remotes/"))]
    assert "refs/overlayrun/base/x" not in refs
    assert world.repo.show("many-refs", "work") == "w\n"
