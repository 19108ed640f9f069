"""The group: help, version, unknown words, exit codes, and what happens to a bug."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import UserRepo

pytestmark = pytest.mark.shared  # words of the command line

COMMANDS = (
    *("run", "exec", "shell", "ls", "status", "show", "log", "diff", "snapshot", "restore"),
    *("apply", "merge", "rm", "gc", "doctor", "config", "completion"),
)


def test_without_arguments_it_shows_its_help(repo: UserRepo) -> None:
    alone, asked = repo.overlayrun(), repo.overlayrun("--help")
    assert (alone.code, asked.code) == (0, 0)
    assert alone.out == asked.out
    assert alone.err == ""


def test_the_help_groups_every_command_and_shows_three_examples(repo: UserRepo) -> None:
    text = repo.overlayrun("--help").out
    names = [line.split()[0] for line in text.splitlines() if line.startswith("  ") and line.split()]
    assert [name for name in names if name in COMMANDS] == list(COMMANDS)
    assert text.count("    overlayrun ") == 3
    for section in ("Run:", "Look:", "Keep:", "Bring home:", "Keep house:"):
        assert f"\n{section}\n" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help(repo: UserRepo, name: str) -> None:
    done = repo.overlayrun(name, "--help")
    assert done.code == 0
    assert done.out.startswith(f"Usage: overlayrun {name} ")
    assert "\\b" not in done.out
    assert done.err == ""


def test_examples_in_a_help_keep_their_lines(repo: UserRepo) -> None:
    assert (
        "\n    diff B@{3}..B     two snapshots against each other\n" in repo.overlayrun("diff", "--help").out
    )


def test_an_interrupt_that_nobody_catches_shows_no_traceback() -> None:
    script = "import overlayrun.launch; raise KeyboardInterrupt"
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (-signal.SIGINT, "")


def test_defaults_are_told_as_they_would_be_typed(repo: UserRepo) -> None:
    of_run, of_batch = (" ".join(repo.overlayrun(name, "--help").out.split()) for name in ("run", "batch"))
    assert "uncommitted changes. [default: include]" in of_run
    assert "uncommitted changes. [default: ignore]" in of_batch
    assert "changes may take. [default: 50G]" in of_run


def test_version(repo: UserRepo) -> None:
    done = repo.overlayrun("--version")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("overlayrun 0.")


def test_an_unknown_command_is_told_how_to_run_a_program(repo: UserRepo) -> None:
    done = repo.overlayrun("opencode")
    assert done.code == 2
    assert done.ours[0] == "there is no command 'opencode'; to run a program: overlayrun -- opencode"
    assert done.out == ""


def test_an_unknown_word_can_not_write_to_the_terminal(repo: UserRepo) -> None:
    for words in (["\x1b[2J"], ["ls", "--\x1b[2J"], ["ls", "\x1b[2J"], ["log", "\x1b[2J"], ["rm", "\u202e"]):
        done = repo.overlayrun(*words)
        assert done.code in (2, 3)
        assert not {"\x1b", "\u202e"} & set(done.err)


@pytest.mark.by_both
def test_a_full_disk_is_told_and_no_bug(repo: UserRepo) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            repo.command("ls"),
            cwd=repo.root,
            env=repo.env,
            check=False,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 3
    assert done.stderr.splitlines() == [
        "overlayrun: No space left on device",
        "overlayrun: hint: overlayrun doctor looks at disk and rights",
    ]


def test_a_command_loads_what_it_needs_alone(repo: UserRepo) -> None:
    done = repo.overlayrun("ls", env={"PYTHONPROFILEIMPORTTIME": "1"})
    loaded = {line.rpartition("|")[2].strip() for line in done.err.splitlines()}
    assert "overlayrun.overview" in loaded
    assert not loaded & {"overlayrun.cli.status", "overlayrun.doctor", "overlayrun.process", "psutil", "rich"}


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["ls", "--bogus"], 2, "No such option"),
        (["ls", "surplus"], 2, "Got unexpected extra argument (surplus)"),
        (["apply"], 2, "Missing argument 'BRANCH'."),
        (["apply", "nope"], 3, "no workspace is called 'nope'"),
        (["run", "--bogus", "--", "true"], 125, "No such option"),
        (["--bogus", "--", "true"], 125, "No such option"),
        (
            ["run", "--every", "soon", "--", "true"],
            125,
            "Invalid value for '--every': 'soon' is not SPAN, such as 90s or 20m",
        ),
        (["run", "--dirty", "all", "--", "true"], 125, "Invalid value for '--dirty'"),
        (["-b", "x"], 125, "no command after --"),
        (["run"], 125, "no command after --"),
        (["exec"], 125, "Missing argument 'BRANCH'."),
        (["shell", "nope"], 125, "no workspace is called 'nope'"),
        (["restore", "b", "1"], 3, "not a snapshot: '1'"),
    ],
)
def test_errors_say_what_and_end_with_the_promised_code(
    repo: UserRepo, words: list[str], code: int, line: str
) -> None:
    done = repo.overlayrun(*words)
    assert done.code == code, str(done)
    assert done.ours[0].startswith(line)
    assert done.ours[-1].startswith("hint: ")
    assert "Traceback" not in done.err
    assert done.out == ""


@pytest.mark.parametrize("name", ["ls", "status", "log", "diff", "gc", "config", "apply", "rm"])
def test_outside_of_a_repository_commands_say_so(repo: UserRepo, tmp_path: Path, name: str) -> None:
    words = [name, "b"] if name in ("apply", "rm") else [name]
    done = repo.overlayrun(*words, cwd=tmp_path)
    assert done.code == 3
    assert done.ours == [f"not a git repository: {tmp_path}", "hint: cd into one, or make one: git init"]


@pytest.mark.by_both
def test_looking_at_a_repository_makes_no_state(repo: UserRepo) -> None:
    for name in ("ls", "status", "config", "gc"):
        assert repo.overlayrun(name).code == 0
    assert not repo.state.exists()


def test_run_with_its_name_is_the_same_as_without(repo: UserRepo) -> None:
    done = repo.overlayrun("run", "-b", "b", "--", "sh", "-c", "echo out; exit 9")
    assert (done.code, done.out) == (9, "out\n")
    assert repo.overlayrun("run", "-b", "b", "sh", "-c", "exit $#", "sh", "-b", "--").code == 2


@pytest.mark.by_both
def test_a_bug_ends_with_70_and_leaves_its_traceback_in_a_file(repo: UserRepo) -> None:
    code = "from overlayrun.cli.main import MODULES, run_cli; MODULES['ls'] = 'missing'; run_cli(['ls'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repo.root, env=repo.env, check=False, capture_output=True, text=True
    )
    assert done.returncode == 70
    assert "Traceback" not in done.stderr
    log = Path(done.stderr.split()[-1])
    assert log.is_relative_to(repo.home / ".local/state/overlayrun/log")
    assert "overlayrun.cli.missing" in log.read_text()


def test_a_reader_that_has_enough_is_no_error(repo: UserRepo) -> None:
    repo.inside("seq 100000 >long")
    script = f"{repo.command()[0]} diff b | head -n 1"
    done = subprocess.run(
        ["bash", "-c", script], cwd=repo.root, env=repo.env, check=False, capture_output=True, text=True
    )
    assert done.stdout == "diff --git a/long b/long\n"
    assert done.stderr == ""
