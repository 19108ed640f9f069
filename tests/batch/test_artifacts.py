"""What is kept of an attempt: real files and a real repository."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest
from conftest import UserRepo

from overlayrun.batch.artifacts import LARGEST, Made, mask, secret_values, write_artifacts
from overlayrun.batch.layout import AttemptLayout
from overlayrun.batch.transcript import Transcript, read_transcript

pytestmark = pytest.mark.shared  # what is kept of an output

TOKEN: Final = "ghp_" + "a1B2" * 9  # a token by its form
SECRET: Final = 'hunter2/"quoted" and & long'  # a secret by the name of its variable alone
SECRETS: Final = (SECRET,)
PLAIN: Final = Transcript()


@pytest.fixture
def place(tmp_path: Path) -> AttemptLayout:
    (tmp_path / "attempt").mkdir()
    return AttemptLayout(str(tmp_path / "attempt"))


def put(path: str, text: str | bytes) -> None:
    Path(path).write_bytes(text if isinstance(text, bytes) else text.encode())


def got(path: str) -> str:
    return Path(path).read_text()


def names(place: AttemptLayout) -> list[str]:
    return sorted(path.name for path in Path(place.root).iterdir())


@pytest.fixture
def made(repo: UserRepo) -> Made:
    """A commit on an attempt's ref, with text, a binary file, a rename and a secret in it."""
    base = repo.git("rev-parse", "HEAD")
    repo.git("switch", "--quiet", "--detach")
    repo.write("image.png", b"\x89PNG\0\0\1")
    repo.git("mv", "tool.sh", "moved.sh")
    tip = repo.commit("work", **{"src/app.py": f"password = '{SECRET}'\n# {TOKEN}\nanswer = 42\n"})
    repo.git("switch", "--quiet", "main")
    ref = "refs/overlayrun/attempts/run/task/1"
    repo.git("update-ref", ref, tip)
    return Made(git_dir=str(repo.root / ".git"), base=base, tip=tip, ref=ref, bundle=True)


def test_secrets_are_values_of_variables_that_say_so() -> None:
    host = {
        "GITHUB_TOKEN": "0123456789",
        "MY_API_KEY": "key-of-the-model",
        "AWS_BEARER_TOKEN_BEDROCK": "bearer-of-bedrock",
        "PWD": "/home/user/project",
        "DISPLAY": ":0.0.0.0",
        "GIT_AUTHOR_NAME": "A User",
        "SHORT_TOKEN": "main",
        "DEPLOY_PRIVATE_KEY": "line-one-of-it\nline-two-of-it\n",
    }
    found = secret_values(host, {"db_password": "from the task", "LANG": "C.UTF-8.UTF-8"})
    lines = ["line-one-of-it", "line-two-of-it"]
    assert set(found) == {"0123456789", "key-of-the-model", "bearer-of-bedrock", "from the task", *lines}
    assert [len(one) for one in found] == sorted((len(one) for one in found), reverse=True)


def test_a_secret_is_masked_in_every_form() -> None:
    text = (
        f"{SECRET} {json.dumps({'a': SECRET})} http://x/?k=hunter2%2F%22quoted%22%20and%20%26%20long {TOKEN}"
    )
    assert mask(text, SECRETS) == '[masked] {"a": "[masked]"} http://x/?k=[masked] [masked]'


@pytest.mark.by_both
def test_output_of_a_command_is_masked_and_the_raw_files_are_gone(place: AttemptLayout) -> None:
    put(place.output, f"one {SECRET}\ntwo \xff\n".encode("latin-1"))
    put(place.errors, f"Authorization: Bearer {TOKEN}\n")
    put(place.overlayrun, f"base: https://user:{SECRET[:7]}@host\n")
    put(place.check, f"{SECRET}\n")
    assert write_artifacts(place, PLAIN, SECRETS, None) == ()
    assert got(place.stdout) == "one [masked]\ntwo \ufffd\n"
    assert got(place.stderr) == "Authorization: Bearer [masked]\n"
    assert got(place.overlayrun) == "base: https://user:[masked]@host\n"
    assert got(place.check) == "[masked]\n"
    assert names(place) == ["check.log", "overlayrun.log", "stderr.log", "stdout.log"]
    assert Path(place.stdout).stat().st_mode & 0o777 == 0o644


def test_events_of_an_agent_are_masked_and_stay_json(place: AttemptLayout) -> None:
    shell = {"type": "text", "part": {"text": f"API_TOKEN=abcdef123456\n{SECRET}", "url": "https://u:pw@h"}}
    named = {
        "type": "tool_use",
        "part": {"state": {"input": {"password": "abc", "path": "a"}}, SECRET: [TOKEN, 1.5]},
    }
    torn = f'{{"type": "text", "part": "{TOKEN}'
    put(place.output, "".join(f"{line}\n" for line in (json.dumps(shell), json.dumps(named), "", torn)))
    put(place.errors, "")
    said = read_transcript("opencode", place.output, place.errors, 0)
    write_artifacts(place, said, SECRETS, None)
    events: list[Any] = [json.loads(line) for line in got(place.events).splitlines()]
    assert events == [
        {"type": "text", "part": {"text": "API_TOKEN=[masked]\n[masked]", "url": "https://u:[masked]@h"}},
        {
            "type": "tool_use",
            "part": {
                "state": {"input": {"password": "[masked]", "path": "a"}},
                "[masked]": ["[masked]", 1.5],
            },
        },
        {"type": "text", "text": '{"type": "text", "part": "[masked]'},
    ]
    assert got(place.stdout).startswith("API_TOKEN=[masked]\n[masked]\n")
    assert not any(one in got(place.stdout) + got(place.events) for one in (SECRET, TOKEN))


