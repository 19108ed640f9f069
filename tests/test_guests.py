"""Further branches that the command opens in its own sandbox: real mounts, asked for at the real socket."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from conftest import Done, Running, UserRepo

pytestmark = pytest.mark.shared  # what is asked for and answered

Until = Callable[..., None]

# What each script begins with: `ask(op=..., ...)` asks the supervisor, `tell(name=value)` the test.
_ASKING: Final = """
import json, os, socket, subprocess, sys, time
PATH = os.environ["OVERLAYRUN_SOCKET"]
while not os.path.exists(PATH):
    time.sleep(0.01)
def ask(op, path=None, **words):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(PATH)
        s.sendall(json.dumps({"op": op, **words, **({"path": path} if path else {})}).encode() + b"\\n")
        return json.loads(s.makefile().readline() or "null")
def tell(**what):
    print("TOLD " + json.dumps(what), flush=True)
def write(path, text):
    with open(path, "w") as file:
        file.write(text)
def git(path, *words):
    return subprocess.run(["git", "-C", path, *words], check=True, capture_output=True, text=True).stdout
"""


def _told(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for line in text.splitlines():
        if line.startswith("TOLD "):
            found |= json.loads(line.removeprefix("TOLD "))
    return found


def _argv(script: str, *options: str) -> list[str]:
    return ["-b", "b", "--every", "0", *options, "--", "python3", "-c", _ASKING + script]


def _run(repo: UserRepo, script: str, *options: str) -> tuple[Done, dict[str, Any]]:
    done = repo.overlayrun(*_argv(script, *options))
    assert done.code == 0, str(done)
    return done, _told(done.out)


_TWO: Final = """
one, two = ask("open"), ask("open", branch="topic/two")
tell(one=one, two=two, again=ask("open", branch="topic/two"))
for path, text in ((".", "main"), (one["path"], "one"), (two["path"], "two")):
    write(f"{path}/src/app.py", text)
tell(status=git(two["path"], "status", "--short"), dirty=open(one["path"] + "/README").read())
git(two["path"], "commit", "-qam", "by the agent")
tell(snapshot=ask("snapshot", path=two["path"] + "/src", message="half way"))
write(two["path"] + "/late", "late")
os.chdir(two["path"])
tell(busy=ask("close", path=two["path"]), still=git(two["path"], "status", "--short"))
os.chdir("/")
tell(closed=ask("close", branch="topic/two"), left=os.listdir("/run/overlayrun/trees"))
tell(resumed=ask("open", branch="topic/two"), late=open(two["path"] + "/late").read())
tell(unknown=ask("close", path="/run/overlayrun/trees/none"))
"""


@pytest.mark.by_both
def test_two_branches_are_opened_and_each_gets_its_own_work(repo: UserRepo) -> None:
    repo.write("README", "not committed\n")
    main, before = repo.git("rev-parse", "main"), repo.picture()

    done, told = _run(repo, _TWO)

    one, two = told["one"], told["two"]
    assert one["branch"].startswith("overlay/python3-"), one
    assert two["path"] == "/run/overlayrun/trees/topic-two"
    assert (two["base"], two["resumed"], told["again"]) == (main, False, two)
    assert told["status"] == " M README\n M src/app.py\n"
    assert told["dirty"] == "not committed\n"
    assert (told["snapshot"]["branch"], told["snapshot"]["number"]) == ("topic/two", 1)
    assert "in use" in told["busy"]["error"]
    assert "snapshot 2" in told["busy"]["error"]
    assert told["busy"]["hint"]
    assert told["still"] == "?? late\n"  # its .git was away for a moment and is back
    assert told["closed"]["closed"] is True
    assert told["left"] == [os.path.basename(one["path"])]
    assert (told["resumed"]["resumed"], told["late"]) == (True, "late")
    assert "no further branch" in told["unknown"]["error"]
    for branch, text in (("b", "main"), (one["branch"], "one"), ("topic/two", "two")):
        assert repo.show(branch, "src/app.py") == text
        assert f"branch {branch}" in done.err
    assert repo.show("topic/two", "late") == "late"
    assert "by the agent" in repo.git("log", "--format=%s", "topic/two").splitlines()
    assert {record["last_run"]["status"] for record in repo.records().values()} == {0}
    counted = (repo.workspace() / "guests").read_text().split()  # each once: the limit of the disk goes by it
    assert sorted(counted) == sorted([one["id"], two["id"]])
    assert (repo.git("rev-parse", "main"), repo.picture()) == (main, before)
    # What is idle again can be run in as any branch.
    assert repo.inside("cat src/app.py late", branch="topic/two") == "twolate"


_HOSTILE: Final = """
names = ["../x", "-f", "--exec=x", "a/../b", "x.lock", "refs/heads/x", "x" * 300, "", 7, ["x"], "HEAD", "a b"]
tell(bad=[ask("open", branch=name) for name in names])
tell(taken=[ask("open", branch=name) for name in ("main", "mine", "b", "later", "other", "dev", "origin/new")])
tell(trees=os.path.exists("/run/overlayrun/trees"))
def mounts():
    with open("/proc/self/mountinfo") as file:
        return sorted(line.split(" ")[4] for line in file)
