"""Everything of git that makes a host run a program: hooks, configuration, attributes, nested repositories, names."""

from __future__ import annotations

import os
import subprocess

from inside import GIVEN, REPORT, finish, probe

PWN = os.environ["PWN"]
TOUCH = f"touch {PWN}"
HOOKS = (
    "pre-commit post-commit post-checkout post-merge reference-transaction post-index-change "
    "fsmonitor-watchman pre-push post-rewrite pre-auto-gc update"
).split()
PROGRAMS = (
    "core.fsmonitor core.sshCommand core.pager core.editor core.askPass gpg.program "
    "diff.external sequence.editor uploadpack.packObjectsHook filter.zz9.clean filter.zz9.smudge filter.zz9.process "
    "diff.zz9.textconv diff.zz9.command merge.zz9.driver interactive.diffFilter pager.log pager.diff pager.status"
).split()
# Every spelling that git, HFS+ or NTFS reads as `.git`.
DOTGIT = (
    ".GIT",
    ".Git",
    ".git ",
    ".git.",
    ".git . .",
    "git~1",
    "GIT~1",
    ".git::$INDEX_ALLOCATION",
    ".gi\u200ct",
    ".g\u200dit",
    "\ufeff.git",
    ".git\u202e",
)


def git(*words: str, cwd: str = ".") -> str:
    done = subprocess.run(["git", *words], cwd=cwd, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else f"failed: {done.stderr.strip()}"


def write(path: str, text: str, mode: int = 0o644) -> None:
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, mode)


@probe("1 hooks")
def _() -> object:
    for name in HOOKS:
        write(f".git/hooks/{name}", f"#!/bin/sh\n{TOUCH}\n", 0o755)
    return sorted(os.listdir(".git/hooks")) == sorted(HOOKS)


@probe("4 attributes")
def _() -> object:
    write("attr/.gitattributes", "* filter=zz9 diff=zz9 merge=zz9 text eol=crlf ident\n")
    write("attr/file", "line\n$Id$\n")
    write("attr/utf16/.gitattributes", "* working-tree-encoding=UTF-16 export-subst\n")
    write("attr/utf16/file", "no utf-16\n")
    write("attr/long/.gitattributes", "* -text\n" * (1 << 16))
    write("attr/long/file", "a\r\nb\n")
    return "done"


@probe("12 nested repository")
def _() -> object:
    git("init", "-q", "vendor/sub")
    write("vendor/sub/file", "nested\n")
    git("add", "file", cwd="vendor/sub")
    git("-c", "user.name=x", "-c", "user.email=x", "commit", "-q", "-m", "x", cwd="vendor/sub")
    git("config", "core.fsmonitor", f"{TOUCH};false", cwd="vendor/sub")
    return git("add", "vendor/sub")


@probe("14 names")
def _() -> object:
    for number, name in enumerate(DOTGIT):
        write(f"names/{number}/{name}/hooks/post-checkout", f"#!/bin/sh\n{TOUCH}\n", 0o755)
        write(f"names/{number}/beside", "beside\n")
    return len(DOTGIT)


@probe("17 ignore rules")
def _() -> object:
    write(".git/info/exclude", "*\n")
    write("ignored/.gitignore", "*\n")
    write("ignored/evil", "evil\n")
    return "done"


@probe("21 replace")
def _() -> object:
    evil = git("commit-tree", "-m", "evil", "HEAD^{tree}")
    REPORT["replaced"] = git("rev-parse", "HEAD")
    write(".git/info/grafts", f"{REPORT['replaced']}\n")
    return git("replace", "-f", "main", evil)


@probe("22 the target's ref")
def _() -> object:
    real = f"file://{GIVEN['root']}"
    return [
        git("update-ref", "refs/heads/main", "HEAD~1"),
        git("push", "-f", real, "HEAD:refs/heads/private/mine"),
        git("worktree", "prune"),
        git("reflog", "expire", "--all", "--expire=now"),
        git("gc", "-q", "--prune=now"),
    ]


@probe("23 identity")
def _() -> object:
    git("config", "user.name", "Boss\n\ngpgsig x")
    git("config", "user.email", "boss@example.invalid")
    return "done"


@probe("2 3 5 programs")
def _() -> object:
    for name in PROGRAMS:
        git("config", name, f"{TOUCH};cat")
    git("config", "core.hooksPath", ".git/hooks")
    git("config", "credential.helper", f"!{TOUCH}")
    git("config", "alias.st", f"!{TOUCH}")
    git("config", "alias.status", f"!{TOUCH}")
    write("evil.inc", f"[core]\n\tfsmonitor = {TOUCH};false\n")
    git("config", "include.path", "../evil.inc")
    git("config", "includeIf.gitdir:/.path", "../evil.inc")
    return "done"


@probe("6 7 redirection")
def _() -> object:
    git("config", "core.worktree", os.path.expanduser("~"))
    git("config", "extensions.worktreeConfig", "true")
    write(".git/config.worktree", f"[core]\n\tworktree = /\n\tfsmonitor = {TOUCH};false\n")
    write(".git/info/attributes", "* filter=zz9 diff=zz9\n")
    write(".git/commondir", "/etc\n")
    write(".git/gitdir", "/etc/passwd\n")
    return "done"


@probe("work")
def _() -> object:
    write("work", "real work\n")
    write("README", "read me\nand this\n")
    return "done"


finish()
