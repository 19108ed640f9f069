"""Carriers: files that make programs run code, or follow orders, when a tree is opened or built.

An agent may change them like any other file, but whoever takes them over should know. The table names what
editors, shells, git, build tools and agents read by themselves; source code that the user later builds or
starts is not in it, nor is a file that becomes executable, which nobody starts by opening it.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import dropwhile
from typing import Any, Final

from overlayrun.errors import StoreError
from overlayrun.layers.names import is_dotgit
from overlayrun.store.compare import Change
from overlayrun.store.trees import GITLINK, SYMLINK, Entry

LARGEST: Final = 1 << 20  # bytes of a file that is read to see what in it has changed

# Reason and names, of any case. `x` is a file of that name at any depth, `x/` a directory with all below it,
# `a/b` the two below each other; with a slash in front they count at the top alone. `*`: any letters.
_TABLE: Final = (
    (
        "VS Code and its kin read it when the folder is opened",
        ".vscode/ .vscode-test.* *.code-workspace .theia/",
    ),
    (
        "editors read it when the folder or a file is opened",
        ".idea/ .fleet/ .zed/ .nova/ .helix/ .vs/ .settings/ .project .factorypath *.sublime-project *.iml",
    ),
    (
        "vim or emacs runs it when a file here is opened",
        ".vim/ .vimrc _vimrc .exrc .nvimrc .nvim.lua .lvimrc .netrwhist .dir-locals.el .dir-locals-2.el",
    ),
    (
        "shells and environment managers run it when you enter the directory",
        ".envrc .direnv/ .shadowenv.d/ .autoenv .autoenv.zsh mise.toml mise.*.toml .mise/ .mise.toml"
        " .mise.*.toml .config/mise/ .rtx.toml .tool-versions devbox.json devenv.nix devenv.yaml flake.nix"
        " flake.lock shell.nix default.nix",
    ),
    (
        "it starts a container or a machine that the folder is opened in",
        ".devcontainer/ .devcontainer.json .gitpod.yml .gitpod.dockerfile .idx/ .replit replit.nix"
        " vagrantfile",
    ),
    (
        "hooks manager: git runs it at commit, checkout or push",
        ".husky/ .githooks/ .git-hooks/ .huskyrc* .cargo-husky/ lefthook.* .lefthook.* lefthook-local.*"
        " .lefthook-local.* .pre-commit-config.* .pre-commit-hooks.* .overcommit.yml .overcommit/"
        " .simple-git-hooks.* .lintstagedrc* captainhook.json .rusty-hook.toml",
    ),
    ("git picks filters, diff and merge programs by it", ".gitattributes"),
    ("git fetches repositories that it names", ".gitmodules .lfsconfig"),
    ("git configuration: it names programs to run", ".gitconfig"),
    ("directory of another version control, with hooks of its own", ".hg/ .jj/ .svn/ .bzr/ .sl/"),
    (
        "CI runs it, with the secrets of the project",
        ".github/workflows/ .github/actions/ .gitea/workflows/ .forgejo/workflows/ /action.yml"
        " /action.yaml .gitlab-ci.* .gitlab/ci/ .circleci/ jenkinsfile jenkinsfile.* azure-pipelines*.yml"
        " azure-pipelines*.yaml .azure-pipelines/ bitbucket-pipelines.yml .travis.yml .drone.*"
        " .woodpecker/ .woodpecker.* .buildkite/ appveyor.yml .appveyor.yml .cirrus.* .teamcity/"
        " .semaphore/ .tekton/ .builds/ .build.yml buildspec.yml cloudbuild.yml cloudbuild.yaml"
        " netlify.toml vercel.json .readthedocs.yml .readthedocs.yaml",
    ),
    (
        "npm, yarn, pnpm or bun reads it: it can name scripts to load",
        ".npmrc .yarnrc .yarnrc.yml .yarn/ .pnpmfile.cjs .pnpmfile.mjs pnpmfile.cjs pnpm-workspace.yaml"
        " .pnp.cjs .pnp.loader.mjs bunfig.toml binding.gyp",
    ),
    (
        "JavaScript tools run it, some of them inside editors",
        "*.config.js *.config.cjs *.config.mjs *.config.ts *.config.cts *.config.mts .eslintrc*"
        " .prettierrc* .stylelintrc* .babelrc* .mocharc* gulpfile.* gruntfile.*",
    ),
    (
        "Python runs it at install, at start or when tests are collected",
        "setup.py setup.cfg conftest.py sitecustomize.py usercustomize.py *.pth hatch_build.py .pdbrc",
    ),
    (
        "test runners and linters take commands and plugins from it, some of them inside editors",
        "pytest.ini .pytest.ini tox.ini noxfile.py .pylintrc pylintrc mypy.ini .mypy.ini .flake8"
        " .rubocop.yml .rspec",
    ),
    (
        "build file: it runs when the project is built",
        "makefile gnumakefile bsdmakefile *.mk makefile.* *.mak justfile .justfile *.just taskfile.*"
        " magefile.go cmakelists.txt *.cmake cmakepresets.json cmakeuserpresets.json meson.build"
        " sconstruct sconscript wscript /configure configure.ac autogen.sh build.rs build.zig gradlew"
        " gradlew.bat gradle/wrapper/ *.gradle *.gradle.kts gradle.properties .mvn/ mvnw mvnw.cmd pom.xml"
        " build.xml build.sbt project/plugins.sbt workspace workspace.bazel build.bazel module.bazel *.bzl"
        " .bazelrc .bazeliskrc tools/bazel rakefile *.rake mix.exs rebar.config package.swift"
        " project.pbxproj *.csproj *.fsproj *.vbproj *.vcxproj *.props *.targets setup.hs makefile.pl"
        " build.pl dockerfile dockerfile.* *.dockerfile containerfile docker-compose*.yml"
        " docker-compose*.yaml compose.yml compose.yaml docker-bake.* tiltfile earthfile conanfile.py"
        " /tasks.py /fabfile.py /dodo.py",
    ),
    (
        "cargo reads it: it can name other compilers and wrappers",
        ".cargo/ rust-toolchain rust-toolchain.toml",
    ),
    (
        "Ruby runs it",
        "gemfile *.gemspec .bundle/ .irbrc .pryrc brewfile podfile fastfile dangerfile guardfile capfile",
    ),
    ("debuggers run it when they start here", ".gdbinit .lldbinit .radare2rc"),
    (
        "agents take settings, hooks and tools from it",
        ".claude/ .codex/ .opencode/ opencode.json opencode.jsonc .mcp.json mcp.json .cursor/ .windsurf/"
        " .gemini/ .continue/ .roo/ .kiro/ .amazonq/ .junie/ .agents/ .aider.conf.yml",
    ),
    (
        "agents take it as their instructions",
        "agents.md agents.override.md claude.md claude.local.md gemini.md .cursorrules .windsurfrules"
        " .clinerules .goosehints .github/copilot-instructions.md .github/instructions/",
    ),
    ("overlayrun takes from it what a branch is checked by", "/overlayrun.toml"),
)
# Of these only some parts count: reader, keys (dots go down), reason.
_Part = tuple[Callable[[str], Any], tuple[str, ...], str]
_SCRIPTS: Final = "its scripts run at install and at build"
_PARTS: Final[Mapping[bytes, _Part]] = {
    b"package.json": (
        json.loads,
        (
            *("scripts", "packageManager", "gypfile", "husky", "pre-commit", "simple-git-hooks", "gitHooks"),
            *("lint-staged", "eslintConfig", "prettier", "babel", "stylelint", "jest", "pnpm"),
        ),
        _SCRIPTS,
    ),
    b"composer.json": (json.loads, ("scripts", "config"), _SCRIPTS),
    b"deno.json": (json.loads, ("tasks", "imports"), _SCRIPTS),
    b"deno.jsonc": (json.loads, ("tasks", "imports"), _SCRIPTS),
    b"pyproject.toml": (
        tomllib.loads,
        (
            *("build-system", "tool.setuptools", "tool.hatch", "tool.pdm", "tool.poetry.build", "tool.poe"),
            *("tool.pytest", "tool.tox", "tool.mypy", "tool.pylint", "tool.taskipy", "tool.cibuildwheel"),
        ),
        "its build, tool or test settings can name code to run",
    ),
    b"cargo.toml": (
        tomllib.loads,
        ("package.build", "package.links", "build-dependencies", "lib.proc-macro", "lib.proc_macro"),
        "cargo runs the build scripts and macros that it names",
    ),
}


@dataclass(frozen=True, slots=True)
class Carrier:
    """A file that would come, and why to look at it first. entry: what lies there then."""

    path: bytes
    why: str
    entry: Entry


def carriers_of(changes: Iterable[Change], read: Callable[[str], bytes]) -> list[Carrier]:
    """Carriers among changes, sorted by path, bytewise; what is deleted is none.

    read: content of a blob by hexadecimal id; a StoreError of it means a file that is listed unread.
    """
    found = []
    for change in changes:
        why = _reason(change, read) if change.after else None
        if change.after and why:
            found.append(Carrier(change.path, why, change.after))
    return sorted(found, key=lambda carrier: carrier.path)


def _reason(change: Change, read: Callable[[str], bytes]) -> str | None:
    assert change.after is not None
    mode, name = change.after[0], change.path.rpartition(b"/")[2].lower()
    if mode == GITLINK:
        return "submodule: git fetches another repository to this place"
    by_name = _by_name(change.path, mode)
    if by_name:
        return by_name
    if mode == SYMLINK and name not in _PARTS:
        return _link_reason(change.path, _content(change.after, read))
    if name in _PARTS and not _same_parts(change, _PARTS[name], read):
        return _PARTS[name][2]
    return None


def _by_name(path: bytes, mode: bytes) -> str | None:
    """Reason that the table has for a path. A symlink may stand for a directory."""
    lowered = path.lower()
    *above, name = lowered.split(b"/")
    whys = [*map(_DIRECTORIES.get, above), _FILES.get(name), _AT_TOP.get(lowered)]
    whole = b"/" + lowered
    if mode == SYMLINK:
        whys += [_DIRECTORIES.get(name), _UPPER.get(name)]
    whys += (why for part, why in _PLACES if part in whole + b"\0")
    glob = _GLOBS.fullmatch(name)
    whys.append(_TABLE[int(glob.lastgroup[1:])][0] if glob and glob.lastgroup else None)
    return next(filter(None, whys), None)


def _link_reason(path: bytes, text: bytes | None) -> str | None:
    """Whether what is read or written through a symlink may lie outside the tree, or in its `.git`."""
    if text is None:
        return "link that can't be read"
    parts = [part for part in text.split(b"/") if part not in (b"", b".")]
    up = len(parts) - len(list(dropwhile(lambda part: part == b"..", parts)))
    # After a name, `..` leads out of wherever that name leads.
    if text.startswith(b"/") or up > path.count(b"/") or b".." in parts[up:]:
        return "link that leads out of the repository"
    return "link into git's own directory" if any(map(is_dotgit, parts)) else None


def _same_parts(change: Change, part: _Part, read: Callable[[str], bytes]) -> bool:
    """Whether those parts of a file are as they were; False where a version can't be read."""
    reader, keys, _ = part
    try:
        before, after = (
            _parts(_content(entry, read), reader, keys) for entry in (change.before, change.after)
        )
    except (ValueError, RecursionError):
        return False
    return before == after


