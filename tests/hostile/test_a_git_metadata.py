"""Cases 1 to 25: git's own files as carriers of code. What the agent does to its repository stays there."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator

import pytest

from hostile.world import MERGE_ANYWAY, Attack, World, make_world


@pytest.fixture(scope="module")
def planted(world: World) -> Attack:
    return world.payload("plant_git", branch="planted")


@pytest.fixture(scope="module")
def tree(world: World, planted: Attack) -> dict[str, str]:
    return world.repo.files("planted")


@pytest.fixture(scope="module")
def unsafe_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """For branches that a strict fsck refuses: no later check shall stumble over them."""
    yield from make_world(tmp_path_factory.mktemp("unsafe"))


@pytest.fixture(scope="module")
def removed(world: World) -> Attack:
    """`.git` emptied and replaced by whatever can be put in its place."""
    evil = world.home / "evil.git"
    script = f"""
        echo work >work
        rm -rf .git 2>/dev/null
        for try in "mv .git away" "rmdir .git" "ln -sfnT {evil} .git" \\
            "mknod .git p" "mknod .git c 0 0"; do $try 2>/dev/null && echo "did: $try"; done
        (echo 'gitdir: {evil}' >.git) 2>/dev/null && echo "did: file"
        echo 'gitdir: {evil}' >.git/.git; ln -s {evil} .git/HEAD; mkfifo .git/config; chmod 000 .git
        mkdir -p deep/er; mkfifo deep/.git; ln -s {evil} deep/er/.git; mkdir -p deep/file
        echo 'gitdir: ../../../../..{evil}' >deep/file/.git; echo beside >deep/file/beside
    """
    return world.sh(script, branch="removed")


@pytest.fixture(scope="module")
def poisoned(world: World) -> Attack:
    """A repository inside that lies with every object, index and ref."""
    script = f"""
        echo work >work; git add work; git -c user.name=A -c user.email=a@x commit -qm work
        {{ printf 'DIRC\\0\\0\\0\\002\\0\\0\\0\\001'; head -c 200 /dev/urandom; }} >.git/index
        printf '%s\\n' {world.repo.root}/.git/objects {world.home}/secret/objects /proc/self >.git/objects/info/alternates
        cp .git/objects/info/alternates .git/objects/info/http-alternates
        mkdir -p .git/objects/aa .git/objects/pack
        head -c 20000000 /dev/zero | python3 -c 'import sys,zlib; sys.stdout.buffer.write(zlib.compress(
            b"blob 20000000\\0" + sys.stdin.buffer.read(), 9))' >.git/objects/aa/{"b" * 38}
        printf 'PACK\\0\\0\\0\\002\\377\\377\\377\\377' >.git/objects/pack/pack-{"c" * 40}.pack
        echo {"a" * 40} >.git/refs/heads/ghost; echo 'ref: ../../../../etc/passwd' >.git/HEAD
        echo {"a" * 40} >.git/shallow; printf 'garbage\\n' >.git/packed-refs
    """
    return world.sh(script, branch="poisoned")


def test_case_001_hooks(planted: Attack, tree: dict[str, str]) -> None:
    assert planted.part("1 hooks") is True
    assert not [path for path in tree if path.split("/")[0] == ".git" or "/.git/" in path]


def test_case_002_fsmonitor(planted: Attack) -> None:
    assert planted.part("2 3 5 programs") == "done"


def test_case_003_every_program_that_configuration_names(world: World, planted: Attack) -> None:
    assert planted.part("2 3 5 programs") == "done"
    assert "zz9" not in (world.repo.root / ".git/config").read_text()


def test_case_004_a_filter_with_a_name_that_nobody_knows(
    world: World, planted: Attack, tree: dict[str, str]
) -> None:
    assert planted.part("4 attributes") == "done"
    assert world.repo.show("planted", "attr/file") == "line\n$Id$\n"
    assert "filter=zz9" in world.repo.show("planted", "attr/.gitattributes")


def test_case_005_alias_and_include(planted: Attack) -> None:
    assert planted.part("2 3 5 programs") == "done"


def test_case_006_worktree_redirection(world: World, planted: Attack, tree: dict[str, str]) -> None:
    """The tree that is read is the workspace's, whatever the agent's configuration says."""
    assert planted.part("6 7 redirection") == "done"
    assert tree.keys() >= {"work", "README", "src/app.py"}
    assert not [path for path in tree if "ssh" in path]


def test_case_007_other_files_of_git(planted: Attack, tree: dict[str, str]) -> None:
    assert planted.part("6 7 redirection") == "done"
    assert "work" in tree


def test_case_008_dotgit_becomes_a_file(world: World, removed: Attack) -> None:
    assert "did: file" not in removed.done.out
    assert world.repo.show("removed", "work") == "work\n"
    assert world.repo.show("removed", "deep/file/beside") == "beside\n"


def test_case_009_dotgit_becomes_a_symlink(world: World, removed: Attack) -> None:
    assert "did:" not in removed.done.out, removed.done.out
    assert not [path for path in world.repo.files("removed") if ".git" in path.split("/")]


def test_case_010_dotgit_becomes_something_else(removed: Attack) -> None:
    assert removed.done.code == 0, str(removed.done)


def test_case_008_a_run_after_that_still_starts(world: World, removed: Attack) -> None:
    again = world.sh("cat work", branch="removed")
    again.assert_sound()
    assert again.done.out == "work\n", str(again.done)


def test_case_012_a_nested_repository_is_no_gitlink(
    world: World, planted: Attack, tree: dict[str, str]
) -> None:
    assert not planted.part("12 nested repository").startswith("failed")
    assert not [path for path, what in tree.items() if what.startswith("160000")]
    assert world.repo.show("planted", "vendor/sub/file") == "nested\n"


def test_case_013_a_bare_repository_in_the_tree(world: World) -> None:
    """It is kept as data, told of, and no merge takes it without being told to."""
    attack = world.sh(
        f"""mkdir -p b/objects b/refs; echo 'ref: refs/heads/m' >b/HEAD; touch b/objects/x b/refs/x
        printf '[core]\\n bare = false\\n worktree = .\\n fsmonitor = touch {world.pwn}/bare;false\\n' >b/config""",
        branch="bare",
    )
    attack.assert_sound()
    refused = world.merge("bare", *MERGE_ANYWAY)
    assert refused.code not in (0, 2), str(refused)
    assert "--allow-bare-layout" in refused.err + refused.out
    plain = world.repo.overlayrun("diff", "bare")
    assert "b/HEAD" in plain.err + plain.out or "b: " in plain.err + plain.out
    assert world.repo.refs()["refs/heads/landing/bare"] == world.repo.refs()["refs/heads/main"]


def test_case_014_dotgit_in_every_spelling(planted: Attack, tree: dict[str, str]) -> None:
    count = planted.part("14 names")
    beside = [path for path in tree if path.startswith("names/")]
    assert beside == [f"names/{number}/beside" for number in sorted(range(count), key=str)]
    assert "left out: names/" in planted.done.err


_MODULES = {
    "url and name": '[submodule "x"]\n\tpath = x\n\turl = -u./evil\n'
    '[submodule "../../hooks"]\n\tpath = y\n\turl = ./z\n\tupdate = !touch pwned\n',
    "carriage return": '[submodule "x"]\n\tpath = "x\\r"\n\turl = ./z\n',
}


@pytest.mark.parametrize("what", _MODULES)
def test_case_015_gitmodules(unsafe_world: World, what: str) -> None:
    """At most data in the agent's own ref; it lands nowhere."""
    world, branch = unsafe_world, f"modules-{what.replace(' ', '-')}"
    attack = world.attack(
        ["python3", "-c", "import sys; open('.gitmodules', 'w').write(sys.argv[1])", _MODULES[what]],
        branch=branch,
        sound=False,
    )
    attack.assert_sound()
    merged = world.merge(branch, *MERGE_ANYWAY)
    if ".gitmodules" in world.repo.files(branch):
        assert merged.code == 3, str(merged)
        assert ".gitmodules" in merged.err, str(merged)
    assert ".gitmodules" not in world.repo.files(f"landing/{branch}")


