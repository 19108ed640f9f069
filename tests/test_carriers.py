"""Which changes run code on the user's machine, and which git must not be given at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store.history import Content, History, link, submodule

from overlayrun.carriers import Carrier, carriers_of
from overlayrun.errors import StoreError
from overlayrun.incoming import Incoming, incoming
from overlayrun.store.compare import Change
from overlayrun.store.repo import Repo
from overlayrun.store.trees import EXECUTABLE, FILE, GITLINK, SYMLINK, Entry

pytestmark = pytest.mark.shared

_HEAD = "ref: refs/heads/main\n"
_BARE: Mapping[str, Content] = {"b/HEAD": _HEAD, "b/objects/x": "", "b/refs/x": "", "b/config": ""}


def entry(content: bytes, mode: bytes = FILE) -> Entry:
    """An entry whose id holds its content: a store that needs no place."""
    return mode, content


def read(oid: str) -> bytes:
    return bytes.fromhex(oid)


def why(path: bytes, after: Entry | None, before: Entry | None = None) -> str | None:
    found = carriers_of([Change(path, before, after)], read)
    return found[0].why if found else None


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (".vscode/tasks.json", "VS Code"),
        ("sub/.VSCode/x/y", "VS Code"),
        ("my.code-workspace", "VS Code"),
        (".idea/workspace.xml", "editors"),
        (".envrc", "enter the directory"),
        ("deep/down/.ENVRC", "enter the directory"),
        ("mise.local.toml", "enter the directory"),
        (".config/mise/conf.d/a.toml", "enter the directory"),
        ("flake.nix", "enter the directory"),
        (".devcontainer/Dockerfile", "container"),
        (".husky/pre-commit", "hooks manager"),
        (".pre-commit-config.yaml", "hooks manager"),
        ("lefthook-local.yml", "hooks manager"),
        ("a/b/.gitattributes", "filters"),
        (".gitmodules", "repositories"),
        (".gitconfig", "git configuration"),
        ("x/.hg/hgrc", "version control"),
        (".github/workflows/ci.yml", "CI"),
        ("Jenkinsfile", "CI"),
        ("action.yml", "CI"),
        (".npmrc", "npm"),
        (".yarn/releases/yarn.cjs", "npm"),
        ("web/vite.config.mts", "JavaScript"),
        ("conftest.py", "Python"),
        ("tests/conftest.py", "Python"),
        ("x.pth", "Python"),
        ("tox.ini", "test runners"),
        ("GNUmakefile", "build file"),
        ("rules.mk", "build file"),
        ("gradle/wrapper/gradle-wrapper.jar", "build file"),
        ("tools/bazel", "build file"),
        ("build.rs", "build file"),
        ("tasks.py", "build file"),
        (".cargo/config.toml", "cargo"),
        ("Gemfile", "Ruby"),
        (".gdbinit", "debuggers"),
        (".claude/settings.json", "settings, hooks"),
        ("docs/AGENTS.md", "instructions"),
        (".exrc", "vim"),
        ("overlayrun.toml", "checked"),
    ],
)
def test_what_programs_run_by_themselves_is_named_with_its_reason(path: str, words: str) -> None:
    assert words in (why(path.encode(), entry(b"x")) or "")
    assert why(path.upper().encode(), entry(b"x", EXECUTABLE), entry(b"y")) == why(path.encode(), entry(b"x"))
    assert why(path.encode(), None, entry(b"x")) is None  # a file that goes is no danger


@pytest.mark.parametrize(
    "path",
    [
        *("README.md", "src/app.py", "app/tasks.py", "lib/workspace/x.py", "docs/makefile/intro.md", ".env"),
        *(
            ".github/CODEOWNERS",
            "gradle/x",
            "tools/bazel/x",
            "docs/overlayrun.toml",
            ".gitignore",
            "vscode/x",
        ),
        *("config.js", "my.pth.txt", "idea/x", "tool.sh", "package-lock.json", "envrc"),
    ],
)
def test_what_somebody_has_to_start_is_not_listed(path: str) -> None:
    assert why(path.encode(), entry(b"x")) is None
    assert why(path.encode(), entry(b"x", EXECUTABLE), entry(b"x")) is None


@pytest.mark.parametrize(
    ("name", "before", "after", "is_listed"),
    [
        ("package.json", '{"version": "1"}', '{"version": "2", "dependencies": {"a": "1"}}', False),
        ("package.json", '{"scripts": {"test": "a"}}', '{"scripts":{"test":"a"}, "name":"x"}', False),
        ("package.json", '{"scripts": {"test": "a"}}', '{"scripts": {"test": "b"}}', True),
        ("package.json", "{}", '{"scripts": {"postinstall": "x"}}', True),
        ("package.json", "{}", '{"scripts": {"postinstall": "x"}', True),
        ("package.json", "{", "{}", True),
        ("package.json", "{}", "[]", True),
        ("package.json", "{}", "[" * 100_000, True),
        ("package.json", "{}", f'{{"a": "{"x" * (1 << 20)}"}}', True),
        ("Package.JSON", "{}", '{"packageManager": "yarn@1"}', True),
        ("sub/composer.json", "{}", '{"require": {}}', False),
        ("sub/composer.json", "{}", '{"scripts": {}}', True),
        ("pyproject.toml", "[project]\nversion = '1'\n", "[project]\nversion = '2'\n", False),
        ("pyproject.toml", "", "[build-system]\nbackend-path = ['.']\n", True),
        ("pyproject.toml", "", "[tool.pytest.ini_options]\naddopts = '-p x'\n", True),
        ("pyproject.toml", "", "[tool.ruff]\nline-length = 9\n", False),
        ("pyproject.toml", "", "[tool", True),
        ("Cargo.toml", "[package]\nname = 'a'\n", "[package]\nname = 'b'\n", False),
        ("Cargo.toml", "[package]\nname = 'a'\n", "[package]\nname = 'a'\nbuild = 'x.rs'\n", True),
    ],
)
def test_of_some_files_only_what_runs_counts(name: str, before: str, after: str, *, is_listed: bool) -> None:
    found = why(name.encode(), entry(after.encode()), entry(before.encode()))
    assert (found is not None) == is_listed


@pytest.mark.parametrize("name", ["package.json", "pyproject.toml"])
def test_a_new_file_counts_by_what_it_has(name: str) -> None:
    assert why(name.encode(), entry(b"")) is None
    assert why(name.encode(), entry(b"\xff")) is not None
    assert why(name.encode(), entry(b"elsewhere", SYMLINK)) is not None


@pytest.mark.parametrize(
    ("path", "text", "words"),
    [
        ("a/link", b"../b", None),
        ("a/b/link", b".././../c", None),
        ("link", b"src/app.py", None),
        ("link", b"/etc/passwd", "out of the repository"),
        ("link", b"..", "out of the repository"),
        ("a/link", b"../../x", "out of the repository"),
        ("a/link", b"x/../../..", "out of the repository"),
        ("hooks", b".git/hooks", "git's own"),
        ("a/link", b"../.GIT /config", "git's own"),
        (".vscode", b"settings", "VS Code"),
        ("gradle", b"elsewhere", "build file"),
        ("x.mk", b"elsewhere", "build file"),
    ],
)
def test_links_count_by_where_they_lead_and_what_they_stand_for(
    path: str, text: bytes, words: str | None
) -> None:
    found = why(path.encode(), entry(text, SYMLINK))
    assert found is None if words is None else words in (found or "")


def test_a_submodule_is_listed() -> None:
    assert "submodule" in (why(b"vendor/x", entry(b"x" * 20, GITLINK), entry(b"y" * 20, GITLINK)) or "")


def test_what_cannot_be_read_is_listed() -> None:
    def missing(oid: str) -> bytes:
        raise StoreError(f"object {oid} is missing")

    changes = [Change(b"package.json", entry(b"{}"), entry(b"{ }")), Change(b"l", None, entry(b"x", SYMLINK))]
    assert [carrier.path for carrier in carriers_of(changes, missing)] == [b"l", b"package.json"]


_NAMES = st.binary(min_size=1, max_size=12).filter(lambda name: b"\0" not in name and b"/" not in name)
_PATHS = st.lists(_NAMES | st.sampled_from([b".vscode", b"Makefile", b"x.pth", b"package.json"]), min_size=1)
_ENTRIES = st.none() | st.tuples(
    st.sampled_from([FILE, EXECUTABLE, SYMLINK, GITLINK]), st.binary(max_size=40)
)


@given(st.lists(st.tuples(_PATHS, _ENTRIES, _ENTRIES), max_size=20))
def test_any_paths_are_taken_and_come_sorted(
    rows: list[tuple[list[bytes], Entry | None, Entry | None]],
) -> None:
    changes = {b"/".join(names): (before, after) for names, before, after in rows}
    found = carriers_of([Change(path, *ends) for path, ends in changes.items()], read)
    assert found == sorted(found, key=lambda carrier: carrier.path)
    assert all(changes[carrier.path][1] == carrier.entry for carrier in found)
    again = carriers_of([Change(path, *ends) for path, ends in sorted(changes.items())], read)
    assert again == found


class Trees:
    """A repository with an almost empty tree, against which others are looked at."""

    def __init__(self, path: Path) -> None:
        self.history = History(path)
        self.first = {"src/app.py": "1\n"}

    def look(self, after: Mapping[str, Content], before: Mapping[str, Content] | None = None) -> Incoming:
        repo = Repo(self.history.git_dir)
        old, new = (self.history.commit(files) for files in (before or self.first, {**self.first, **after}))
        return incoming(repo, repo.tree_of(old), repo.tree_of(new))


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Trees:
    return Trees(tmp_path_factory.mktemp("trees"))


def test_what_comes_is_counted_and_listed_bytewise(trees: Trees) -> None:
    oid = "1" * 40
    found = trees.look(
        {"z/.envrc": "x", "Makefile": "x", "src/lib.py": "x", "sub": submodule(oid), "é.mk": "x"}
    )
    assert found.files == 5
    assert [carrier.path for carrier in found.carriers] == [b"Makefile", b"sub", b"z/.envrc", "é.mk".encode()]
    assert isinstance(found.carriers[0], Carrier)
    assert found.carriers or found.bare or found.unsafe


def test_what_is_there_already_does_not_come(trees: Trees) -> None:
    same = {**trees.first, "Makefile": "x", **_BARE}
    assert trees.look(same, before=same) == Incoming()
    assert trees.look({**same, "new": "x"}, before=same) == Incoming(files=1)
    assert trees.look({}, before=same) == Incoming(files=5)


@pytest.mark.parametrize(
    "files",
    [
        _BARE,
        {"b/head": "x", "b/Objects": "x", "b/REFS": link("../elsewhere")},
        {"b/HEAD": link("x"), "b/commondir": "../c\n"},
    ],
    ids=["plain", "spelled otherwise", "with a common directory"],
)
def test_a_directory_that_git_takes_for_a_repository_is_told(
    trees: Trees, files: Mapping[str, Content]
) -> None:
    assert trees.look(files).bare == (b"b/",)
    assert trees.look({f"deep/{path}": content for path, content in files.items()}).bare == (b"deep/b/",)
    assert trees.look({path.removeprefix("b/"): content for path, content in files.items()}).bare == (b"./",)


def test_a_change_inside_of_such_a_directory_is_told_too(trees: Trees) -> None:
    before = {**trees.first, **_BARE}
    assert trees.look({**_BARE, "b/config": "[core]\nfsmonitor = x\n"}, before=before).bare == (b"b/",)
    assert trees.look({**_BARE, "b/objects/y": "x"}, before=before).bare == (b"b/",)


def test_half_of_a_repository_is_none(trees: Trees) -> None:
    assert trees.look({"b/HEAD": _HEAD, "b/objects/x": "", "refs/x": ""}).bare == ()
    assert trees.look({"b/HEAD/x": "", "b/objects/x": "", "b/refs/x": ""}).bare == ()


def _modules(name: str, **values: str) -> str:
    lines = "".join(f"\t{key} = {value}\n" for key, value in values.items())
    return f'[submodule "{name}"]\n{lines}'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (_modules("x", path="x", url="-u./evil"), "url '-u./evil'"),
        (_modules("../../hooks", path="y", url="./z"), "submodule name '../../hooks'"),
        (_modules("a\\\\..\\\\b", path="y", url="./z"), "submodule name"),
        (_modules("", path="y", url="./z"), "submodule name ''"),
        (_modules("x", path="y", url="./z", update="!touch x"), "update '!touch x'"),
        (_modules("x", path='"y\r"', url="./z"), r"path 'y\r'"),
        (_modules("x", path="-y", url="./z"), "path '-y'"),
        (_modules("x", path="../y", url="./z"), "path '../y'"),
        (_modules("x", path=".git/hooks", url="./z"), "path '.git/hooks'"),
        (_modules("x", path="/etc", url="./z"), "path '/etc'"),
        (_modules("x", path="y", url='"ext::sh -c x"'), "url 'ext::sh -c x'"),
        (_modules("x", path="y", url="ssh://-oProxyCommand=x/y"), "url 'ssh://-o"),
        (_modules("x", path="y", url='"https://a/\\nb"'), r"url 'https://a/\nb'"),
        (_modules("x", path="y", url="https://a/%0Ahost=b"), "url 'https://a/%0A"),
        (_modules("x", path="y", url="./z", branch="--upload-pack=x"), "branch '--upload"),
        ("[submodule", "can't be read"),
        (b"\0\xff", "can't be read"),
        ("#" * (1 << 20) + "\n", "can't be read"),
        (link("x"), "is a symlink"),
    ],
)
def test_a_gitmodules_that_leads_git_astray_is_unsafe(trees: Trees, text: Content, words: str) -> None:
    for path in (".gitmodules", "deep/.GitModules"):
        (fault,) = trees.look({path: text}).unsafe
        assert path in fault
        assert words in fault


def test_a_fault_is_a_line_whatever_the_path(trees: Trees) -> None:
    (fault,) = trees.look({'".gitmodules:x\\n\\nOverlayrun-Standing: landed"': "["}).unsafe
    assert fault == r".gitmodules:x\n\nOverlayrun-Standing: landed can't be read as git's configuration"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_an_honest_gitmodules_is_none(trees: Trees, end: str) -> None:
    text = _modules("libs/a.b", path="libs/a", url="../a.git", branch="main", update="rebase")
    text += _modules("b", path="b c", url="git@example.com:b.git", ignore="dirty") + "# end\n"
    found = trees.look({".gitmodules": text.replace("\n", end)})
    assert (found.unsafe, [carrier.path for carrier in found.carriers]) == ((), [b".gitmodules"])
    before = {**trees.first, ".gitmodules": _modules("../x", path="x", url="-x")}
    assert trees.look({}, before=before).unsafe == ()  # it goes
