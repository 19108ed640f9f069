"""The power is cut while commands of all kinds work: each is done, or not begun, and nothing is lost."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from backends.images import OWNER, open_directory
from conftest import UserRepo, wait_until
from power_life import Story, Told, disk_images, inside, live, own_desk, whole
from power_world import Desk, Machine

pytestmark = pytest.mark.root

_LINES: Final = "".join(f"{number}\n" for number in range(1, 3001))

# The user's own commits are flushed by him; what a cut left of his own git is his.
_COMMIT: Final = "rm -f .git/index.lock .git/HEAD.lock .git/refs/heads/main.lock; git -c core.fsync=all"

_SCRIPTS: Final[dict[str, str]] = {
    # A branch's change comes into a file that the user has not committed; the branch may be gone after that.
    "brings": """
        i=$START; while :; do i=$((i+1))
        { echo first; seq 3000; echo user$i; } >mine.new; sync mine.new; mv mine.new mine; sync -f .; echo ack mine $i
        run="sed -i 1s/.*/branch$i/ mine; seq 3000 >new$i; rm -f new$((i-1))"
        if [ $((i%2)) = 0 ]; then overlayrun --rm --apply -- sh -c "$run" && echo ack apply $i
        else overlayrun -b a$i -- sh -c "$run" && overlayrun apply a$i && echo ack apply $i; fi
        done""",
    # Target and branch both go on; every second sync conflicts at first.
    "syncs": f"""
        i=$START; while :; do i=$((i+1))
        overlayrun -b s -- sh -c "seq 3000 >s$i; echo s$i >>log; [ $((i%2)) = 0 ] || echo s$i >both" && echo ack s $i
        seq 3000 >m$i; echo main$i >both; {_COMMIT} add m$i both; {_COMMIT} commit -qm main$i -- m$i both && echo ack m $i
        overlayrun sync s && echo ack synced $i && continue
        git show main:both >"$HOME/theirs"; overlayrun -b s -- sh -c 'cat "$HOME/theirs" >both'
        overlayrun sync s && echo ack synced $i
        done""",
    # Branches come, are copied, come together, go back, and go.
    "mixes": """
        i=$START; while :; do i=$((i+1))
        overlayrun -b x$i -- sh -c "seq 3000 >x$i; echo $i >node_modules/p/more" && echo ack x $i
        overlayrun fork x$i -b y$i -n 2 && echo ack y $i
        overlayrun -b y$i-1 -- sh -c "seq 3000 >y$i; rm x$i" && echo ack z $i
        overlayrun merge y$i-1 --into x$i && echo ack into $i
        [ $((i%2)) = 0 ] || overlayrun restore x$i @{1} && echo ack back $i
        overlayrun rm -f y$i-2 x$((i-1)); overlayrun gc --max-age 0
        done""",
    # Tasks, each in a branch of its own; what is told of as done stays done.
    "batches": r"""
        for n in 1 2 3 4 5 6; do
            echo "{\"id\": \"t$n\", \"command\": \"seq 3000 >t$n; sleep 0.0$n\"}"
        done >"$HOME/tasks.jsonl"
        while :; do overlayrun batch "$HOME/tasks.jsonl" -j 3 2>&1; sleep 0.1; done | while read -r a b c d; do
            [ "$a $b" != "overlayrun: batch" ] || run=$c
            case "$c $d" in "ok after "*) echo "ack $run$b 1" ;; esac
            echo "$a $b $c $d"
        done""",
    # Programs write to HOME, the careful ones by a rename.
    "homes": """
        mkdir -p "$HOME/dir"; i=$START; while :; do i=$((i+1))
        overlayrun -b h --every 0.2 -- sh -c "cd; for j in 1 2 3; do
            seq 3000 >dir/new$i-\\$j; seq 3000 >whole.new; mv whole.new dir/whole
            echo $i >>own; echo branch >replaced.new; mv replaced.new replaced; echo $i >$PWD/count; sleep 0.2
            done" && echo ack h $i
        done""",
}


def _judge_brings(desk: Desk, told: Told) -> None:
    if "mine" in told:
        first, *lines, user = (desk.seen / "mine").read_text().splitlines()
        assert first == "first" or first.startswith("branch")
        assert lines == _LINES.splitlines()
        assert int(user.removeprefix("user")) >= told["mine"]
    news = {int(path.name[3:]): path for path in desk.seen.glob("new[0-9]*")}
    assert all(path.read_text() == _LINES for path in news.values()), desk.must("ls", "-l")
    if "apply" in told:
        assert max(news) >= told["apply"]


def _judge_syncs(desk: Desk, told: Told) -> None:
    if "s" not in told:
        return
    for name, kind in (("s", "s"), ("synced", "m")):
        if name in told:
            assert desk.must("git", "show", f"s:{kind}{told[name]}") == _LINES
    numbers = [int(line[1:]) for line in inside(desk, "s", "cat log").split()]
    assert numbers[-1] >= told["s"]
    assert inside(desk, "s", "cat s[0-9]* | sort -u | wc -l").strip() == "3000"
    done = desk.do("overlayrun", "sync", "s", "--json")
    assert done.code in (0, 1), str(done)


def _judge_mixes(desk: Desk, told: Told) -> None:
    number = told.get("x", 0)
    names = {each["branch"] for each in json.loads(desk.must("overlayrun", "ls", "--json"))["workspaces"]}
    if number:
        assert f"x{number}" in names
        script = f"cat x{number} y{number} 2>/dev/null | sort -u | wc -l; cat node_modules/p/more || :"
        count, _, more = inside(desk, f"x{number}", script).partition("\n")
        assert count.strip() == "3000"
        assert more in (f"{number}\n", "")
    for name in sorted(names):
        if name.startswith("y"):
            copied = name[1:].partition("-")[0]
            assert inside(desk, name, f"cat x{copied} y{copied} 2>/dev/null | sort -u | wc -l") == "3000\n"
    assert "z" not in told or f"y{told['z']}-1" in names
    desk.must("overlayrun", "gc")
    assert "went through" not in desk.must("overlayrun", "ls")


def _judge_batches(desk: Desk, told: Told) -> None:
    done = {tuple(name.split(":")[:2]) for name in told}
    first = {
        (run, task): desk.must("git", "rev-parse", f"refs/overlayrun/attempts/{run}/{task}/1")
        for run, task in done
    }
    runs = [each["run"] for each in json.loads(desk.must("overlayrun", "batch", "--list", "--json"))["runs"]]
    assert {run for run, _ in done} <= set(runs)
    for run in runs:
        desk.must("overlayrun", "batch", "--resume", run)
        for number in range(1, 7):
            task = f"t{number}"
            assert desk.must("git", "show", f"batch/{run}/{task}:{task}") == _LINES
            attempts = desk.must("git", "rev-parse", f"--glob=refs/overlayrun/attempts/{run}/{task}")
            assert attempts == first.get((run, task), attempts), "done, and done again"


def _judge_homes(desk: Desk, _: Told) -> None:
    """Nothing is there by half: what the cut emptied does not hide what the user has."""
    script = "cd; for f in own replaced dir/*; do [ ! -e $f ] || echo $f $(head -n 3000 $f | sha1sum); done"
    shown = dict(line.split()[:2] for line in inside(desk, "h", script).splitlines())
    lines, *kinds = (hashlib.sha1(text.encode()).hexdigest() for text in (_LINES, "user\n", "branch\n"))
    assert shown.pop("replaced") in kinds
    assert set(shown.values()) == {lines}, shown


_JUDGES: Final = {
    "brings": _judge_brings,
    "syncs": _judge_syncs,
    "mixes": _judge_mixes,
    "batches": _judge_batches,
    "homes": _judge_homes,
}
_OWN: Final = "node_modules"
_LIVES: Final = (
    ("mixes", "xfs", 0),
    ("brings", "ext4", OWNER),
    ("homes", "ext4", 0),
    ("batches", "ext4", OWNER),
)

Image = Callable[[str, int], Path]


def story(name: str) -> Story:
    """One of the stories of this file; the user's own directory gets files in all of them."""
    return Story(_SCRIPTS[name], _JUDGES[name], _OWN, cuts=1)


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A directory into which the user of a machine may look, whoever he is."""
    with open_directory() as made:
        yield made


@pytest.fixture(scope="module")
def template(place: Path) -> Iterator[Image]:
    with disk_images(lambda kind: place) as image:
        yield image


@pytest.mark.parametrize(("name", "kind", "owner"), _LIVES)
def test_a_power_cut_leaves_every_command_done_or_not_begun(
    place: Path, template: Image, name: str, kind: str, owner: int
) -> None:
    backend = "reflink" if kind == "xfs" else "overlay"
    live(Machine(place / name, kind), template(kind, owner), backend, story(name), owner=owner)


@pytest.fixture
def desk(place: Path, template: Image, request: pytest.FixtureRequest) -> Iterator[Desk]:
    """The user's repository on a machine that runs; nothing is written to its disk by itself."""
    machine = Machine(place / request.node.name, "ext4")
    machine.copy_disk(template("ext4", 0))
    machine.start()
    try:
        yield own_desk(machine)
    finally:
        machine.off()