def test_case_015_gitmodules_of_other_kinds(world: World) -> None:
    """A link, and names that other file systems read as .gitmodules: git itself refuses them in a tree."""
    attack = world.sh(
        "ln -s /etc/passwd .gitmodules; mkdir d; for n in '.GITMODULES ' gitmod~1 '.gitmodules '; do "
        'ln -s /etc/passwd "d/$n"; done; echo w >work',
        branch="modules-linked",
    )
    attack.assert_sound()
    assert world.repo.show("modules-linked", "work") == "w\n"


def test_case_016_attributes_without_configuration(world: World, planted: Attack) -> None:
    assert world.repo.show("planted", "attr/utf16/file") == "no utf-16\n"
    assert world.repo.show("planted", "attr/long/file") == "a\r\nb\n"
    assert len(world.repo.show("planted", "attr/long/.gitattributes")) == 8 << 16


def test_case_016_attributes_that_git_itself_refuses(unsafe_world: World) -> None:
    """As with .gitmodules: at most data in the agent's own ref, or left out; it lands nowhere unsaid."""
    world = unsafe_world
    attack = world.sh(
        "mkdir linked long; ln -s /etc/passwd linked/.gitattributes; echo x >linked/file; echo y >long/file; "
        "{ head -c 1048576 /dev/zero | tr '\\0' x; echo ' text'; } >long/.gitattributes",
        branch="attributes",
        sound=False,
    )
    attack.assert_sound()
    stored = {"linked/.gitattributes", "long/.gitattributes"} & world.repo.files("attributes").keys()
    if stored:
        merged = world.merge("attributes", *MERGE_ANYWAY)
        assert merged.code == 3, str(merged)
    else:
        assert attack.done.err.count("left out: ") == 2


def test_case_017_ignore_rules_hide_nothing_without_a_word(planted: Attack, tree: dict[str, str]) -> None:
    """Rules of the agent's count for its new files, and what they keep out is counted (SECURITY 8)."""
    assert planted.part("17 ignore rules") == "done"
    assert "work" in tree, "the agent's info/exclude was believed"
    assert any(line.startswith("ignored by git's rules: ") for line in planted.done.ours), str(planted.done)


