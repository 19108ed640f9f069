"""What no command sees of the user's disk, whatever it does for it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from conftest import UserRepo

SECRETS: Final = """
.ssh/id_ed25519 .gnupg/private-keys-v1.d/k .aws/credentials .azure/token .kube/config .docker/config.json .netrc
.git-credentials .config/git/credentials .config/gh/hosts.yml .config/glab-cli/config.yml .config/hub
.config/gcloud/x.db .config/op/config .config/rclone/rclone.conf .config/sops/age/keys.txt .password-store/a.gpg
.local/share/keyrings/login.keyring .pgpass .pypirc .cargo/credentials.toml .vault-token .boto .s3cfg .databrickscfg
.huggingface/token .cache/huggingface/token .config/containers/auth.json .config/helm/registry/config.json
.config/doctl/config.yaml .terraform.d/credentials.tfrc.json .bash_history .zsh_history
.local/share/fish/fish_history .python_history .sqlite_history .psql_history .mysql_history .node_repl_history
.lesshst .rediscli_history .mozilla/firefox/p/logins.json .config/google-chrome/Default/Cookies .thunderbird/p
.electrum/wallets/w .claude/.credentials.json .claude/ide/1.lock .codex/auth.json
.local/share/opencode/auth.json
""".split()
MIXED: Final = {
    ".npmrc": "//registry.example/:_authToken=s3cret",
    ".m2/settings.xml": "<server><password>s3cret</password></server>",
    ".config/pip/pip.conf": "index-url = https://me:s3cret@pypi.example/simple",
    ".gradle/gradle.properties": "signing.password=s3cret",
}
# Bind a socket, say so, then tell who talked to it.
_ASK: Final = """
import socket, sys
for path in sys.argv[1:]:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(path)
            print("reached", client.recv(9).decode())
        except OSError as err:
            print(type(err).__name__)
"""


def put(home: Path, name: str, text: str = "s3cret\n") -> Path:
    path = home / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def served() -> Iterator[Callable[[Path], Path]]:
    """`served(path)`: a server of the host's at a unix socket, which says hello."""
    servers: list[socket.socket] = []

    def serve(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(path))
        server.listen()
        servers.append(server)
        threading.Thread(target=_say_hello, args=(server,), daemon=True).start()
        return path

    yield serve
    for server in servers:
        server.shutdown(socket.SHUT_RDWR)
        server.close()


def _say_hello(server: socket.socket) -> None:
    while True:
        try:
            client, _ = server.accept()
        except OSError:
            return
        with client:
            client.sendall(b"hello")


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a short path: a socket's may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="s") as place:
        yield Path(place)


def test_every_known_secret_is_missing_inside(repo: UserRepo) -> None:
    for name in SECRETS:
        put(repo.home, name)
    for name, text in MIXED.items():
        put(repo.home, name, text)
    put(repo.home, ".config/tool/rc", "fine\n")
    put(repo.home, ".claude/settings.json", "fine\n")
    put(repo.home, ".yarnrc.yml", "nodeLinker: fine\n")
    names = " ".join([*SECRETS, *MIXED])
    out = repo.inside(
        f'cd "$HOME"; for name in {names}; do if [ -e "$name" ]; then echo "SHOWN $name"; fi; done\n'
        "grep -rs s3cret . && echo FOUND; cat .config/tool/rc .claude/settings.json .yarnrc.yml"
    )
    assert out == "fine\nfine\nnodeLinker: fine\n"


def test_a_mask_that_the_command_takes_away_hides_what_the_user_puts_there_next(repo: UserRepo) -> None:
    script = (
        'cd "$HOME"; mkdir .aws && rmdir .aws; touch .netrc && rm .netrc; mkdir -p .config/gh && rm -r .config/gh\n'
        "echo READY; read line; cat .aws/credentials .netrc .config/gh/hosts.yml || echo HIDDEN"
    )
    with repo.started("-b", "b", "--", "sh", "-c", script) as run:
        run.expect("READY")
        for name in (".aws/credentials", ".netrc", ".config/gh/hosts.yml"):
            put(repo.home, name)
        run.type("go")
        run.end()
        assert "HIDDEN" in run.text()
        assert "s3cret" not in run.text()