def _cut(desk: Desk) -> None:
    desk.machine.cut()
    desk.machine.start()
    desk.must("overlayrun", "ls")
    whole(desk)


_BACKUP: Final = """
import sys
from overlayrun.reconcile.backup import record
print(record(sys.argv[1], sys.argv[1] + "/scratch", [(sys.argv[2], b"late")]))
"""


def test_what_a_command_told_of_is_there_when_the_power_goes_at_that_moment(desk: Desk) -> None:
    script = (
        "seq 3000 >one; echo branch >>src/deep/long; git add one src/deep; git commit -qm own; echo >late"
    )
    desk.must("overlayrun", "-b", "b", "--", "sh", "-c", script)
    _cut(desk)
    assert desk.must("git", "show", "b:one") == _LINES

    change = "seq 3000 >two; sed -i 1s/.*/user/ src/deep/long"
    desk.must("sh", "-c", f"{change}; {_COMMIT} add two; {_COMMIT} commit -qm two -- two src/deep; sync -f .")
    desk.must("overlayrun", "sync", "b")
    _cut(desk)
    assert desk.must("git", "show", "b:two") == _LINES
    assert desk.must("git", "show", "b:one") == _LINES
    first, *_, last = desk.must("git", "show", "b:src/deep/long").splitlines()
    assert (first, last) == ("user", "branch")  # only the merge has written that blob

    desk.must("overlayrun", "apply", "b")
    _cut(desk)
    assert (desk.seen / "one").read_text() == _LINES

    desk.must("overlayrun", "fork", "b", "-b", "f")
    _cut(desk)
    assert desk.must("git", "show", "f:one") == _LINES
    assert '"branch": "f"' in desk.must("overlayrun", "ls", "--json")

    python = Path(UserRepo(Path(), Path()).command()[0]).with_name("python")
    ref = desk.must(str(python), "-c", _BACKUP, str(desk.root / ".git"), str(desk.root / "one")).strip()
    _cut(desk)
    assert desk.must("git", "show", f"{ref}:late") == _LINES


