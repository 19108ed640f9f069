"""Agents share data with the host, and nothing that the host would execute or believe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import pytest

from overlayrun.errors import UsageError
from overlayrun.sandbox.profiles import PROFILES, parse_profile, plugin_variables, profile_of, shared_state
from overlayrun.sandbox.seeds import takes_seed

if TYPE_CHECKING:
    from conftest import UserRepo

pytestmark = pytest.mark.shared  # which paths and words belong to an agent

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


@pytest.mark.by_both
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


@pytest.mark.by_both
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


@pytest.mark.by_both
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


@pytest.mark.by_both
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


LOGINS: Final = {
    "opencode": ".local/share/opencode/auth.json",
    "claude": ".claude/.credentials.json",
    "codex": ".codex/auth.json",
}
PRIVATE: Final = ("--agent-state", "private")


@pytest.mark.parametrize("kind", ["cow", "private"])
@pytest.mark.parametrize("agent", PROFILES)
def test_private_state_is_the_branchs_alone_and_stays_with_it(repo: UserRepo, agent: str, kind: str) -> None:
    data, login = [*DATA[agent]], LOGINS[agent]
    if agent == "claude":
        data.append(f".claude/projects/{slug(repo.root)}/s.jsonl")
    if agent == "codex":
        data.append(".codex/history.jsonl")
    for name, text in (*((name, "yours") for name in data), (login, "token 1")):
        (repo.home / name).parent.mkdir(parents=True, exist_ok=True)
        (repo.home / name).write_text(f"{text}\n")
    names = " ".join(f'"$HOME/{name}"' for name in data)
    first = f'cat {names} 2>/dev/null || true; cat "$HOME/{login}"\n{writing([*data, login], "own")}'
    options = ("--profile", agent, "--home", kind, *PRIVATE)
    done = repo.sh(first, *options)
    assert (done.code, done.out) == (0, "token 1\n"), str(done)
    assert f"agent state of {agent}: the branch's own" in done.ours
    assert repo.inside(f'cat {names} "$HOME/{login}"') == "own\n" * (len(data) + 1)
    assert [(repo.home / name).read_text() for name in data] == ["yours\n"] * len(data)
    assert (repo.home / login).read_text() == "token 1\n"
    assert "agent state  the branch's own" in repo.overlayrun("show", "b").out
    assert repo.inside(first, *options, branch="other") == "token 1\n"


def test_a_database_elsewhere_is_not_an_own_one(repo: UserRepo) -> None:
    repo.env["OPENCODE_DB"] = "/elsewhere/opencode.db"
    script = 'echo "${OPENCODE_DB-none}"'
    assert repo.inside(script, "--profile", "opencode", *PRIVATE) == "none\n"
    assert repo.inside(script, "--profile", "opencode", branch="shared") == "/elsewhere/opencode.db\n"


def test_private_state_must_lie_in_home(repo: UserRepo, tmp_path: Path) -> None:
    repo.env["CODEX_HOME"] = str(tmp_path / "elsewhere")
    done = repo.sh("true", "--profile", "codex", *PRIVATE)
    assert done.code == 125
    assert "needs the agent's state in HOME" in done.ours[-2]


@pytest.mark.by_both
def test_a_link_that_an_agent_left_in_its_home_leads_nowhere(repo: UserRepo, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (repo.home / ".local/share/opencode").mkdir(parents=True)
    (repo.home / LOGINS["opencode"]).write_text("token\n")
    script = "".join(
        f'mv "$HOME/{name}" "$HOME/{name}-away"; ln -s {target} "$HOME/{name}"\n'
        for name in (".config", ".local")
    )
    options = ("--profile", "opencode", "--home", "private", *PRIVATE)
    repo.inside(script, *options)
    repo.inside("true", *options)
    assert list(target.iterdir()) == []


SEED: Final = ("node_modules", "package-lock.json")


@pytest.mark.by_both
def test_an_installation_is_spared_and_leaves_no_trace(repo: UserRepo) -> None:
    repo.commit(**{".opencode/command/hi.md": "hi\n", "sub/.opencode/agent/a.md": "a\n"})
    places = ["$HOME/.config/opencode", f"{repo.root}/.opencode", f"{repo.root}/sub/.opencode"]
    look = "".join(f'ls -A "{place}" | tr "\\n" " "; stat -c %a "{place}"\n' for place in places)
    command = ["sh", "-c", f"{look} git status --porcelain"]
    done = repo.overlayrun("-b", "b", "--profile", "opencode", "--", *command, cwd=repo.root / "sub")
    assert done.out.splitlines() == [
        "node_modules package-lock.json 700",
        "command node_modules package-lock.json 755",
        "agent node_modules package-lock.json 755",
    ]
    assert "nothing changed" in done.ours
    assert not (repo.home / ".config").exists()
    assert not (repo.root / ".opencode/node_modules").exists()
    # Only an agent that is known to need it gets it, an unattended one too.
    assert repo.inside("ls -A .opencode", branch="shell") == "command\n"
    repo.env["PATH"] = f"{repo.home}/bin:{repo.env['PATH']}"
    (repo.home / "bin").mkdir()
    (repo.home / "bin/opencode").symlink_to("/bin/ls")
    assert (
        "node_modules"
        in repo.overlayrun("--strict", "--bind-ro", str(repo.home / "bin"), "--", "opencode", ".opencode").out
    )


def test_what_is_installed_inside_is_never_committed(repo: UserRepo) -> None:
    # A .gitignore of the user's own in there, to which OpenCode adds nothing.
    repo.commit(**{".opencode/.gitignore": "log\n", ".opencode/command/hi.md": "hi\n"})
    install = (
        "mkdir -p .opencode/node_modules/zod; echo code >.opencode/node_modules/zod/index.js\n"
        "echo {} >.opencode/package-lock.json; echo {} >.opencode/package.json; echo x >.opencode/bun.lock\n"
    )
    repo.inside(
        f"{install} git add --all; git commit --quiet --message=own; {install} echo new >new",
        "--profile",
        "opencode",
    )
    assert repo.git("diff", "--name-only", "main", "b").split() == [".opencode/package.json", "new"]
    assert repo.git("log", "--format=%s", "main..b").splitlines()[-1] == "own"
    # The branch keeps it for its next run.
    assert repo.inside("cat .opencode/node_modules/zod/index.js") == "code\n"


def test_a_lock_file_that_the_base_holds_is_like_any_other(repo: UserRepo) -> None:
    repo.commit(**{".opencode/package.json": "{}\n", ".opencode/package-lock.json": "old\n"})
    out = repo.inside("ls .opencode; echo new >.opencode/package-lock.json", "--profile", "opencode")
    assert out.split() == ["package-lock.json", "package.json"]
    assert repo.show("b", ".opencode/package-lock.json") == "new\n"


IMPORT: Final = 'import { tool } from "@opencode-ai/plugin"\n'


@pytest.mark.parametrize(
    ("name", "text", "spared"),
    [
        ("command/hi.md", "hi", True),
        ("plugin/p.js", "export default async () => ({})\n", True),
        ("plugin/p.ts", 'import type { Plugin } from "@opencode-ai/plugin"\n', True),
        ("plugins/p.ts", IMPORT, False),
        ("tool/t.ts", IMPORT, False),
        ("package.json", "{}", False),
        ("package-lock.json", "{}", False),
        ("node_modules/zod/index.js", "", False),
        ("opencode.json", '{"plugin": ["file:///somewhere/p.js", "named@1"]}', True),
        ("opencode.json", '{"plugin": ["./p.ts"]}', False),
    ],
)
def test_what_needs_an_installation_gets_one(tmp_path: Path, name: str, text: str, *, spared: bool) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text)
    assert takes_seed([str(tmp_path)]) is spared


def test_what_can_not_be_looked_at_may_need_anything(tmp_path: Path) -> None:
    (tmp_path / "plugin").mkdir()
    (tmp_path / "plugin/p.js").symlink_to("/dev/zero")
    assert not takes_seed([str(tmp_path)])


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (None, {"plugin": ["OURS"]}),
        ('{"model": "m"}', {"model": "m", "plugin": ["OURS"]}),
        ('{"plugin": ["theirs"]}', {"plugin": ["theirs", "OURS"]}),
        ("{// mine\n}", None),
        ('["no", "settings"]', None),
        ('{"plugin": 7}', None),
    ],
)
def test_opencode_is_given_our_plugin_beside_the_users_own(
    given: str | None, wanted: dict[str, Any] | None
) -> None:
    name = "OPENCODE_CONFIG_CONTENT"
    made = plugin_variables("opencode", {} if given is None else {name: given})
    assert plugin_variables("claude", {}) == {}
    if wanted is None:
        assert made == {}
        return
    settings = json.loads(made[name])
    plugin = Path(unquote(settings["plugin"][-1].removeprefix("file://")))
    assert plugin.is_file()
    settings["plugin"][-1] = "OURS"
    assert settings == wanted
