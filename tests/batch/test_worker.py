"""What worker and coordinator agree on: addresses, certificates, and what passes between them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from overlayrun.batch.address import Tls, parse_scheduler
from overlayrun.batch.calls import attempt_here
from overlayrun.batch.layout import AttemptLayout
from overlayrun.batch.parcel import (
    checked_result,
    decode,
    pack_files,
    unpack_files,
)
from overlayrun.batch.result import CheckResult, Result
from overlayrun.batch.run_options import options_from_json, options_to_json
from overlayrun.batch.task import Attempt, Outcome, Task
from overlayrun.cli.options import run_options
from overlayrun.errors import StoreError, UsageError

pytestmark = pytest.mark.shared  # what passes between two hosts

TLS = Tls("ca", "cert", "key")
ATTEMPT = Attempt(
    run="r",
    task=Task(id="t", command=("true",), branch="batch/r/t", group="t", check="make"),
    number=2,
    base="b" * 40,
)


@pytest.mark.parametrize(
    ("text", "tls", "found"),
    [
        ("dask://localhost", None, "tcp://localhost:8786"),
        ("dask://127.0.0.1:1234", None, "tcp://127.0.0.1:1234"),
        ("dask://[::1]:9", None, "tcp://[::1]:9"),
        ("dask+tcp://127.0.0.2", None, "tcp://127.0.0.2:8786"),
        ("dask://localhost", TLS, "tls://localhost:8786"),
        ("dask://build.example:8787", TLS, "tls://build.example:8787"),
        ("tls://10.0.0.1:8786/", TLS, "tls://10.0.0.1:8786"),
        ("dask+tls://h", TLS, "tls://h:8786"),
        ("h:1", TLS, "tls://h:1"),
    ],
)
def test_an_address_says_how_it_is_talked_to(text: str, tls: Tls | None, found: str) -> None:
    assert parse_scheduler(text, tls, insecure_tcp=False) == found


@pytest.mark.parametrize(
    ("text", "tls", "fault"),
    [
        ("dask://10.0.0.1", None, "needs TLS"),
        ("tls://localhost", None, "needs TLS"),
        ("dask://localhost.example", None, "needs TLS"),
        ("tcp://10.0.0.1", None, "plain TCP"),
        ("dask+tcp://build.example", TLS, "plain TCP"),
        ("http://host", TLS, "not a scheduler's address"),
        ("dask://host:99999", TLS, "not a scheduler's address"),
        ("dask://a b", TLS, "not a scheduler's address"),
        ("dask://-x://y", TLS, "not a scheduler's address"),
    ],
)
def test_an_address_that_anybody_could_listen_to_is_refused(text: str, tls: Tls | None, fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        parse_scheduler(text, tls, insecure_tcp=False)


def test_plain_tcp_can_be_asked_for() -> None:
    assert parse_scheduler("dask://10.0.0.1", None, insecure_tcp=True) == "tcp://10.0.0.1:8786"
    assert parse_scheduler("tcp://build", None, insecure_tcp=True) == "tcp://build:8786"


def test_certificates_are_all_or_none(tmp_path: Path) -> None:
    there = str(tmp_path / "there")
    Path(there).touch()

    assert Tls.of_paths(None, None, None) is None
    assert Tls.of_paths(there, there, there) == Tls(there, there, there)
    with pytest.raises(UsageError, match="--tls-key is missing"):
        Tls.of_paths(there, there, None)
    with pytest.raises(UsageError, match="can't be read"):
        Tls.of_paths(there, there, str(tmp_path / "gone"))


def test_run_options_pass_through_json() -> None:
    options = run_options({})

    assert vars(options_from_json(options_to_json(options))) == vars(options)


def test_artifacts_arrive_as_they_were_but_for_the_middle_of_long_ones(tmp_path: Path) -> None:
    here, there = AttemptLayout(str(tmp_path / "here")), AttemptLayout(str(tmp_path / "there"))
    (tmp_path / "here").mkdir()
    Path(here.stdout).write_text("said\n")
    Path(here.events).write_text('{"a": 1}\n' * 1_000_000)
    Path(here.diff).write_text("+line\n" * 1_000_000)
    Path(here.output).write_text("raw, with secrets")

    packed = pack_files(here)
    unpack_files(there, {**packed, "../../evil": packed["stdout"], "result": packed["stdout"]})

    names = {path.name for path in (tmp_path / "there").iterdir()}
    assert names == {"stdout.log", "events.jsonl", "diff.patch"}
    assert Path(there.stdout).read_text() == "said\n"
    assert set(Path(there.events).read_text().splitlines()) == {'{"a": 1}'}
    lines = Path(there.diff).read_text().splitlines()
    assert [line for line in lines if line != "+line"] == ["[1805700 bytes stayed on the worker]"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "there"]


@pytest.mark.parametrize("part", [None, 7, "%%%", "AAA"])
def test_a_part_that_is_none_is_refused(tmp_path: Path, part: Any) -> None:
    with pytest.raises(StoreError):
        decode(part, 1 << 20)
    with pytest.raises(StoreError):
        decode("AAAA" * 1000, 2000)
    with pytest.raises(StoreError):
        unpack_files(AttemptLayout(str(tmp_path / "t")), {"stdout": part})


def test_a_good_result_is_taken_but_for_names_and_clocks() -> None:
    theirs = Result(
        run="other",
        task="../x",
        attempt=9,
        outcome=Outcome.CHECK_FAILED,
        started=100.0,
        ended=107.5,
        host="elsewhere",
        branch="main",
        base="c" * 40,
        ref="refs/heads/main",
        tip="d" * 40,
        status=0,
        files=3,
        cost=0.25,
        tokens_in=5,
        check=CheckResult(command="rm -rf /", status=2, seconds=1.5),
        notes=("n",),
    )

    found = checked_result(ATTEMPT, "host", theirs.to_json())

    assert (found.run, found.task, found.attempt, found.host) == ("r", "t", 2, "host")
    assert (found.branch, found.base, found.ref) == ("batch/r/t", "b" * 40, ATTEMPT.ref)
    assert found.check == CheckResult(command="make", status=2, seconds=1.5)
    assert (found.outcome, found.tip, found.files, found.cost) == (theirs.outcome, "d" * 40, 3, 0.25)
    assert found.seconds == pytest.approx(7.5)
    assert abs(found.ended - time.time()) < 60


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        {"outcome": "great"},
        {"outcome": "ok", "tip": "main"},
        {"outcome": "ok", "tip": "--upload-pack=x"},
        {"outcome": "ok", "tip": ["a" * 40]},
    ],
)
def test_what_is_no_result_is_refused(data: Any) -> None:
    with pytest.raises(StoreError):
        checked_result(ATTEMPT, "host", data)


def test_odd_values_are_unknown() -> None:
    odd = {
        **{
            "outcome": "ok",
            "tip": None,
            "status": 10**9,
            "files": -1,
            "insertions": "many",
            "cost": float("nan"),
        },
        **{
            "tokens_in": True,
            "score": float("inf"),
            "detail": "x" * 10**6,
            "notes": [1] * 10**4,
            "check": [],
        },
    }

    found = checked_result(ATTEMPT, "host", odd)

    assert (found.status, found.files, found.insertions, found.cost) == (None, 0, 0, None)
    assert (found.tokens_in, found.score, found.check) == (None, None, None)
    assert len(found.detail or "") == 2000
    assert found.notes == ("1",) * 100
    assert found.seconds == 0.0


def test_a_process_that_is_no_worker_of_ours_says_so() -> None:
    assert "none of overlayrun's" in attempt_here({})["refused"]


def test_the_launcher_is_there_before_dask() -> None:
    code = "import sys, overlayrun.batch.worker; print(*{'dask', 'distributed'} & set(sys.modules))"

    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == ""
