"""Our merges equal git's own: `git merge` in a checkout, and a single `git merge-tree` there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from conftest import SHARE
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from overlayrun.model import CommitId
from overlayrun.store.merger import Merged, MergeEngine

from .history import Checkout, Content, Files, History, Node, Outcome, executable, link, submodule

pytestmark = pytest.mark.shared  # trees that merges of objects give

LINES: Final = "".join(f"line {n}\n" for n in range(20))
OTHER: Final = "".join(f"other {n}\n" for n in range(20))
BINARY: Final = bytes(range(256)) * 8
DIRECTORY: Final = {f"old/{n}": f"{n}\n{LINES}" for n in range(4)}
MOVED: Final = {f"new/{n}": f"{n}\n{LINES}" for n in range(4)}
SUB: Final = [submodule(digit * 40) for digit in "123"]


def with_rules(rules: str, base: Content, target: Content, source: Content) -> tuple[Files, Files, Files]:
    """The same attributes everywhere."""
    first, second, third = ({".gitattributes": rules, "a": content} for content in (base, target, source))
    return first, second, third


# base, target, source; kinds of the conflicts that git must find, by path.
Kind = tuple[Files, Files, Files, dict[str, str]]
KINDS: Final[dict[str, Kind]] = {
    "disjoint": ({"a": LINES}, {"a": f"t\n{LINES}"}, {"a": f"{LINES}s\n"}, {}),
    "same change": ({"a": "1\n"}, {"a": "2\n", "n": "3\n"}, {"a": "2\n", "n": "3\n"}, {}),
    "one line": ({"a": "1\n"}, {"a": "2\n"}, {"a": "3\n"}, {"a": "contents"}),
    "add/add": ({}, {"a": "2\n"}, {"a": "3\n"}, {"a": "add/add"}),
    "modify/delete": ({"a": "1\n"}, {}, {"a": "3\n"}, {"a": "modify/delete"}),
    "delete/modify": ({"a": "1\n"}, {"a": "2\n"}, {}, {"a": "modify/delete"}),
    "rename and edit": ({"a": LINES}, {"b": LINES}, {"a": f"{LINES}s\n"}, {}),
    "rename/delete": ({"a": LINES}, {"b": LINES}, {}, {"b": "rename/delete"}),
    "rename, edit/delete": (
        {"a": LINES},
        {"b": f"{LINES}t\n"},
        {},
        {"b": "rename/delete"},
    ),
    "rename/rename to two": (
        {"a": LINES},
        {"b": LINES},
        {"c": LINES},
        dict.fromkeys("abc", "rename/rename"),
    ),
    "rename/rename to one": (
        {"a": LINES, "b": OTHER},
        {"c": LINES, "b": OTHER},
        {"a": LINES, "c": OTHER},
        {"c": "add/add"},
    ),
    "rename/add": ({"a": LINES}, {"c": LINES}, {"a": LINES, "c": OTHER}, {"c": "add/add"}),
    "rename with conflict/add": (
        {"a": LINES},
        {"c": f"t\n{LINES}"},
        {"a": f"s\n{LINES}", "c": OTHER},
        {"c": "rename involved in collision"},
    ),
    "directory rename": (
        DIRECTORY,
        MOVED,
        {**DIRECTORY, "old/added": "s\n"},
        {"new/added": "directory rename suggested"},
    ),
    "directory rename onto a file": (
        {**DIRECTORY, "x": "1\n"},
        {**MOVED, "x": "1\n"},
        {**DIRECTORY, "old/added": "s\n", "new/added": "s\n", "x": "1\n"},
        {"new/added": "file in way of directory rename"},
    ),
    "directory rename, split": (
        DIRECTORY,
        {("one/" if int(name[-1]) % 2 else "two/") + name[-1]: text for name, text in DIRECTORY.items()},
        {**DIRECTORY, "old/added": "s\n"},
        {"old": "directory rename unclear split"},
    ),
    "directory renames that meet": (
        {**DIRECTORY, **{f"also/{n}": f"{n}\n{OTHER}" for n in range(4)}},
        {**MOVED, **{f"new/o{n}": f"{n}\n{OTHER}" for n in range(4)}},
        {**DIRECTORY, **{f"also/{n}": f"{n}\n{OTHER}" for n in range(4)}, "old/x": "1\n", "also/x": "2\n"},
        {"new/x": "directory rename collision"},
    ),
    "mode and edit": ({"a": "1\n"}, {"a": executable("1\n")}, {"a": "3\n"}, {}),
    "mode and edit, in conflict": (
        {"a": "1\n"},
        {"a": executable("2\n")},
        {"a": "3\n"},
        {"a": "contents"},
    ),
    "added with two modes": ({}, {"a": executable("1\n")}, {"a": "1\n"}, {"a": "add/add"}),
    "mode/delete": ({"a": "1\n"}, {"a": executable("1\n")}, {}, {"a": "modify/delete"}),
    "link and link": ({"a": link("1")}, {"a": link("2")}, {"a": link("3")}, {"a": "contents"}),
    "link/file": ({}, {"a": link("2")}, {"a": "3\n"}, {"a": "distinct modes"}),
    "file becomes link/edit": ({"a": LINES}, {"a": link("b")}, {"a": f"{LINES}s\n"}, {"a": "distinct modes"}),
    "file/directory": (
        {"x": "1\n"},
        {"a": "2\n", "x": "1\n"},
        {"a/b": "3\n", "x": "1\n"},
        {"a": "file/directory"},
    ),
    "directory/file": (
        {"x": "1\n"},
        {"a/b": "2\n", "x": "1\n"},
        {"a": "3\n", "x": "1\n"},
        {"a": "file/directory"},
    ),
    "file becomes directory": ({"a": "1\n"}, {"a/b": "1\n"}, {"a": "1\n", "c": "2\n"}, {}),
    "binary": ({"a": BINARY}, {"a": BINARY + b"t"}, {"a": BINARY + b"s"}, {"a": "binary"}),
    "one NUL": (
        {"a": LINES.encode() + b"\0"},
        {"a": b"t" + LINES.encode() + b"\0"},
        {"a": LINES.encode() + b"\0s"},
        {"a": "binary"},
    ),
    "NUL late in a text": (
        {"a": b"x" * 9000 + b"\n\0\n" + LINES.encode()},
        {"a": b"t\n" + b"x" * 9000 + b"\n\0\n" + LINES.encode()},
        {"a": b"x" * 9000 + b"\n\0\n" + LINES.encode() + b"s\n"},
        {},
    ),
    "Latin-1": (
        {"a": b"\xe4\n\xf6\n\xfc\n\xdf\n\xe9\n"},
        {"a": b"\xc4\n\xf6\n\xfc\n\xdf\n\xe9\n"},
        {"a": b"\xe4\n\xf6\n\xfc\n\xdf\n\xc9\n"},
        {},
    ),
    "names that are no UTF-8": (
        {"\udcff/\udce4\t b": b"1\n", "\udcfe": LINES.encode()},
        {"\udcff/\udce4\t b": b"2\n", "\udcfd": LINES.encode()},
        {"\udcff/\udce4\t b": b"3\n", "\udcfe": b"s" + LINES.encode()},
        {"\udcff/\udce4\t b": "contents"},
    ),
    "CRLF on one side": (
        {"a": LINES},
        {"a": LINES.replace("\n", "\r\n")},
        {"a": f"{LINES}s\n"},
        {"a": "contents"},
    ),
    "text eol=crlf": (
        *with_rules("* text eol=crlf\n", LINES, f"t\n{LINES}", f"{LINES}s\n"),
        {},
    ),
    "text eol=crlf, stored so": (
        *with_rules("* text eol=crlf\n", LINES, LINES.replace("\n", "\r\n"), f"{LINES}s\n"),
        {"a": "contents"},
    ),
    "merge=union": (*with_rules("a merge=union\n", "1\n", "2\n", "3\n"), {}),
    "-merge": (*with_rules("a -merge\n", LINES, f"t{LINES}", f"{LINES}s"), {"a": "binary"}),
    "binary by attribute": (*with_rules("a binary\n", LINES, f"t{LINES}", f"{LINES}s"), {"a": "binary"}),
    "conflict-marker-size": (
        *with_rules("a conflict-marker-size=11\n", "1\n", "2\n", "3\n"),
        {"a": "contents"},
    ),
    "rules of the target alone": (
        {"a": "1\n"},
        {"a": "2\n", ".gitattributes": "a merge=union\n"},
        {"a": "3\n", ".gitattributes": "a -merge\n"},
        {".gitattributes": "add/add"},
    ),
    "rules of the source alone": (
        {"a": "1\n"},
        {"a": "2\n"},
        {"a": "3\n", ".gitattributes": "a merge=union\n"},
        {"a": "contents"},
    ),
    "submodule": ({"a": SUB[0], "b": "1\n"}, {"a": SUB[1], "b": "1\n"}, {"a": SUB[0], "b": "2\n"}, {}),
    "submodules": ({"a": SUB[0]}, {"a": SUB[1]}, {"a": SUB[2]}, {"a": "submodule not initialized"}),
    "submodule/file": (
        {"x": "1\n"},
        {"a": SUB[1], "x": "1\n"},
        {"a": "3\n", "x": "1\n"},
        {"a": "distinct modes"},
    ),
    "submodule/delete": (
        {"a": SUB[0], "x": "1\n"},
        {"a": SUB[1], "x": "1\n"},
        {"x": "1\n"},
        {"a": "modify/delete"},
    ),
}


# A checkout finds that file changed before anybody touched it, and `git merge` refuses to begin.
DIRTY_AT_ONCE: Final = {"text eol=crlf, stored so"}


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "repo")


@pytest.fixture
def checkout(history: History, tmp_path: Path) -> Checkout:
    return Checkout(history, tmp_path / "checkout")


def assert_as_merge_tree(checkout: Checkout, merged: Merged, target: CommitId, source: CommitId) -> None:
    """Everything is the same: trees with markers, and each stage."""
    rows = frozenset(
        (one.path, stage.mode, stage.oid, stage.number) for one in merged.conflicts for stage in one.stages
    )
    assert Outcome(merged.tree, rows) == checkout.merge_tree(target, source)


def assert_as_git(checkout: Checkout, merged: Merged, target: CommitId, source: CommitId) -> None:
    """Compare with both ways of git's own; where `git merge` writes markers, they name the target HEAD."""
    assert_as_merge_tree(checkout, merged, target, source)
    outcome = checkout.merge(target, source)
    assert merged.is_clean == (outcome.tree is not None)
    assert outcome.tree in (None, merged.tree)
    ours = {(one.path, stage.mode, stage.number) for one in merged.conflicts for stage in one.stages}
    assert ours == {(path, mode, number) for path, mode, _, number in outcome.rows}


