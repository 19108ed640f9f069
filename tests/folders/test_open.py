"""`overlayrun open`: the story of a user who works in folders, with one daemon for all of it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import UserRepo, copy_repo, wait_until

pytestmark = pytest.mark.shared  # what folders show and what is committed of them

WRITERS = 20


@pytest.fixture(scope="module")
def opened(_repo_to_copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[UserRepo]:
    """A repository whose folders are open, with an ignored file that branches take along."""
    repo = copy_repo(_repo_to_copy, tmp_path_factory.mktemp("opened"))
    repo.commit("ignores", **{".gitignore": "secret.txt\n*.o\n"})
    repo.git("tag", "v1", "HEAD^")
    repo.write("secret.txt", "ignored\n")
    repo.write("src/app.py", "answer = 'uncommitted'\n")
    done = repo.overlayrun("open")
    assert done.code == 0, str(done)
    assert any("git ignores" in line for line in done.ours), str(done)
    yield repo
    repo.overlayrun("open", "--stop")


def folder(repo: UserRepo, name: str, kind: str = "branches") -> Path:
    return repo.root / ".overlay" / kind / name


def made(repo: UserRepo, name: str) -> Path:
    place = folder(repo, name)
    place.mkdir()
    return place


def git_in(repo: UserRepo, place: Path, *args: str) -> str:
    return repo.at(place).git(*args)


def until_settled(place: Path) -> None:
    """A folder was given back: for a moment its directory counts as removed for who is in it."""
    stay = 'cd "$1" && sleep 0.2 && pwd -P'
    wait_until(
        lambda: not subprocess.run(["sh", "-c", stay, "sh", place], check=False).returncode, "a folder"
    )


def ask(repo: UserRepo, *args: str) -> dict[str, Any]:
    done = repo.overlayrun(*args, "--json")
    assert done.code == 0, str(done)
    found: dict[str, Any] = json.loads(done.out)
    return found


def until_committed(repo: UserRepo, branch: str, path: str, text: str) -> None:
    """Wait until the branch in the user's own repository holds a file with this content."""

    def is_there() -> bool:
        return path in repo.files(branch) and repo.show(branch, path) == text

    wait_until(is_there, f"{path} in {branch}")


@pytest.mark.by_both
def test_what_is_written_in_a_folder_is_in_the_branch(opened: UserRepo) -> None:
    place = made(opened, "write")
    assert (place / "src/app.py").read_text() == "answer = 41\n"  # of HEAD: what is uncommitted stays out
    assert (place / "secret.txt").read_text() == "ignored\n"
    odd = os.fsdecode(b"odd \xff\nname")
    (place / odd).write_text("odd\n")
    (place / "run.sh").write_text("#!/bin/sh\n")
    (place / "run.sh").chmod(0o755)
    (place / "way").symlink_to("src/app.py")
    (place / "README").unlink()
    (place / "src/app.py.new").write_text("answer = 42\n")
    (place / "src/app.py.new").rename(place / "src/app.py")  # as editors save
    (place / "last").write_text("last\n")
    until_committed(opened, "write", "last", "last\n")
    files = opened.files("write")
    assert files["run.sh"].startswith("100755")
    assert files["way"].startswith("120000")
    assert odd in files
    assert "README" not in files
    assert "secret.txt" not in files
    assert opened.show("write", "src/app.py") == "answer = 42\n"
    assert opened.git("status", "--porcelain") == "M src/app.py"  # the user's own tree is as it was
    assert "Overlayrun-Command: open" in opened.git("log", "-1", "--format=%B", "write")


def test_commits_of_a_folder_and_of_a_run_are_in_one_history(opened: UserRepo) -> None:
    place = made(opened, "both")
    assert git_in(opened, place, "status", "--porcelain") == ""
    (place / "mine").write_text("mine\n")
    git_in(opened, place, "add", "mine")
    git_in(opened, place, "commit", "-qm", "from the folder")
    script = "cat mine; git log -1 --format=%s; echo its > its; git add its; git commit -qm 'from the run'"
    assert opened.inside(script, branch="both").split("\n")[:2] == ["mine", "from the folder"]
    wait_until((place / "its").exists, "what the run did")
    assert git_in(opened, place, "log", "-1", "--format=%s") == "from the run"
    assert git_in(opened, place, "status", "--porcelain") == ""
    (place / "mine").write_text("mine again\n")
    git_in(opened, place, "commit", "-qam", "from the folder again")
    subjects = ["from the folder again", "from the run", "from the folder", "ignores"]
    wait_until(lambda: opened.git("log", "--format=%s", "-4", "both").split("\n") == subjects, "the history")
    assert (
        opened.inside("git log -1 --format=%s; git status --porcelain", branch="both") == f"{subjects[0]}\n"
    )


