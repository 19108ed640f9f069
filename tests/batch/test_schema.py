"""The published schema, and what is said where a file does not follow it."""

from __future__ import annotations

import json
from enum import Enum
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from overlayrun.batch.documents import read_documents
from overlayrun.batch.schema import SCHEMA, definitions, faults, problems
from overlayrun.batch.task import Outcome
from overlayrun.cli.options import RUN_OPTIONS
from overlayrun.model import AgentState, CarryPolicy, DirtyPolicy, HomePolicy
from overlayrun.values import seconds, size

pytestmark = pytest.mark.shared

PROPERTY: Final = settings(derandomize=True, database=None, deadline=None, max_examples=100)

WRONG = """\
defaults: {agent: opencode, timout: 10m}
rates: {x: often}
extra: 1
tasks:
  - id: a/b
    prompt: "x"
    prompt_file: y
    timeout: soon
    command: []
    retry_on: [ok, timeuot]
    env: {"a b": 1, C: [1], V: 3.10}
    needs: 3
    net:
  - foo
  - {id: a, check-timeout: 3m, resources: {memory: "0", cpu: 2}}
"""
TOLD = """\
line 1: defaults.timout: is no known field; did you mean timeout?
line 2: rates.x: 'often' is no rate such as 30/m or 5/10s
line 3: extra: is no known field
line 5: tasks[0]: has both prompt and prompt_file: one is enough
line 5: tasks[0].id: 'a/b' is no id: letters, digits and . _ - alone, a letter or digit first, no .., no . or .lock at its end
line 8: tasks[0].timeout: 'soon' is no span such as 90s or 10m
line 9: tasks[0].command: an empty list is neither a list of words nor a text for the shell
line 10: tasks[0].retry_on[0]: 'ok' is none of: no-change, empty, rejected, failed, check-failed, timeout, rate-limited, lost, infra
line 10: tasks[0].retry_on[1]: 'timeuot' is none of: no-change, empty, rejected, failed, check-failed, timeout, rate-limited, lost, infra; did you mean timeout?
line 11: tasks[0].env.C: a list is no variable's value: text, a whole number, true, false or null (put 3.10 in quotes)
line 11: tasks[0].env.V: 3.1 is no variable's value: text, a whole number, true, false or null (put 3.10 in quotes)
line 11: tasks[0].env['a b']: is no variable's name
line 12: tasks[0].needs: 3 is neither an id nor a list of ids
line 13: tasks[0].net: has no value
line 14: tasks[1]: 'foo' is no task: an object
line 15: tasks[2].check-timeout: is no known field; did you mean check_timeout?
line 15: tasks[2].resources.cpu: is no known field; did you mean cpus?
line 15: tasks[2].resources.memory: '0' is no size such as 512M or 2G
"""


def _known_fields(kind: str = "task") -> set[str]:
    """Names that a task, or the defaults, can have."""
    return set(definitions()[kind]["properties"])


def told(text: str, name: str = "t.yaml") -> list[str]:
    return [str(problem) for problem in problems(read_documents(name, text.encode()))]


def test_everything_that_is_wrong_is_told_at_once_by_line() -> None:
    assert told(WRONG) == TOLD.splitlines()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("foo", "line 1: 'foo' is neither a list of tasks nor an object with tasks"),
        ("\ndefaults: {}", "line 1: has no tasks"),
        ("a: 1\ntasks: []", "line 2: tasks: an empty list is no list with tasks"),
        ("tasks: 3", "line 1: tasks: 3 is no list with tasks"),
        ("- 3", "line 1: tasks[0]: 3 is no task: an object"),
        ("- id: 'a\\n'", "line 1: tasks[0].id: 'a\\\\n' is no id"),
        ('- id: "a\\n"', "line 1: tasks[0].id: 'a\\n' is no id"),
        ('- "\\e[31m": 1', "line 1: tasks[0]['\\x1b[31m']: is no known field"),
        (f"- {'k' * 500}: 1", f"line 1: tasks[0]['{'k' * 36}...']: is no known field"),
        ("- dirty: includes", "line 1: tasks[0].dirty: 'includes' is none of: include, ignore, fail; did you mean include?"),
        ("- count: 1.5", "line 1: tasks[0].count: 1.5 is no number from 1 to 1000"),
        ("- strict: 'yes'", "line 1: tasks[0].strict: 'yes' is neither true nor false"),
        ("- matrix: {a: []}", "line 1: tasks[0].matrix.a: an empty list is no list of values"),
        ("- matrix: {a: [3.10]}", "line 1: tasks[0].matrix.a[0]: 3.1 is no value of a matrix"),
    ],
)  # fmt: skip
def test_messages_are_words_that_a_person_understands(text: str, message: str) -> None:
    found = told(text)
    assert found[-1].startswith(message)