@pytest.mark.parametrize("kind", KINDS)
def test_it_merges_as_git_does(history: History, checkout: Checkout, kind: str) -> None:
    *sides, conflicts = KINDS[kind]
    base = history.commit(sides[0])
    target, source = history.commit(sides[1], base), history.commit(sides[2], base)
    with (
        MergeEngine(history.git_dir, target) as engine,
        MergeEngine(history.git_dir, target, alone=True) as fresh,
    ):
        merged = engine.merge(target, source)
        assert fresh.merge(target, source) == merged
    found = {os.fsdecode(one.path): one.kind for one in merged.conflicts}
    assert conflicts.items() <= found.items()
    assert merged.is_clean == (not conflicts)
    assert_same = assert_as_merge_tree if kind in DIRTY_AT_ONCE else assert_as_git
    assert_same(checkout, merged, target, source)


def test_after_gits_advice_on_submodules_it_goes_on(history: History) -> None:
    base = history.commit({"a": SUB[0], "b": "1\n"})
    target, source = (
        history.commit({"a": SUB[1], "b": "1\n"}, base),
        history.commit({"a": SUB[2], "b": "2\n"}, base),
    )
    with MergeEngine(history.git_dir, base) as engine:
        merged = engine.merge(target, source)
        assert [message for message in merged.messages if "superproject" in message] == []
        assert history.show(engine.merge(base, source).tree, "b") == "2"
        assert engine.merge(target, source) == merged