def test_what_the_command_puts_at_a_secrets_place_is_its_own(repo: UserRepo) -> None:
    repo.inside('mkdir "$HOME/.ssh"; echo mine >"$HOME/.ssh/config"; echo mine >"$HOME/.netrc"')
    put(repo.home, ".ssh/id_rsa")
    put(repo.home, ".ssh/config")
    put(repo.home, ".netrc")
    assert repo.inside('cd "$HOME"; ls -A .ssh; cat .ssh/config .netrc') == "config\nmine\nmine\n"
    assert (repo.home / ".netrc").read_text() == "s3cret\n"


def test_a_secret_is_shown_to_the_run_that_asks_and_to_no_other(repo: UserRepo) -> None:
    put(repo.home, ".npmrc", MIXED[".npmrc"])
    put(repo.home, ".ssh/known_hosts", "hosts\n")
    put(repo.home, ".ssh/id_rsa")
    script = 'cd "$HOME"; cat .npmrc; ls .ssh; cat .ssh/known_hosts; echo x >>.ssh/known_hosts'
    shown = repo.sh(script, "--unmask", ".npmrc", "--unmask", f"{repo.home}/.ssh/known_hosts")
    assert shown.out == f"{MIXED['.npmrc']}known_hosts\nhosts\n"
    assert "Read-only file system" in shown.err
    hidden = repo.sh('cd "$HOME"; cat .npmrc; ls .ssh; cat .ssh/known_hosts')
    assert "s3cret" not in hidden.out
    assert "hosts\n" not in hidden.out.replace("known_hosts\n", "")


def test_masks_are_settings(repo: UserRepo) -> None:
    put(repo.home, ".netrc", "shown\n")
    put(repo.home, "diary", "s3cret\n")
    repo.git("config", "--add", "overlayrun.unmask", ".netrc")
    repo.git("config", "--add", "overlayrun.mask", "diary")
    repo.git("config", "--add", "overlayrun.mask", "/etc/hostname")
    assert repo.inside('cat "$HOME/.netrc"; ls "$HOME"; cat /etc/hostname') == "shown\n"


def test_secrets_behind_links_are_hidden_too(repo: UserRepo) -> None:
    home = repo.home
    put(home, "dots/netrc")
    put(home, "dots/config/gh/hosts.yml")
    (home / ".netrc").symlink_to("dots/netrc")
    (home / ".config").symlink_to("dots/config")
    (home / ".pgpass").symlink_to("/etc/hostname")
    (home / ".bash_history").symlink_to("/dev/null")
    script = (
        'cd "$HOME"; grep -rs s3cret . && echo FOUND; cat .netrc .config/gh/hosts.yml .pgpass /etc/hostname '
        "2>/dev/null; echo x >/dev/null; ls -d dots/config .config"
    )
    assert repo.inside(f"{{ {script}; }} || true") == ".config\ndots/config\n"
    assert (home / "dots/netrc").read_text() == "s3cret\n"


@pytest.mark.root
def test_a_home_on_a_disk_of_its_own_hides_its_secrets(repo: UserRepo) -> None:
    settings = (repo.home / ".gitconfig").read_text()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(repo.home)], check=True)
    try:
        put(repo.home, ".gitconfig", settings)
        put(repo.home, ".config/gh/hosts.yml")
        put(repo.home, "file", "fine\n")
        script = (
            'cd "$HOME"; cat .config/gh/hosts.yml 2>/dev/null || true; cat file; echo x >file; echo x >new'
        )
        assert repo.inside(script) == "fine\n"
        assert sorted(path.name for path in repo.home.iterdir()) == [
            ".config",
            ".gitconfig",
            ".local",
            "file",
        ]
        assert repo.inside('cat "$HOME/file" "$HOME/new"') == "x\nx\n"
    finally:
        subprocess.run(["umount", str(repo.home)], check=True)


@pytest.mark.root
def test_secrets_on_mounts_below_home_are_hidden_too(repo: UserRepo) -> None:
    config, keys = repo.home / ".config", repo.home / ".ssh"
    for place in (config, keys):
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(place)], check=True)
    try:
        put(repo.home, ".config/gh/hosts.yml")
        put(repo.home, ".config/tool", "fine\n")
        put(repo.home, ".ssh/id_rsa")
        out = repo.inside(
            'cd "$HOME"; cat .config/gh/hosts.yml .ssh/id_rsa 2>/dev/null || true; cat .config/tool'
        )
        assert out == "fine\n"
    finally:
        for place in (config, keys):
            subprocess.run(["umount", str(place)], check=True)