def _parts(data: bytes | None, reader: Callable[[str], Any], keys: Iterable[str]) -> list[Any]:
    if data is None or len(data) > LARGEST:
        raise ValueError("too large")
    whole = reader(data.decode("utf-8-sig")) if data else {}
    if not isinstance(whole, dict):
        raise ValueError("no table")  # noqa: TRY004  # one error for all that can't be compared
    return [_at(whole, key.split(".")) for key in keys]


def _at(table: Any, keys: Iterable[str]) -> Any:
    for key in keys:
        table = table.get(key) if isinstance(table, dict) else None
    return table


def _content(entry: Entry | None, read: Callable[[str], bytes]) -> bytes | None:
    """Content of a file or symlink; empty where there is none, None where it can't be read."""
    if entry is None or entry[0] == GITLINK:
        return b""
    try:
        return read(entry[1].hex())
    except StoreError:  # a partial clone has not fetched it
        return None


def _rows() -> Iterator[tuple[str, str]]:
    """Words of the table, with the reason."""
    for why, words in _TABLE:
        for word in words.split():
            yield word, why


def _glob(words: str) -> bytes:
    globs = (re.escape(word).replace(r"\*", ".*") for word in words.split() if "*" in word)
    return "|".join(globs).encode()


# Names are looked up; globs are one pattern, with a group for each row of the table.
_FILES: Final = {word.encode(): why for word, why in _rows() if not {"/", "*"} & set(word)}
_DIRECTORIES: Final = {word[:-1].encode(): why for word, why in _rows() if word.find("/") == len(word) - 1}
_GLOBS: Final = re.compile(
    b"|".join(b"(?P<r%d>%b)" % (row, _glob(words)) for row, (_, words) in enumerate(_TABLE) if "*" in words),
    re.DOTALL,
)
# With slashes around, and a zero byte after what is a file.
_PLACES: Final = tuple(
    (f"/{word}".encode() + (b"" if word.endswith("/") else b"\0"), why)
    for word, why in _rows()
    if "/" in word.strip("/")
)
_AT_TOP: Final = {word[1:].encode(): why for word, why in _rows() if word.startswith("/")}
# A symlink may stand for the upper directory of `a/b`.
_UPPER: Final = {word.partition("/")[0].encode(): why for word, why in _rows() if "/" in word.strip("/")}
