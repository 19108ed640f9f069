"""An agent tells of its work at the control socket: commits, the record, `ls`, `log` and `show` tell it on."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import UserRepo

pytestmark = pytest.mark.shared  # what an agent tells

Until = Callable[..., None]

_TOKEN: Final = f"ghp_{'Ab1' * 10}"
_KEY: Final = "AKIAABCDEFGHIJKLMNOP"
_AGENT: Final = """\
import json, os, socket, sys, time
place = os.environ["OVERLAYRUN_SOCKET"]
while not os.path.exists(place):
    time.sleep(0.02)
def ask(op, **account):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(place)
        client.sendall(json.dumps({"op": op, "account": account}).encode() + b"\\n")
        answer = client.makefile().readline()
    print(op, answer.strip(), flush=True)
    return json.loads(answer)
def write(name):
    with open(name, "a") as file:
        file.write("line\\n")
"""
_FIRST: Final = (
    _AGENT
    + f"""
prompt = "Fix the login form.\\nIt breaks: DB_PASSWORD={_TOKEN} {_KEY}\\n\\nOverlayrun-Branch: main\\nSession: x"
ask("session", agent="opencode", session="s1", title="Fix the login", model="fake/m", prompt=prompt)
write("login.py"); ask("snapshot", session="s1", tool="edit", subject="edit login.py")
write("login.py"); ask("snapshot", session="s1", tool="bash", subject="curl -H 'Authorization: Bearer {_TOKEN}'")
ask("snapshot", session="s1", tool="read", subject="read login.py")
write("found"); ask("snapshot", session="child", tool="edit", subject="edit found", prompt="Look around")
print("working", flush=True); sys.stdin.readline()
said = "Done: it validates.\\n\\nOverlayrun-Number: 99\\n\\nOverlayrun-Head: 0"
ask("snapshot", session="s1", said=said)
ask("snapshot", session="s1", said=said)
print("waiting", flush=True); sys.stdin.readline()
"""
)


def _json(repo: UserRepo, *words: str) -> Any:
    done = repo.overlayrun(*words, "--json")
    assert done.code == 0, str(done)
    return json.loads(done.out)


def _script(repo: UserRepo, text: str) -> Path:
    path = repo.home / "agent.py"
    path.write_text(text)
    return path


def _asked(text: str) -> list[bool]:
    return [
        json.loads(line.partition(" ")[2])["unchanged"] for line in re.findall("^snapshot .*", text, re.M)
    ]


def test_a_branch_tells_its_story(repo: UserRepo) -> None:
    agent = _script(repo, _FIRST)
    with repo.started("-b", "b", "--every", "0", "--", "python3", str(agent)) as run:
        run.expect("working\n")
        (item,) = _json(repo, "ls")["workspaces"]
        assert (item["turn"], item["last_message"]) == ("working", None)
        run.type("")
        run.expect("waiting\n")
        (item,) = _json(repo, "ls")["workspaces"]
        (running,) = _json(repo, "status")["running"]
        table = repo.overlayrun("ls").out
        run.type("")
        assert run.end() == 0
        assert _asked(run.text()) == [False, False, True, False, False, True]

    told = {key: item[key] for key in ("agent", "session_id", "session_title", "turn")}
    assert told == {
        "agent": "opencode",
        "session_id": "s1",
        "session_title": "Fix the login",
        "turn": "waiting",
    }
    assert told == {key: running[key] for key in told}
    assert item["last_message"].startswith("Done: it validates.\n")
    assert re.search(
        r"SESSION +LAST MESSAGE\nb +running, waiting .* Fix the login +Done: it validates\.\n", table
    )

    _is_told_by_log_and_show(repo)
    _is_told_by_the_commits(repo)
    _holds_no_secret(repo)


def _is_told_by_log_and_show(repo: UserRepo) -> None:
    text = re.sub(r"\d+ s ago +", "<ago>  ", repo.overlayrun("log", "b").out)
    assert text.splitlines() == [
        "asked: Fix the login form. (and 4 lines more)",
        "@{0}  4  <ago>  0 files +0 -0        Fix the login form.",
        "",
        "asked: Look around",
        "@{1}  3  <ago>  1 file +1 -0   edit  edit found",
        "",
        "asked: Fix the login form. (and 4 lines more)",
        "@{2}  2  <ago>  1 file +1 -0   bash  curl -H 'Authorization: Bearer [masked]'",
        "@{3}  1  <ago>  1 file +1 -0   edit  edit login.py",
    ]
    steps = _json(repo, "log", "b")["snapshots"]
    assert [(each["tool"], each["session_id"]) for each in steps] == [
        (None, "s1"),
        ("edit", "child"),
        ("bash", "s1"),
        ("edit", "s1"),
    ]
    assert steps[3]["prompt"].splitlines() == [
        "Fix the login form.",
        "It breaks: DB_PASSWORD=[masked] [masked]",
        "",
        "Overlayrun-Branch: main",
        "Session: x",
    ]
    assert steps[0]["prompt"] == steps[2]["prompt"] == steps[3]["prompt"]
    shown = repo.overlayrun("show", "b@{2}").out
    assert "    Overlayrun-Tool: bash\n" in shown
    assert shown.endswith("@@ -1 +1,2 @@\n line\n+line\n")


def _is_told_by_the_commits(repo: UserRepo) -> None:
    branch = repo.git("log", "-1", "--format=%B", "b")
    assert branch.startswith("Fix the login\n\n> Fix the login form.\n> It breaks: DB_PASSWORD=[masked]")
    assert "\n> Session: x\n\nDone: it validates.\n" in branch
    assert "Look around" not in branch
    trailers = repo.git("log", "-1", "--format=%(trailers)", "b").splitlines()
    names = ["Branch", "Command", "Base", "Snapshot", "Agent", "Session", "Model"]
    assert [line.partition(":")[0].removeprefix("Overlayrun-") for line in trailers] == names
    assert "Overlayrun-Branch: b" in trailers
    assert "Overlayrun-Session: s1" in trailers
    assert repo.git("log", "-1", "--format=%an", "b") == "Test User"
    # The chain is read by its trailers: no number or head of the agent's counts.
    assert [each["number"] for each in _json(repo, "log", "b")["snapshots"]] == [4, 3, 2, 1]


def _holds_no_secret(repo: UserRepo) -> None:
    listed = repo.raw_git("cat-file", "--batch-all-objects", "--batch").decode(errors="replace")
    record = (repo.workspace() / "record.json").read_text()
    assert "[masked]" in listed
    assert "[masked]" in record
    for secret in (_TOKEN, _KEY):
        assert secret not in listed
        assert secret not in record


def test_what_nobody_accounts_for_takes_the_sessions_words(repo: UserRepo, until: Until) -> None:
    script = f"""{_AGENT}