@pytest.mark.by_both
def test_a_branch_that_a_command_runs_in_is_shown_live(opened: UserRepo) -> None:
    place = made(opened, "live")
    (place / "before").write_text("before\n")
    wait = (
        "while ! test -s from-outside; do sleep 0.05; done; cat before from-outside; echo x >> from-outside"
    )
    with opened.started("-b", "live", "--", "sh", "-c", f"echo in > from-inside; {wait}") as run:
        wait_until((place / "from-inside").exists, "what the command wrote")
        running = ask(opened, "status")["folders"]["branches"]
        assert {"branch": "live", "live": True, "unsaved": False} in running
        (place / "from-outside").write_text("out\n")
        assert run.end() == 0, run.text()
        assert "before\nout\n" in run.text()
    wait_until(lambda: (place / "from-outside").read_text() == "out\nx\n", "the end of the run")
    (place / "after").write_text("after\n")
    until_committed(opened, "live", "after", "after\n")
    assert opened.show("live", "from-outside") == "out\nx\n"


def test_other_commands_get_a_branch_that_is_shown(opened: UserRepo) -> None:
    place = made(opened, "other")
    (place / "work").write_text("work\n")
    done = opened.overlayrun("snapshot", "other", "-m", "by hand")
    assert done.code == 0, str(done)
    assert opened.show("other", "work") == "work\n"
    assert (place / "work").read_text() == "work\n"  # it is shown again
    states = {item["branch"]: item["state"] for item in ask(opened, "ls")["workspaces"]}
    assert states["other"] == "idle"
    refused = opened.overlayrun("rm", "other")
    assert refused.code == 3, str(refused)
    assert opened.overlayrun("rm", "--force", "other").code == 0
    wait_until(lambda: not place.exists(), "that the folder is gone")


def test_names_and_revisions(opened: UserRepo) -> None:
    made(opened, "old@v1")
    assert not (folder(opened, "old") / ".gitignore").exists()
    assert not (folder(opened, "old@v1") / ".gitignore").exists()
    place = made(opened, "deep~er")
    (place / "file").write_text("1\n")
    until_committed(opened, "deep/er", "file", "1\n")
    for name, error in (
        ("deep~er", FileExistsError),
        ("main", FileExistsError),  # the user's own
        ("bad..name", OSError),
        ("lost@no-such", OSError),
    ):
        with pytest.raises(error):
            made(opened, name)
    names = {path.name for path in (opened.root / ".overlay/branches").iterdir()}
    assert {"old", "deep~er"} <= names
    assert not {"main", "lost"} & names


def test_only_what_is_nowhere_else_keeps_a_folder(opened: UserRepo) -> None:
    made(opened, "empty").rmdir()
    assert "refs/heads/empty" not in opened.refs()
    place = made(opened, "full")
    (place / "work").write_text("work\n")
    with pytest.raises(OSError, match="not empty"):
        place.rmdir()
    assert (place / "work").read_text() == "work\n"
    until_settled(place)
    git_in(opened, place, "switch", "-qc", "aside")
    opened.git("branch", "elsewhere", "full")
    with pytest.raises(OSError, match="not empty"):  # a branch of its own git
        place.rmdir()
    until_settled(place)
    git_in(opened, place, "switch", "-q", "full")
    git_in(opened, place, "branch", "-D", "aside")
    place.rmdir()
    assert "full" not in {item["branch"] for item in ask(opened, "ls")["workspaces"]}


@pytest.mark.by_both
def test_commits_and_snapshots_are_folders_that_nobody_changes(opened: UserRepo) -> None:
    head = folder(opened, "HEAD", "commits")
    assert sorted(path.name for path in head.iterdir()) == [".gitignore", "README", "link", "src", "tool.sh"]
    assert (folder(opened, "v1", "commits") / "src/app.py").read_text() == "answer = 41\n"
    sha = opened.git("rev-parse", "HEAD^")
    assert (folder(opened, sha, "commits") / "tool.sh").stat().st_mode & 0o111
    assert not folder(opened, "no-such", "commits").exists()
    for act in (lambda: (head / "new").write_text(""), (head / "README").unlink):
        with pytest.raises(OSError, match="Read-only"):
            act()
    place = made(opened, "steps")
    (place / "step").write_text("1\n")
    until_committed(opened, "steps", "step", "1\n")
    (place / "step").write_text("2\n")
    until_committed(opened, "steps", "step", "2\n")
    steps = folder(opened, "steps", "snapshots")
    numbers = sorted(int(path.name) for path in steps.iterdir())
    assert numbers == list(range(1, len(numbers) + 1))
    assert (steps / "1/step").read_text() == "1\n"
    assert (steps / str(numbers[-1]) / "step").read_text() == "2\n"


