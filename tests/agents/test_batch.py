"""The batch of the README, with the real OpenCode, a scripted model behind it, and every way it can go."""

from __future__ import annotations

import json
import re
import shlex
from importlib import resources
from pathlib import Path
from typing import Any, Final

import jsonschema
import pytest
from batch.chromium import browser
from junitparser import JUnitXml

from .project import Project
from .scripted_model import ScriptedModel

README: Final = Path(__file__).parents[2] / "README.md"
# What the model does for each prompt of the README, by the task's id.
SCRIPTS: Final = {
    "fix-login": """
        @edit shop/login.py isalnum() => replace("+", "").isalnum()
        @write tests/test_login.py import unittest\\n\\nfrom shop.login import valid\\n\\n\\nclass Login(unittest.TestCase):\\n    def test_plus(self):\\n        self.assertTrue(valid("a+b"))\\n
        @say A plus sign is allowed now.
    """,
    "changelog": "@write CHANGELOG.md People with a plus sign can log in.\\n",
    "type-hints-cart": "@edit shop/cart.py def total(prices): => def total(prices: list[int]) -> int:",
    "type-hints-search": "@edit shop/search.py def find(word): => def find(word: str) -> str:",
    "rename-total": "@edit shop/cart.py def total(prices): => def grand_total(prices):",
    "currency": "@edit shop/cart.py return sum(prices) => return '€' + sum(prices)",
    "slow-tests": "@sleep 600",
    "spelling": "@say There is nothing to mend.",
}
FILES: Final = {
    "shop/__init__.py": "",
    "shop/login.py": "def valid(name):\n    return name.isalnum()\n",
    "shop/cart.py": "def total(prices):\n    return sum(prices)\n",
    "shop/search.py": "def find(word):\n    return word\n",
    "tests/__init__.py": "",
    "tests/test_cart.py": (
        "import unittest\n\nfrom shop import cart\n\n\nclass Cart(unittest.TestCase):\n"
        "    def test_sum(self):\n"
        "        add = getattr(cart, 'total', None) or cart.grand_total\n"
        "        self.assertEqual(add([1, 2]), 3)\n"
    ),
}


def _example() -> tuple[str, list[str]]:
    """The file of tasks and the command that the README shows."""
    text = README.read_text()
    found = re.search(
        r"    \$ cat tasks\.yaml\n(.*?)\n\n    \$ (overlayrun batch tasks\.yaml .*?)\n", text, re.DOTALL
    )
    assert found
    return re.sub(r"^    ", "", found[1], flags=re.MULTILINE) + "\n", shlex.split(found[2])


def _schema(name: str) -> Any:
    return json.loads(resources.files("overlayrun.batch.reports").joinpath(name).read_text())


def _valid(value: Any, name: str) -> None:
    jsonschema.Draft202012Validator(_schema(name)).validate(value)


@pytest.fixture
def shop(project: Project, model: ScriptedModel) -> Project:
    """The repository of the README's example, and a model that knows its prompts."""
    tasks, _ = _example()
    for name, text in {**FILES, "tasks.yaml": tasks}.items():
        path = project.repo / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    project.git("rm", "--quiet", "-r", "src")
    project.git("add", "--all")
    project.git("commit", "--quiet", "--message=A shop")
    planned = json.loads(project.output(["overlayrun", "batch", "tasks.yaml", "--dry-run", "--json"]))
    model.scripts.update({task["prompt"]: SCRIPTS[task["id"]] for task in planned["tasks"]})
    return project


@pytest.mark.shared
def test_the_batch_of_the_readme(shop: Project, model: ScriptedModel) -> None:
    """One run for many questions: it takes eight starts of OpenCode."""
    before = shop.files()
    _, command = _example()
    # In place of the README's five minutes, and of a second one.
    done = shop.overlayrun(*command[1:], "--idle-timeout", "45s", "--attempts", "1")
    assert done.returncode == 1, done.stderr + done.stdout
    out = shop.repo / "out"
    summary = json.loads((out / "summary.json").read_text())
    tasks = {task["id"]: task for task in summary["tasks"]}
    assert {name: task["outcome"] for name, task in tasks.items()} == {
        "fix-login": "ok",
        "changelog": "ok",
        "type-hints-cart": "ok",
        "type-hints-search": "ok",
        "rename-total": "ok",
        "currency": "check-failed",
        "slow-tests": "timeout",
        "spelling": "no-change",
    }, done.stdout
    landings = {name: task["landing"] for name, task in tasks.items()}
    assert landings.pop("rename-total") == "conflict"
    assert [name for name, landing in landings.items() if landing == "landed"] == [
        "fix-login",
        "changelog",
        "type-hints-cart",
        "type-hints-search",
    ]
    _reports_are_sound(out, summary)
    with browser(shop.home.parent) as page:
        page.open(f"{(out / 'report.html').as_uri()}#task/rename-total")
        page.expect("document.body.innerText.includes('5 of 8 tasks succeeded')")
        page.expect("document.body.innerText.includes('grand_total')")  # the change of that task
        assert page.errors == []
        assert [url for url in page.requests if not url.startswith("file:")] == []

    # What landed is here, and nothing else of the user's moved.
    assert "-> int" in (shop.repo / "shop/cart.py").read_text()
    assert (shop.repo / "CHANGELOG.md").read_text() == "People with a plus sign can log in.\n"
    after = {name: entry for name, entry in shop.files().items() if not name.startswith("out/")}
    assert after.keys() == before.keys() | {"CHANGELOG.md", "tests/test_login.py"}
    untouched = after.keys() - {
        "CHANGELOG.md",
        "tests/test_login.py",
        "shop/login.py",
        "shop/cart.py",
        "shop/search.py",
    }
    assert {name: after[name] for name in untouched} == {name: before[name] for name in untouched}

    # What did not land is kept, by its branch and by the attempt's ref; the words are the agent's.
    assert "grand_total" in shop.git("show", f"{tasks['rename-total']['branch']}:shop/cart.py")
    (attempt,) = tasks["currency"]["attempts"]
    assert shop.git("rev-parse", attempt["ref"]).strip() == attempt["tip"]
    assert (out / attempt["artifacts"]["check"]).read_text()
    assert "Show sums in euros." in shop.git("log", "-1", "--format=%B", tasks["currency"]["branch"])
    # Nobody else's list of sessions is filled by a batch.
    assert shop.output(["opencode", "session", "list"]) == ""


def _reports_are_sound(out: Path, summary: Any) -> None:
    """Every report keeps to its schema, or is read by a reader that is not ours."""
    _valid(summary, "summary.schema.json")
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    for row in rows:
        _valid(row, "result.schema.json")
    # One word costs one token in the scripted model; the price of its tokens is what OpenCode was told: none.
    assert all(row["tokens_out"] for row in rows if row["outcome"] == "ok")

    suites = JUnitXml.fromfile(str(out / "junit.xml"))
    assert (suites.tests, suites.failures, suites.errors, suites.skipped) == (8, 2, 1, 1)
    assert json.dumps("rename-total") in (out / "report.html").read_text()
    assert "currency" in (out / "summary.md").read_text()
    said = (out / "tasks/fix-login/1/stdout.log").read_text()
    assert "A plus sign is allowed now." in said
    assert "isalnum" in (out / "tasks/fix-login/1/diff.patch").read_text()