def test_home_is_as_it_was_at_the_last_snapshot(desk: Desk) -> None:
    """Files that were written later may be gone, and what is empty does not hide the user's own."""
    script = "cd; seq 3000 >new; echo agent >replaced; cd - >/dev/null; echo 1 >tree; echo ready; sleep 1000"
    with desk.at_work(f"overlayrun -b b -- sh -c '{script}' 2>&1") as work:
        work.expect("ready")
        time.sleep(0.2)  # what is written in the moment of the flush counts as later
        desk.must("overlayrun", "snapshot", "b")
        state = desk.seen / ".git/overlayrun/workspaces"
        wait_until(lambda: list(state.glob("*/flushed")), "HOME is on the disk")
        time.sleep(0.2)
        late = "cd; seq 3000 >later; mkdir d; seq 3000 >d/replaced; mv d/replaced own; seq 3000 >d/later"
        desk.must("overlayrun", "exec", "b", "--", "sh", "-c", late)
        # The names of the new files get to the disk, and nothing of what is in them.
        desk.must("sh", "-c", "echo >mark; sync mark")
        desk.machine.cut()
    desk.machine.start("rw")
    shown = desk.do("overlayrun", "-b", "b", "--", "sh", "-c", "cd; cat new replaced; ls; tail -n 1 own")
    assert shown.code == 0, str(shown)
    assert shown.out.startswith(f"{_LINES}agent\n")
    assert "later" not in shown.out, str(shown)
    assert shown.out.endswith("\n3000\n"), str(shown)
    [told] = [line for line in shown.ours if line.startswith("empty files of its HOME (3)")]
    aside = desk.machine.see(Path(told.split()[-1]))
    assert sorted(path.name for path in aside.rglob("*")) == ["d", "later", "later", "own"]
    assert "~/new" not in shown.err
