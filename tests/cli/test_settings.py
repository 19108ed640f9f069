"""`config`, `completion`, `doctor`."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from overlayrun.cli.configured import configured
from overlayrun.model import CarryPolicy, DirtyPolicy

if TYPE_CHECKING:
    from conftest import UserRepo

pytestmark = pytest.mark.shared  # what is read from options and from git


def _configured(repo: UserRepo, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    for name in ("HOME", "GIT_CONFIG_NOSYSTEM"):
        patch.setenv(name, repo.env[name])
    return configured(str(repo.root), f"{repo.root}/.git")


def test_config_shows_every_setting_with_its_source(repo: UserRepo) -> None:
    repo.git("config", "overlayrun.every", "10s")
    repo.git("config", "--global", "overlayrun.dirty", "fail")
    data = json.loads(repo.overlayrun("config", "--json").out)
    assert data["schema"] == 1
    settings = data["settings"]
    assert settings["every"] == {"value": "10s", "from": "local"}
    assert settings["dirty"] == {"value": "fail", "from": "global"}
    assert settings["home"] == {"value": "cow", "from": "default"}
    assert "branch" not in settings
    text = repo.overlayrun("config").out
    assert text.splitlines()[0].split() == ["KEY", "VALUE", "FROM", "MEANING"]
    assert len(text.splitlines()) == len(settings) + 1


def test_config_sets_shows_and_unsets(repo: UserRepo) -> None:
    assert repo.overlayrun("config", "idle-timeout", "5m").code == 0
    assert repo.git("config", "overlayrun.idle-timeout") == "5m"
    assert repo.overlayrun("config", "overlayrun.idle-timeout").out == "5m\n"
    assert repo.overlayrun("config", "idle-timeout", "--unset").code == 0
    assert repo.overlayrun("config", "idle-timeout").out == "\n"
    assert repo.overlayrun("config", "idle-timeout", "--unset").code == 0


@pytest.mark.by_both
def test_config_of_all_repositories_is_the_users_own_file(repo: UserRepo) -> None:
    assert repo.overlayrun("config", "--global", "target", "develop").code == 0
    assert repo.git("config", "--global", "overlayrun.target") == "develop"


def test_settings_that_may_be_given_often_add_up(repo: UserRepo, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("A=1", "B"):
        repo.overlayrun("config", "env", value)
    assert repo.overlayrun("config", "env").out == "A=1 B\n"
    assert _configured(repo, monkeypatch) == {"env": ["A=1", "B"]}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["every", "soon"], "git config overlayrun.every can't be 'soon': it takes SPAN, such as 90s or 20m"),
        (["dirty", "all"], "git config overlayrun.dirty can't be 'all': it takes include|ignore|fail"),
        (["quiet", "maybe"], "git config overlayrun.quiet can't be 'maybe': it takes true or false"),
        (["branch", "x"], "there is no setting 'branch'"),
        (["nonsense"], "there is no setting 'nonsense'"),
    ],
)
def test_config_refuses_what_a_run_would_refuse(repo: UserRepo, words: list[str], line: str) -> None:
    before = (repo.root / ".git/config").read_bytes()
    done = repo.overlayrun("config", *words)
    assert (done.code, done.ours[0]) == (3, line)
    assert done.ours[1].startswith("hint: ")
    assert (repo.root / ".git/config").read_bytes() == before


def test_configured_values_have_the_options_types(repo: UserRepo, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _configured(repo, monkeypatch) == {}
    wanted = {
        "dirty": "ignore",
        "carry": "none",
        "every": "2m",
        "quiet": "yes",
        "target": "next",
        "freeze": "0",
    }
    for key, value in wanted.items():
        repo.git("config", f"overlayrun.{key}", value)
    assert _configured(repo, monkeypatch) == {
        "dirty": DirtyPolicy.IGNORE,
        "carry": CarryPolicy.NONE,
        "every": 120.0,
        "quiet": True,
        "into": "next",
        "freeze": False,
    }


@pytest.mark.by_both
def test_settings_are_found_where_git_finds_them(repo: UserRepo, monkeypatch: pytest.MonkeyPatch) -> None:
    (repo.home / "more").write_text("[overlayrun]\n\tevery = 7\n")
    repo.git("config", "--global", "include.path", "~/more")
    assert _configured(repo, monkeypatch) == {"every": 7.0}
    repo.git("config", "--global", "--unset", "include.path")
    config = repo.home / ".config/git/config"
    config.parent.mkdir(parents=True)
    config.write_text("[OverlayRun]\n\tEvery = 8\n")
    assert _configured(repo, monkeypatch) == {"every": 8.0}


@pytest.mark.by_both
def test_a_run_honours_the_settings_and_its_options_win(repo: UserRepo) -> None:
    repo.git("config", "overlayrun.quiet", "true")
    repo.git("config", "overlayrun.dirty", "fail")
    repo.write("README", "edited\n")
    assert repo.sh("true").ours[0].startswith("1 uncommitted change")
    assert repo.sh("true", "--dirty", "ignore").err == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(repo: UserRepo, shell: str) -> None:
    done = repo.overlayrun("completion", shell)
    assert (done.code, done.err) == (0, "")
    assert f"_OVERLAYRUN_COMPLETE={shell}_complete" in done.out


def test_completion_of_another_shell(repo: UserRepo) -> None:
    assert repo.overlayrun("completion", "csh").code == 2


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("overlayrun re", {"reconcile", "restore"}),
        ("overlayrun diff ", {"fix/login", "overlay/sh-oak"}),
        ("overlayrun diff fix/login@{1}..o", {"fix/login@{1}..overlay/sh-oak"}),
        ("overlayrun merge sh", {"overlay/sh-oak"}),
        ("overlayrun run -b f", {"fix/login"}),
        ("overlayrun -b f", {"fix/login"}),
        ("overlayrun run --dirty i", {"include", "ignore"}),
        ("overlayrun run --tim", {"--timeout"}),
        ("overlayrun config idle", {"idle-timeout"}),
        ("overlayrun completion z", {"zsh"}),
    ],
)
def test_bash_completes(repo: UserRepo, line: str, words: set[str]) -> None:
    for branch in ("fix/login", "overlay/sh-oak"):
        record = repo.state / f"workspaces/{branch.replace('/', '')}/record.json"
        record.parent.mkdir(parents=True, mode=0o700)
        record.write_text(
            json.dumps({**_RECORD, "branch": branch, "id": record.parent.name, "root": str(repo.root)})
        )
    repo.state.chmod(0o700)
    script = (
        'eval "$(overlayrun completion bash)"; COMP_WORDS=($1); [[ $1 == *" " ]] && COMP_WORDS+=("");'
        "COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); compopt() { :; };"
        '_overlayrun_completion overlayrun; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", script, "bash", line],
        cwd=repo.root,
        env=repo.env,
        check=True,
        capture_output=True,
        text=True,
    )
    assert set(done.stdout.split()) == words
    assert done.stderr == ""


_RECORD: dict[str, Any] = {
    **{"version": 1, "tree": "4b825dc642cb6eb9a060e54bf8d69288fbee4904", "base": None, "dirty": None},
    **{"target": "main", "created": 0.0, "throwaway": False, "last_run": None, "stack": [], "carried": []},
}


def test_completion_outside_of_a_repository_is_silent(repo: UserRepo) -> None:
    env = {"_OVERLAYRUN_COMPLETE": "bash_complete", "COMP_WORDS": "overlayrun diff ", "COMP_CWORD": "2"}
    done = repo.overlayrun(cwd=repo.home, env=env)
    assert (done.out.strip(), done.err) == ("", "")


@pytest.mark.by_both
def test_doctor_tells_each_ability(repo: UserRepo) -> None:
    data = json.loads(repo.overlayrun("doctor", "--json").out)
    assert set(data) == {"schema", "findings", "missing"}
    assert set(data["findings"][0]) == {"name", "state", "found", "why", "cure"}
    assert {finding["state"] for finding in data["findings"]} <= {"ok", "limited", "missing"}
    done = repo.overlayrun("doctor")
    assert done.code == (1 if data["missing"] else 0)
    names = [finding["name"] for finding in data["findings"]]
    assert "overlayfs" in names
    assert all(f"  {name}" in done.out for name in names)


@pytest.mark.by_both
def test_doctor_names_a_cure_and_ends_with_1(repo: UserRepo) -> None:
    done = repo.overlayrun("doctor", env={"OVERLAYRUN_STATE_DIR": "/proc/overlayrun"})
    assert done.code == 1
    assert "missing  " in done.out
    assert "cure: " in done.out


@pytest.mark.by_both
def test_doctor_works_outside_of_a_repository(repo: UserRepo) -> None:
    done = repo.overlayrun("doctor", cwd=repo.home)
    assert done.code in (0, 1)
    assert "state directory" not in done.out