path = ask("open", branch="first")["path"]
shown = mounts()
# The way to the trees is the command's own: it lays links where the next one will be mounted and unmounted.
os.rename("/run/overlayrun", "/run/gone")
os.mkdir("/run/overlayrun")
os.symlink("/etc", "/run/overlayrun/trees")
real, PATH = PATH, PATH.replace("overlayrun", "gone", 1)
tell(moved=[ask("close", path=path), ask("open", branch="second")])
os.unlink("/run/overlayrun/trees")
os.mkdir("/run/overlayrun/trees")
os.symlink("/etc", path)
tell(link=[ask("close", path=path)])
os.unlink(path)
os.mkdir(path)
tell(other=[ask("close", path=path)])
os.rmdir(path)
os.rmdir("/run/overlayrun/trees")
os.rmdir("/run/overlayrun")
os.rename("/run/gone", "/run/overlayrun")
PATH = real
tell(unmoved=[line.replace("/run/gone", "/run/overlayrun") for line in shown] == mounts())
opened = [ask("open") for _ in range(32)]
tell(opened=["path" in answer for answer in opened], last=opened[-1])
tell(objects=os.access("/run/overlayrun/objects", os.W_OK), closed=ask("close", path=path))
"""


@pytest.mark.by_both
def test_what_the_command_asks_for_is_judged(repo: UserRepo) -> None:
    repo.git("branch", "mine")
    repo.git("update-ref", "refs/remotes/origin/dev", "HEAD")
    repo.overlayrun("-b", "other", "--into", "main", "--", "true")
    record = repo.records()["other"]["path"]
    record.write_text(record.read_text().replace('"target": "main"', '"target": "later"'))
    refs = repo.refs()

    _, told = _run(repo, _HOSTILE)

    assert all("error" in answer for answer in told["bad"] + told["taken"]), told
    assert "running already" in told["taken"][2]["error"]
    assert "is the user's" in told["taken"][4]["error"]
    assert not told["trees"]
    assert all("error" in answer for answer in told["moved"] + told["link"] + told["other"]), told
    assert told["unmoved"]
    assert told["opened"] == [True] * 31 + [False]
    assert "32 further branches" in told["last"]["error"]
    assert not told["objects"]
    assert told["closed"]["closed"]
    assert "refs/heads/second" not in repo.refs()
    ours = {name for name in repo.refs() if name.startswith(("refs/heads/overlay/", "refs/overlayrun/"))}
    assert repo.refs().keys() - ours - {"refs/heads/b", "refs/heads/first"} == refs.keys() - ours
    assert repo.refs()["refs/heads/mine"] == refs["refs/heads/mine"]
    assert {bool(record["last_run"]["ended"]) for record in repo.records().values()} == {True}


def test_a_throwaway_run_opens_none(repo: UserRepo) -> None:
    script = _ASKING + 'tell(answer=ask("open"))'
    done = repo.overlayrun("--rm", "--", "python3", "-c", script)
    assert "throwaway" in _told(done.out)["answer"]["error"]
    assert repo.records() == {}


_OF_A_FORK: Final = """
write("n", "1")
tell(fork=ask("fork", branch="twin"), guest=ask("open", branch="twin"))
os.chdir("/run/overlayrun/trees/twin")
def say(*words):
    return json.loads(subprocess.run(["overlayrun", *words, "--json"], capture_output=True, check=True).stdout)
