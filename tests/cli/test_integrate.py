"""`integrate`: what it writes into the user's files, and that the undo gives them back."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import pytest
from conftest import Done

from overlayrun.cli.main import run_cli

if TYPE_CHECKING:
    from conftest import UserRepo

pytestmark = pytest.mark.shared  # texts of the user's files

SETTINGS: Final = """{
    "model": "opus",
    "hooks": {
        "Stop": [{"hooks": [{"type": "command", "command": "say done"}]}]
    }
}
"""
_NOTE: Final = ".local/state/overlayrun/integrations.json"
_EVENTS: Final = {
    "claude": ["PostToolUse", "SessionStart", "Stop", "UserPromptSubmit", "WorktreeCreate", "WorktreeRemove"],
    "codex": ["PostToolUse", "Stop", "UserPromptSubmit"],
}
_PLACE: Final = {"claude": ".claude/settings.json", "codex": ".codex/hooks.json"}


class Integrate(Protocol):
    """`overlayrun integrate *words` with further variables, in this process: one of its own costs much more."""

    def __call__(self, *words: str, **env: str) -> Done: ...


@pytest.fixture
def integrate(
    repo: UserRepo, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Integrate:
    def call(*words: str, **env: str) -> Done:
        with monkeypatch.context() as patch:
            for name, value in {**repo.env, "SHELL": "/bin/bash", **env}.items():
                patch.setenv(name, value)
            capfd.readouterr()
            with pytest.raises(SystemExit) as ended:
                run_cli(["integrate", *words])
            out, err = capfd.readouterr()
        assert "bug in overlayrun" not in err
        assert isinstance(ended.value.code, int)
        return Done(ended.value.code, out, err)

    return call


def _files(home: Path) -> dict[str, tuple[bytes, int]]:
    """Every file of a home directory, less what overlayrun keeps of its own."""
    found = [path for path in home.rglob("*") if path.is_file()]
    names = {str(path.relative_to(home)): (path.read_bytes(), path.stat().st_mode) for path in found}
    return {name: what for name, what in names.items() if not name.startswith(".local/")}


def _put(path: Path, text: str, mode: int = 0o644) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.by_both
@pytest.mark.parametrize("agent", ["claude", "codex"])
def test_hooks_join_those_that_are_there_and_go_without_a_trace(
    repo: UserRepo, integrate: Integrate, agent: str
) -> None:
    path = _put(repo.home / _PLACE[agent], SETTINGS, 0o600)
    before = _files(repo.home)

    dry = integrate(agent, "--dry-run")
    assert (dry.code, _files(repo.home)) == (0, before)
    assert not (repo.home / _NOTE).exists()

    done = integrate(agent)
    assert done.code == 0
    assert done.out.startswith(f"change {path}\n")
    added = [line.removeprefix("  +") for line in done.out.splitlines() if line.startswith("  +")]
    assert set(path.read_text().splitlines()) <= {*added, *SETTINGS.splitlines()}
    data = json.loads(path.read_text())
    assert data["model"] == "opus"
    assert sorted(data["hooks"]) == _EVENTS[agent]
    assert data["hooks"]["Stop"][0] == json.loads(SETTINGS)["hooks"]["Stop"][0]
    for groups in data["hooks"].values():
        assert groups[-1]["hooks"] == [
            {"type": "command", "command": f"overlayrun hook {agent}", "timeout": 15}
        ]
    assert path.stat().st_mode & 0o777 == 0o600

    once = _files(repo.home)
    again = integrate(agent)
    assert (again.out.splitlines()[0], _files(repo.home)) == (f"unchanged {path}", once)

    assert integrate(agent, "--remove").out.startswith(f"change {path}\n")
    assert _files(repo.home) == before
    assert not (repo.home / _NOTE).exists()
    assert "nothing to undo" in integrate(agent, "--remove").out


def test_what_the_user_wrote_since_is_kept(repo: UserRepo, integrate: Integrate) -> None:
    path = repo.home / ".claude/settings.json"
    integrate("claude")
    data = json.loads(path.read_text())
    data["model"] = "haiku"
    data["hooks"]["PostToolUse"].insert(0, {"matcher": "Read", "hooks": []})
    path.write_text(json.dumps(data))
    integrate("claude", "--remove")
    assert json.loads(path.read_text()) == {
        "hooks": {"PostToolUse": [{"matcher": "Read", "hooks": []}]},
        "model": "haiku",
    }


def test_a_hook_of_the_users_own_that_is_the_same_is_not_ours_to_take(
    repo: UserRepo, integrate: Integrate
) -> None:
    own = {"hooks": [{"type": "command", "command": "overlayrun hook codex", "timeout": 15}]}
    text = json.dumps({"hooks": {"Stop": [own]}})
    path = _put(repo.home / ".codex/hooks.json", text)
    integrate("codex")
    assert json.loads(path.read_text())["hooks"]["Stop"] == [own]
    path.write_text(path.read_text() + "\n")
    integrate("codex", "--remove")
    assert json.loads(path.read_text()) == {"hooks": {"Stop": [own]}}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"hooks": ', "line 1: no JSON value"),
        ('{\n  // mine\n  "a": 1\n}', "the agent ignores a file that has comments"),
        ("[1]", "it holds no object"),
        ('{"hooks": {"Stop": {}}}', "hooks.Stop is no array"),
    ],
)
def test_a_file_that_can_not_be_edited_is_left_and_nothing_else_is_written(
    repo: UserRepo, integrate: Integrate, text: str, why: str
) -> None:
    path = _put(repo.home / ".claude/settings.json", text)
    done = integrate("claude")
    assert (done.code, path.read_text()) == (3, text)
    assert done.ours[0].startswith(f"left as it is, for it can't be edited: {path}: {why}")
    assert not (repo.home / _NOTE).exists()


def _fake_opencode(repo: UserRepo, version: str) -> str:
    """A directory for PATH with a program that tells a version, as the real one takes seconds for it."""
    _put(repo.home.parent / "bin/opencode", f"#!/bin/sh\necho {version}\n", 0o755)
    return f"{repo.home.parent / 'bin'}:{repo.env['PATH']}"


def test_opencode_gets_its_plugins_and_the_shell_its_variable(repo: UserRepo, integrate: Integrate) -> None:
    tui = _put(
        repo.home / ".config/opencode/tui.json", '{\n  // dark\n  "theme": "x",\n  "plugin": ["a"],\n}\n'
    )
    bashrc = _put(repo.home / ".bashrc", "alias x=y")
    before = _files(repo.home)
    path = _fake_opencode(repo, "1.18.33")

    done = integrate("opencode", PATH=path)

    assert (done.code, done.out.splitlines()[-1]) == (0, "now: open a new terminal, then: opencode")
    assert "known to work" not in done.out
    stub = (repo.home / ".config/opencode/plugins/overlayrun.js").read_text()
    assert "/overlayrun/agents/opencode/server.js" in stub
    assert tui.read_text().startswith('{\n  // dark\n  "theme": "x",\n  "plugin": ["a", "file:///')
    assert tui.read_text().endswith('/overlayrun/agents/opencode/tui.js"],\n}\n')
    assert bashrc.read_text().splitlines()[0::2] == ["alias x=y", "export OPENCODE_EXPERIMENTAL_WORKSPACES=1"]
    assert integrate("opencode", PATH=path).out.count("nothing to do") == 3

    integrate("opencode", "--remove")
    assert _files(repo.home) == before


def test_a_start_file_keeps_what_was_added_after_our_lines_and_lines_of_ours_that_were_changed(
    repo: UserRepo, integrate: Integrate
) -> None:
    bashrc = _put(repo.home / ".bashrc", "alias x=y\n")
    integrate("opencode")
    ours = bashrc.read_text().removeprefix("alias x=y\n")
    bashrc.write_text(f"alias x=y\n{ours}alias z=y\n")
    integrate("opencode", "--remove")
    assert bashrc.read_text() == "alias x=y\nalias z=y\n"

    integrate("opencode")
    changed = bashrc.read_text().replace("WORKSPACES=1", "WORKSPACES=0")
    bashrc.write_text(changed)
    done = integrate("opencode", "--remove")
    assert f"kept {bashrc}\n" in done.out
    assert bashrc.read_text() == changed


def test_a_plugin_of_an_older_place_gives_way(repo: UserRepo, integrate: Integrate) -> None:
    integrate("opencode")
    note = repo.home / _NOTE
    for path in (
        repo.home / ".config/opencode/tui.jsonc",
        repo.home / ".config/opencode/plugins/overlayrun.js",
    ):
        path.write_text(path.read_text().replace("/overlayrun/agents/", "/old/agents/"))
    note.write_text(note.read_text().replace("/overlayrun/agents/", "/old/agents/"))
    integrate("opencode")
    tui = json.loads((repo.home / ".config/opencode/tui.jsonc").read_text())
    assert [os.path.basename(each) for each in tui["plugin"]] == ["tui.js"]
    assert "/old/" not in json.dumps(tui)
    integrate("opencode", "--remove")
    assert set(_files(repo.home)) == {".gitconfig"}
    assert not (repo.home / ".config").exists()


@pytest.mark.parametrize(
    ("shell", "place", "line"),
    [
        ("/usr/bin/zsh", "dots/.zshrc", "export OPENCODE_EXPERIMENTAL_WORKSPACES=1"),
        ("/usr/bin/fish", "conf/fish/conf.d/overlayrun.fish", "set -gx OPENCODE_EXPERIMENTAL_WORKSPACES 1"),
        ("/bin/dash", "", ""),
    ],
)
def test_other_shells_and_other_places(
    repo: UserRepo, integrate: Integrate, shell: str, place: str, line: str
) -> None:
    home = repo.home
    env = {"SHELL": shell, "ZDOTDIR": str(home / "dots"), "XDG_CONFIG_HOME": str(home / "conf")}
    done = integrate("opencode", "--json", **env, PATH=_fake_opencode(repo, "2.0.1"))
    data = json.loads(done.out)
    assert data["advice"][0].startswith("opencode here is 2.0.1; known to work is 1.18")
    made = {os.path.relpath(each["path"], home): each["difference"] for each in data["files"]}
    assert set(made) == {
        "conf/opencode/plugins/overlayrun.js",
        "conf/opencode/tui.jsonc",
        *filter(None, [place]),
    }
    if place:
        assert line in (home / place).read_text().splitlines()
        assert f"+{line}" in made[place]
    else:
        assert "your shell is not known here" in data["advice"][1]
    integrate("opencode", "--remove", **env)
    assert set(_files(home)) == {".gitconfig"}


def test_a_link_is_followed_and_stays(repo: UserRepo, integrate: Integrate) -> None:
    kept = _put(repo.home / "dotfiles/bashrc", "alias x=y\n")
    (repo.home / ".bashrc").symlink_to(kept)
    integrate("opencode", OPENCODE_CONFIG_DIR=str(repo.home / "oc"))
    assert (repo.home / ".bashrc").is_symlink()
    assert "OPENCODE_EXPERIMENTAL_WORKSPACES" in kept.read_text()
    assert (repo.home / "oc/tui.jsonc").is_file()
    integrate("opencode", "--remove")
    assert kept.read_text() == "alias x=y\n"


def test_the_stub_says_in_one_line_that_the_package_is_gone(
    repo: UserRepo, integrate: Integrate, tmp_path: Path
) -> None:
    integrate("opencode")
    stub = (repo.home / ".config/opencode/plugins/overlayrun.js").read_text()
    (tmp_path / "gone.mjs").write_text(stub.replace("server.js", "missing.js"))
    (tmp_path / "package.mjs").write_text(
        "export default { server: async (input) => ({ got: input.word }) }\n"
    )
    source = next(line for line in stub.splitlines() if line.startswith("const source"))
    (tmp_path / "there.mjs").write_text(
        stub.replace(source, f'const source = "{(tmp_path / "package.mjs").as_uri()}"')
    )
    told = _node(repo, tmp_path)
    assert told["gone"] == {}
    assert told["there"] == {"got": "hello"}
    assert len(told["warnings"]) == 1
    assert "is gone; type: overlayrun integrate opencode, or --remove" in told["warnings"][0]


def _node(repo: UserRepo, place: Path) -> dict[str, Any]:
    script = (
        "const warnings = []; console.warn = (line) => warnings.push(line)\n"
        f"const load = async (name) => (await import(`{place}/${{name}}.mjs`)).default.server({{ word: 'hello' }})\n"
        "console.log(JSON.stringify({ gone: await load('gone'), there: await load('there'), warnings }))\n"
    )
    (place / "main.mjs").write_text(script)
    done = subprocess.run(
        ["node", place / "main.mjs"], env=repo.env, check=True, capture_output=True, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_hooks_of_claude_for_its_command_line(repo: UserRepo, integrate: Integrate) -> None:
    done = integrate("claude", "--print")
    assert sorted(json.loads(done.out)["hooks"]) == _EVENTS["claude"]
    assert done.out.count("\n") == 1
    assert set(_files(repo.home)) == {".gitconfig"}
    assert integrate("codex", "--print").code == 3


@pytest.mark.by_both
def test_in_a_workspace_it_is_refused(repo: UserRepo) -> None:
    done = repo.sh("overlayrun integrate claude")
    assert done.code == 3
    assert "this is a workspace: your configuration is out of reach" in done.ours


def test_a_note_that_can_not_be_read_stops_the_undo(repo: UserRepo, integrate: Integrate) -> None:
    integrate("claude")
    before = _files(repo.home)
    (repo.home / _NOTE).write_text('{"schema": 1, "agents": {"claude": [{}]}}')
    done = integrate("claude", "--remove")
    assert (done.code, _files(repo.home)) == (3, before)
    assert done.ours[0].startswith("the note of what was done can't be read")