def test_events_that_python_alone_reads_become_json_of_everybody(place: AttemptLayout) -> None:
    put(place.output, '{"a": NaN, "b": 1e999, "c": ' + "[" * 500 + "]" * 500 + "}\n")
    write_artifacts(place, Transcript(agent="claude"), (), None)
    event = json.loads(got(place.events), parse_constant=pytest.fail)
    assert (event["a"], event["b"]) == (None, None)
    assert "nested too deep" in json.dumps(event["c"])


@pytest.mark.parametrize("gap", range(0, 60, 7))
def test_of_a_long_log_both_ends_are_kept_and_no_half_of_a_secret(place: AttemptLayout, gap: int) -> None:
    """Wherever the cut falls: the secret is at both of them, among letters without an end of line."""
    limit = 4000
    half = limit // 2
    head = "h" * (half - gap) + SECRET + "m" * 500_000
    text = "first\n" + head + SECRET + "t" * (half - gap) + "\nlast\n"
    put(place.output, text)
    notes = write_artifacts(place, PLAIN, SECRETS, None, limit=limit)
    kept = got(place.stdout)
    assert kept.startswith("first\nhhh")
    assert kept.endswith("ttt\nlast\n")
    assert len(kept) < limit + 100
    for size in range(6, len(SECRET)):
        assert SECRET[:size] not in kept
        assert SECRET[-size:] not in kept
    left_out = len(text.encode()) - limit
    assert notes == (f"stdout.log: {left_out:,} bytes in the middle were left out",)
    assert f"[{left_out:,} bytes left out]" in kept


def test_of_many_events_the_first_and_the_last_are_kept_whole(place: AttemptLayout) -> None:
    put(place.output, "".join(f'{{"type": "text", "number": {number}}}\n' for number in range(1000)))
    notes = write_artifacts(place, Transcript(agent="codex"), (), None, limit=1000)
    events = [json.loads(line) for line in got(place.events).splitlines()]
    assert (events[0]["number"], events[-1]["number"]) == (0, 999)
    assert next(event for event in events if "number" not in event)["text"].endswith("bytes left out]")
    assert len(notes) == 1


def test_the_diff_is_for_people_and_the_bundle_is_exact(
    place: AttemptLayout, repo: UserRepo, made: Made, tmp_path: Path
) -> None:
    # Rules and programs of the user's have no say in it.
    repo.write(".gitattributes", "*.py diff=evil\n*.md binary\n")
    (repo.home / "attributes").write_text("*.py -diff\n")
    for name, value in (
        ("diff.evil.textconv", "touch ran;"),
        ("diff.evil.command", "touch ran;"),
        ("diff.external", "touch ran;"),
    ):
        repo.git("config", name, value)
    repo.git("config", "core.attributesFile", str(repo.home / "attributes"))

    assert write_artifacts(place, PLAIN, SECRETS, made) == ()

    patch = got(place.diff)
    assert "-answer = 41\n+password = '[masked]'\n+# [masked]\n+answer = 42\n" in patch
    assert "Binary files /dev/null and b/image.png differ" in patch
    assert "rename from tool.sh\nrename to moved.sh\n" in patch
    assert patch.startswith("diff --git a/image.png b/image.png")
    assert not list(repo.root.rglob("ran"))
    assert names(place) == ["diff.patch", "result.bundle"]

    repo.git("clone", "--quiet", "--single-branch", "--branch=main", str(repo.root), str(tmp_path / "copy"))
    copy = repo.at(tmp_path / "copy")
    copy.git("fetch", "--quiet", place.bundle, made.ref)
    assert copy.git("rev-parse", "FETCH_HEAD") == made.tip
    assert SECRET in copy.show("FETCH_HEAD", "src/app.py")


def test_a_huge_file_is_named_and_a_long_diff_is_cut(place: AttemptLayout, repo: UserRepo) -> None:
    base = repo.git("rev-parse", "HEAD")
    tip = repo.commit("much", huge="a line\n" * 1_500_000, many="".join(f"{n}\n" for n in range(50_000)))
    made = Made(git_dir=str(repo.root / ".git"), base=base, tip=tip, ref="HEAD")
    notes = write_artifacts(place, PLAIN, (), made, limit=20_000)
    patch = got(place.diff)
    assert "Binary files /dev/null and b/huge differ" in patch
    assert patch.endswith("+49999\n")
    assert len(patch) < 20_100
    assert [note.partition(":")[0] for note in notes] == ["diff.patch"]
    assert names(place) == ["diff.patch"]


def test_what_git_can_not_write_is_noted_and_the_rest_is_there(place: AttemptLayout, made: Made) -> None:
    put(place.output, "hello\n")
    gone = Made(git_dir=made.git_dir, base=made.base, tip="f" * 40, ref="refs/overlayrun/none", bundle=True)
    notes = write_artifacts(place, PLAIN, (), gone)
    assert [note.partition(":")[0] for note in notes] == ["no diff was written", "no bundle was written"]
    assert names(place) == ["stdout.log"]


def test_the_usual_limit_is_ten_megabytes() -> None:
    assert LARGEST == 10 * 1024 * 1024