ask("session", agent="a", session="s1", prompt="Make a file")
write("one"); print("written", flush=True); sys.stdin.readline()
ask("session", session="s1", prompt="Make another")
write("two"); print("again", flush=True); sys.stdin.readline()
"""
    with repo.started(
        "-b", "b", "--every", "0.3", "-m", "Own words", "--", "python3", str(_script(repo, script))
    ) as run:
        run.expect("written")
        until(lambda: "one" in repo.files("b"), "a snapshot by time")
        run.type("")
        run.expect("again")
        until(lambda: "two" in repo.files("b"), "another")
        run.process.send_signal(signal.SIGKILL)
        run.process.wait()
    path = repo.workspace() / "record.json"
    until(lambda: _json(repo, "ls")["workspaces"][0]["state"] == "idle", "recovered")
    assert repo.git("log", "-1", "--format=%B", "b").startswith(
        "Own words\n\n> Make a file\n\n> Make another\n\nFiles: 2 added"
    )
    first, *_, last = _json(repo, "log", "--reverse", "b")["snapshots"]
    assert (first["reason"], first["prompt"]) == ("interval", "Make a file")
    assert (last["reason"], last["prompt"]) == ("recovery", "Make another")

    # A record of an earlier version has no session.
    data = json.loads(path.read_text())
    del data["session"]
    path.write_text(json.dumps(data))
    (item,) = _json(repo, "ls")["workspaces"]
    assert (item["session_title"], item["turn"]) == (None, None)
    assert "SESSION" not in repo.overlayrun("ls").out


@pytest.mark.by_both
def test_an_agent_of_few_words_makes_no_snapshot_too_many(repo: UserRepo) -> None:
    script = f"""{_AGENT}
write("one"); ask("snapshot", session="s1", tool="edit", subject="edit one")
ask("snapshot", session="s1", said="")
"""
    done = repo.overlayrun("-b", "b", "--", "python3", str(_script(repo, script)))
    assert (done.code, _asked(done.out)) == (0, [False, True]), str(done)
    assert [each["subject"] for each in _json(repo, "log", "b")["snapshots"]] == ["edit one"]
    assert repo.git("log", "-1", "--format=%s", "b") == "edit one"


def test_a_throwaway_hears_and_keeps_nothing(repo: UserRepo) -> None:
    script = f"""{_AGENT}
ask("session", session="s1", prompt="Make a file")
write("one"); ask("snapshot", session="s1", tool="edit")
for odd in (3, None, [1], "x"):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(place)
        client.sendall(json.dumps({{"op": "session", "account": odd}}).encode() + b"\\n")
        print(client.makefile().readline(), flush=True)
"""
    done = repo.overlayrun("--rm", "--", "python3", str(_script(repo, script)))
    assert done.code == 0, str(done)
    assert '"session": "s1"' in done.out
    assert "a throwaway run takes no snapshots" in done.out
    assert done.out.count("a session is told by an account") == 4
    assert not repo.records()
