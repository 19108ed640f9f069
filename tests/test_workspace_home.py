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


def test_home_private_is_the_branchs_own(repo: UserRepo) -> None:
    (repo.home / "note").write_text("host\n")
    (repo.home / ".ssh").mkdir()
    (repo.home / ".ssh/id_rsa").write_text("s3cret\n")
    # What package managers and build tools do in a HOME that they have never seen.
    script = (
        'ls -A "$HOME"; cd "$HOME"; mkdir -p .cache/pip .npm .cargo/registry && mkdir -p .ssh; '
        "echo x >.cache/pip/x; mv .cache/pip .cache/moved; python3 -m venv --without-pip venv; venv/bin/python -c ''"
    )
    assert repo.inside(script, "--home", "private") == ""
    assert repo.inside('ls -A "$HOME" "$HOME/.ssh"; cat "$HOME/.cache/moved/x"').split() == [
        *(f"{repo.home}:", ".cache", ".cargo", ".npm", ".ssh", "venv", f"{repo.home}/.ssh:", "x")
    ]
    assert sorted(path.name for path in repo.home.iterdir()) == [".gitconfig", ".local", ".ssh", "note"]
    assert repo.inside('ls -A "$HOME"', "--home", "private", branch="other") == ""


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
