"""A resolver's proposal is judged by what it is: each misbehaviour has its own reason, honest work is taken."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from overlayrun.reconcile.acceptance import Proposal, first_missing, judge, lines_of, read_blocks
from overlayrun.store.trees import EXECUTABLE, FILE, GITLINK, SYMLINK

from .conflict_world import Clash, Files, Scratch

pytestmark = pytest.mark.shared  # judgements about trees, in objects alone

START = "".join(f"line {number}\n" for number in range(12))
OURS = START.replace("line 0", "our top").replace("line 6", "our six")
THEIRS = START.replace("line 11", "their end").replace("line 6", "their six")
BOTH = START.replace("line 0", "our top").replace("line 11", "their end")


def answer(middle: str) -> str:
    return BOTH.replace("line 6\n", middle)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Clash:
    """One conflicted file, `f`; `both` merged cleanly; `mine` and `theirs` were changed by one side alone."""
    return Scratch.make(tmp_path_factory.mktemp("text")).clash(
        {
            "f": START,
            "both": START,
            "mine": "1\n",
            "theirs": "1\n",
            "idle": "1\n",
            "d/idle": "1\n",
            "tool": "x\n",
        },
        {"f": OURS, "both": START.replace("line 0", "our top"), "mine": "2\n", "tool": (EXECUTABLE, "x\n")},
        {"f": THEIRS, "both": START.replace("line 11", "their end"), "theirs": "2\n", "added": "new\n"},
    )


@pytest.mark.parametrize(
    "middle", ["our six\n", "their six\n", "our six\ntheirs six\n", "their six\nour six\n", "", "a third\n"]
)
def test_any_answer_between_the_markers_is_taken(text: Clash, middle: str) -> None:
    assert text.judge({"f": answer(middle)}).refused is None


def test_lines_may_come_in_outside_the_markers(text: Clash) -> None:
    assert text.judge({"f": "import x\n" + answer("six(x)\n")}).refused is None


def test_what_it_declared_and_changed_is_told(text: Clash) -> None:
    verdict = text.judge({"f": answer("6\n"), "idle": "2\n", "d/new": "x\n"}, "idle", "d/")
    assert (verdict.refused, verdict.beyond) == (None, (b"d/new", b"idle"))


def test_a_declared_move_keeps_what_was_changed(text: Clash) -> None:
    assert text.judge({"f": answer("6\n"), "mine": None, "now/mine": "2\n"}, "mine", "now/").refused is None
    assert text.judge({"f": answer("6\n"), "idle": None}, "idle").refused is None


MARKED = answer("<<<<<<< HEAD\nour six\n=======\ntheir six\n>>>>>>> b\n")
MISBEHAVIOUR: list[tuple[str, Files, tuple[str, ...], str]] = [
    ("lies", {}, (), "it changed nothing"),
    ("lies, and declares another path", {}, ("idle",), "it changed nothing"),
    ("declares the marked file", {}, ("f",), "conflict markers are left in f"),
    ("leaves markers", {"f": MARKED}, (), "conflict markers are left in f"),
    ("leaves one marker", {"f": answer("our six\n=======\n")}, (), "conflict markers are left in f"),
    ("leaves an arrow", {"f": answer("our six\n>>>>>>> b\n")}, (), "conflict markers are left in f"),
    ("leaves the base", {"f": answer("||||||| base\n")}, (), "conflict markers are left in f"),
    ("leaves them with CRLF", {"f": answer("<<<<<<< HEAD\r\n")}, (), "conflict markers are left in f"),
    ("takes our file", {"f": OURS}, (), "it changed f outside the conflict: this line is gone: their end"),
    ("takes their file", {"f": THEIRS}, (), "it changed f outside the conflict: this line is gone: our top"),
    ("takes the old file", {"f": START}, (), "it changed f outside the conflict: this line is gone: our top"),
    ("empties it", {"f": ""}, (), "it changed f outside the conflict: this line is gone: our top"),
    ("deletes it", {"f": None}, (), "it deleted f, which both sides have"),
    ("makes it executable", {"f": (EXECUTABLE, answer("6\n"))}, (), "it changed what kind of file f is"),
    ("makes it a link", {"f": (SYMLINK, "/etc/passwd")}, (), "it changed what kind of file f is"),
    ("edits elsewhere", {"f": answer("6\n"), "idle": "2\n"}, (), "it changed idle, which is neither"),
    ("adds a file", {"f": answer("6\n"), "new": "2\n"}, (), "it changed new, which is neither"),
    ("deletes a file", {"f": answer("6\n"), "d/idle": None}, (), "it changed d/idle, which is neither"),
    ("drops our change", {"f": answer("6\n"), "mine": "1\n"}, ("mine",), "it takes back what was changed"),
    ("drops their change", {"f": answer("6\n"), "theirs": "1\n"}, ("theirs",), "it takes back what was"),
    ("drops half a file", {"f": answer("6\n"), "both": START}, ("both",), "it takes back what was changed"),
    ("drops their file", {"f": answer("6\n"), "added": None}, ("added",), "it takes back what was changed"),
    ("takes a mode back", {"f": answer("6\n"), "tool": "x\n"}, ("tool",), "it takes back what was changed"),
    ("deletes our file", {"f": answer("6\n"), "mine": None}, ("mine",), "it takes back what was changed"),
    ("adds markers", {"f": answer("6\n"), "idle": MARKED}, ("idle",), "conflict markers are left in idle"),
    (
        "adds a link",
        {"f": answer("6\n"), "new": (SYMLINK, "/")},
        ("new",),
        "it changed what kind of file new",
    ),
    ("adds a tool", {"f": answer("6\n"), "new": (EXECUTABLE, "")}, ("new",), "it changed what kind of file"),
    ("adds a submodule", {"f": answer("6\n"), "new": (GITLINK, "1" * 40)}, ("new",), "it changed what kind"),
    ("makes a link", {"f": answer("6\n"), "idle": (SYMLINK, "f")}, ("idle",), "it changed what kind of file"),
]


@pytest.mark.parametrize(
    ("given", "declared", "why"), [pytest.param(*row[1:], id=row[0]) for row in MISBEHAVIOUR]
)
def test_each_misbehaviour_is_refused_with_its_reason(
    text: Clash, given: Files, declared: tuple[str, ...], why: str
) -> None:
    assert (text.judge(given, *declared).refused or "").startswith(why)


def test_every_one_of_two_conflicts_must_be_resolved(tmp_path: Path) -> None:
    clash = Scratch.make(tmp_path).clash({}, {"a": "1\n", "b": "1\n"}, {"a": "2\n", "b": "2\n"})
    assert clash.judge({"a": "1\n2\n"}).refused == "conflict markers are left in b"
    assert clash.judge({"a": "1\n2\n", "b": "2\n"}).refused is None


def test_markers_that_the_versions_have_may_stay(tmp_path: Path) -> None:
    how = "Title\n=======\n\n<<<<<<< like this\n"
    clash = Scratch.make(tmp_path).clash(
        {"doc": how + "old\n"}, {"doc": how + "ours\nOurs\n=======\n"}, {"doc": how + "theirs\n"}
    )
    assert clash.judge({"doc": how + "both\nOurs\n=======\n"}).refused is None
    too_many = how + "both\nOurs\n=======\nx\n=======\n"
    assert clash.judge({"doc": too_many}).refused == "conflict markers are left in doc"


def test_both_sides_new_headings_may_stay_together(tmp_path: Path) -> None:
    head = "Title\n=======\n"
    clash = Scratch.make(tmp_path).clash(
        {"doc": head}, {"doc": f"{head}Ours\n=======\n"}, {"doc": f"{head}Others\n=======\n"}
    )
    assert clash.judge({"doc": f"{head}Ours\n=======\nOthers\n=======\n"}).refused is None


def test_a_file_without_a_last_line_end_is_compared_all_the_same(tmp_path: Path) -> None:
    clash = Scratch.make(tmp_path).clash({"f": "1\n2"}, {"f": "0\n1\nx"}, {"f": "1\ny"})
    assert clash.judge({"f": "0\n1\nx y"}).refused is None
    assert "outside the conflict" in (clash.judge({"f": "1\nx y"}).refused or "")


def test_a_mode_that_one_side_changed_stays_changed(tmp_path: Path) -> None:
    clash = Scratch.make(tmp_path).clash({"f": "1\n"}, {"f": (EXECUTABLE, "2\n")}, {"f": "3\n"})
    assert clash.judge({"f": "23\n"}).refused == "it changed what kind of file f is"
    assert clash.judge({"f": (EXECUTABLE, "23\n")}).refused is None


@pytest.mark.parametrize("mode", [FILE, EXECUTABLE])
def test_a_mode_that_both_sides_made_otherwise_is_chosen(tmp_path: Path, mode: bytes) -> None:
    clash = Scratch.make(tmp_path).clash({}, {"f": (EXECUTABLE, "1\n")}, {"f": "1\n"})
    assert clash.judge({"f": (mode, "1\n")}, "f").refused is None


@pytest.mark.parametrize(
    ("given", "declared", "why"),
    [
        ({"f": "text\n", "aside": None}, (), None),
        ({"aside": None}, (), None),
        ({"aside": None, "moved": "text\n"}, ("moved",), None),
        ({"f": None, "aside": None}, (), "neither side's paths are all there"),
        ({"f": "else\n", "aside": None}, (), "f is neither side's version, and it is not declared"),
        ({"f": (SYMLINK, "/etc"), "aside": None}, ("f",), "it changed what kind of file f is"),
    ],
)
def test_of_a_file_and_a_link_of_one_name_either_is_taken(
    tmp_path: Path, given: Files, declared: tuple[str, ...], why: str | None
) -> None:
    clash = Scratch.make(tmp_path).clash({"k": "1\n"}, {"f": "text\n"}, {"f": (SYMLINK, "k")})
    aside = next(c.path.decode() for c in clash.merged.conflicts if b"~" in c.path)
    answer = {aside if name == "aside" else name: version for name, version in given.items()}
    refused = clash.judge(answer, *declared).refused
    assert refused is None if why is None else (refused or "").startswith(why)


def test_of_a_file_and_a_directory_of_one_name_either_keeps_it(tmp_path: Path) -> None:
    clash = Scratch.make(tmp_path).clash({"k": "1\n"}, {"f": "text\n"}, {"f/x": "below\n"})
    aside = next(c.path.decode() for c in clash.merged.conflicts if b"~" in c.path)
    assert clash.judge({aside: None, "g": "text\n"}, "g").refused is None
    moved: Files = {aside: None, "f/x": None, "d/x": "below\n"}
    tree = clash.scratch.tree({"f": "text\n"}, clash.scratch.tree(moved, clash.merged.tree))
    proposal = Proposal(tree, (b"f/", b"d/"))
    assert judge(clash.repo, clash.merged, clash.sides, proposal).refused is None
    assert judge(clash.repo, clash.merged, clash.sides, Proposal(tree)).refused


def test_a_file_may_stay_where_its_directory_was_before_a_rename(tmp_path: Path) -> None:
    old: Files = {f"a/{number}": START + str(number) for number in range(3)}
    gone: Files = dict.fromkeys(old)
    new: Files = {f"b/{number}": START + str(number) for number in range(3)}
    clash = Scratch.make(tmp_path).clash(old, {**gone, **new}, {"a/new": "new\n"})
    assert clash.judge({"b/new": None, "a/new": "new\n"}).refused is None
    assert clash.judge({}, "b/new").refused is None
    assert clash.judge({"b/new": None, "a/new": "other\n"}).refused == (
        "a/new is neither side's version, and it is not declared"
    )
    assert clash.judge({"b/new": None}).refused == "neither side's paths are all there: a/new, b/new"


def test_markers_of_another_size_are_known_as_such(tmp_path: Path) -> None:
    rules = {".gitattributes": "f conflict-marker-size=3\n"}
    clash = Scratch.make(tmp_path).clash(
        {**rules, "f": "top\n1\n"}, {"f": "top\n===\n2\n"}, {"f": "top\n3\n"}
    )
    assert b"<<< " in clash.content("f")
    assert clash.judge({"f": "top\n===\n23\n"}).refused is None
    assert clash.judge({"f": "top\n===\n2\n===\n3\n"}).refused == "conflict markers are left in f"
    assert "outside the conflict" in (clash.judge({"f": "23\n"}).refused or "")


def test_an_executable_stays_one(tmp_path: Path) -> None:
    tool = {side: {"f": (EXECUTABLE, f"{side}\n")} for side in "bot"}
    clash = Scratch.make(tmp_path).clash(tool["b"], tool["o"], tool["t"])
    assert clash.judge({"f": (EXECUTABLE, "x\n")}).refused is None
    assert clash.judge({"f": (FILE, "x\n")}).refused == "it changed what kind of file f is"


@pytest.mark.parametrize(
    ("given", "declared", "why"),
    [
        ({"bin": "o\0"}, ("bin",), None),
        ({"bin": "t\0"}, (), None),
        ({"bin": "new\0"}, ("bin",), None),
        ({"bin": "new\0"}, (), "bin is neither side's version, and it is not declared"),
        ({"bin": None}, (), "it deleted bin, which both sides have"),
        ({"bin": None}, ("bin",), "it deleted bin, which both sides have"),
        ({"bin": (EXECUTABLE, "new\0")}, ("bin",), "it changed what kind of file bin is"),
        ({"bin": (SYMLINK, "new")}, ("bin",), "it changed what kind of file bin is"),
        ({"other": "x"}, ("other",), "it left bin as it lay, and did not declare it"),
    ],
)
def test_a_binary_file_is_one_sides_or_declared(
    tmp_path: Path, given: Files, declared: tuple[str, ...], why: str | None
) -> None:
    clash = Scratch.make(tmp_path).clash({"bin": "b\0"}, {"bin": "o\0"}, {"bin": "t\0"})
    assert clash.judge(given, *declared).refused == why


@pytest.mark.parametrize(
    ("given", "declared", "why"),
    [
        ({"f": None}, (), None),
        ({}, ("f",), None),
        ({}, (), "it changed nothing"),
        ({"f": "third\n"}, ("f",), None),
        ({"f": "third\n"}, (), "f is neither side's version, and it is not declared"),
        ({"f": MARKED}, ("f",), "conflict markers are left in f"),
    ],
)
def test_a_deletion_against_a_change_is_decided(
    tmp_path: Path, given: Files, declared: tuple[str, ...], why: str | None
) -> None:
    clash = Scratch.make(tmp_path).clash({"f": "1\n"}, {"f": None}, {"f": "2\n"})
    assert [conflict.kind for conflict in clash.merged.conflicts] == ["modify/delete"]
    assert clash.judge(given, *declared).refused == why


@pytest.mark.parametrize(
    ("given", "declared", "why"),
    [
        ({"new1": None}, (), None),
        ({"new2": None}, (), None),
        ({"new1": None, "new2": None, "new3": START}, ("new3",), None),
        ({}, ("new1",), None),
        ({"new1": None, "new2": None}, (), "neither side's paths are all there: new1, new2, old"),
        ({"new1": None, "old": START}, (), "old is neither side's version, and it is not declared"),
    ],
)
def test_a_rename_in_two_directions_keeps_one_sides_path(
    tmp_path: Path, given: Files, declared: tuple[str, ...], why: str | None
) -> None:
    clash = Scratch.make(tmp_path).clash(
        {"old": START}, {"old": None, "new1": START}, {"old": None, "new2": START}
    )
    assert {conflict.kind for conflict in clash.merged.conflicts} == {"rename/rename"}
    assert clash.judge(given, *declared).refused == why


def test_a_rename_against_a_deletion_is_decided(tmp_path: Path) -> None:
    clash = Scratch.make(tmp_path).clash({"old": START}, {"old": None, "new": START}, {"old": None})
    assert clash.judge({"new": None}).refused is None
    assert clash.judge({}, "new").refused is None
    assert clash.judge({"new": None, "else": START}).refused == (
        "it changed else, which is neither in conflict nor declared"
    )


@pytest.mark.parametrize("mode", [SYMLINK, GITLINK])
def test_a_link_or_submodule_is_one_of_the_sides(tmp_path: Path, mode: bytes) -> None:
    targets = ["1" * 40, "2" * 40, "3" * 40]
    clash = Scratch.make(tmp_path).clash(*({"l": (mode, target)} for target in targets))
    assert clash.judge({"l": (mode, targets[1])}, "l").refused is None
    assert clash.judge({"l": (mode, targets[2])}, "l").refused is None
    assert clash.judge({"l": (mode, "4" * 40)}, "l").refused == "it changed what kind of file l is"


def test_odd_names_are_judged_and_shown_safely(tmp_path: Path) -> None:
    name = "d/\x1b[31m\udcff\n"
    clash = Scratch.make(tmp_path).clash({name: "1\n"}, {name: "2\n"}, {name: "3\n"})
    assert clash.judge({name: "2\n3\n"}).refused is None
    assert clash.judge({name: "<<<<<<< x\n"}).refused == r"conflict markers are left in d/\x1b[31m\udcff\n"


LINES = st.lists(st.sampled_from(["a", "b", "c", "}", "", "x = 1"]), max_size=12)


@st.composite
def versions(draw: st.DrawFn) -> tuple[str, str, str]:
    """A file, and two edits of it."""
    base = draw(LINES)

    def edit() -> list[str]:
        at, end = sorted(draw(st.tuples(*[st.integers(0, len(base))] * 2)))
        return [*base[:at], *draw(LINES), *base[end:]]

    return tuple("".join(f"{line}\n" for line in lines) for lines in (base, edit(), edit()))  # type: ignore[return-value]  # three of them


BLOCK = re.compile(
    rb"<{7} [^\n]*\n(?P<ours>(?:[^\n]*\n)*?)\|{7}[^\n]*\n(?:[^\n]*\n)*?={7}\n(?P<theirs>(?:[^\n]*\n)*?)>{7} [^\n]*\n"
)
SEVERAL = settings(max_examples=40, deadline=None, derandomize=True, database=None)


@SEVERAL
@given(versions(), st.lists(st.sampled_from(["ours", "theirs", "both", "neither"]), min_size=1), st.data())
def test_any_mix_of_sides_is_taken_and_a_lost_line_outside_is_not(
    three: tuple[str, str, str], choices: list[str], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as place:
        clash = Scratch.make(Path(place)).clash(*({"f": text} for text in three))
        assume(clash.merged.conflicts and clash.merged.conflicts[0].kind == "contents")
        marked = clash.content("f")
        picks = iter(choices * len(marked))

        def pick(found: re.Match[bytes]) -> bytes:
            both = {"ours": found["ours"], "theirs": found["theirs"]}
            return both.get(next_pick := next(picks), b"".join(both.values()) * (next_pick == "both"))

        resolved = BLOCK.sub(pick, marked)
        assert clash.judge({"f": resolved}).refused is None
        found = read_blocks(marked)
        assert found
        assume(found.outside)
        lost = data.draw(st.sampled_from(sorted(set(found.outside))))
        less = [line for line in lines_of(resolved) if line != lost]
        assert "outside the conflict" in (clash.judge({"f": b"\n".join(less)}).refused or "")


@settings(derandomize=True, database=None)
@given(LINES, LINES)
def test_lines_survive_if_they_are_a_subsequence(wanted: list[str], noise: list[str]) -> None:
    mixed = [line for pair in zip(wanted, [*noise, *[""] * len(wanted)], strict=False) for line in pair]
    encode = [[line.encode() for line in lines] for lines in (wanted, mixed)]
    assert first_missing(*encode) is None


def test_committed_markers_of_another_conflict_are_no_block() -> None:
    assert read_blocks(b"<<<<<<< HEAD\na\n=======\nb\n>>>>>>> other\n") is None
