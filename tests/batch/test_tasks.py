"""Tasks from files and options: precedence, matrix, tries, ids, needs, shards."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from conftest import UserRepo
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayrun.batch.documents import read_documents
from overlayrun.batch.foreach import tracked_files
from overlayrun.batch.schema import definitions, faults
from overlayrun.batch.task import ACCEPTED, RETRIED, Outcome, Task
from overlayrun.batch.tasks import Given, PlanRow, expand, plan_rows, rates, shard
from overlayrun.errors import UsageError
from overlayrun.store.refs import parse_branch_name

pytestmark = pytest.mark.shared

PROPERTY: Final = settings(derandomize=True, database=None, deadline=None, max_examples=100)


@dataclass(frozen=True)
class Agent:
    """Stands for a known agent."""

    name: str

    def command(self, prompt: str, model: str | None = None) -> tuple[str, ...]:
        return (self.name, *(["-m", model] if model else []), "--", prompt)


AGENTS = {name: Agent(name) for name in ("opencode", "claude")}


def made(
    text: str | None = None,
    given: Given | None = None,
    *,
    name: str = "t.yaml",
    tracked: Iterable[str] = (),
    **values: Any,
) -> dict[str, Task]:
    """Tasks by id. values: of the command line."""
    given = given or Given(agents=AGENTS, values=values)
    document = None if text is None else read_documents(name, text.encode())
    tasks = expand(document, given, run="run", tracked=lambda: list(tracked))
    assert len({task.id for task in tasks}) == len(tasks)
    return {task.id: task for task in tasks}


def refused(text: str | None, given: Given | None = None, **more: Any) -> list[str]:
    with pytest.raises(UsageError) as caught:
        made(text, given, **more)
    return (caught.value.details or "").splitlines()


def test_a_task_has_everything_filled_in() -> None:
    task = made("""\
    - id: one
      prompt: Do it
      command: [run, "{prompt}", "{id}", "{run}"]
      agent: opencode
      base: v1
      branch: fix/{id}
      env: {A: 1, B: true, C: "{id}", TOKEN: null}
      timeout: 10m
      idle_timeout: 90
      check: pytest -q
      check_timeout: 2m
      judge: score {prompt}
      attempts: 3
      retry_on: [failed]
      accept: [ok, empty]
      priority: 5
      provider: here
      budget: 2
      resources: {memory: 2G, disk: 1048576, cpus: 0.5, pids: 10}
      net: none
      strict: true
      every: 1m
    """)["one"]
    assert task == Task(
        id="one",
        command=("run", "Do it", "one", "run"),
        branch="fix/one",
        group="one",
        agent="opencode",
        prompt="Do it",
        base="v1",
        env={"A": "1", "B": "true", "C": "one"},
        timeout=600.0,
        idle_timeout=90.0,
        check="pytest -q",
        check_timeout=120.0,
        judge="score 'Do it'",
        attempts=3,
        retry_on=(Outcome.FAILED,),
        accept=(Outcome.OK, Outcome.EMPTY),
        priority=5,
        provider="here",
        budget=2.0,
        memory=2 << 30,
        disk=1 << 20,
        cpus=0.5,
        options={"net": "none", "strict": True, "every": 60.0, "pids": 10, "env": ["TOKEN"]},
    )
    assert Task.from_json(json.loads(json.dumps(task.to_json()))) == task


def test_a_task_that_says_little_has_the_built_in_values() -> None:
    task = made("- prompt: Add type hints\n  agent: opencode\n")["add-type-hints"]
    assert task.command == ("opencode", "--", "Add type hints")
    assert (task.branch, task.group, task.base) == ("batch/run/add-type-hints", "add-type-hints", None)
    assert (task.accept, task.retry_on, task.timeout, task.options) == (ACCEPTED, RETRIED, None, {})


def test_the_task_stands_above_the_command_line_and_that_above_the_defaults() -> None:
    text = """\
    defaults: {agent: claude, timeout: 1m, check: d, env: {A: d, B: d, C: d}, resources: {memory: 1G, pids: 3}}
    tasks:
      - {id: own, prompt: x, timeout: 3m, verify: t, env: {A: t}, resources: {memory: 3G}}
      - {id: line, prompt: x}
    """
    tasks = made(text, timeout="2m", env={"A": "l", "B": "l"}, resources={"cpus": 2})
    own, line = tasks["own"], tasks["line"]
    assert (own.timeout, line.timeout) == (180.0, 120.0)
    assert (own.check, line.check) == ("t", "d")
    assert own.env == {"A": "t", "B": "l", "C": "d"}
    assert line.env == {"A": "l", "B": "l", "C": "d"}
    assert (own.memory, own.cpus, own.options["pids"]) == (3 << 30, 2.0, 3)


def test_the_highest_level_that_names_a_command_or_an_agent_decides_both() -> None:
    text = """\
    defaults: {agent: claude}
    tasks:
      - {id: a, prompt: x}
      - {id: b, prompt: x, command: "my {prompt}"}
      - {id: c, prompt: x, agent: opencode, model: m/n}
    """
    commands = {name: (task.command, task.agent) for name, task in made(text).items()}
    assert commands == {
        "a": (("claude", "--", "x"), "claude"),
        "b": (("/bin/sh", "-c", "my x"), None),
        "c": (("opencode", "-m", "m/n", "--", "x"), "opencode"),
    }
    given = Given(command=("run", "{prompt}"), agents=AGENTS, values={"model": "of/agents"})
    by_line = made(text, given)
    assert by_line["a"].command == ("run", "x")
    assert by_line["a"].agent is None
    assert by_line["c"].agent == "opencode"


def test_a_limit_of_nothing_is_no_limit() -> None:
    assert made("defaults: {timeout: 5m}\ntasks: [{id: a, command: x, timeout: 0}]")["a"].timeout is None


def test_a_matrix_makes_a_task_of_each_combination() -> None:
    tasks = made("""\
    - id: t
      matrix: {lang: [go, c++, 'c  '], old: [true, 3]}
      count: 2
      prompt: "{lang} {old} {n} {group}"
      command: [x, "{prompt}"]
    - {id: all, command: y, needs: t}
    - {id: some, command: y, needs: ["t-go-3", "t-c-3-3-1"]}
    - {id: onto, command: y, base: "task:t-go-true-2"}
    """)
    groups = ["t-go-true", "t-go-3", "t-c-true", "t-c-3", "t-c-true-3", "t-c-3-3"]
    tries = [f"{group}-{number}" for group in groups for number in (1, 2)]
    assert list(tasks) == [*tries, "all", "some", "onto"]
    assert tasks["t-go-true-2"].command == ("x", "go true 2 t-go-true")
    assert tasks["t-go-true-2"].values == {"lang": "go", "old": "true"}
    assert tasks["t-go-true-2"].group == "t-go-true"
    assert tasks["all"].needs == tuple(tries)
    assert tasks["onto"].needs == ("t-go-true-2",)
    assert tasks["onto"].base == "task:t-go-true-2"


def test_several_tries_of_one_prompt() -> None:
    given = Given(command=("opencode", "run", "{prompt}"), prompt="Fix issue 12", count=3)
    tasks = made(None, given)
    assert list(tasks) == ["fix-issue-12-1", "fix-issue-12-2", "fix-issue-12-3"]
    assert {task.group for task in tasks.values()} == {"fix-issue-12"}


def test_ids_that_are_made_give_way_to_ids_that_are_given() -> None:
    tasks = made("- {command: foo}\n- {command: foo}\n- {command: x, id: foo}\n- {command: y, id: foo-3}\n")
    assert list(tasks) == ["foo-2", "foo-4", "foo", "foo-3"]


def test_long_ids_stay_or_are_cut_to_what_a_file_can_be_called() -> None:
    long = "x" * 100
    assert list(made(f"- {{id: {long}, command: a}}")) == [long]
    tasks = made(
        f"- {{id: {long}, command: a, count: 2, matrix: {{y: [{long}, {long}z]}}}}\n- {{id: b, command: c, needs: {long}}}"
    )
    assert len(tasks) == 5
    assert max(map(len, tasks)) <= 100
    assert len(tasks["b"].needs) == 4


def test_files_by_globs_are_a_task_each() -> None:
    tracked = ["a.py", "src/b.py", "src/x/c d.py", "src/x/.h.py", "src/n.md", "-o.md", "README.txt"]
    given = Given(command=("fix", "{path}"), foreach=("src/**/*.py", "*.md"), prompt="Look at {path}")
    tasks = made(None, given, tracked=tracked)
    assert [task.values["path"] for task in tasks.values()] == [
        *("./-o.md", "src/b.py", "src/x/.h.py", "src/x/c d.py")
    ]
    assert list(tasks) == ["o.md", "src-b.py", "src-x-.h.py", "src-x-c-d.py"]
    assert tasks["src-b.py"].command == ("fix", "src/b.py")
    assert tasks["src-b.py"].prompt == "Look at src/b.py"


GLOBS = [
    "*",
    "*.py",
    "**",
    "**/*.py",
    "src/*",
    "src/**",
    "s?c/[ab].py",
    "src/[!a].py",
    "src/**/d.py",
    "*/*/*",
]


def test_globs_match_what_gits_own_globs_match(repo: UserRepo) -> None:
    names = [
        "a.py",
        "src/a.py",
        "src/b.py",
        "src/x/c.py",
        "src/x/y/d.py",
        "src/d.py",
        "sxc/.a",
        "we ird/[a].py",
    ]
    for name in names:
        repo.write(name)
    repo.git("add", ".")
    tracked = tracked_files(str(repo.root))
    assert set(names) <= set(tracked)
    below = [name.removeprefix("src/") for name in tracked if name.startswith("src/")]
    assert tracked_files(str(repo.root / "src")) == below
    for glob in GLOBS:
        listed = repo.git("ls-files", "-z", f":(glob){glob}")
        tasks = made(None, Given(command=("x",), foreach=(glob,)), tracked=tracked)
        assert sorted(task.values["path"] for task in tasks.values()) == sorted(listed.split("\0")[:-1]), glob


def test_prompts_of_files_stand_relative_to_the_file_of_tasks(tmp_path: Path) -> None:
    (tmp_path / "p-go.md").write_text("Write {lang}, {{so}} and ${that}\n\n")
    text = "- {agent: claude, prompt_file: 'p-{lang}.md', matrix: {lang: [go]}}"
    tasks = made(text, name=str(tmp_path / "t.yaml"))
    assert [task.prompt for task in tasks.values()] == ["Write go, {so} and ${that}"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "can't be read: No such file or directory"),
        ("pipe", "is no regular file"),
        ("binary", "is no text in UTF-8"),
        ("empty", "is empty, binary or larger than 1 MiB"),
        ("large", "is empty, binary or larger than 1 MiB"),
        ("", "can't be read: Is a directory"),
    ],
)
def test_a_prompts_file_that_is_none_is_told(tmp_path: Path, name: str, message: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "binary").write_bytes(b"\xff")
    (tmp_path / "empty").write_bytes(b"\n")
    (tmp_path / "large").write_bytes(b"x" * (1 << 20) + b"x")
    text = f"- {{agent: claude, prompt_file: ./{name}}}"
    assert refused(text, name=str(tmp_path / "t.yaml")) == [
        f"line 1: tasks[0].prompt_file: './{name}' {message}",
        "line 1: tasks[0].agent: has no prompt",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- id: a", "tasks[0]: there is neither a command nor an agent: say one after --, by --agent or in the file"),
        ("- agent: claude", "tasks[0].agent: has no prompt"),
        ("- {command: a, model: b}", "tasks[0].model: goes with an agent, and there is none"),
        ("- {agent: cluade, prompt: x}", "tasks[0].agent: 'cluade' is none of: claude, opencode; did you mean claude?"),
        ("- command: [a, '{nmae}']", "tasks[0].command: {nmae} has no value; write {{nmae}} for that very text; known: group, id, n, run"),
        ("- {command: [a], env: {A: '{attempt}'}}", "tasks[0].env: {attempt} is not known before the attempt: its command has it as $OVERLAYRUN_ATTEMPT"),
        ("- command: [a, '{prompt}']", "tasks[0].command: {prompt} has no value; write {{prompt}} for that very text; known: group, id, n, run"),
        ("- {command: a, check: 'grep \"{id}\"'}", "tasks[0].check: {id} stands in quotes: take them away, it is quoted already"),
        ("- {command: a, branch: a..b}", "tasks[0].branch: not a usable branch name: 'a..b': git does not allow .. in it"),
        ("- {command: a, branch: b, count: 2}", "tasks[0].branch: 'b' is the branch of a-1 too: put {id} into it"),
        ("- {command: a, matrix: {run: [1]}}", "tasks[0].matrix: can't have run, which means something already"),
        ("- {command: a, count: 1000, matrix: {x: [1,2,3,4,5,6], y: [1,2,3,4]}}", "tasks[0]: makes 24000 tasks with those above: more than 20000"),
        ("- {id: b, command: a, needs: a}", "tasks[0].needs: 'a' is no task's id"),
        ("- {id: abcd, command: a, needs: abce}", "tasks[0].needs: 'abce' is no task's id; did you mean abcd?"),
        ("- {id: a, command: a, needs: a}", "tasks[0].needs: waits for itself: a needs a"),
        ("- {id: a, command: a, count: 2, base: 'task:a-1'}", "tasks[0].base: waits for itself: a-1 needs a-1"),
        ("- {command: a, net: 'allow=1.2.3.4'}", "tasks[0].net: net can't allow '1.2.3.4': names only, no addresses"),
        ("- {command: a, without: [x]}", "tasks[0].without: no layer is called 'x'"),
        ("- {command: a, profile: x}", "tasks[0].profile: no profile is called 'x'"),
        ("- {command: a, into: '-x'}", "tasks[0].into: not a usable branch name: '-x': it must start with a letter or a digit"),
        (f"- {{command: [a, {'x' * (1 << 17)}]}}", "tasks[0].command: has a word longer than 128 KiB, which no command can take"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_task_is_told(text: str, message: str) -> None:
    assert f"line 1: {message}" in refused(text)


def test_faults_of_shape_and_of_meaning_are_told_together_in_the_order_of_the_file() -> None:
    text = """\
