"""The report page: what it holds, and what a browser makes of it, with everything agents wrote against it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import pytest

from overlayrun.batch.reports.html import write_html
from overlayrun.batch.result import BatchReport, CheckResult, Result, TaskReport
from overlayrun.batch.task import Outcome, Task

from .chromium import PROGRAM, Browser, browser

pytestmark = pytest.mark.shared(by="file")  # a page

START: Final = 1_795_417_200.0
BASE: Final = "b" * 40
FILES: Final = {name: f"{name}.log" for name in ("stdout", "stderr", "check", "judge", "overlayrun")} | {
    "diff": "diff.patch",
    "events": "events.jsonl",
    "bundle": "result.bundle",
    "result": "result.json",
}
PATCH: Final = """\
diff --git a/src/one.py b/src/one.py
index 111..222 100644
--- a/src/one.py
+++ b/src/one.py
@@ -4,3 +4,3 @@ def f():
 kept
--- gone
+++ came
 kept too
diff --git a/new file.txt b/new file.txt
new file mode 100755
index 000..333
--- /dev/null
+++ b/new file.txt
@@ -0,0 +1 @@
+fresh
"""
HOSTILE: Final = (
    "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 2'><!--<script> "
    "&lt;b&gt; ${pwned} \u202egnp.exe\u200f \x1b]0;title\x07\x1b[2J\x1b[31mred\x1b[0m\x9b1m \x00 \u2028 %DATA% \ud800"
)
SHOWN: Final = "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 2'>"


@dataclass
class Report:
    """Makes a batch's report and the files below it."""

    directory: Path
    tasks: list[TaskReport] = field(default_factory=list)

    def task(
        self, name: str, *outcomes: Outcome, files: Mapping[str, str] | None = None, **more: Any
    ) -> Result:
        """Add a task with an attempt an outcome, 10 s long and 5 s apart; `files` are the last one's."""
        task = Task(
            id=name,
            command=("agent", "run", more.get("prompt", "do it")),
            branch=f"batch/r/{name}",
            group=more.pop("group", name),
            prompt=more.pop("prompt", "do it"),
            values=more.pop("values", {}),
        )
        told = {key: more.pop(key) for key in ("landing", "landing_detail", "winner") if key in more}
        results = tuple(
            self._result(task, number, outcome, more) for number, outcome in enumerate(outcomes, 1)
        )
        for result in results:
            self.write(
                result, files if result is results[-1] else {"stdout": f"try {result.attempt} of {name}\n"}
            )
        end = outcomes[-1] if outcomes else Outcome.SKIPPED
        self.tasks.append(
            TaskReport(task=task, outcome=end, detail=more.get("detail"), results=results, **told)
        )
        return results[-1] if results else self._result(task, 1, end, more)

    def _result(self, task: Task, number: int, outcome: Outcome, more: Mapping[str, Any]) -> Result:
        started = START + 15 * (number - 1) + len(self.tasks)
        made = {"tip": "c" * 40, "files": 2, "insertions": 2, "deletions": 1} if outcome is Outcome.OK else {}
        told: dict[str, Any] = {
            "run": "r",
            "task": task.id,
            "attempt": number,
            "outcome": outcome,
            "started": started,
            "ended": started + 10,
            "host": "local",
            "branch": task.branch,
            "base": BASE,
            "ref": f"refs/overlayrun/attempts/r/{task.id}/{number}",
        }
        return Result(**{**told, **made, **more})

    def write(self, result: Result, files: Mapping[str, str] | None) -> None:
        place = self.directory / f"tasks/{result.task}/{result.attempt}"
        place.mkdir(parents=True)
        for kind, text in (files or {}).items():
            (place / FILES[kind]).write_bytes(text.encode("utf-8", "surrogatepass"))

    def finish(self, *, secrets: tuple[str, ...] = (), **more: Any) -> str:
        """Write the page and give its address."""
        ended = max([START, *(result.ended for task in self.tasks for result in task.results)])
        report = BatchReport(
            run="r",
            version="1.2.3",
            repository="/home/someone/project",
            base=BASE,
            target="main",
            engine="local",
            jobs=2,
            started=START,
            ended=ended,
            tasks=tuple(self.tasks),
            status=1,
        )
        write_html(replace(report, **more), str(self.directory), secrets)
        return (self.directory / "report.html").as_uri()

    @property
    def page(self) -> bytes:
        return (self.directory / "report.html").read_bytes()

    @property
    def data(self) -> Any:
        """What the page reads."""
        (text,) = re.findall(
            rb'<script type="application/json" id="data">(.*?)</script>', self.page, re.DOTALL
        )
        return json.loads(text)

    def texts(self, name: str) -> dict[str, Any]:
        """Texts of a task's last attempt, by kind."""
        return self.all_texts()[name]

    def all_texts(self) -> dict[str, dict[str, Any]]:
        """Texts of each task's last attempt, by kind."""
        last = {task["id"]: task["attempts"][-1]["texts"] for task in self.data["tasks"]}
        return {name: {text["kind"]: text for text in texts} for name, texts in last.items()}


