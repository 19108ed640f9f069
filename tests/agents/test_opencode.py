"""The real OpenCode, driven by a scripted model, works in branches through the real command."""

from __future__ import annotations

import json
from typing import Final

import pytest

from .project import Project, wait_until
from .scripted_model import TITLE, ScriptedModel

pytestmark = pytest.mark.shared  # what OpenCode does with its sessions and its files

CTRL_C: Final = b"\x03"


@pytest.mark.by_both
def test_what_an_agent_did_comes_home_and_the_rest_stays(project: Project) -> None:
    """One run for many questions: its start takes seconds."""
    before, head, names = project.files(), project.git("rev-parse", "HEAD"), project.names_in_home()
    script = """
        @edit src/app.py 41 => 42
        @write one.txt 1
        @bash git add one.txt && git commit --quiet --message "Add one, because two needs it"
        @write two.txt 2
        @bash git add two.txt && git commit --quiet --message "Add two"
        @write docs/new.md Hello\\n
        @bash echo left > ~/left-in-home && cat ~/.gitconfig
        @say Fixed.
    """
    done = project.overlayrun("-b", "fix", "--", "opencode", "run", script)
    assert done.returncode == 0, done.stderr
    assert "Fixed." in done.stdout

    # Its edits and its own commits are on the branch, its loose ends on top.
    wanted = ["A\tdocs/new.md", "A\tone.txt", "M\tsrc/app.py", "A\ttwo.txt"]
    assert changed(project, "main", "fix") == wanted
    assert project.git("show", "fix:src/app.py") == "answer = 42\n"
    assert project.git("show", "fix:docs/new.md") == "Hello\n"
    top, *own = project.git("log", "--format=%s", "main..fix").splitlines()
    assert own == ["Add two", "Add one, because two needs it"]
    assert top != "Add two"
    assert changed(project, "fix~1", "fix") == ["A\tdocs/new.md", "M\tsrc/app.py"]
    project.git("fsck", "--strict", "--no-dangling")

    # The user's tree stays.
    assert project.files() == before
    assert project.git("rev-parse", "HEAD") == head
    assert project.git("status", "--porcelain", "--ignored") == ""

    # The session is the user's, but the rest of HOME was a view.
    sessions = json.loads(project.output(["opencode", "session", "list", "--format", "json"]))
    assert [session["title"] for session in sessions] == [TITLE]
    assert project.names_in_home() - names <= {".local", ".cache"}
    assert not (project.home / "left-in-home").exists()


def test_two_agents_at_once_do_not_see_each_other(project: Project, model: ScriptedModel) -> None:
    def script(name: str) -> str:
        return (
            f"@write src/app.py answer = '{name}'\\n\n@wait {name}\n@bash cat src/app.py > seen-by-{name}.txt"
        )

    with project.started("-b", "left", "--", "opencode", "run", script("left")) as left:
        # The second starts later: two first starts at once would race for OpenCode's new database.
        left.reach(model, "left")
        with project.started("-b", "right", "--", "opencode", "run", script("right")) as right:
            right.reach(model, "right")
            assert left.is_running()
            assert right.is_running()
            model.release("left")
            left.succeed()
            model.release("right")
            right.succeed()

    for name in ("left", "right"):
        assert changed(project, "main", name) == [f"A\tseen-by-{name}.txt", "M\tsrc/app.py"]
        assert project.git("show", f"{name}:seen-by-{name}.txt") == f"answer = '{name}'\n"
    assert project.git("status", "--porcelain") == ""


def test_snapshots_appear_while_the_agent_still_runs(project: Project, model: ScriptedModel) -> None:
    script = "@write first.txt 1\n@wait one\n@write second.txt 2\n@wait two"

    with project.started("-b", "slow", "--every", "1s", "--", "opencode", "run", script) as run:
        run.reach(model, "one")
        wait_until(lambda: "first.txt" in newest_snapshot(project))
        assert "first.txt" in changed_names(project, "main", "slow")
        model.release("one")
        run.reach(model, "two")
        wait_until(lambda: "second.txt" in newest_snapshot(project))
        assert run.is_running()
        model.release("two")
        run.succeed()

    assert changed_names(project, "main", "slow") == ["first.txt", "second.txt"]


def test_ctrl_c_in_the_middle_keeps_what_was_written(project: Project, model: ScriptedModel) -> None:
    script = "@write kept.txt Kept\\n\n@wait for-ever\n@write never.txt Never"

    with project.on_terminal("-b", "stopped", "--", "opencode", "run", script) as (run, terminal):
        run.reach(model, "for-ever")
        terminal.type(CTRL_C)
        status = run.end()

    assert status != 0, terminal.text()
    assert changed_names(project, "main", "stopped") == ["kept.txt"]
    assert project.git("show", "stopped:kept.txt") == "Kept\n"
    assert project.git("status", "--porcelain") == ""


def test_a_second_run_goes_on_with_the_session_and_the_files(project: Project, model: ScriptedModel) -> None:
    first = project.overlayrun(
        "-b", "long", "--", "opencode", "run", "@write one.txt 1\n@bash echo home > ~/note"
    )
    second = project.overlayrun(
        "-b", "long", "--", "opencode", "run", "--continue", "@bash cat one.txt ~/note > both.txt\n@say End"
    )

    assert (first.returncode, second.returncode) == (0, 0), second.stderr
    assert len(set(model.prompts())) == 2
    assert "@write one.txt 1" in json.dumps(model.requests[-1]["messages"])
    assert project.git("show", "long:both.txt") == "1home\n"


def changed(project: Project, old: str, new: str) -> list[str]:
    return project.git("diff-tree", "-r", "--name-status", old, new).splitlines()


def changed_names(project: Project, old: str, new: str) -> list[str]:
    return project.git("diff-tree", "-r", "--name-only", old, new).splitlines()


def newest_snapshot(project: Project) -> list[str]:
    refs = project.git("for-each-ref", "--format=%(objectname)", "refs/overlayrun/snapshots/").split()
    return project.git("ls-tree", "-r", "--name-only", refs[0]).splitlines() if refs else []