- {id: a, command: x, needs: zz}
- {id: b, command: x, timeout: soon}
- {id: c, command: x, needs: [b, d]}
- {id: d, command: x, needs: c}
- {id: a, command: x}
"""
    assert refused(text) == [
        "line 1: tasks[0].needs: 'zz' is no task's id",
        "line 2: tasks[1].timeout: 'soon' is no span such as 90s or 10m",
        "line 3: tasks[2].needs: waits for itself: c needs d needs c",
        "line 5: tasks[4].id: 'a' is taken by the task of line 1",
    ]


def test_branches_that_git_can_not_have_together_are_told() -> None:
    text = "- {id: a, command: x, branch: b}\n- {id: c, command: x, branch: b/c}\n"
    assert refused(text) == [
        "line 2: tasks[1].branch: 'b/c' can't be beside 'b', the branch of a: git allows only one of them"
    ]


def test_the_command_lines_own_faults_name_its_options() -> None:
    values: dict[str, Any] = {"timeout": "soon", "idle_timeout": "x", "resources": {"memory": "y"}}
    assert refused("- {id: a, command: x, count: 0}", **values) == [
        "--timeout: 'soon' is no span such as 90s or 10m",
        "--idle-timeout: 'x' is no span such as 90s or 10m",
        "--resources.memory: 'y' is no size such as 512M or 2G",
        "line 1: tasks[0].count: 0 is no number from 1 to 1000",
    ]
    assert refused(None, Given(command=("{x}",), foreach=("*.c",)), tracked=["a.py"]) == [
        "--foreach: '*.c' matches no tracked file",
        "command: {x} has no value; write {{x}} for that very text; known: group, id, n, run",
    ]


def test_a_hundred_faults_are_cut() -> None:
    lines = refused("\n".join("- foo" for _ in range(100)))
    assert len(lines) == 51
    assert lines[-1] == "and 50 more"


def test_rates_are_handed_on() -> None:
    assert rates(read_documents("t.yaml", b"rates: {a: 30/m}\ntasks: [{command: x}]")) == {"a": "30/m"}
    assert rates(None) == {}


def test_the_plan_is_in_the_order_of_the_start() -> None:
    tasks = made("""\
    - {id: last, command: "two\\nlines", needs: [high, low]}
    - {id: low, command: [x, "a b"]}
    - {id: high, command: x, priority: 2, timeout: 90m, budget: 1.5, resources: {memory: 1536M, cpus: 2}}
    - {id: later, command: x, needs: last}
    - {id: onto, command: x, base: "task:last", priority: 9}
    """)
    assert plan_rows(list(tasks.values())) == [
        PlanRow("high", (), "x", None, "batch/run/high", "90m, memory 1.5G, 2 cpus, $1.5"),
        PlanRow("low", (), "x 'a b'", None, "batch/run/low", ""),
        PlanRow("last", ("high", "low"), "two lines", None, "batch/run/last", ""),
        PlanRow("onto", ("last",), "x", "task:last", "batch/run/onto", ""),
        PlanRow("later", ("last",), "x", None, "batch/run/later", ""),
    ]


@st.composite
def graphs(draw: st.DrawFn) -> list[Task]:
    count = draw(st.integers(1, 12))
    groups = draw(st.lists(st.integers(0, 5), min_size=count, max_size=count))
    tasks = []
    for number in range(count):
        needs = draw(st.sets(st.integers(0, number - 1), max_size=2)) if number else set()
        tasks.append(
            Task(
                id=f"t{number}",
                command=("x",),
                branch="b",
                group=f"g{groups[number]}" if groups[number] < 3 else f"t{number}",
                needs=tuple(f"t{other}" for other in sorted(needs)),
            )
        )
    return tasks


@PROPERTY
@given(graphs(), st.integers(1, 5))
def test_shards_part_the_tasks_and_nothing_that_belongs_together(tasks: list[Task], of: int) -> None:
    shards = [shard(tasks, number, of) for number in range(1, of + 1)]
    place = {task.id: number for number, part in enumerate(shards) for task in part}
    assert sorted(task.id for part in shards for task in part) == sorted(task.id for task in tasks)
    groups: dict[str, int] = {}
    for task in tasks:
        assert all(place[other] == place[task.id] for other in task.needs)
        assert groups.setdefault(task.group, place[task.id]) == place[task.id]


@settings(PROPERTY, max_examples=50)
@given(graphs(), st.integers(2, 5), st.randoms(use_true_random=False))
def test_a_shard_does_not_depend_on_the_order_of_the_file(tasks: list[Task], of: int, random: Any) -> None:
    mixed = random.sample(tasks, len(tasks))
    assert {task.id for task in shard(tasks, 1, of)} == {task.id for task in shard(mixed, 1, of)}


@pytest.mark.parametrize(("number", "of"), [(0, 2), (3, 2), (1, 0), (-1, 2)])
def test_a_shard_that_is_none_is_refused(number: int, of: int) -> None:
    with pytest.raises(UsageError):
        shard([], number, of)


TEXTS = st.sampled_from(
    [
        "a",
        "b",
        "a-1",
        "{id}",
        "{x}",
        "{prompt}",
        "task:a",
        "soon",
        "10m",
        "2G",
        "ok",
        "claude",
        "é",
        "'{n}'",
        "",
    ]
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    TEXTS | st.none() | st.booleans() | st.integers(-1, 3) | st.floats(allow_nan=False) | st.just(2.0),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["x", "path", "A", "memory", "run"]), inner, max_size=2),
    max_leaves=5,
)  # fmt: skip


IDS = st.sampled_from(["a", "b", "a-1", "c", "a-x"])
PLAUSIBLE: Final[Mapping[str, st.SearchStrategy[Any]]] = {
    "id": IDS,
    "needs": st.lists(IDS, max_size=2),
    "base": IDS.map(lambda name: f"task:{name}"),
    "branch": st.sampled_from(["b/{id}", "b/{prompt}", "x"]),
    "matrix": st.dictionaries(st.sampled_from(["x", "path"]), st.lists(TEXTS, min_size=1, max_size=3), max_size=2),
    "command": st.lists(st.sampled_from(["a", "{id}", "{x}", "{prompt}"]), min_size=1, max_size=3),
    "env": st.dictionaries(st.sampled_from(["A", "B"]), st.sampled_from(["1", None, True, "{n}"]), max_size=2),
    "resources": st.sampled_from([{"memory": "2G"}, {"pids": 3.0, "cpus": 1}, {}]),
    "count": st.sampled_from([1, 2, 3.0]),
    "agent": st.sampled_from(sorted(AGENTS)),
    "without": st.just(["landlock"]),
    "publish": st.just([80.0]),
    "profile": st.just("none"),
}  # fmt: skip


def _sound(name: str) -> st.SearchStrategy[Any]:
    """Values that the schema takes for a field."""
    if name in PLAUSIBLE:
        return PLAUSIBLE[name]
    part: Mapping[str, Any] = definitions()[name]
    words = part.get("items", {}).get("enum", ["a"])
    some = [*part.get("enum", ()), *part.get("examples", ()), "a", 1, 1.0, True, [words[0]]]
    return st.sampled_from([value for value in some if not list(faults(value, name))])


def _objects(kind: str, *, sound: bool) -> st.SearchStrategy[dict[str, Any]]:
    left_out = {"prompt_file", "verify"} if sound else set()
    names = sorted(definitions()[kind]["properties"].keys() - left_out)
    often = ["command", "prompt"] + (["id", "needs", "matrix", "count"] if kind == "task" else [])
    some = st.lists(st.sampled_from([*names, *often * 10]), max_size=5, unique=True)
    value = _sound if sound else lambda name: _sound(name) | VALUES
    return some.flatmap(lambda chosen: st.fixed_dictionaries({name: value(name) for name in chosen}))


SOUND = st.fixed_dictionaries(
    {"tasks": st.lists(_objects("task", sound=True), min_size=1, max_size=4)},
    optional={"defaults": _objects("defaults", sound=True)},
)
FILES = st.fixed_dictionaries(
    {"tasks": st.lists(_objects("task", sound=False) | VALUES, max_size=4) | VALUES},
    optional={"defaults": _objects("defaults", sound=False), "rates": VALUES, "more": VALUES},
)


@settings(PROPERTY, max_examples=100)
@given(SOUND | SOUND | FILES | VALUES, st.sampled_from([("x", "{id}"), ()]))
def test_any_json_makes_tasks_or_problems_and_always_the_same(value: Any, command: tuple[str, ...]) -> None:
    text = json.dumps(value, indent=1)
    document = read_documents("t.json", text.encode())
    given = Given(agents=AGENTS, command=command, prompt="Do")
    outcomes: list[tuple[list[Task] | None, str | None]] = []
    for _ in range(2):
        try:
            outcomes.append((expand(document, given, run="r", tracked=list), None))
        except UsageError as err:
            outcomes.append((None, err.details))
    assert outcomes[0] == outcomes[1]
    tasks, details = outcomes[0]
    for line in (details or "").splitlines():
        if line.startswith("line "):
            assert 1 <= int(line.split()[1].rstrip(":")) <= text.count("\n") + 1
    for task in tasks or ():
        assert Task.from_json(json.loads(json.dumps(task.to_json()))) == task
        assert task.command
        assert list(faults(task.id, "id")) == []
        assert parse_branch_name(task.branch) == task.branch
        assert set(task.needs) <= {each.id for each in tasks or ()} - {task.id}
