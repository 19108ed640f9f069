"""A run on disk: its name, its lock, its plan, its journal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from overlayrun.batch import journal as journals
from overlayrun.batch.journal import (
    Journal,
    Planned,
    create_run,
    find_run,
    locked,
    read_journal,
    read_plan,
    runs,
    write_plan,
)
from overlayrun.batch.layout import BatchLayout
from overlayrun.batch.settings import Rate, Settings
from overlayrun.batch.task import Task
from overlayrun.errors import HostError, OverlayrunError, UsageError, WorkspaceBroken, WorkspaceBusy
from overlayrun.workspace.layout import Layout

pytestmark = pytest.mark.shared  # what is in a journal

RECORD = {"event": "began", "at": 1.5}


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(str(tmp_path / "state"))


@pytest.fixture
def place(layout: Layout) -> BatchLayout:
    return create_run(layout)


def planned(place: BatchLayout) -> Planned:
    task = Task(
        id="a", command=("echo", "ä\udcff"), branch="batch/a", group="a", needs=("b",), env={"X": "1"}
    )
    return Planned(
        run=place.run,
        created=1.0,
        repository="/repo",
        base="b" * 40,
        target="main",
        engine="local",
        tasks=(task,),
        settings=Settings(jobs=2, rates={"p": Rate(3, 60.0)}),
        bases={"HEAD~1": "c" * 40},
        given={"strict": True},
    )


@pytest.mark.by_both
def test_records_come_back_in_order_and_are_added_to(place: BatchLayout) -> None:
    with Journal(place.journal, place.run) as journal:
        journal.append(RECORD)
        journal.flush()
    with Journal(place.journal, place.run) as journal:
        assert list(journal.records) == [RECORD]
        journal.append({**RECORD, "at": 2.5})
        journal.append({**RECORD, "at": 3.5})
        journal.flush()

    assert [record["at"] for record in read_journal(place.journal)[0]] == [1.5, 2.5, 3.5]
    assert os.stat(place.journal).st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "torn", [b'{"event": "su', b'{"event": "x", "at": 1}', b'{"at": 1}\n', b"[]\n", b"\0\0"]
)
def test_a_torn_last_line_is_cut_off(place: BatchLayout, torn: bytes) -> None:
    with Journal(place.journal, place.run) as journal:
        journal.append(RECORD)
        journal.flush()
    whole = Path(place.journal).read_bytes()
    Path(place.journal).write_bytes(whole + torn)

    with Journal(place.journal, place.run) as journal:
        assert list(journal.records) == [RECORD]
        journal.append(RECORD)
        journal.flush()

    assert Path(place.journal).read_bytes() == whole + json.dumps(RECORD).encode() + b"\n"


@pytest.mark.parametrize("length", range(1, 60, 7))
def test_a_journal_torn_in_its_first_line_begins_anew(place: BatchLayout, length: int) -> None:
    with Journal(place.journal, place.run):
        pass
    os.truncate(place.journal, length)

    with Journal(place.journal, place.run) as journal:
        assert list(journal.records) == []
        journal.append(RECORD)
        journal.flush()

    assert list(read_journal(place.journal)[0]) == [RECORD]


def test_damage_in_the_middle_and_newer_versions_are_refused(place: BatchLayout) -> None:
    with Journal(place.journal, place.run) as journal:
        journal.append(RECORD)
        journal.flush()
    first, second = Path(place.journal).read_bytes().splitlines(keepends=True)

    Path(place.journal).write_bytes(first + b"garbage\n" + second)
    with pytest.raises(WorkspaceBroken, match="line 2"):
        Journal(place.journal, place.run)
    Path(place.journal).write_bytes(first.replace(b'"version": 1', b'"version": 2') + second)
    with pytest.raises(OverlayrunError, match="newer overlayrun"):
        Journal(place.journal, place.run)


def test_a_full_disk_tears_no_line(place: BatchLayout) -> None:
    # A limit on a file's size stands in for the full disk: the first write is cut short, the next fails.
    code = (
        "import resource, signal, sys\n"
        "from overlayrun.batch.journal import Journal\n"
        "from overlayrun.errors import HostError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "with Journal(sys.argv[1], 'r') as journal:\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))\n"
        "    journal.append({'event': 'long', 'at': 1, 'text': 'x' * 1000})\n"
        "    try:\n"
        "        journal.flush()\n"
        "    except HostError as err:\n"
        "        print(err.brief)\n"
    )

    said = subprocess.run(
        [sys.executable, "-c", code, place.journal], capture_output=True, text=True, check=True
    )

    assert "can't be written" in said.stdout
    assert read_journal(place.journal) == ([], os.stat(place.journal).st_size)


def test_a_run_is_held_by_one_process_alone(place: BatchLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "_PATIENCE", 0.2)
    with locked(place), pytest.raises(WorkspaceBusy, match=place.run), locked(place):
        pass
    with locked(place):
        pass


def test_the_plan_comes_back_as_it_was(place: BatchLayout) -> None:
    write_plan(place, planned(place))

    assert read_plan(place) == planned(place)
    data = json.loads(Path(place.plan).read_text())
    Path(place.plan).write_text(json.dumps({**data, "version": 2}))
    with pytest.raises(OverlayrunError, match="newer"):
        read_plan(place)
    Path(place.plan).write_text("{")
    with pytest.raises(WorkspaceBroken):
        read_plan(place)


def test_runs_are_found_by_a_beginning_or_as_the_latest(layout: Layout) -> None:
    assert runs(layout) == []
    with pytest.raises(UsageError, match="no run"):
        find_run(layout, "latest")
    places = [create_run(layout) for _ in range(3)]
    assert len({place.run for place in places}) == 3
    for number, place in enumerate(places[:2]):
        write_plan(place, planned(place))
        os.utime(place.plan, (number, number))

    assert runs(layout) == [place.run for place in places[:2]]  # the third never got a plan
    assert find_run(layout, "latest").run == places[1].run
    assert find_run(layout, places[0].run).run == places[0].run
    with pytest.raises(UsageError, match="could be"):
        find_run(layout, places[0].run[:4])
    with pytest.raises(UsageError, match="no run"):
        find_run(layout, "../etc")


def test_a_journal_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="missing"):
        Journal(str(tmp_path / "missing/journal.jsonl"), "r")
