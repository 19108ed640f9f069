"""Files that run code on the user's machine: `diff` lists them, `merge`, `apply` and `reconcile` want his word."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import UserRepo

pytestmark = pytest.mark.shared  # which commits a merge takes, and what it asks

_HEADING = "files that run code on your machine when opened or built:"
_ENVRC = "  .envrc: shells and environment managers run it when you enter the directory"
_PLANT = "echo 'touch pwned' >.envrc; echo agent >new"
_BARE = "mkdir -p b/objects b/refs; echo ref: refs/heads/m >b/HEAD; echo >b/objects/x; echo >b/refs/x"
_MODULES = r"""printf '[submodule "../../hooks"]\n path=y\n url=./z\n' >.gitmodules"""


@pytest.fixture
def planted(repo: UserRepo) -> UserRepo:
    """Branch b brings an `.envrc` and a harmless file."""
    repo.inside(_PLANT)
    return repo


def _json(repo: UserRepo, *words: str) -> Any:
    return json.loads(repo.overlayrun(*words, "--json").out)


def _waits(repo: UserRepo) -> list[tuple[str, str]]:
    return [(one["state"], one["why"]) for one in _json(repo, "queue")["branches"]]


def test_diff_lists_them_and_its_patch_stays_a_patch(planted: UserRepo) -> None:
    for words in (["diff", "b"], ["diff", "b", "--stat"]):
        assert planted.overlayrun(*words).ours == [_HEADING, _ENVRC]
    names = planted.overlayrun("diff", "b", "--name-only")
    assert (names.out, names.err) == (".envrc\nnew\n", "")
    data = _json(planted, "diff", "b")
    assert [carrier["path"] for carrier in data["carriers"]] == [".envrc"]
    assert (data["bare"], data["unsafe"]) == ([], [])
    planted.raw_git("apply", data=os.fsencode(planted.overlayrun("diff", "b").out))
    assert (planted.root / ".envrc").exists()


def test_merge_without_a_terminal_leaves_such_a_branch_out(planted: UserRepo) -> None:
    planted.inside("echo 1 >fine", branch="harmless")
    head, refs = planted.git("rev-parse", "main"), planted.refs()
    done = planted.overlayrun("merge", "b", data="y\n")
    assert (done.code, done.out) == (3, "")
    assert done.ours == [
        "branch b is not merged: it brings files that run code on your machine when opened or built",
        _ENVRC,
        "hint: overlayrun diff b, then: overlayrun merge b --yes-exec",
    ]
    assert planted.refs() == refs
    (target,) = _json(planted, "merge", "b")["targets"]
    assert (target["landed"], target["status"]) == ([], 3)
    assert [each["obstacle"] for each in target["withheld"]] == ["consent"]
    assert [each["path"] for each in target["withheld"][0]["carriers"]] == [".envrc"]
    done = planted.overlayrun("merge", "b", "--dry-run")
    assert (done.code, done.out.splitlines()) == (0, ["b would land on main (2 files)", _HEADING, _ENVRC])
    assert planted.git("rev-parse", "main") == head
    done = planted.overlayrun("merge", "b", "harmless")  # which another one does not delay
    assert (done.code, (planted.root / "fine").exists(), (planted.root / ".envrc").exists()) == (
        3,
        True,
        False,
    )
    assert planted.overlayrun("merge", "b", "--yes-exec").code == 0
    assert (planted.root / ".envrc").read_text() == "touch pwned\n"


@pytest.mark.parametrize("verb", ["merge", "apply"])
def test_on_a_terminal_the_user_is_asked(planted: UserRepo, verb: str) -> None:
    for answer, code, is_there in (("n", 1, False), ("", 1, False), ("\x03", 130, False), ("y", 0, True)):
        with planted.terminal(*planted.command(verb, "b")) as terminal:
            terminal.expect("branch b brings files that run code")
            terminal.expect(".envrc: shells")
            terminal.expect(f"{verb} these? [y/N]")
            assert not (planted.root / "new").exists()
            terminal.type(f"{answer}\r")
            assert terminal.end() == code, terminal.text()
        assert (planted.root / ".envrc").exists() is is_there


@pytest.mark.by_both
def test_apply_without_a_terminal_refuses(planted: UserRepo) -> None:
    before = planted.picture()
    done = planted.overlayrun("apply", "b", data="y\n")
    assert done.code == 3
    assert done.ours[1:] == [_ENVRC, "hint: overlayrun diff b, then: overlayrun apply b --yes-exec"]
    assert [each["path"] for each in _json(planted, "apply", "b")["withheld"]["carriers"]] == [".envrc"]
    assert planted.picture() == before
    assert planted.overlayrun("apply", "b", "--yes-exec").code == 0
    assert planted.git("status", "--porcelain") == "?? .envrc\n?? new"


@pytest.mark.by_both
def test_a_throwaway_that_would_apply_such_files_is_kept_as_a_branch(repo: UserRepo) -> None:
    done = repo.overlayrun("--rm", "--apply", "--", "sh", "-c", _PLANT)
    (branch,) = repo.records()
    assert done.code == 0
    assert any("is not applied: it brings files that run code" in line for line in done.ours), str(done)
    assert (repo.show(branch, "new"), (repo.root / "new").exists()) == ("agent\n", False)


def test_reconcile_wants_approval_of_the_very_commit(planted: UserRepo) -> None:
    assert planted.overlayrun("reconcile").code == 0
    why = "it changes files that run code (.envrc): overlayrun approve b"
    assert _waits(planted) == [("not approved", why)]
    assert planted.overlayrun("approve", "b").out.splitlines()[:2] == [_HEADING, _ENVRC]
    assert [each["path"] for each in _json(planted, "approve", "b")["carriers"]] == [".envrc"]
    planted.inside("echo 'touch more' >>.envrc")
    assert _waits(planted) == [("not approved", why)]
    assert planted.overlayrun("reconcile").out == ""
    planted.overlayrun("approve", "b")
    assert "branch b is merged" in planted.overlayrun("reconcile").out
    assert (planted.root / ".envrc").read_text() == "touch pwned\ntouch more\n"


def test_an_approved_branch_is_merged_without_a_question(planted: UserRepo) -> None:
    planted.overlayrun("approve", "b")
    assert planted.overlayrun("merge", "b").code == 0


def test_the_user_may_say_that_he_wants_no_questions(planted: UserRepo) -> None:
    planted.inside("echo all: >Makefile", branch="c")
    assert planted.overlayrun("reconcile", "--only", "b", "--yes-exec").code == 0
    assert (planted.root / ".envrc").exists()
    planted.overlayrun("config", "reconcile.exec", "allow")
    assert _waits(planted) == [("landed", ""), ("waiting", "")]
    assert planted.overlayrun("reconcile").code == 0
    assert (planted.root / "Makefile").exists()
    assert planted.overlayrun("config", "reconcile.exec", "never").code == 3


def test_the_repository_may_not_say_so(planted: UserRepo) -> None:
    planted.commit("rules", **{"overlayrun.toml": "[reconcile]\nexec = 'allow'\n"})
    done = planted.overlayrun("merge", "b")
    assert (done.code, "not for the repository to say" in done.err) == (3, True)


def test_what_counts_is_what_is_new_to_the_user(planted: UserRepo) -> None:
    planted.commit("the same", **{".envrc": "touch pwned\n"})
    assert _waits(planted) == [("waiting", "")]
    assert planted.overlayrun("merge", "b").code == 0
    planted.inside("rm .envrc; echo 2 >new")
    assert planted.overlayrun("merge", "b").code == 0
    assert not (planted.root / ".envrc").exists()


def test_what_a_merge_really_brings_is_looked_at_when_it_is_made(planted: UserRepo) -> None:
    """A branch that goes back to what the target had: its own change shows nothing of it."""
    planted.commit("first", **{".envrc": "one\n"})
    planted.inside("true", branch="sly")
    planted.commit("second", **{".envrc": "two\n"})
    planted.git("branch", "--quiet", "--force", "sly", "main")
    blob, tree = planted.git("rev-parse", "main~1:.envrc"), planted.git("rev-parse", "main^{tree}")
    listing = planted.git("ls-tree", tree).replace(planted.git("rev-parse", "main:.envrc"), blob)
    made = planted.raw_git("mktree", data=listing.encode() + b"\n").decode().strip()
    planted.git("update-ref", "refs/heads/sly", planted.git("commit-tree", "-p", "main", "-m", "back", made))
    done = planted.overlayrun("reconcile", "--only", "sly")
    why = "it changes files that run code (.envrc): overlayrun approve sly"
    assert (done.code, done.out) == (1, f"sly is not approved: {why}\n")
    assert ("not approved", why) in _waits(planted)
    planted.overlayrun("approve", "sly")
    assert planted.overlayrun("reconcile", "--only", "sly").code == 0
    assert planted.show("main", ".envrc") == "one\n"


def test_an_approval_does_not_cover_what_a_resolver_wrote(repo: UserRepo) -> None:
    repo.commit("start", Makefile="one\n")
    repo.inside("echo agent >Makefile; echo agent >new")
    repo.commit("mine", Makefile="mine\n")
    repo.overlayrun("approve", "b")
    done = repo.overlayrun("reconcile", "--resolve", "echo resolver >Makefile")
    why = "its conflict is resolved, with files that run code (Makefile): overlayrun merge b"
    assert (done.code, _waits(repo)) == (1, [("parked", why)]), str(done)
    assert repo.overlayrun("merge", "b", "--resolve", "echo agent >Makefile").code == 0  # what was approved
    assert (repo.root / "Makefile").read_text() == "agent\n"


def test_a_bare_repository_in_the_tree_needs_a_word_of_its_own(repo: UserRepo) -> None:
    repo.inside(_BARE)
    told = "bare git repository at b/: to merge it takes --allow-bare-layout"
    assert repo.overlayrun("diff", "b").ours == [told]
    assert _json(repo, "diff", "b")["bare"] == ["b/"]
    for verb in ("merge", "apply"):
        done = repo.overlayrun(verb, "b", "--yes-exec")
        assert (done.code, "--allow-bare-layout" in done.err, (repo.root / "b").exists()) == (3, True, False)
    done = repo.overlayrun("reconcile")
    assert (done.code, _waits(repo)[0][0]) == (1, "parked")
    assert repo.overlayrun("merge", "b", "--allow-bare-layout").code == 0
    assert (repo.root / "b/HEAD").exists()


def test_unsafe_content_is_never_merged(repo: UserRepo) -> None:
    repo.inside(_MODULES)
    for words in (["merge", "b", "--yes-exec"], ["apply", "b", "--yes-exec"]):
        done = repo.overlayrun(*words)
        assert (done.code, "unsafe content" in done.err) == (3, True), str(done)
    assert "unsafe content" in "\n".join(repo.overlayrun("diff", "b").ours)
    done = repo.overlayrun("reconcile", "--yes-exec")
    assert (done.code, _waits(repo)[0][0]) == (1, "parked")
    assert not (repo.root / ".gitmodules").exists()


def test_names_are_shown_so_that_a_terminal_is_safe(repo: UserRepo) -> None:
    repo.inside(r"mkdir -p .vscode; echo >.vscode/$(printf 'a\033]0;x\007b')")
    said = repo.overlayrun("merge", "b")
    assert r".vscode/a\x1b]0;x\x07b: VS Code" in said.err
    assert "\x1b" not in said.err + repo.overlayrun("queue").out