def test_the_users_choice_for_directory_renames_counts(history: History, checkout: Checkout) -> None:
    history.git("config", "merge.directoryRenames", "true")
    base = history.commit(DIRECTORY)
    target, source = history.commit(MOVED, base), history.commit({**DIRECTORY, "old/added": "s\n"}, base)
    with MergeEngine(history.git_dir, target) as engine:
        merged = engine.merge(target, source)
    assert merged.is_clean
    assert "new/added" in history.files(merged.tree)


@pytest.mark.parametrize("is_clean", [True, False])
def test_criss_cross_histories_merge_as_git_does(
    history: History, checkout: Checkout, *, is_clean: bool
) -> None:
    root = history.commit({"a": LINES, "b": "1\n"})
    one = history.commit({"a": f"one\n{LINES}", "b": "1\n"}, root)
    two = history.commit({"a": f"{LINES}two\n", "b": "2\n"}, root)
    both = f"one\n{LINES}two\n"
    first = history.commit({"a": both, "b": "2\n"}, one, two)
    second = history.commit({"a": both, "b": "2\n"}, two, one)
    target = history.commit({"a": both.replace("line 5", "five"), "b": "2\n"}, first)
    line = "line 15" if is_clean else "line 5"
    source = history.commit({"a": both.replace(line, "changed"), "b": "2\n"}, second)
    with MergeEngine(history.git_dir, target) as engine:
        merged = engine.merge(target, source)
    assert merged.is_clean is is_clean
    assert len(history.git("merge-base", "--all", target, source).split()) == 2
    assert_as_git(checkout, merged, target, source)