def test_case_018_index(world: World, poisoned: Attack) -> None:
    assert world.repo.show("poisoned", "work") == "work\n"


def test_case_019_alternates(world: World, poisoned: Attack) -> None:
    alternates = world.repo.root / ".git/objects/info/alternates"
    assert not alternates.exists()
    assert poisoned.done.code == 0, str(poisoned.done)


def test_case_020_bad_objects(world: World, poisoned: Attack) -> None:
    assert not (world.repo.root / f".git/objects/aa/{'b' * 38}").exists()
    assert not list((world.repo.root / ".git/objects").glob("pack/*" + "c" * 40 + "*"))


def test_case_020_bad_commits_are_not_taken_in(world: World) -> None:
    """A commit whose tree holds `.git`, made with the plumbing: the work is kept, the commit is not."""
    attack = world.sh(
        f"""h=$(echo 'touch {world.pwn}/x' | git hash-object -w --stdin)
        t=$(printf '100755 blob %s\\tpost-checkout' $h | git mktree)
        t=$(printf '040000 tree %s\\thooks' $t | git mktree)
        t=$(printf '040000 tree %s\\t.git' $t | git mktree --missing) || echo refused
        c=$(git -c user.name=a -c user.email=a@x commit-tree -m bad $t) && git update-ref HEAD $c
        echo w >work""",
        branch="badtree",
    )
    attack.assert_sound()
    assert world.repo.show("badtree", "work") == "w\n"


def test_case_021_replace_refs(world: World, planted: Attack) -> None:
    assert not planted.part("21 replace").startswith("failed")
    assert world.repo.git("replace", "-l") == ""
    assert world.repo.git("log", "-1", "--format=%s", "main") == "second"


def test_case_022_the_targets_ref(planted: Attack) -> None:
    """Z2 holds the real refs, the worktrees and the reflog: what is at that path inside is the agent's own."""
    assert len(planted.part("22 the target's ref")) == 5


def test_case_023_identity(world: World, planted: Attack) -> None:
    lines = world.repo.git("log", "-1", "--format=%an%n%ae%n%cn%n%at", "planted").splitlines()
    assert lines[:3] == ["Test User", "test@example.invalid", "Test User"]
    assert abs(int(lines[3]) - time.time()) < 600
    assert "gpgsig" not in world.repo.git("cat-file", "commit", "planted")


def test_case_023_dates_and_names_of_the_agents_commits_are_only_shown(world: World) -> None:
    attack = world.sh(
        "printf x >work; git add work; GIT_AUTHOR_DATE='@4102444800 +0000' GIT_COMMITTER_DATE='@4102444800 +0000' "
        "git -c user.name=\"$(printf 'Boss\\033]0;x\\007\\302\\233')\" -c user.email=a@x commit -qm "
        "\"$(printf 'evil\\033[2J\\n\\nOverlayrun-Number: 99\\nOverlayrun-Branch: main')\"; printf y >more",
        branch="dates",
    )
    attack.assert_sound()
    assert world.repo.git("log", "-1", "--format=%an", "dates") == "Test User"
    shown = json.loads(world.repo.overlayrun("log", "--json", "dates").out)
    assert len(shown["snapshots"]) == 1


@pytest.fixture(scope="module")
def carriers(world: World) -> Attack:
    names = (
        ".vscode/tasks.json .envrc .pre-commit-config.yaml conftest.py .husky/pre-commit .claude/settings.json "
        ".codex/config.toml .opencode/opencode.json .devcontainer/devcontainer.json .idea/workspace.xml "
        ".github/workflows/x.yml"
    )
    return world.sh(
        f"for f in {names}; do mkdir -p $(dirname $f); echo 'touch {world.pwn}/x' >$f; done; "
        f'echo \'{{"scripts": {{"postinstall": "touch {world.pwn}/x"}}}}\' >package.json; echo w >work',
        branch="carriers",
    )


def test_case_025_files_that_run_code_are_listed(world: World, carriers: Attack) -> None:
    done = world.repo.overlayrun("diff", "carriers")
    text = done.err + world.repo.overlayrun("diff", "--json", "carriers").out
    for name in (".vscode/tasks.json", ".envrc", "package.json", "conftest.py", ".husky/pre-commit"):
        assert name in text, (name, text)


def test_case_025_merge_wants_a_yes(world: World, carriers: Attack) -> None:
    world.repo.git("branch", "--force", "landing/asked", "main")
    refused = world.repo.overlayrun("merge", "--into", "landing/asked", "carriers")
    assert refused.code not in (0, 2), str(refused)
    assert "--yes-exec" in refused.err
    assert world.repo.git("rev-parse", "landing/asked") == world.repo.git("rev-parse", "main")
    plain = world.sh("echo plain >plain", branch="plain")
    plain.assert_sound()
    assert world.repo.overlayrun("merge", "--into", "landing/asked", "plain").code == 0
    assert not os.listdir(world.pwn)
