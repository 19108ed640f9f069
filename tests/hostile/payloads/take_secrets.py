"""Read what is the user's, write where his shell or his next agent would look, talk to his programs."""

from __future__ import annotations

import os
import socket
import stat
import subprocess

from inside import GIVEN, ended, finish, probe, read_some

HOME = os.path.expanduser("~")
PLANT = f"touch {os.environ.get('PWN', '/nowhere')}\n"


def git(*words: str) -> str:
    return subprocess.run(["git", *words], capture_output=True, text=True, check=False).stdout


@probe("110 git")
def _() -> object:
    return {
        "config": git("config", "--local", "-l"),
        "remotes": git("remote", "-v"),
        "branches": git("for-each-ref", "--format=%(refname)", "refs/heads").split(),
        "stash": git("stash", "list"),
        "hooks": os.listdir(".git/hooks") if os.path.isdir(".git/hooks") else [],
    }


@probe("100 secrets")
def _() -> object:
    found = {}
    for path in [*GIVEN["secret_paths"], "/etc/sudoers", "/proc/1/environ"]:
        try:
            found[path] = read_some(path)
        except OSError as err:
            found[path] = ended(-(err.errno or 1))
    return found


@probe("100 anywhere in HOME")
def _() -> object:
    done = subprocess.run(["grep", "-rlsI", "OLRSECRET", HOME], capture_output=True, text=True, check=False)
    return done.stdout.split()


@probe("101 dotfiles")
def _() -> object:
    written = []
    names = (
        ".bashrc .profile .zshrc .config/autostart/x .config/systemd/user/x.service .local/bin/git .gitconfig "
        ".ssh/authorized_keys .netrc .config/git/config .vimrc .npmrc"
    )
    for name in names.split():
        try:
            os.makedirs(os.path.dirname(f"{HOME}/{name}"), exist_ok=True)
            with open(f"{HOME}/{name}", "a", encoding="utf-8") as file:
                file.write(PLANT)
            written.append(name)
        except OSError:
            pass
    return written


@probe("102 agents' own files")
def _() -> object:
    written = []
    names = (
        ".claude/settings.json .claude/settings.local.json .claude/hooks/x .claude/CLAUDE.md .claude/agents/x.md "
        ".claude/commands/x.md .claude/plugins/x .claude.json .codex/config.toml .codex/AGENTS.md .codex/prompts/x "
        ".codex/rules/x .config/opencode/opencode.json .config/opencode/plugin/x.js .config/opencode/AGENTS.md "
        ".cache/opencode/bin/rg .cache/opencode/node_modules/x/index.js .local/share/opencode/bin/x "
        ".opencode/bin/opencode .mcp.json"
    )
    for name in names.split():
        try:
            os.makedirs(os.path.dirname(f"{HOME}/{name}"), exist_ok=True)
            with open(f"{HOME}/{name}", "w", encoding="utf-8") as file:
                file.write(PLANT)
            os.chmod(f"{HOME}/{name}", 0o755)
            written.append(name)
        except OSError:
            pass
    return written


@probe("103 environment")
def _() -> object:
    return dict(os.environ)


@probe("105 sockets")
def _() -> object:
    reached = []
    for place, directories, names in os.walk("/"):
        # Deep trees of programs hold no sockets, and the walk shall be short.
        if place in ("/proc", "/sys", "/usr", "/opt", "/root/.cache", "/lib"):
            directories.clear()
            continue
        for name in names:
            path = f"{place}/{name}"
            try:
                if not stat.S_ISSOCK(os.lstat(path).st_mode) or path == os.environ.get("OVERLAYRUN_SOCKET"):
                    continue
                with socket.socket(socket.AF_UNIX) as client:
                    client.settimeout(1)
                    client.connect(path)
                reached.append(path)
            except OSError:
                continue
    return reached


@probe("107 message queues and shared memory")
def _() -> object:
    counts = {}
    for kind in ("shm", "sem", "msg"):
        with open(f"/proc/sysvipc/{kind}", encoding="ascii") as lines:
            counts[kind] = len(lines.readlines()) - 1
    return {**counts, "/dev/shm": len(os.listdir("/dev/shm"))}


@probe("108 scratch")
def _() -> object:
    seen = {place: os.listdir(place) for place in ("/tmp", "/var/tmp", "/run")}
    for place in ("/tmp", "/var/tmp"):
        with open(f"{place}/made-{GIVEN['mark']}", "w", encoding="ascii") as file:
            file.write("x")
    return {place: [name for name in names if GIVEN["mark"] in name] for place, names in seen.items()}


@probe("109 other branches")
def _() -> object:
    found = []
    for place in (f"{GIVEN['root']}/.git/overlayrun", f"{HOME}/.mine"):
        if os.path.exists(place):
            found.append(place)
    done = subprocess.run(
        ["find", os.path.dirname(GIVEN["root"]), "-path", "*upper*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return [*found, *done.stdout.split()]


@probe("143 who")
def _() -> object:
    return {"uid": os.getuid(), "map": read_some("/proc/self/uid_map").split()}


finish()
