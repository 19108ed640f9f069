"""What a command sees of HOME and of the user's other places."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import UserRepo


def test_home_changes_stay_with_the_branch(repo: UserRepo) -> None:
    (repo.home / "note").write_text("host\n")
    repo.inside(
        'echo branch >"$HOME/note"; echo x >"$HOME/.made"; '
        'mkdir -p "$HOME/.cache/tool"; echo c >"$HOME/.cache/tool/c"'
    )
    assert (repo.home / "note").read_text() == "host\n"
    assert not (repo.home / ".made").exists()
    assert repo.inside('cat "$HOME/note" "$HOME/.made" "$HOME/.cache/tool/c"') == "branch\nx\nc\n"
    assert repo.inside('cat "$HOME/note"; ls -A "$HOME"', branch="other").startswith("host\n")


def test_home_private_is_empty(repo: UserRepo) -> None:
    (repo.home / "note").write_text("host\n")
    assert repo.inside('ls -A "$HOME"; touch "$HOME/x"', "--home", "private") == ""


def test_secrets_of_home_are_hidden(repo: UserRepo) -> None:
    names = (
        ".ssh/id_ed25519",
        ".netrc",
        ".git-credentials",
        ".aws/credentials",
        ".config/gh/hosts.yml",
        ".gnupg/x",
        ".kube/config",
        ".docker/config.json",
        ".pypirc",
        ".bash_history",
    )
    for name in names:
        path = repo.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("s3cret\n")
    (repo.home / ".config/tool").mkdir(parents=True)
    (repo.home / ".config/tool/rc").write_text("fine\n")
    out = repo.inside(
        'cd "$HOME"; grep -rs s3cret . || true; '
        + "; ".join(f"cat {name} 2>/dev/null || true" for name in names)
        + "; cat .config/tool/rc"
    )
    assert out == "fine\n"


def test_secrets_made_later_are_hidden_too(repo: UserRepo) -> None:
    repo.inside("true")
    (repo.home / ".ssh").mkdir()
    (repo.home / ".ssh/id_rsa").write_text("s3cret\n")
    assert repo.sh('cat "$HOME/.ssh/id_rsa"').out == ""


def test_environment_holds_no_secret_and_no_handle(repo: UserRepo) -> None:
    env = {
        "GITHUB_TOKEN": "s",
        "AWS_SECRET_ACCESS_KEY": "s",
        "DB_PASSWORD": "s",
        "SSH_AUTH_SOCK": "s",
        "DBUS_SESSION_BUS_ADDRESS": "s",
        "GIT_DIR": "/x",
        "OPENAI_API_KEY": "kept",
        "EDITOR": "vi",
    }
    done = repo.overlayrun("-b", "b", "--env", "DB_PASSWORD", "--env", "SET=1", "--", "env", env=env)
    seen = dict(line.partition("=")[::2] for line in done.out.splitlines())
    assert not {
        "GITHUB_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "SSH_AUTH_SOCK",
        "DBUS_SESSION_BUS_ADDRESS",
        "GIT_DIR",
    } & set(seen)
    assert (seen["OPENAI_API_KEY"], seen["EDITOR"], seen["DB_PASSWORD"], seen["SET"]) == (
        "kept",
        "vi",
        "s",
        "1",
    )
    assert (seen["OVERLAYRUN_BRANCH"], seen["PWD"]) == ("b", str(repo.root))