@pytest.mark.by_both
def test_a_build_and_a_search_work_in_a_folder(opened: UserRepo) -> None:
    place = made(opened, "build")
    (place / "main.c").write_text('#include <stdio.h>\nint main(void) { puts("built"); return 0; }\n')
    (place / "Makefile").write_text("prog: main.o\n\tcc -o prog main.o\nmain.o: main.c\n\tcc -c main.c\n")
    for command in (["git", "add", "-A"], ["git", "stash"], ["git", "stash", "pop"], ["make"]):
        subprocess.run(command, cwd=place, env=opened.env, check=True, capture_output=True)
    assert subprocess.run([place / "prog"], check=True, capture_output=True).stdout == b"built\n"
    again = subprocess.run(["make"], cwd=place, env=opened.env, check=True, capture_output=True)
    assert b"up to date" in again.stdout
    found = subprocess.run(["grep", "-rl", "built", "."], cwd=place, check=True, capture_output=True)
    assert b"./main.c" in found.stdout
    until_committed(opened, "build", "main.c", (place / "main.c").read_text())
    assert "main.o" not in opened.files("build")  # ignored


def test_no_write_of_many_writers_is_lost(opened: UserRepo) -> None:
    shared = made(opened, "shared")
    own = [made(opened, f"own{number}") for number in range(WRITERS)]

    def write(number: int) -> None:
        for step in range(10):
            (shared / f"{number}-{step}").write_text(f"{number} {step}\n")
            (own[number] / f"{step}").write_text(f"{number} {step}\n")

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(write, range(WRITERS)))
    for number in range(WRITERS):
        until_committed(opened, f"own{number}", "9", f"{number} 9\n")
        assert {str(step) for step in range(10)} <= opened.files(f"own{number}").keys()
        until_committed(opened, "shared", f"{number}-9", f"{number} 9\n")
    assert {f"{number}-{step}" for number in range(WRITERS) for step in range(10)} <= opened.files(
        "shared"
    ).keys()


@pytest.mark.by_both
def test_a_run_sees_nothing_of_the_folders(opened: UserRepo) -> None:
    assert opened.inside("ls -A; git status --porcelain", "--dirty", "ignore", branch="blind").split() == [
        *(".git", ".gitignore", "README", "link", "secret.txt", "src", "tool.sh"),
    ]


def test_who_asks_is_told(opened: UserRepo) -> None:
    told = ask(opened, "status")["folders"]
    assert told["place"] == str(opened.root / ".overlay")
    assert f"folders in {told['place']} (process {told['pid']})" in opened.overlayrun("status").out
    assert f"open in {told['place']}" in opened.overlayrun("doctor").out
    again = opened.overlayrun("open", "elsewhere")
    assert again.code == 3
    assert again.ours[1] == "hint: end it first: overlayrun open --stop"
    place = made(opened, "told")
    for words in (("ls",), ("--", "true")):
        refused = opened.overlayrun(*words, cwd=place)
        assert refused.code in (3, 125)
        assert "is the folder of a branch" in refused.ours[0]


def test_at_the_end_all_is_in_snapshots(opened: UserRepo) -> None:
    place = made(opened, "end")
    (place / "file").write_text("end\n")
    git_in(opened, place, "add", "file")
    git_in(opened, place, "commit", "-qm", "the last")
    (place / "file").write_text("the very end\n")
    done = opened.overlayrun("open", "--stop")
    assert done.code == 0, str(done)
    assert not os.path.lexists(opened.root / ".overlay")
    assert opened.show("end", "file") == "the very end\n"
    assert opened.git("log", "-1", "--format=%s", "end^") == "the last"
    assert ask(opened, "status")["folders"] is None
    assert not any(
        record["last_run"] and not record["last_run"]["ended"] for record in opened.records().values()
    )
    assert opened.overlayrun("open", "--stop").code == 3
    assert opened.overlayrun("open").code == 0
    assert (place / "file").read_text() == "the very end\n"
    assert git_in(opened, place, "status", "--porcelain") == "M file"


def test_what_is_made_or_removed_is_listed_so_at_once(opened: UserRepo) -> None:
    above = opened.root / ".overlay/branches"
    for _ in range(2):
        assert "quick" not in os.listdir(above)
        made(opened, "quick")
        assert "quick" in os.listdir(above)
        (above / "quick").rmdir()


def test_what_is_written_just_after_a_run_is_committed(opened: UserRepo) -> None:
    """The folder shows the run's tree still, of which its last snapshot is taken."""
    place = made(opened, "late")
    for number in range(2):
        with opened.started(
            "-b", "late", "--", "sh", "-c", f"echo > in{number}; echo ready; read line"
        ) as run:
            run.expect("ready")
            wait_until((place / f"in{number}").exists, "the tree of the run")
            run.type("")
            assert run.process.wait(60) == 0
        (place / f"late{number}").write_text("late\n")
        until_committed(opened, "late", f"late{number}", "late\n")
