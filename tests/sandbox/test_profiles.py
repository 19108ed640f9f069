"""Agents share data with the host, and nothing that the host would execute or believe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from overlayrun.errors import UsageError
from overlayrun.sandbox.profiles import PROFILES, parse_profile, profile_of, shared_state

if TYPE_CHECKING:
    from conftest import UserRepo

# What each agent executes, sources, loads or reads as instructions on the host, below HOME.
CARRIERS: Final = {
    "opencode": """
        .config/opencode/opencode.json .config/opencode/plugin/evil.js .config/opencode/node_modules/evil/index.js
        .opencode/bin/opencode .local/share/opencode/bin/rg .local/share/opencode/auth.json
        .local/share/opencode/snapshot/project/config .local/share/opencode/repos/r/config
        .local/share/opencode/worktree/w/.git .local/share/opencode/plugin/evil.js
        .cache/opencode/bin/rg .cache/opencode/models.json .cache/opencode/node_modules/evil/index.js
        .local/state/opencode/plugin-meta.json
    """.split(),
    "claude": """
        .claude.json .claude/settings.json .claude/settings.local.json .claude/CLAUDE.md .claude/hooks/evil.sh
        .claude/agents/evil.md .claude/commands/evil.md .claude/skills/evil/SKILL.md .claude/plugins/evil.json
        .claude/shell-snapshots/snapshot.sh .claude/local/claude .claude/file-history/s/f
        .claude/projects/-elsewhere/s.jsonl
    """.split(),
    "codex": """
        .codex/config.toml .codex/hooks.json .codex/AGENTS.md .codex/rules/default.rules .codex/prompts/evil.md
        .codex/skills/evil/SKILL.md .codex/memories/MEMORY.md
    """.split(),
}
DATA: Final = {
    "opencode": (
        ".local/share/opencode/opencode.db",
        ".local/share/opencode/log/l",
        ".local/state/opencode/kv.json",
    ),
    "claude": (".claude/todos/t.json",),
    "codex": (".codex/sessions/2026/s.jsonl", ".codex/archived_sessions/s.jsonl"),
}


def slug(path: Path) -> str:
    return "".join(sign if sign.isalnum() else "-" for sign in str(path))


def writing(names: list[str], text: str) -> str:
    return "".join(f'mkdir -p "$HOME/{Path(name).parent}"; echo {text} >"$HOME/{name}"\n' for name in names)


@pytest.mark.parametrize("agent", PROFILES)
def test_data_is_shared_and_nothing_can_be_planted(repo: UserRepo, agent: str) -> None:
    data, carriers = [*DATA[agent]], [*CARRIERS[agent]]
    if agent == "claude":
        project = f".claude/projects/{slug(repo.root)}"
        data.append(f"{project}/s.jsonl")
        carriers.append(f"{project}/memory/MEMORY.md")
    before = {name: (repo.home / name).exists() for name in carriers}
    repo.inside(writing(data, "data") + writing(carriers, "planted"), "--profile", agent)
    for name in data:
        assert (repo.home / name).read_text() == "data\n", name
    for name in carriers:
        path = repo.home / name
        assert not path.exists() or path.read_text() == "{}\n", name
    assert not any(before.values())
    # The branch keeps its own: an agent that installs something finds it again.
    names = " ".join(f'"$HOME/{name}"' for name in carriers)
    assert repo.inside(f"cat {names}") == "planted\n" * len(carriers)
    assert "planted" not in repo.inside(
        f"cat {names} 2>/dev/null || true", "--profile", agent, branch="other"
    )


def test_what_is_kept_back_can_be_neither_moved_nor_replaced(repo: UserRepo) -> None:
    script = (
        'cd "$HOME/.local/share/opencode"; for name in bin snapshot auth.json; do '
        'mv "$name" aside && echo MOVED; rm -rf "$name" && echo REMOVED; ln -sfn /tmp "$name" && [ -L "$name" ] && '
        'echo LINKED; echo x >new; mv new "$name" 2>/dev/null && [ -f "$name" ] && echo REPLACED; done; true'
    )
    out = repo.inside(f"set +e; {script}", "--profile", "opencode")
    assert "MOVED" not in out
    assert "REMOVED" not in out
    state = repo.home / ".local/share/opencode"
    assert (state / "auth.json").read_text() == "{}\n"
    assert [path.name for path in (state / "bin").iterdir()] == []
    assert not any(path.is_symlink() for path in state.iterdir())


def test_a_login_is_the_agents_own_and_nobody_elses(repo: UserRepo) -> None:
    login = repo.home / ".codex/auth.json"
    login.parent.mkdir()
    login.write_text("token 1\n")
    script = 'cat "$HOME/.codex/auth.json"'
    assert "token" not in repo.sh(script).out
    refresh = f'{script}; echo token 2 >"$HOME/.codex/auth.json"; echo evil >"$HOME/.codex/new"\n'
    replace = 'mv "$HOME/.codex/new" "$HOME/.codex/auth.json" || echo refused'
    assert repo.inside(refresh + replace, "--profile", "codex", branch="c") == "token 1\nrefused\n"
    assert login.read_text() == "token 2\n"


def test_a_login_that_is_kept_back_is_seen_in_a_private_home(repo: UserRepo) -> None:
    login = repo.home / ".local/share/opencode/auth.json"
    login.parent.mkdir(parents=True)
    login.write_text("token 1\n")
    script = (
        'cat "$HOME/.local/share/opencode/auth.json"; echo token 2 >"$HOME/.local/share/opencode/auth.json"'
    )
    assert repo.inside(script, "--profile", "opencode", "--home", "private") == "token 1\n"
    assert repo.inside(script) == "token 2\n"
    assert login.read_text() == "token 1\n"


def test_state_elsewhere_is_found_by_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODEX_HOME", str(tmp_path / "codex"))
    monkeypatch.chdir(tmp_path)
    found = shared_state("codex", str(tmp_path / "home"), str(tmp_path))
    assert found == [(f"{tmp_path}/codex/sessions", []), (f"{tmp_path}/codex/archived_sessions", [])]


def test_a_project_is_where_the_command_works_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, below = tmp_path / "re_po.x", tmp_path / "re_po.x/sub"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    monkeypatch.delenv("CLAUDE_CONFIG_DIR", raising=False)
    paths = [path for path, _ in shared_state("claude", str(tmp_path), str(root))]
    assert paths[:2] == [f"{tmp_path}/.claude/projects/{slug(place)}" for place in (root, below)]


@pytest.mark.parametrize(
    ("command", "profile"), [("/usr/bin/claude", "claude"), ("codex", "codex"), ("sh", None)]
)
def test_a_profile_goes_by_the_commands_name(command: str, profile: str | None) -> None:
    assert profile_of(command) == profile


def test_an_unknown_profile_is_refused() -> None:
    assert parse_profile("none") == "none"
    with pytest.raises(UsageError, match="no profile is called 'cluade'"):
        parse_profile("cluade")