def test_of_fifty_branches_that_edit_one_line_each_later_one_is_a_listed_conflict(
    history: History, checkout: Checkout
) -> None:
    base = history.commit({"a": LINES, "rest": "1\n"})
    tip = base
    with MergeEngine(history.git_dir, base) as engine:
        for number in range(50):
            text = LINES.replace("line 5", f"branch {number}")
            source = history.commit({"a": text, "rest": "1\n", f"new{number}": "x\n"}, base)
            merged = engine.merge(tip, source)
            assert [one.path for one in merged.conflicts] == ([b"a"] if number else [])
            assert_as_git(checkout, merged, tip, source)
            # Whoever resolves it takes the target's line.
            files: dict[str, Content] = {f"new{n}": "x\n" for n in range(number + 1)}
            kept = LINES.replace("line 5", "branch 0")
            tip = history.commit({"a": kept, "rest": "1\n", **files}, tip, source)


NAMES: Final = ("a", "b", "d", "d/x", "d/y", "d/z", "e/x", "e/y", "f/g/h")
TEXTS: Final = tuple("".join(f"{word} {n}\n" for n in range(8)) for word in ("red", "green", "blue"))


@st.composite
def edited(draw: st.DrawFn, files: dict[str, Node]) -> dict[str, Node]:
    """Files after some edits, renames, removals, additions and changes of mode."""
    files = dict(files)
    for _ in range(draw(st.integers(1, 4))):
        name = draw(st.sampled_from(sorted(files))) if files else ""
        other = draw(st.sampled_from(NAMES))
        match draw(st.sampled_from(["edit", "rename", "rename all", "remove", "mode", "add", "link"])):
            case "edit" if name:
                lines = files[name].content.splitlines(keepends=True) or [b""]
                lines[draw(st.integers(0, len(lines) - 1))] = b"edit %d\n" % draw(st.integers(0, 3))
                files[name] = Node(files[name].mode, b"".join(lines))
            case "rename" if name:
                _put(files, other, files.pop(name))
            case "rename all" if "/" in name:
                top = name.partition("/")[0]
                for old in [old for old in files if old.startswith(f"{top}/")]:
                    _put(files, f"moved/{old}", files.pop(old))
            case "remove" if name:
                del files[name]
            case "mode" if name and files[name].mode != "120000":
                files[name] = Node(
                    "100755" if files[name].mode == "100644" else "100644", files[name].content
                )
            case "add":
                _put(files, other, Node("100644", draw(st.sampled_from(TEXTS)).encode()))
            case "link":
                _put(files, other, Node("120000", b"a"))
            case _:
                pass
    return files


def _put(files: dict[str, Node], name: str, node: Node) -> None:
    """Set a path; what can't stand beside it goes."""
    for old in [old for old in files if old.startswith(f"{name}/") or name.startswith(f"{old}/")]:
        del files[old]
    files[name] = node


@st.composite
def histories(draw: st.DrawFn) -> tuple[dict[str, Node], list[dict[str, Node]], list[dict[str, Node]]]:
    """A base, and the commits of two branches from it."""
    base: dict[str, Node] = {}
    for name in draw(st.lists(st.sampled_from(NAMES), min_size=2, max_size=7, unique=True)):
        _put(base, name, Node("100644", draw(st.sampled_from(TEXTS)).encode() + name.encode()))
    branches = []
    for _ in range(2):
        commits = [base]
        for _ in range(draw(st.integers(1, 3))):
            commits.append(draw(edited(commits[-1])))
        branches.append(commits[1:])
    return base, branches[0], branches[1]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[History, Checkout, MergeEngine]]:
    place = tmp_path_factory.mktemp("random")
    history = History(place / "repo")
    with MergeEngine(history.git_dir, None) as engine:
        yield history, Checkout(history, place / "checkout"), engine


@seed(SHARE)
@settings(max_examples=32, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(sides=histories())
@pytest.mark.by_both
def test_random_histories_merge_as_git_does(
    world: tuple[History, Checkout, MergeEngine],
    sides: tuple[dict[str, Node], list[dict[str, Node]], list[dict[str, Node]]],
) -> None:
    history, checkout, engine = world
    first, *branches = sides
    base = history.commit(first)
    tips = []
    for commits in branches:
        tip = base
        for files in commits:
            tip = history.commit(files, tip)
        tips.append(tip)
    target, source = tips
    assert_as_git(checkout, engine.merge(target, source), target, source)