tell(n=open("n").read(), exclude=open(".git/info/exclude").read(), change=git(".", "status", "--short"))
write("m", "2")
tell(status=say("status"), snapshot=say("snapshot"), forks=[say("fork"), say("fork", "b")])
"""


def test_a_fork_is_opened_with_its_work_and_is_what_is_meant_there(repo: UserRepo) -> None:
    _, told = _run(repo, _OF_A_FORK, "--profile", "opencode", "--agent-state", "private")

    assert (told["guest"]["resumed"], told["n"], told["change"]) == (True, "1", "?? n\n"), told
    assert "**/.opencode/node_modules" in told["exclude"].splitlines()
    assert (told["status"]["branch"], told["snapshot"]["branch"]) == ("twin", "twin")
    # Who names the run's own branch means that one.
    assert [each["source"] for each in told["forks"]] == ["twin", "b"]
    assert ("m" in repo.files(told["forks"][0]["branch"]), "m" in repo.files(told["forks"][1]["branch"])) == (
        True,
        False,
    )
    assert set(repo.files("twin")) - set(repo.files("main")) == {"n", "m"}
    records = repo.records()
    assert {(each["profile"], each["agent_state"]) for each in records.values()} == {("opencode", "private")}
    assert repo.overlayrun("restore", "twin@{0}").code == 0
    exclude = repo.workspace("twin") / "git" / "info" / "exclude"
    assert "**/.opencode/node_modules" in exclude.read_text().splitlines()


_WAITING: Final = """
guest = ask("open", branch="g")
write(guest["path"] + "/n", "1")
tell(ready=True)
sys.stdin.readline()
"""


def _start(run: Running) -> None:
    run.expect('TOLD {"ready": true}')


@pytest.mark.by_both
def test_the_user_reaches_a_guest_and_a_kill_loses_nothing(repo: UserRepo) -> None:
    with repo.started(*_argv(_WAITING)) as run:
        _start(run)
        listed = json.loads(repo.overlayrun("ls", "--json").out)["workspaces"]
        assert {each["branch"]: each["state"] for each in listed} == {"b": "running", "g": "running"}
        done = repo.overlayrun("snapshot", "g", "-m", "from outside")
        assert done.code == 0, str(done)
        assert (repo.show("g", "n"), "n" in repo.files("b")) == ("1", False)
        assert repo.overlayrun("exec", "g", "--", "sh", "-c", "pwd; cat n; echo 2 >n").out == (
            "/run/overlayrun/trees/g\n1"
        )
        run.process.kill()
        run.process.wait()
    done = repo.overlayrun("-b", "g", "--", "cat", "n")
    assert (done.out, done.code) == ("2\n", 0), str(done)
    assert any("was interrupted" in line for line in done.ours)
    assert repo.show("g", "n") == "2\n"


def test_guests_are_snapshotted_by_time(repo: UserRepo, until: Until) -> None:
    with repo.started(*_argv(_WAITING, "--every", "0.3")) as run:
        _start(run)
        until(lambda: "n" in repo.files("g"), "a snapshot by the timer")
        run.type("")
        assert run.end() == 0, run.text()


def test_the_limit_of_the_disk_holds_for_guests_too(repo: UserRepo) -> None:
    script = """
path = ask("open")["path"]
for number in range(200):  # none of them is too large by itself
    with open(f"{path}/{number}", "wb") as file:
        file.write(os.urandom(1 << 20))
    time.sleep(0.02)
time.sleep(60)
"""
    done = repo.overlayrun(*_argv(script, "--disk", "30M"))
    assert any("--disk" in line for line in done.ours), str(done)
    assert done.code != 0


@pytest.mark.by_both
@pytest.mark.parametrize("option", ["", "--allow-userns"])
def test_secrets_in_a_home_that_is_the_repository_stay_hidden(repo: UserRepo, option: str) -> None:
    repo.commit("ignore", **{".gitignore": ".ssh/\n"})
    repo.write(".ssh/id_rsa", "a secret")
    script = """
guest = ask("open", branch="g")
tell(own=os.listdir(".ssh"), guest=os.listdir(guest["path"] + "/.ssh"), closed=ask("close", branch="g"))
"""
    words = _argv(script, *([option] if option else []))
    done = repo.overlayrun(
        *words, env={"HOME": str(repo.root), "GIT_CONFIG_GLOBAL": f"{repo.home}/.gitconfig"}
    )
    assert done.code == 0, str(done)
    told = _told(done.out)
    assert (told["own"], told["guest"]) == ([], [])
    # To take the tree away, what covers the secret would have to go first.
    assert "error" in told["closed"]