def test_the_schema_is_one_and_its_examples_follow_it() -> None:
    schema = json.loads(SCHEMA.read_text())
    Draft202012Validator.check_schema(schema)
    assert schema["$id"]
    for name in (*_known_fields(), "size"):
        part = definitions()[name]
        assert part["title"], name
        assert part["description"], name
        for example in part.get("examples", ()):
            assert list(faults(example, name)) == []


def test_defaults_take_what_tasks_take_but_for_what_is_a_tasks_own() -> None:
    assert _known_fields() - _known_fields("defaults") == {"id", "needs"}
    assert _known_fields("defaults") < _known_fields()


def test_run_options_of_the_schema_are_those_of_the_command_line() -> None:
    options = {option.name for option in RUN_OPTIONS}
    of_tasks = {
        *("id", "prompt", "prompt_file", "command", "agent", "model", "check", "verify", "check_timeout"),
        *("judge", "count", "matrix", "attempts", "retry_on", "accept", "priority", "needs", "provider"),
        *("budget", "resources"),
    }
    assert _known_fields() - of_tasks <= options
    left_out = {"rm", "keep", "apply", "message", "quiet", "backend", "memory", "disk", "cpus", "pids"}
    assert options - _known_fields() == left_out


@pytest.mark.parametrize(
    ("name", "kind"),
    [("dirty", DirtyPolicy), ("carry", CarryPolicy), ("home", HomePolicy), ("agent_state", AgentState)],
)
def test_choices_are_those_of_the_run(name: str, kind: type[Enum]) -> None:
    assert definitions()[name]["enum"] == [item.value for item in kind]


@pytest.mark.parametrize("name", ["retry_on", "accept"])
def test_outcomes_are_known_ones(name: str) -> None:
    assert {Outcome(word) for word in definitions()[name]["items"]["enum"]}


@PROPERTY
@given(st.from_regex(r"[0-9]{0,20}\.?[0-9]{0,8}[A-Za-z\n]?", fullmatch=True))
def test_spans_and_sizes_of_the_schema_are_those_that_can_be_read(text: str) -> None:
    if not list(faults(text, "timeout")):
        assert 0 <= seconds(text) < 1e14
    if not list(faults(text, "check_timeout")):
        assert seconds(text) > 0
    if not list(faults(text, "size")):
        assert size(text) > 0


@pytest.mark.parametrize("text", ["0", "90s", "1.5h", "20m", "3600"])
def test_usual_spans_are_taken(text: str) -> None:
    assert list(faults(text, "timeout")) == []


@pytest.mark.parametrize("text", ["512M", "2G", "1.5g", "1048576", "1t", "64k"])
def test_usual_sizes_are_taken(text: str) -> None:
    assert list(faults(text, "size")) == []


@pytest.mark.parametrize(
    "text", ["", "-a", ".a", "_a", "a/b", "a..b", "a.", "a.lock", "a\n", "a b", "x" * 101, "é"]
)
def test_what_is_no_id(text: str) -> None:
    assert list(faults(text, "id"))


@pytest.mark.parametrize("text", ["a", "A.b_c-1", "1", "x" * 100, "a.lock.b"])
def test_what_is_an_id(text: str) -> None:
    assert list(faults(text, "id")) == []


def test_problems_come_in_the_same_order_each_time() -> None:
    keys = [f"k{number}" for number in range(30)]
    text = json.dumps([dict.fromkeys(keys, 1)])
    found: list[Any] = [told(text, "t.json") for _ in range(2)]
    assert found[0] == found[1]
    assert len(found[0]) == 30