@pytest.fixture
def report(tmp_path: Path) -> Report:
    return Report(tmp_path / "report")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if not shutil.which(PROGRAM):
        pytest.skip(f"{PROGRAM} is not installed")
    with browser(tmp_path_factory.mktemp("browser")) as started:
        yield started


@pytest.fixture
def page(chromium: Browser) -> Iterator[Browser]:
    """Give a browser whose page, whatever a test does with it, logs nothing and asks for nothing but itself."""
    chromium.resize(1280, 900)
    yield chromium
    assert chromium.errors == []
    assert {url for url in chromium.requests if not url.endswith("/report.html")} == set()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write a report of a batch in which much went wrong."""
    made = Report(tmp_path_factory.mktemp("mixed"))
    made.task("good", Outcome.OK, files={"diff": PATCH, "stdout": "said a lot\n"}, cost=0.5)
    made.task("again", Outcome.TIMEOUT, Outcome.OK, files={"diff": PATCH}, prompt="Second wind")
    check = CheckResult(command="pytest -q", status=1, seconds=3.2)
    made.task(
        "refused",
        Outcome.CHECK_FAILED,
        files={"check": "\x1b[1;31mE  needle in the haystack\x1b[0m, a needle\n", "stdout": "fine\n"},
        check=check,
        detail="check exited 1",
    )
    made.task("clash", Outcome.OK, files={"diff": PATCH}, landing="conflict", landing_detail="src/one.py")
    made.task("idle-10", Outcome.NO_CHANGE, files={"stdout": "nothing to do\n"})
    made.task("idle-9", Outcome.NO_CHANGE)
    made.task("never")
    return made.finish(cost=0.5, unpriced=6, why="deadline")


def rows(page: Browser) -> list[str]:
    """Ids of the tasks shown, in order."""
    shown: list[str] = page.js("[...document.querySelectorAll('tbody tr')].map(row => row.dataset.task)")
    return shown


def text(page: Browser, selector: str) -> str:
    return str(page.js(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))


def click(page: Browser, selector: str) -> None:
    page.js(f"document.querySelector({json.dumps(selector)}).click()")


def test_the_head_tells_how_it_went(page: Browser, mixed: str) -> None:
    page.open(mixed)
    assert text(page, "h1") == "4 of 7 tasks succeeded"
    assert text(page, ".ending") == "Exit code 1: some tasks did not succeed (deadline)"
    assert "$0.50 + unknown for 6 attempts" in text(page, ".facts")
    chips = page.js("[...document.querySelectorAll('.chip')].map(chip => chip.innerText)")
    assert [re.sub(r"\s+", " ", chip) for chip in chips] == [
        *("ok 3", "no change 2", "check failed 1", "skipped 1", "landing: conflict 1"),
    ]
    assert rows(page) == ["good", "again", "refused", "clash", "idle-10", "idle-9", "never"]


def test_the_timeline_has_a_bar_an_attempt_in_lanes_that_do_not_overlap(page: Browser, mixed: str) -> None:
    page.open(mixed)
    lanes = page.js(
        "[...document.querySelectorAll('.lane')].map(lane => [...lane.children].map(bar => "
        "[bar.offsetLeft, bar.offsetLeft + bar.offsetWidth]))"
    )
    assert sum(map(len, lanes)) == 7
    for lane in lanes:
        assert all(one[1] <= other[0] for one, other in pairwise(lane))
    page.js("document.querySelector('.bar[href$=\"again/1\"]').focus()")
    assert "again, attempt 1\ntimeout\n10 s, from 1.0 s on, local" in text(page, "#tip")
    assert page.js("document.querySelectorAll('.bar.same').length") == 2


def test_search_finds_what_a_log_says_and_hides_the_other_tasks(page: Browser, mixed: str) -> None:
    page.open(mixed)
    page.press("/")
    page.type("NEEDLE")
    page.expect("document.querySelectorAll('tbody tr').length === 1")
    assert rows(page) == ["refused"]
    assert text(page, "tr .hits") == "2 hits: log 2"
    assert text(page, "#shown") == "Shows 1 of 7 tasks, 2 hits"
    page.press("Enter")
    page.press("Enter")
    page.expect("[...CSS.highlights.get('hit') ?? []].length === 2")
    page.js("document.getElementById('search').focus()")
    page.press("Escape")
    assert len(rows(page)) == 7


@pytest.mark.parametrize(
    ("words", "where"),
    [("idle-9", "id 1"), ("second wind", "prompt 1"), ("+fresh", "diff 3"), ("exited 1", "reason 1")],
)
def test_search_covers_ids_prompts_changes_and_reasons(
    page: Browser, mixed: str, words: str, where: str
) -> None:
    page.open(mixed)
    page.js("document.getElementById('search').focus()")
    page.type(words)
    page.expect("!document.getElementById('shown').hidden")
    hits = page.js("[...document.querySelectorAll('tr .hits')].map(hits => hits.innerText.split(': ')[1])")
    kind, count = where.split()
    assert sum(int(hit.removeprefix(f"{kind} ")) for hit in hits) == int(count)


def test_filters_add_up_and_escape_takes_them_off(page: Browser, mixed: str) -> None:
    page.open(mixed)
    click(page, "[data-filter='outcome:skipped']")
    assert rows(page) == ["never"]
    click(page, "[data-filter='landing:conflict']")
    assert rows(page) == ["clash", "never"]
    assert page.js("document.querySelectorAll('.bar:not(.dim)').length") == 1
    page.press("Escape")
    assert len(rows(page)) == 7


def test_columns_sort_by_number_and_name_and_give_the_order_back(page: Browser, mixed: str) -> None:
    page.open(mixed)
    click(page, "th button")
    assert rows(page) == ["again", "clash", "good", "idle-9", "idle-10", "never", "refused"]
    click(page, "th button")
    assert rows(page)[:2] == ["refused", "never"]
    assert page.js("document.querySelector('th').getAttribute('aria-sort')") == "descending"
    click(page, "th button")
    assert rows(page)[0] == "good"
    click(page, "th:last-child button")
    click(page, "th:last-child button")
    assert rows(page)[0] == "again"  # its two attempts took longest
    assert rows(page)[-1] == "never"  # unknown


def test_a_click_on_a_task_shows_its_change_file_by_file(page: Browser, mixed: str) -> None:
    page.open(mixed)
    click(page, "tr[data-task=good] td")
    page.expect("!document.getElementById('panel').hidden")
    assert page.js("location.hash") == "#task/good"
    files = page.js("[...document.querySelectorAll('.file summary')].map(file => file.innerText)")
    assert [re.sub(r"\s+", " ", file) for file in files] == [
        "src/one.py +1 \u22121",
        "new file.txt +1 \u22120",
    ]
    added = page.js(
        "[...document.querySelectorAll('.lines .add')].map(line => [line.dataset.n, line.innerText])"
    )
    assert added == [["5", "+++ came"], ["1", "+fresh"]]
    assert page.js("document.querySelector('.lines .del').innerText") == "--- gone"
    assert "overlayrun merge batch/r/good" in text(page, ".attempt")
    page.press("Escape")
    assert page.js("document.getElementById('panel').hidden && location.hash === ''")
    assert page.js("document.activeElement.closest('tr').dataset.task") == "good"


def test_a_failed_check_opens_on_its_output_in_its_colours(page: Browser, mixed: str) -> None:
    page.open(f"{mixed}#task/refused")
    assert "needle in the haystack" in text(page, ".text[open] .log")
    assert text(page, ".log .bold.f1") == "E  needle in the haystack"
    assert "failed with 1 in 3.2 s" in text(page, ".attempt")


def test_a_link_leads_to_one_attempt(page: Browser, mixed: str) -> None:
    page.open(f"{mixed}#task/again/1")
    opened = page.js("[...document.querySelectorAll('.attempt')].map(each => each.open)")
    assert opened == [True, False]
    assert "try 1 of again" in text(page, ".attempt[open]")
    page.js("location.hash = '#again'")
    page.expect("document.querySelectorAll('.attempt')[1].open")
    page.js("location.hash = '#task/nobody%'")
    page.expect("document.getElementById('panel').hidden")


def test_keys_move_through_the_tasks_and_the_open_one(page: Browser, mixed: str) -> None:
    page.open(mixed)
    for key in "jjk":
        page.press(key)
    page.press("j")
    page.press("Enter")
    page.expect("document.getElementById('panel-title')?.innerText === 'again'")
    page.press("j")
    page.expect("document.getElementById('panel-title').innerText === 'refused'")


def test_on_a_phone_nothing_sticks_out_and_the_task_covers_the_list(page: Browser, mixed: str) -> None:
    page.resize(360, 780)
    page.open(mixed)
    assert page.js("document.documentElement.scrollWidth <= 360")
    page.js("location.hash = '#task/good'")
    page.expect("!document.getElementById('panel').hidden")
    assert page.js("document.getElementById('list').inert")
    assert page.js("document.getElementById('panel').scrollWidth <= 360")


def test_three_hundred_tasks_are_all_there(page: Browser, report: Report) -> None:
    for number in range(300):
        report.task(f"task-{number}", Outcome.OK, files={"diff": PATCH, "stdout": f"line {number}\n"})
    page.open(report.finish())
    assert len(rows(page)) == 300
    assert page.js("document.querySelectorAll('.bar').length") == 300
    page.js("document.getElementById('search').focus()")
    page.type("line 299")
    page.expect("document.querySelectorAll('tbody tr').length === 1")


def test_what_agents_write_is_shown_and_never_run(page: Browser, report: Report) -> None:
    files = dict.fromkeys(("stdout", "stderr", "check", "judge", "overlayrun"), HOSTILE)
    patch = (
        f"diff --git a/{HOSTILE} b/x\n--- a/{HOSTILE}\n+++ b/{HOSTILE}\n@@ -1 +1 @@\n-{HOSTILE}\n+{HOSTILE}\n"
    )
    more: dict[str, Any] = dict.fromkeys(("host", "model", "session", "detail", "branch"), HOSTILE)
    report.task(
        "x",
        Outcome.FAILED,
        files=files | {"diff": patch},
        prompt=HOSTILE,
        values={HOSTILE: HOSTILE},
        notes=(HOSTILE,),
        tip="c" * 40,
        landing_detail=HOSTILE,
        **more,
    )
    page.open(f"{report.finish(why=HOSTILE, target=HOSTILE)}#task/x")
    page.js("document.querySelectorAll('details').forEach(each => each.open = true)")
    page.expect("document.querySelectorAll('.log').length === 5")
    page.js("document.querySelectorAll('details').forEach(each => each.open = true)")
    page.expect("document.querySelectorAll('.lines').length === 1")
    page.js("document.querySelector('.bar').focus()")
    assert page.js("typeof window.pwned") == "undefined"
    assert page.js("document.querySelectorAll('img, script').length") == 2  # the page's own
    for place in (".said", ".log", ".lines .add", "#tip", ".ending", ".attempt summary"):
        shown = text(page, place)
        assert SHOWN in shown, place
        assert not set(shown) & set("\u202e\u200f\x1b\x00\x9b\u2028"), place
    assert "\N{LEFT-POINTING ANGLE BRACKET}U+202E" in text(page, ".log")


def test_its_policy_lets_nothing_else_run_or_load(chromium: Browser, mixed: str) -> None:
    chromium.open(mixed)
    chromium.js(
        "window.blocked = []; addEventListener('securitypolicyviolation', "
        "event => window.blocked.push(event.effectiveDirective))"
    )
    chromium.js(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.pwned = 1'}))"
    )
    chromium.js("document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:9/x.png'}))")
    refused = chromium.js("fetch('http://127.0.0.1:9/').then(() => 'came', () => 'refused')")
    assert refused == "refused"
    assert chromium.js("typeof window.pwned") == "undefined"
    assert chromium.js("window.blocked.sort()") == ["connect-src", "img-src", "script-src-elem"]


def test_equal_input_gives_equal_bytes_and_links_that_exist(report: Report) -> None:
    report.task("one", Outcome.OK, files=dict.fromkeys(FILES, "text\n"))
    report.finish()
    before = report.page
    report.finish()
    assert report.page == before
    texts = report.texts("one")
    assert set(texts) == set(FILES)
    assert all((report.directory / unquote(text["href"])).is_file() for text in texts.values())
    assert re.search(rb"(?:src|href)=.?(?:https?:)?//", before) is None


def test_long_texts_keep_head_and_tail_and_say_what_is_left_out(page: Browser, report: Report) -> None:
    log = "".join(f"line {number}\n" for number in range(30_000))
    long_line = "x" * 200_000
    report.task("long", Outcome.FAILED, files={"stdout": log, "stderr": long_line, "diff": PATCH * 2000})
    address = report.finish()
    texts = report.texts("long")
    out = texts["stdout"]
    assert out["text"].startswith("line 0\n")
    assert out["tail"].endswith("line 29999\n")
    assert all(re.fullmatch(r"line \d+", line) for line in (out["text"] + out["tail"]).splitlines())
    assert len(out["text"]) + len(out["tail"]) + out["left"] == len(log)
    assert "more characters]" in texts["stderr"]["text"]
    assert texts["diff"]["left"] == len(PATCH) * 2000 - len(texts["diff"]["text"])
    assert len(report.page) < 600_000
    page.open(f"{address}#task/long")
    assert "left out here: all of it is in stdout.log" in text(page, ".texts")


def test_a_page_that_is_full_drops_what_went_well_first(report: Report) -> None:
    patch = "diff --git a/a b/a\n" + "+\x01<\n" * 60_000  # grows sixfold, which has to be counted
    for number in range(30):
        report.task(f"good-{number}", Outcome.OK, files={"diff": patch})
    report.task("bad", Outcome.FAILED, files={"diff": patch, "stderr": "why\n"})
    report.finish()
    texts = report.all_texts()
    dropped = [number for number in range(30) if texts[f"good-{number}"]["diff"].get("dropped")]
    assert dropped
    assert dropped[-1] == 29
    assert "text" in texts["bad"]["diff"]
    assert len(report.page) < 21 << 20


def test_terminal_sequences_are_taken_out_but_for_colours(report: Report) -> None:
    noise = "10%\r50%\r100%\r\n\x1b[2K\x1b[1Gclean\x1b]8;;http://x\x1b\\link\x1b]8;;\x07\x1b(B\x1b[?25l\x1b[>4;2m\x1b[32mok\x1b[m \x07\n"
    report.task("one", Outcome.OK, files={"stdout": noise})
    report.finish()
    bell = "\N{LEFT-POINTING ANGLE BRACKET}U+0007\N{RIGHT-POINTING ANGLE BRACKET}"
    assert report.texts("one")["stdout"]["text"] == f"100%\ncleanlink\x1b[32mok\x1b[m {bell}\n"


def test_a_change_is_shown_with_every_character_of_it(report: Report) -> None:
    report.task("one", Outcome.OK, files={"diff": "+a\r\n-a\n+\x1b[31m\u200b\n"})
    report.finish()
    shown = "+a\N{SYMBOL FOR CARRIAGE RETURN}\n-a\n+\N{SYMBOL FOR ESCAPE}[31m"
    assert report.texts("one")["diff"]["text"].startswith(shown + "\N{LEFT-POINTING ANGLE BRACKET}U+200B")


def test_no_file_from_elsewhere_is_read(report: Report, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("not for the report")
    report.task("one", Outcome.OK)
    (report.directory / "tasks/one/1/stdout.log").symlink_to(secret)
    (report.directory / "tasks/one/1/diff.patch").mkdir()
    report.finish()
    assert report.texts("one") == {}


def test_secrets_of_the_environment_are_masked_in_prompts_and_commands(report: Report) -> None:
    report.task("one", Outcome.OK, prompt="log in with hunter2-hunter2", detail="hunter2-hunter2 refused")
    report.finish(secrets=("hunter2-hunter2",))
    assert b"hunter2" not in report.page
    assert b"log in with" in report.page


def test_commands_to_type_next_are_quoted_and_fit_what_became_of_it(report: Report) -> None:
    report.task("one", Outcome.TIMEOUT, Outcome.OK, branch="batch/$(touch x)/one", tip="c" * 40)
    report.task("two", Outcome.OK, landing="conflict")
    report.task("three", Outcome.OK, landing="landed")
    report.task("four", Outcome.FAILED, tip="c" * 40)
    report.task("five", Outcome.FAILED)
    report.finish()
    commands = [[attempt["next"] for attempt in task["attempts"]] for task in report.data["tasks"]]
    assert commands == [
        [
            ["git diff bbbbbbbbbbbb refs/overlayrun/attempts/r/one/1"],
            ["overlayrun diff 'batch/$(touch x)/one'", "overlayrun merge 'batch/$(touch x)/one'"],
        ],
        [[f"overlayrun {verb} batch/r/two" for verb in ("diff", "conflicts", "merge")]],
        [["overlayrun diff batch/r/three"]],
        [["overlayrun diff batch/r/four", "overlayrun shell batch/r/four"]],
        [[]],
    ]


def test_its_colours_can_be_read_in_light_and_dark() -> None:
    style = (Path(write_html.__globals__["__file__"]).parent / "report.html").read_text()
    light, dark = (
        dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{3,6});", block))
        for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    )
    for colours in (light, dark):
        pairs = [
            (ink, ground)
            for ink in ("text", "soft", "accent", "good", "bad", "slow", "ours", "none")
            for ground in ("back", "paper", "sunk", "accent-soft")
        ]
        pairs += [
            ("text", "added"),
            ("text", "removed"),
            ("soft", "added"),
            ("soft", "removed"),
            ("text", "hit"),
        ]
        too_faint = {pair for pair in pairs if _contrast(colours[pair[0]], colours[pair[1]]) < 4.5}  # WCAG AA
        assert too_faint == set()


def _contrast(one: str, other: str) -> float:
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
