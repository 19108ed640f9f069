"""Programs that want something special: databases, servers, terminals of their own, debuggers."""

from __future__ import annotations

import sys
import time
import urllib.request
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from conftest import UserRepo

    from .conftest import Needs, Same

pytestmark = pytest.mark.shared  # what programs do

DATABASE: Final = """
import os, shutil, sqlite3, subprocess, sys, tempfile
add = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], timeout=60)\\nfor n in range(100):\\n with c: c.execute('insert into t values (?)', (n,))"
for place in (os.getcwd(), os.path.expanduser("~"), "/tmp", "/dev/shm"):
    place = tempfile.mkdtemp(dir=place)
    path = place + "/sample.db"
    base = sqlite3.connect(path, isolation_level=None)
    print(*base.execute("pragma journal_mode = wal").fetchone())
    base.execute("create table t (n)")
    writers = [subprocess.Popen([sys.executable, "-c", add, path]) for _ in range(2)]
    print([writer.wait() for writer in writers], *base.execute("select count(*), sum(n) from t").fetchone())
    base.execute("begin immediate")
    try:
        sqlite3.connect(path, timeout=0).execute("insert into t values (1)")
    except sqlite3.OperationalError as err:
        print(err)
    base.execute("rollback")
    print(*base.execute("pragma integrity_check").fetchone())
    base.close()
    shutil.rmtree(place)
"""


def test_sqlite_writes_ahead_and_locks(repo: UserRepo, same: Same) -> None:
    repo.write("base.py", DATABASE)
    repo.commit("a program")
    each = "wal\n[0, 0] 200 9900\ndatabase is locked\nok\n"
    assert same(f"{sys.executable} base.py") == 4 * each


SERVER: Final = """
import http.server, os
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
open("page.html", "w").write("from inside")
print(f"port {server.server_port}.", flush=True)
server.serve_forever()
"""


def test_a_server_inside_answers_the_host(repo: UserRepo) -> None:
    with repo.started("-b", "b", "--", sys.executable, "-c", SERVER) as run:
        run.expect(".\n")
        port = int(run.text().rpartition("port ")[2].rstrip(".\n"))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/page.html", timeout=30) as answer:
            assert answer.read() == b"from inside"
    assert not (repo.root / "page.html").exists()


@pytest.mark.by_both
def test_tmux_shows_a_shell_and_ends(repo: UserRepo, needs: Needs) -> None:
    needs("tmux")
    repo.env["SHELL"] = "/bin/sh"
    command = repo.command("-b", "b", "--", "tmux", "-f", "/dev/null", "new-session", "tty; exec cat")
    with repo.terminal(*command) as terminal:
        terminal.expect("/dev/pts/")
        terminal.type("typed\n")
        terminal.expect("typed")
        for key in "\x02c":  # a second window, with a shell; keys that come at once are a paste to tmux
            time.sleep(0.1)
            terminal.type(key)
        time.sleep(0.1)
        terminal.type("echo $((6 * 7)) >answer; echo in$((6 * 7))side\n")
        terminal.expect("in42side")
        terminal.type("tmux kill-session\n")
        terminal.expect("[exited]")
        assert terminal.end() == 0
    assert repo.show("b", "answer") == "42\n"


@pytest.mark.by_both
def test_programs_that_make_a_terminal_for_others(repo: UserRepo) -> None:
    script = (
        "script -qec 'tty; stty size; test -t 0 && echo terminal' /dev/null </dev/null;"
        f"{sys.executable} -c \"import pty; pty.spawn(['sh', '-c', 'tty; : >/dev/tty && echo own'])\" </dev/null"
    )
    lines = repo.inside(script).split("\n")
    assert [line.strip() for line in lines] == ["/dev/pts/0", "0 0", "terminal", "/dev/pts/0", "own", ""]


CRASH: Final = """\
#include <stdlib.h>
int fail(int n) { if (n == 1) abort(); return n; }
int main(int n, char **words) { char *lost = malloc(7); lost = 0; return fail(n) != n || lost; }
"""


@pytest.mark.by_both
def test_tracers_work_with_the_switch_for_them(repo: UserRepo, needs: Needs) -> None:
    needs("strace", "gdb", "gcc")
    repo.write("crash.c", CRASH)
    repo.commit("a program")
    script = """
    strace -f -e trace=execve -o $HOME/log sh -c 'true; /bin/true'; grep -c execve $HOME/log
    gcc -g -o $HOME/crash crash.c; gdb -q -batch -ex run -ex bt $HOME/crash 2>&1
    gcc -fsanitize=address -o $HOME/leak crash.c; $HOME/leak 2 2>&1 | grep SUMMARY
    """
    found = repo.inside(script, "--allow-ptrace")
    assert found.startswith("2\n")
    assert "fail (n=1) at crash.c:2" in found
    assert "Operation not permitted" not in found
    assert found.endswith("SUMMARY: AddressSanitizer: 7 byte(s) leaked in 1 allocation(s).\n")


@pytest.mark.by_both
def test_without_the_switch_a_tracer_is_refused_and_told_of_it(repo: UserRepo, needs: Needs) -> None:
    needs("strace")
    done = repo.sh("strace -o /dev/null true")
    assert done.code != 0
    (hint,) = [line for line in done.ours if "--allow-ptrace" in line]
    assert "strace" in hint