def test_a_home_that_is_the_repository_hides_its_secrets(repo: UserRepo) -> None:
    put(repo.home, ".ssh/id_rsa")
    put(repo.home, ".npmrc", MIXED[".npmrc"])
    put(repo.home, ".gitignore", ".ssh\n.npmrc\n.local\n")
    at_home = repo.at(repo.home)
    at_home.git("init", "--quiet")
    at_home.commit("dotfiles")
    out = at_home.inside('cat .ssh/id_rsa .npmrc "$HOME/.ssh/id_rsa" 2>/dev/null || true; cat .gitignore')
    assert out == ".ssh\n.npmrc\n.local\n"


def test_no_home_at_all_is_no_trouble(repo: UserRepo) -> None:
    for home in ("/", "/nonexistent"):
        env = {
            "HOME": home,
            "XDG_STATE_HOME": str(repo.home),
            "GIT_CONFIG_GLOBAL": str(repo.home / ".gitconfig"),
        }
        done = repo.overlayrun("-b", "b", "--", "sh", "-c", "echo fine; cat /etc/shadow || true", env=env)
        assert (done.code, done.out) == (0, "fine\n"), str(done)


def test_state_of_other_repositories_is_hidden(repo: UserRepo) -> None:
    other = repo.at(repo.home / "other")
    other.root.mkdir()
    other.git("init", "--quiet")
    other.commit(readme="s3cret\n")
    other.inside("true")
    assert (other.state / "workspaces").is_dir()
    script = f'cat "{other.root}/readme"; ls -A "{other.state}"; touch "{other.state}/x" || echo closed'
    assert repo.inside(f'{script}; ls "$HOME/.local/state"') == "s3cret\nclosed\n"


def test_sockets_of_the_host_are_out_of_reach(
    repo: UserRepo, short: Path, served: Callable[[Path], Path]
) -> None:
    shared = served(short / "opencode/s")
    in_home = served(repo.home / "s")
    env = {"XDG_DATA_HOME": str(short)}
    done = repo.overlayrun(
        *("-b", "b", "--profile", "opencode", "--", sys.executable, "-c", _ASK, str(shared), str(in_home)),
        env=env,
    )
    assert len(done.out.splitlines()) == 2, str(done)
    assert "reached" not in done.out


def test_the_ssh_agent_comes_in_alone(repo: UserRepo, short: Path, served: Callable[[Path], Path]) -> None:
    env = {"SSH_AUTH_SOCK": str(served(short / "agent"))}
    for name in ("id_ed25519", "id_ed25519.pub", "known_hosts", "config"):
        put(repo.home, f".ssh/{name}")
    script = f'echo "$SSH_AUTH_SOCK"; {sys.executable} -c \'{_ASK}\' "$SSH_AUTH_SOCK"; ls -A "$HOME/.ssh"'
    done = repo.overlayrun("-b", "b", "--ssh-agent", "--", "sh", "-c", script, env=env)
    expected = ["/run/overlayrun/ssh-agent", "reached hello", "config", "id_ed25519.pub", "known_hosts"]
    assert done.out.splitlines() == expected, str(done)
    without = repo.overlayrun("-b", "new", "--ssh-agent", "--", "true", env={"SSH_AUTH_SOCK": "/nothing"})
    assert (without.code, without.ours[0]) == (125, "no ssh agent is running here")
    assert "refs/heads/new" not in repo.refs()


def test_homes_of_others_are_hidden_but_for_what_path_leads_to(repo: UserRepo) -> None:
    try:
        names = os.listdir("/home")
    except OSError:
        names = []
    needed = [sys.base_prefix, *repo.env["PATH"].split(":")]
    others = [name for name in names if not any(f"{path}/".startswith(f"/home/{name}/") for path in needed)]
    assert set(repo.inside("ls -A /home").split()).isdisjoint(others)


def test_files_of_home_stay_on_one_device(repo: UserRepo) -> None:
    put(repo.home, "dir/file", "x")
    out = repo.inside('cd "$HOME"; echo y >dir/new; stat -c %d . dir dir/file dir/new | sort -u | wc -l')
    assert out == "1\n"
