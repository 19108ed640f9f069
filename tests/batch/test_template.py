"""Placeholders and names made from any text."""

from __future__ import annotations

import shlex
import subprocess
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayrun.batch.schema import faults
from overlayrun.batch.template import names_in, quoted_names, render, slug
from overlayrun.store.refs import parse_branch_name

pytestmark = pytest.mark.shared

PROPERTY: Final = settings(derandomize=True, database=None, deadline=None, max_examples=100)


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("fix {path} now", "fix src/a now"),
        ("{path}{n}", "src/a1"),
        ("{{path}} stays", "{path} stays"),
        ('{"a":{"b":{path}}}', '{"a":{"b":src/a}}'),
        ("${path} main@{path} ${{path}}", "${path} main@{path} ${{path}}"),
        ("{} { path } {a,b} {{}} {0}", "{} { path } {a,b} {{}} {0}"),
        ("{unknown}", "{unknown}"),
    ],
)
def test_names_in_braces_are_replaced_and_nothing_else(text: str, rendered: str) -> None:
    assert render(text, {"path": "src/a", "n": "1"}) == rendered


def test_a_value_is_not_looked_into() -> None:
    assert render("{a}", {"a": "{b} {{a}}", "b": "no"}) == "{b} {{a}}"


def test_names_are_found_in_order() -> None:
    assert names_in("{b} {{c}} {a} ${d}") == ["b", "a"]


@PROPERTY
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_a_quoted_value_reaches_the_shell_as_it_is(value: str) -> None:
    words = shlex.split(render("echo -- {value} end", {"value": value}, shlex.quote))
    assert words == ["echo", "--", value, "end"]


def test_the_shell_itself_reads_it_so_too() -> None:
    value = 'it\'s "$HOME"; `id`\n\\ {x} *'
    shell = ["/bin/sh", "-c", render("printf %s {value}", {"value": value}, shlex.quote)]
    assert subprocess.check_output(shell, text=True) == value


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("echo {a}", []),
        ("echo '{a}' {b}", ["a"]),
        ('echo "x {a}" {b} "{c}"', ["a", "c"]),
        (r"echo \"{a}", []),
        (r"echo '\'{a}", []),
        ("echo '{{a}}'", []),
    ],
)
def test_placeholders_inside_a_shells_quotes_are_told(text: str, quoted: list[str]) -> None:
    assert quoted_names(text) == quoted


@PROPERTY
@given(st.text())
def test_a_slug_is_a_name_for_files_and_refs(text: str) -> None:
    name = slug(text)
    assert len(name) <= 60
    if name:
        assert list(faults(name, "id")) == []
        assert parse_branch_name(f"batch/run/{name}")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("src/pkg/a.py", "src-pkg-a.py"),
        ("Ärger with  naïve..text!", "Arger-with-naive.text"),
        ("refs.lock", "refs-lock"),
        ("../../etc", "etc"),
        ("日本", ""),
        ("word " * 30, "word-word-word-word-word-word-word-word-word-word-word-word"),
    ],
)
def test_slugs_keep_what_can_be_kept(text: str, name: str) -> None:
    assert slug(text) == name
