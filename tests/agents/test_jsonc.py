"""JSON with comments, edited in place: the rest of the text stays, and the undo is exact."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayrun.agents.jsonc import append, applied, listed, parse, take_out, without_pieces

_ITEM = {"hooks": [{"type": "command", "command": "overlayrun hook claude"}]}
_GAPS = st.sampled_from(
    ["", " ", "\n", "\n  ", "\r\n\t", " // a note: {,]\n", " /* [a, note} */ ", "\n// \u00a0\n"]
)
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.floats(allow_nan=False, allow_infinity=False, width=16)
)


@st.composite
def _written(draw: st.DrawFn, depth: int = 0) -> str:
    """A value as somebody may have typed it: any layout, comments, trailing commas."""
    kind = draw(st.sampled_from(["scalar", "array", "object"] if depth < 3 else ["scalar"]))
    if kind == "scalar":
        return json.dumps(draw(_SCALARS))
    count = draw(st.integers(0, 3))
    parts = [draw(_GAPS) + _member(draw, kind, index) + draw(_written(depth + 1)) for index in range(count)]
    trailing = "," if count and draw(st.booleans()) else ""
    inside = ("," + draw(_GAPS)).join(parts) + draw(_GAPS) + trailing + draw(_GAPS)
    return f"[{inside}]" if kind == "array" else f"{{{inside}}}"


def _member(draw: st.DrawFn, kind: str, index: int) -> str:
    return f'"{index}"{draw(_GAPS)}:{draw(_GAPS)}' if kind == "object" else ""


@st.composite
def _documents(draw: st.DrawFn) -> str:
    """An object that may hold `hooks`, and there a `Stop`."""
    stop = draw(st.sampled_from(["", "[]", "[ ]", "[1]", '[\n    "a", // mine\n    2\n  ]', "[1,]"]))
    hooks = (
        draw(st.sampled_from(["", f'{{"Stop":{stop}}}', f'{{\n  "Stop": {stop} /* x */\n }}']))
        if stop
        else ""
    )
    other = draw(_written(1))
    members = [f'"other": {other}', *([f'"hooks": {hooks}'] if hooks else [])]
    gap = draw(_GAPS)
    return f"{draw(_GAPS)}{{{gap}" + f",{draw(_GAPS)}".join(members) + f"{draw(_GAPS)}}}{draw(_GAPS)}"


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(_written())
def test_a_text_is_read_whatever_its_layout(text: str) -> None:
    assert json.loads(json.dumps(parse(text))) == parse(text)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    st.recursive(
        _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner)
    )
)
def test_plain_json_means_what_json_says(value: Any) -> None:
    assert parse(json.dumps(value, indent=1)) == json.loads(json.dumps(value))


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(_documents())
def test_an_item_comes_and_goes_and_the_rest_is_as_it_was(text: str) -> None:
    before = parse(text)
    pieces, depth = append(text, ("hooks", "Stop"), _ITEM)
    after = applied(text, pieces)
    expected = {**before, "hooks": {"Stop": [*before.get("hooks", {}).get("Stop", []), _ITEM]}}
    assert parse(after) == expected
    assert without_pieces(after, pieces) == text

    # Somebody adds to it, so that the exact way is closed.
    more, _ = append(after, ("hooks", "Stop"), "another's")
    left = parse(take_out(applied(after, more), ("hooks", "Stop"), _ITEM, depth))
    assert left == {**expected, "hooks": {"Stop": [*expected["hooks"]["Stop"][:-1], "another's"]}}
    assert parse(take_out(after, ("hooks", "Stop"), _ITEM, depth)) == before


def test_it_looks_like_its_neighbours() -> None:
    for text, wanted in (
        ('{"plugin": ["a"]}\n', '{"plugin": ["a", "b"]}\n'),
        ('{\n\t"theme": "x" // dark\n}\n', '{\n\t"theme": "x", // dark\n\t"plugin": [\n\t\t"b"\n\t]\n}\n'),
        ('{\r\n "plugin": [\r\n  "a",\r\n ]\r\n}', '{\r\n "plugin": [\r\n  "a",\r\n  "b"\r\n ]\r\n}'),
        ("{}", '{\n  "plugin": [\n    "b"\n  ]\n}'),
    ):
        assert applied(text, append(text, ("plugin",), "b")[0]) == wanted
        assert listed(wanted, ("plugin",))[-1] == "b"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1 2]", '{"a" 1}', '{"a": 1} x', "{1: 2}", "{'a': 1}", "[,]", "[NaN]", "/* open", "[" * 9000],
)
def test_what_is_no_json_is_refused_with_its_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"^line 1: |^nested too deep|no JSON"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "where"), [("[]", "the whole"), ('{"hooks": 1}', "hooks"), ('{"hooks": []}', "hooks")]
)
def test_another_shape_is_refused(text: str, where: str) -> None:
    with pytest.raises(ValueError, match=f"{where} is no object"):
        append(text, ("hooks", "Stop"), _ITEM)
