from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overlayrun.store.ignore import IgnoreRules, base_rules

pytestmark = pytest.mark.shared  # rules of git

_TOKENS: Final = [
    *(
        "a",
        "b",
        "ab",
        "*",
        "**",
        "/",
        "**/",
        "/**",
        "/**/",
        "***",
        "?",
        "[ab]",
        "[!a]",
        "[^b]",
        "[a-c]",
        "[--b]",
    ),
    *(
        "[]a]",
        "[\\]]",
        "[a",
        "[[:alpha:]]",
        "[[:x]",
        "[[:nope:]]",
        "[a-]",
        "!",
        "\\a",
        "\\*",
        "\\",
        " ",
        "\\ ",
        ".",
    ),
    *("#", "\\#", "\\!", "\r", "\xff", "\ufeff", "c"),
]
_patterns = st.lists(
    st.lists(st.sampled_from(_TOKENS), min_size=1, max_size=5).map("".join), min_size=1, max_size=4
)
_NAMES: Final = [
    "a",
    "b",
    "ab",
    "ba",
    "a b",
    "a.b",
    "c",
    "*",
    "a ",
    "aa",
    "]",
    "!a",
    "-",
    "\\",
    "abc",
    "#",
    "\xff",
]
_paths = st.lists(
    st.lists(st.sampled_from(_NAMES), min_size=1, max_size=4).map("/".join), min_size=5, max_size=25
)


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ignore")
    subprocess.run(["git", "init", "-q", str(path)], check=True)
    return path


def _is_ignored(rules: IgnoreRules, path: bytes) -> bool:
    parts = path.split(b"/")
    return any(
        rules.is_ignored(b"/".join(parts[:end]), directory=end < len(parts))
        for end in range(1, len(parts) + 1)
    )


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(patterns=_patterns, paths=_paths)
def test_patterns_mean_what_git_means(repo: Path, patterns: list[str], paths: list[str]) -> None:
    content = "\n".join(patterns).encode("latin-1", "replace")
    (repo / ".git/info/exclude").write_bytes(content)
    names = {path.encode("latin-1") for path in paths}
    done = subprocess.run(
        ["git", "check-ignore", "--no-index", "-z", "--stdin"],
        cwd=repo,
        input=b"\0".join(names),
        capture_output=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    rules = base_rules([content])
    assert {name for name in names if _is_ignored(rules, name)} == set(done.stdout.split(b"\0")) - {b""}


def test_the_nearest_file_wins_then_the_later_line() -> None:
    root = base_rules([b"*.log\n"]).within(b"", b"!keep.log\n*.tmp\n")
    inner = root.within(b"d", b"*.log\n!/top.log\n")
    assert [root.is_ignored(p, directory=False) for p in (b"a.log", b"keep.log", b"d/a.tmp")] == [
        True,
        False,
        True,
    ]
    assert [inner.is_ignored(p, directory=False) for p in (b"d/keep.log", b"d/top.log", b"d/e/top.log")] == [
        True,
        False,
        True,
    ]


def test_a_pattern_that_is_made_to_be_slow_is_not(tmp_path: Path) -> None:
    hostile = b"\n".join([b"*a" * 60 + b"b", b"**/a/" * 40 + b"b", b"/" + b"*a*/" * 20 + b"b"])
    rules = base_rules([hostile])
    started = time.process_time()
    assert not rules.is_ignored(b"/".join([b"a" * 250] * 16), directory=False)
    assert not rules.is_ignored(b"/".join([b"a"] * 2000), directory=False)
    # No timing claim: without care this takes longer than the universe has existed.
    assert time.process_time() - started < 60


def test_names_are_bytes() -> None:
    rules = base_rules([b"\xff*\n"])
    assert rules.is_ignored(b"d/\xff\xfe", directory=False)
    assert not rules.is_ignored(os.fsencode("é"), directory=False)
