"""Files of tasks as they are read, in each of their languages."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayrun.batch.documents import Document, read_documents

pytestmark = pytest.mark.shared

PROPERTY: Final = settings(derandomize=True, database=None, deadline=None, max_examples=100)

YAML = """\
# what holds for all
defaults: &all
  timeout: 10m
tasks:
  - id: one   # first
    env: {A: 1, B: "2"}
  -
    id: two
    prompt: |
      a
      b
    env: *all
"""
JSON = """\
{"defaults": {"timeout": "10m"},
 "tasks": [
\t{"id": "one",
   "env": {"A": 1,
           "B": "2"}},
  {"id": "two"}
 ]}
"""
TOML = '''\
[defaults]
timeout = "10m"

[[tasks]]
id = "one"
prompt = """
[[tasks]]
x = 1
"""
env.A = 1

[[tasks]]
id = "two"
[tasks.env]
B = "2"
'''
LINES = '{"id": "one"}\n\n{"id": "two", "env": {"B": "2"}}\n'

PATHS = st.lists(st.one_of(st.text(max_size=5), st.integers(0, 5)), max_size=4).map(tuple)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats(-1e17, 1e17)
    | st.text("ab{}é\n'", max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab c", max_size=3), inner, max_size=3)
    ),
    max_leaves=10,
)


def messages(document: Document) -> list[str]:
    return [str(problem) for problem in document.problems]


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [
        (
            "t.yaml",
            YAML,
            {
                ("defaults",): 2,
                ("defaults", "timeout"): 3,
                ("tasks", 0): 5,
                ("tasks", 0, "env", "B"): 6,
                ("tasks", 1, "id"): 8,
                ("tasks", 1, "prompt"): 9,
                ("tasks", 1, "env", "timeout"): 12,
            },
        ),
        (
            "t.json",
            JSON,
            {
                ("defaults", "timeout"): 1,
                ("tasks", 0): 3,
                ("tasks", 0, "env", "B"): 5,
                ("tasks", 1, "id"): 6,
                ("tasks", 1, "nothing"): 6,
            },
        ),
        (
            "t.toml",
            TOML,
            {
                ("defaults", "timeout"): 2,
                ("tasks", 0, "prompt"): 6,
                ("tasks", 0, "env", "A"): 10,
                ("tasks", 1): 12,
                ("tasks", 1, "id"): 13,
                ("tasks", 1, "env", "B"): 15,
            },
        ),
        ("t.jsonl", LINES, {("tasks", 0): 1, ("tasks", 1): 3, ("tasks", 1, "env", "B"): 3}),
    ],
)
def test_each_language_tells_the_line_of_a_path(name: str, text: str, lines: dict[Any, int]) -> None:
    document = read_documents(name, text.encode())
    assert messages(document) == []
    assert [task["id"] for task in document.value["tasks"]] == ["one", "two"]
    assert {path: document.line(path) for path in lines} == lines
    by_content = read_documents("-", text.encode())
    assert by_content.value == document.value
    assert {path: by_content.line(path) for path in lines} == lines


def test_windows_line_ends_and_a_byte_order_mark_change_nothing() -> None:
    data = b"\xef\xbb\xbf" + YAML.replace("\n", "\r\n").encode()
    document = read_documents("t.yaml", data)
    assert document.value == read_documents("t.yaml", YAML.encode()).value
    assert document.line(("tasks", 1, "id")) == 8


@pytest.mark.parametrize(
    ("name", "text"),
    [("t.json", '[\n{"id": "a"},\n{"id": "b"}]'), ("t.yaml", "- id: x\n- {id: a}\n- id: b\n")],
)
def test_a_bare_list_is_a_list_of_tasks(name: str, text: str) -> None:
    document = read_documents(name, text.encode())
    number = len(document.value["tasks"]) - 1
    assert document.value["tasks"][number] == {"id": "b"}
    assert document.line(("tasks", number, "id")) == 3


def test_yaml_means_what_it_says_by_version_1_2() -> None:
    text = "[no, on, 1:30, 010, 0x1f, 1_000, 2024-01-01, ~, '1', !!str 1, 1e3, .5, true, <<, =]"
    assert read_documents("t.yaml", text.encode()).value["tasks"] == [
        *("no", "on", "1:30", 10, 31, "1_000", "2024-01-01", None, "1", "1", 1000.0, 0.5, True, "<<", "=")
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.yaml", "a: 1\nb: 2\na: 3\n", "line 3: a: is given twice"),
        ("t.json", '{"a": 1,\n"a": 2}', "line 2: a: is given twice"),
        ("t.jsonl", '{"x": 1}\n{"a": {"b": 1, "b": 2}}', "line 2: tasks[1].b: is given twice"),
        ("t.toml", "a = 1\na = 2\n", "line 2: this is no TOML: "),
        ("t.yaml", "tasks:\n- a\n b: c\n", "line 3: this is no YAML: "),
        ("t.yaml", "a:\n  - \x01\n", "line 2: this is no YAML: "),
        ("t.yaml", "a: 1\n---\nb: 2\n", "line 2: a second document: put all tasks into one"),
        ("t.yaml", "a:\n- *b\n", "line 2: a[0]: nothing above is called '*b'"),
        ("t.yaml", "a: &a [*a]\n", "line 1: a[0]: nothing above is called '*a'"),
        ("t.yaml", "? [a]\n: b\n", "line 1: has a key that is no text"),
        ("t.yaml", "a:\n- !!python/name:os.system\n", "line 2: a[0]: has the tag 'tag:yaml.org,2002:python/name:os.system', which means nothing here"),
        ("t.json", '{"a":\n}', "line 2: this is no JSON: Expecting value"),
        ("t.json", "[1, 2\n", "line 1: this is no JSON: a comma is missing"),
        ("t.json", "[1] 2", "line 1: this is no JSON: more after its end"),
        ("t.json", '[\n"a",\n"b\n"]', "line 3: this is no JSON: Invalid control character at"),
        ("t.json", "[1,\nNaN]", "line 2: tasks[1]: is no usable number"),
        ("t.json", f"[1,\n{'9' * 5000}]", "line 2: tasks[1]: is no usable number"),
        ("t.json", '[1,\n"\\ud800"]', "line 2: tasks[1]: holds characters that no command can take"),
        ("t.yaml", '- a\n- "\\0"\n', "line 2: tasks[1]: holds characters that no command can take"),
        ("t.jsonl", '{"a": 1}\n{"a"}\n', "line 2: tasks[1]: this line is no JSON: Expecting ':' delimiter (column 5)"),
        ("t.toml", "a = 1\nb = [\n", "line 2: this is no TOML: "),
        ("t.yaml", "# nothing\n", "line 1: holds no tasks"),
        ("-", "", "line 1: holds no tasks"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_text_is_told_with_its_line(name: str, text: str, message: str) -> None:
    (told,) = messages(read_documents(name, text.encode()))
    # The words after a colon at the end are the library's own.
    assert told.startswith(message) if message.endswith(": ") else told == message


def test_bytes_that_are_no_text_are_told() -> None:
    assert messages(read_documents("t.yaml", b"\xff\xfe")) == ["line 1: is no text in UTF-8"]


def test_every_line_of_json_that_is_wrong_is_told() -> None:
    document = read_documents("-", b'{"id": "a"}\n{"id":\n{"id": "c"}\nfoo\n')
    assert [problem.line for problem in document.problems] == [2, 4]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.yaml", "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))),
        ("t.yaml", "a: &a " + "x" * 1_000_000 + "\nb: &b [" + "*a, " * 1000 + "]\n"),
        *((name, "[" * 100_000) for name in ("t.yaml", "t.json", "t.jsonl")),
        ("t.toml", "a = " + "[" * 100_000),
        ("t.yaml", "- " * 100_000),
        ("t.json", '{"a":' * 100_000),
    ],
)  # fmt: skip
def test_bombs_are_refused(name: str, text: str) -> None:
    document = read_documents(name, text.encode())
    assert len(document.problems) == 1
    assert document.problems[0].message.startswith(("holds more than", "is nested too deep", "this "))


@PROPERTY
@given(PLAIN)
def test_json_and_yaml_give_the_values_that_were_written(value: Any) -> None:
    expected = {"tasks": value} if isinstance(value, list) else value
    text = json.dumps(value, indent=1)
    for name in ("t.json", "t.yaml"):
        assert read_documents(name, text.encode()).value == expected


@PROPERTY
@given(
    st.sampled_from(["-", "t.yaml", "t.json", "t.jsonl", "t.toml"]),
    st.text("[]{}:,-\"'#&*!|\n =ab1\t", max_size=40),
    PATHS,
)
def test_any_text_is_read_or_told_wrong_within_its_lines(name: str, text: str, path: Any) -> None:
    document = read_documents(name, text.encode())
    count = text.count("\n") + 1
    assert document.value is not None or document.problems
    assert all(problem.line and 1 <= problem.line <= count for problem in document.problems)
    assert 1 <= document.line(path) <= count
