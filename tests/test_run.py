"""One run: exit status, signals, time limits, what is left when it is over, what it says."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import wait_until

from overlayrun.workspace.lock import is_locked

if TYPE_CHECKING:
    from conftest import Running, UserRepo

pytestmark = pytest.mark.shared  # exit status, limits of time, words

Until = Callable[..., None]


@pytest.mark.parametrize("code", [0, 1, 2, 3, 63, 70, 77, 124, 125, 126, 127, 128, 137, 254, 255])
def test_exit_status_is_the_commands(repo: UserRepo, code: int) -> None:
    assert repo.sh(f"exit {code}").code == code


def test_every_exit_status_passes_through(repo: UserRepo) -> None:
    repo.inside("true")
    for code in range(0, 256, 5):
        assert repo.sh(f"exit {code}", "--dirty", "ignore").code == code


@pytest.mark.parametrize(
    "name", ["HUP", "INT", "QUIT", "ABRT", "KILL", "SEGV", "PIPE", "TERM", "USR1", "XFSZ", "SYS"]
)
def test_a_signal_is_128_and_its_number(repo: UserRepo, name: str) -> None:
    number = signal.Signals[f"SIG{name}"]
    done = repo.overlayrun(
        "-b",
        "b",
        "--",
        "python3",
        "-c",
        (
            f"import os, signal as s\ns.signal({number}, 0) if "
            f"{number} != 9 else 0\nos.kill(os.getpid(), {number})"
        ),
    )
    assert done.code == 128 + number, str(done)


@pytest.mark.by_both
def test_a_command_that_is_not_there_is_127_and_leaves_nothing(repo: UserRepo) -> None:
    before = repo.refs()
    done = repo.overlayrun("--", "no-such-command-at-all")
    assert done.code == 127
    assert any("no-such-command-at-all" in line for line in done.ours)
    assert repo.refs() == before
    assert repo.records() == {}


@pytest.mark.by_both
@pytest.mark.parametrize("make", ["file", "directory"])
def test_a_command_that_can_not_be_executed_is_126(repo: UserRepo, make: str) -> None:
    if make == "file":
        repo.write("plain", "no program\n", 0o644)
    else:
        (repo.root / "plain").mkdir()
        repo.write("plain/x", "")
    done = repo.overlayrun("--", "./plain")
    assert done.code == 126, str(done)
    assert any("./plain" in line for line in done.ours)


def test_failure_of_ours_is_125_with_a_hint(repo: UserRepo) -> None:
    done = repo.overlayrun("--base", "no-such-revision", "--", "true")
    assert done.code == 125
    assert any(line.startswith("hint: ") for line in done.ours)


def test_a_snapshot_that_fails_is_no_success(repo: UserRepo) -> None:
    # The store refuses objects that can't be written; root is refused by nothing but a file in the way.
    repo.inside("true")
    objects = repo.root / ".git/objects"
    kept = objects.with_name("objects.kept")
    with repo.started("-b", "b", "--", "sh", "-c", "echo x >new; echo ready; read line") as run:
        run.expect("ready")
        (repo.root / ".git/refs/overlayrun/snapshots").mkdir(parents=True, exist_ok=True)
        lock = repo.root / f".git/refs/overlayrun/snapshots/{repo.records()['b']['id']}.lock"
        lock.write_text("")
        run.type("go")
        assert run.end() == 125
    assert "nothing is lost" in run.text()
    assert not kept.exists()
    lock.unlink()
    repo.overlayrun("snapshot", "b")
    assert repo.show("b", "new") == "x\n"


@pytest.mark.by_both
def test_streams_are_the_commands_own(repo: UserRepo) -> None:
    done = repo.overlayrun("-b", "b", "--", "sh", "-c", "cat; echo err >&2", data="typed\n")
    assert done.out == "typed\n"
    assert "err\n" in done.err


def test_arguments_arrive_untouched(repo: UserRepo) -> None:
    odd = ["", " ", "a b", "$HOME", "*", "--", "-b", "é\n", "\udcff", "'\""]
    done = repo.overlayrun(
        "-b",
        "b",
        "--",
        "python3",
        "-c",
        "import sys, os; os.write(1, os.fsencode('|'.join(sys.argv[1:])))",
        *odd,
    )
    assert os.fsencode(done.out) == os.fsencode("|".join(odd))


@pytest.mark.by_both
def test_a_run_changes_nothing_of_the_users(repo: UserRepo) -> None:
    repo.write("src/app.py", "answer = 42\n")
    repo.write("new", "untracked\n")
    repo.write("staged", "staged\n")
    repo.git("add", "staged")
    before, refs, config = repo.picture(), repo.refs(), sorted(os.listdir(repo.home))
    repo.inside(
        "rm -rf src new; echo other >staged; echo more >more; git add -A; git commit -qm x; chmod 600 README"
    )
    assert repo.picture() == before
    after = repo.refs()
    assert {name for name in after if not name.startswith("refs/overlayrun/")} == {*refs, "refs/heads/b"}
    assert all(after[name] == oid for name, oid in refs.items())
    assert sorted(set(os.listdir(repo.home)) - {".local", ".cache"}) == [
        name for name in config if name[1:] not in ("local", "cache")
    ]


@pytest.mark.parametrize("dirty", ["include", "ignore"])
def test_an_index_with_old_stat_data_keeps_its_bytes(repo: UserRepo, dirty: str) -> None:
    """A file that was touched and not changed: git would write its index anew, given the chance."""
    os.utime(repo.root / "README", ns=(10**18, 10**18))
    before = repo.picture()
    repo.inside("true", "--dirty", dirty)
    assert repo.picture() == before
    repo.commit("next", more="m\n")
    os.utime(repo.root / "tool.sh", ns=(10**18, 10**18))
    before = repo.picture()
    repo.inside("true", "--dirty", dirty, branch="c")
    assert repo.picture() == before


@pytest.mark.by_both
def test_index_and_home_keep_their_bytes_under_writes(repo: UserRepo) -> None:
    (repo.home / ".bashrc").write_text("mine\n")
    repo.inside(
        'echo evil >>"$HOME/.bashrc"; git config user.name Evil; git config --global '
        "user.name Evil; mkdir -p .git/hooks; echo x >.git/hooks/pre-commit"
    )
    assert (repo.home / ".bashrc").read_text() == "mine\n"
    assert "Evil" not in (repo.home / ".gitconfig").read_text()
    assert "Evil" not in (repo.root / ".git/config").read_text()
    assert not (repo.root / ".git/hooks/pre-commit").exists()


@pytest.mark.by_both
def test_header_and_summary_say_what_matters(repo: UserRepo) -> None:
    repo.write("uncommitted", "1\n")
    repo.write(".gitignore", ".env\n")
    repo.write(".env", "A=1\n")
    done = repo.sh("echo x >new; mkfifo pipe", "--timeout", "80s")
    said = "\n".join(done.ours)
    head = repo.git("rev-parse", "HEAD")
    for wanted in (
        "branch b",
        head[:7],
        "2 uncommitted",
        "1 ignored",
        "overlay",
        "80 s",
        "1 file changed",
        "snapshot 1",
        "pipe",
        "diff b",
        "merge b",
        "rm b",
    ):
        assert wanted in said, said


def test_a_run_without_changes_says_so(repo: UserRepo) -> None:
    assert repo.sh("true").ours[-1] == "nothing changed"


def test_quiet_says_nothing(repo: UserRepo) -> None:
    assert repo.sh("echo x >new", "-q").err == ""


def test_agents_names_are_escaped_in_the_summary(repo: UserRepo) -> None:
    done = repo.overlayrun(
        "-b", "b", "--", "python3", "-c", "import os; os.mkfifo('a\\x1b]0;pwn\\x07\\n\\u202eb\\x9b')"
    )
    assert "left out" in done.err
    assert not set(done.err) & {"\x1b", "\x07", "\u202e", "\x9b"}, repr(done.err)


def test_a_new_branch_is_named_after_the_command(repo: UserRepo) -> None:
    repo.overlayrun("--", "sh", "-c", "echo x >new")
    (branch,) = repo.records()
    assert re.fullmatch(r"overlay/sh-[a-z]+", branch)
    assert repo.show(branch, "new") == "x\n"


def test_started_from_a_subdirectory_it_works_there(repo: UserRepo) -> None:
    done = repo.overlayrun("-b", "b", "--", "sh", "-c", "pwd; ls; echo x >here", cwd=repo.root / "src")
    assert done.out.split() == [f"{repo.root}/src", "app.py"]
    assert repo.show("b", "src/here") == "x\n"


def test_started_through_a_link_it_works_at_the_real_path(repo: UserRepo, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(repo.root)
    done = repo.overlayrun("-b", "b", "--", "sh", "-c", "pwd -P; cat README", cwd=tmp_path / "alias/src/..")
    assert done.out == f"{repo.root}\nread me\n"


@pytest.mark.by_both
def test_the_same_branch_resumes_as_it_was_left(repo: UserRepo) -> None:
    repo.inside('echo one >new; rm README; echo built >"$HOME/cache"; git config core.pager cat')
    out = repo.inside('cat new "$HOME/cache"; git config core.pager; ls; echo two >>new')
    assert out == "one\nbuilt\ncat\nlink\nnew\nsrc\ntool.sh\n"
    assert repo.show("b", "new") == "one\ntwo\n"
    assert "README" not in repo.files("b")
    assert len(repo.snapshots()) == 2


def test_base_starts_from_another_commit(repo: UserRepo) -> None:
    first = repo.git("rev-parse", "HEAD~1")
    assert repo.inside("ls; git rev-parse HEAD; git status --porcelain", "--base", "HEAD~1").split() == [
        "README",
        first,
    ]
    assert repo.refs()["refs/heads/b"] == first


def test_message_becomes_the_commits(repo: UserRepo) -> None:
    repo.inside("echo x >new", "-m", "Fix the login\n\nBecause it was broken.")
    text = repo.git("log", "-1", "--format=%an%n%B", "b")
    assert text.startswith("Test User\nFix the login\n\nBecause it was broken.\n")
    for trailer in ("Branch: b", "Command: ", "Exit: 0", "Base: ", "Snapshot: 1"):
        assert f"Overlayrun-{trailer}" in text


def test_two_branches_at_once_do_not_see_each_other(repo: UserRepo) -> None:
    script = "echo {0} >who; echo ready; read line; cat who; ls other-{1} 2>&1 | head -1"
    with (
        repo.started("-b", "one", "--", "sh", "-c", script.format("one", 2)) as one,
        repo.started("-b", "two", "--", "sh", "-c", script.format("two", 1)) as two,
    ):
        one.expect("ready")
        two.expect("ready")
        one.type("")
        two.type("")
        assert (one.end(), two.end()) == (0, 0)
    assert (repo.show("one", "who"), repo.show("two", "who")) == ("one\n", "two\n")


def _ready(run: Running) -> None:
    run.expect("ready")


@pytest.mark.by_both
@pytest.mark.parametrize("name", ["TERM", "HUP"])
def test_a_signal_to_the_supervisor_ends_the_command_and_keeps_its_work(repo: UserRepo, name: str) -> None:
    number = signal.Signals[f"SIG{name}"]
    with repo.started(
        "-b", "b", "--", "sh", "-c", f"echo x >new; {repo.sleeper()} & echo ready; wait"
    ) as run:
        _ready(run)
        run.process.send_signal(number)
        assert run.end() == 128 + number
    wait_until(lambda: not repo.marked(), "all dead", 5.0)  # a flush to the disk has our arguments too
    assert repo.show("b", "new") == "x\n"


def test_usr1_reaches_the_command(repo: UserRepo) -> None:
    script = "trap 'echo got >usr1; exit 9' USR1; echo ready; while :; do sleep 0.05; done"
    with repo.started("-b", "b", "--", "sh", "-c", script) as run:
        _ready(run)
        run.process.send_signal(signal.SIGUSR1)
        assert run.end() == 9
    assert repo.show("b", "usr1") == "got\n"


def test_a_command_that_ignores_term_is_killed(repo: UserRepo) -> None:
    script = f"trap '' TERM HUP INT; echo x >new; echo ready; {repo.sleeper()}"
    with repo.started("-b", "b", "--", "sh", "-c", script) as run:
        _ready(run)
        run.process.send_signal(signal.SIGTERM)
        assert run.end() == 128 + signal.SIGKILL
    wait_until(lambda: not repo.marked(), "all dead", 5.0)  # a flush to the disk has our arguments too
    assert repo.show("b", "new") == "x\n"


def test_timeout_ends_the_whole_tree(repo: UserRepo) -> None:
    done = repo.sh(f"echo x >new; setsid {repo.sleeper()} & {repo.sleeper()}", "--timeout", "0.5")
    assert done.code in {124, 128 + signal.SIGTERM}, str(done)
    assert any("--timeout" in line for line in done.ours)
    wait_until(lambda: not repo.marked(), "all dead", 5.0)  # a flush to the disk has our arguments too
    assert repo.show("b", "new") == "x\n"


def test_idle_timeout_ends_a_silent_command(repo: UserRepo) -> None:
    done = repo.sh(f"echo x >new; {repo.sleeper()}", "--idle-timeout", "1")
    assert done.code in {124, 128 + signal.SIGTERM}, str(done)
    assert any("--idle-timeout" in line for line in done.ours)
    wait_until(lambda: not repo.marked(), "all dead", 5.0)  # a flush to the disk has our arguments too


def test_idle_timeout_with_closed_output(repo: UserRepo) -> None:
    shell = (
        f"exec {' '.join(repo.command('-b', 'b', '--idle-timeout', '0.4', '--', 'sh', '-c'))} "
        f"'echo x >new; sleep 1.5' >&- 2>&-"
    )
    subprocess.run(["bash", "-c", shell], cwd=repo.root, env=repo.env, check=False, timeout=60)
    assert repo.records()["b"]["last_run"]["ended"] is not None, "the supervisor itself ended by accident"
    assert repo.show("b", "new") == "x\n"


def test_idle_timeout_spares_a_command_that_prints(repo: UserRepo) -> None:
    done = repo.sh("for i in 1 2 3 4 5 6 7 8 9 10 11 12; do echo $i; sleep 0.5; done", "--idle-timeout", "3")
    assert done.code == 0, str(done)


@pytest.mark.by_both
def test_orphans_are_dead_when_the_run_is_over(repo: UserRepo) -> None:
    daemon = f"trap '' TERM HUP INT; {repo.sleeper()}"
    done = repo.overlayrun(
        "-b",
        "b",
        "--",
        "sh",
        "-c",
        f"(setsid sh -c \"{daemon}\" >/dev/null 2>&1 </dev/null &) ; sleep 0.3; ps ax | grep -c '[s]leep'",
    )
    assert done.code == 0, str(done)
    wait_until(lambda: not repo.marked(), "all dead", 5.0)  # a flush to the disk has our arguments too


def test_writes_of_an_orphan_are_in_the_last_snapshot(repo: UserRepo) -> None:
    repo.inside(
        "(setsid sh -c 'for i in 1 2 3; do date +%N >>log; sleep 0.05; done; echo end >>log' &) ; sleep 1"
    )
    assert repo.show("b", "log").endswith("end\n")


@pytest.mark.by_both
def test_kill_of_the_supervisor_kills_everything(repo: UserRepo, until: Until) -> None:
    script = (
        f"trap '' TERM HUP; for i in $(seq 20); "
        f"do setsid {repo.sleeper()} & done; echo x >new; echo ready; wait"
    )
    with repo.started("-b", "b", "--", "sh", "-c", script) as run:
        _ready(run)
        until(lambda: len(repo.marked()) > 20)
        run.process.kill()
        run.end()
        until(lambda: not repo.marked(), "all dead", 2.0)
    lock = str(repo.workspace() / "lock")
    until(lambda: not is_locked(lock), "lock free", 2.0)
    assert repo.inside("cat new") == "x\n"


@pytest.mark.by_both
def test_the_keeper_can_not_be_killed_from_inside(repo: UserRepo) -> None:
    assert (
        repo.inside("kill -9 1 || true; kill -STOP 1 || true; kill -TERM 1 || true; echo alive") == "alive\n"
    )


@pytest.mark.by_both
def test_state_is_the_owners_alone(repo: UserRepo) -> None:
    repo.inside("echo x >new; chmod 777 . new")
    assert stat.S_IMODE(os.stat(repo.state).st_mode) == 0o700
    for path in (repo.workspace(), repo.workspace().parent):
        assert not stat.S_IMODE(os.stat(path).st_mode) & 0o077


@pytest.mark.by_both
def test_mounts_of_a_run_do_not_show_outside(repo: UserRepo) -> None:
    with repo.started("-b", "b", "--", "sh", "-c", "echo ready; read a") as run:
        run.expect("ready")
        assert str(repo.root) not in Path("/proc/self/mountinfo").read_text()
        run.end()


def test_closed_output_is_no_reason_to_lose_work(repo: UserRepo) -> None:
    shell = (
        f"{' '.join(repo.command('-b', 'b', '--', 'sh', '-c'))} 'echo x >new; yes' 2>&1 | head -1 >/dev/null"
    )
    subprocess.run(["bash", "-c", shell], cwd=repo.root, env=repo.env, check=True, timeout=60)
    wait = repo.overlayrun("ls")
    assert wait.code == 0, str(wait)
    assert repo.show("b", "new") == "x\n"
