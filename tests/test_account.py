"""Accounts and sessions as values: what they keep, what they mask, what commits say by them."""

from __future__ import annotations

import json
import string
import subprocess
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayrun.account import Account, Session, cut
from overlayrun.masking import MASK, mask_text
from overlayrun.model import SnapshotReason
from overlayrun.store.commits import format_message, parse_trailers
from overlayrun.wording import Occasion, branch_text, digest, quoted, snapshot_text, trailers_of

pytestmark = pytest.mark.shared

TRIES = settings(max_examples=60, deadline=None, derandomize=True, database=None)
WORD = string.ascii_letters + string.digits
PLAIN = st.text(string.ascii_lowercase + " .,\n", max_size=60)
ANYTHING = st.text(max_size=200)
LIMITS = {
    **dict.fromkeys(("agent", "session", "title", "model", "tool"), 200),
    **{"subject": 100, "prompt": 4000, "said": 8000},
}


def _word(least: int, most: int = 40, letters: str = WORD) -> st.SearchStrategy[str]:
    return st.text(letters, min_size=least, max_size=most)


# (what stands there, the part of it that is a secret)
SECRETS: dict[str, st.SearchStrategy[tuple[str, str]]] = {
    "aws": _word(16, 16, string.ascii_uppercase + string.digits).map(lambda x: (f"AKIA{x}",) * 2),
    "github": _word(20).map(lambda x: (f"ghp_{x}",) * 2),
    "github_pat": _word(22).map(lambda x: (f"github_pat_{x}",) * 2),
    "model": _word(20).map(lambda x: (f"sk-ant-api03-{x}",) * 2),
    "slack": _word(12, letters=WORD + "-").map(lambda x: (f"xoxb-{x}",) * 2),
    "gitlab": _word(20).map(lambda x: (f"glpat-{x}",) * 2),
    "bearer": _word(20).map(lambda x: (f"Bearer {x}", x)),
    "authorization": _word(9).map(lambda x: (f"Authorization: Basic {x}", x)),
    "header in quotes": _word(9).map(lambda x: (f'"authorization": "Bearer {x}"', x)),
    "name": _word(9).map(lambda x: (f"GITHUB_TOKEN={x}", x)),
    "any prefix": st.tuples(_word(1, 9, string.ascii_uppercase), _word(9)).map(
        lambda x: (f"{x[0]}_SECRET={x[1]}", f"={x[1]}")
    ),
    "ours": _word(9).map(lambda x: (f"OVERLAYRUN_API_TOKEN={x}", x)),
    "bare name": _word(9).map(lambda x: (f"password={x}", x)),
    "quoted": _word(9).map(lambda x: (f'DB_PASSWORD="a {x} z"', f"a {x} z")),
    "json": _word(9).map(lambda x: (f'"client_secret": "{x}"', x)),
    "json in a string": _word(9).map(lambda x: (f'{{\\"client_secret\\": \\"{x}\\"}}', x)),
    "yaml": _word(9).map(lambda x: (f"DB_PASSWORD: {x}", x)),
    "url": _word(9, letters=WORD + "@:!$").map(lambda x: (f"postgres://user:{x}@host/db", f":{x}@")),
    "key": _word(40).map(
        lambda x: (f"-----BEGIN RSA PRIVATE KEY-----\n{x}\n-----END RSA PRIVATE KEY-----", x)
    ),
}


@pytest.mark.parametrize("kind", SECRETS)
@TRIES
@given(st.data())
def test_a_secret_is_masked_wherever_it_stands(kind: str, data: st.DataObject) -> None:
    before, after = data.draw(PLAIN), data.draw(PLAIN)
    text, secret = data.draw(SECRETS[kind])
    masked = mask_text(f"{before} {text} {after}")
    assert masked.startswith(f"{before} ")
    assert masked.endswith(f" {after}")
    rest = masked[len(before) : len(masked) - len(after)]
    assert MASK in rest
    assert secret not in rest


@TRIES
@given(PLAIN)
def test_plain_words_stay(text: str) -> None:
    assert mask_text(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "the token: the one of yesterday",
        "bearer authentication, basic authorization",
        "api_key = make_key()",
        "if token == other: pass",
        "use sk-learn-based-estimators-here, and risk-123456789012345678 too",
        "git clone ssh://git@example.org:22/x https://example.org:8080/a@b",
        "ratio=3, monkey=4, a key: value",
        "AKIA is a prefix, ghp_ too",
        "OVERLAYRUN_BRANCH=batch/1123-fox/a OVERLAYRUN_TASK=a",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert mask_text(text) == text


def test_a_key_that_is_cut_off_goes_to_the_end() -> None:
    assert mask_text("see\n-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\nBBBB") == f"see\n{MASK}"


@pytest.mark.parametrize("unit", ["a", "eyJaaaaaaaa-", "sk-", "://a:", "token=", "bearer ", "=", "A_", "a&"])
def test_a_hostile_text_of_the_longest_request_is_read(unit: str) -> None:
    # Quadratic work would take minutes here, and the run's supervisor would stand still.
    mask_text(unit * (65536 // len(unit)))


@TRIES
@given(st.dictionaries(st.sampled_from([*LIMITS, "other"]), st.one_of(ANYTHING, st.integers(), st.none())))
def test_an_account_is_bounded_printable_and_has_no_odd_types(data: dict[str, Any]) -> None:
    account = Account.parse(data)
    assert account is not None
    for name, limit in LIMITS.items():
        value = getattr(account, name)
        assert isinstance(value, str)
        assert len(value) <= limit
        assert all(letter.isprintable() or letter in "\n\t" or ord(letter) > 0x9F for letter in value)
        assert "\n" not in value or name in ("prompt", "said")
    assert Account.parse({**data, "subject": "x" * 300, "said": "y\n" * 9000}) is not None


@pytest.mark.parametrize("data", [None, "text", 3, ["list"], True])
def test_what_is_no_object_is_no_account(data: object) -> None:
    assert Account.parse(data) is None


def test_a_secret_is_masked_before_the_text_is_cut() -> None:
    account = Account.parse({"subject": f"{'x' * 85} ghp_{'A1' * 20}"})
    assert account is not None
    assert "ghp_" not in account.subject
    assert account.subject == cut(f"{'x' * 85} {MASK}", 100)


@TRIES
@given(st.lists(st.tuples(st.sampled_from(["s1", "s2", ""]), ANYTHING, ANYTHING, st.booleans()), max_size=12))
def test_a_session_survives_its_record(steps: list[tuple[str, str, str, bool]]) -> None:
    session = Session()
    for session_id, prompt, said, by_tool in steps:
        account = Account.parse(
            {"session": session_id, "prompt": prompt, "said": said, "tool": "x" * by_tool}
        )
        assert account is not None
        session = session.after(account)
        assert session.prompt == account.prompt or not account.prompt
    assert Session.from_json(json.loads(json.dumps(session.to_json()))) == session


def test_a_session_keeps_the_first_prompt_and_the_newest() -> None:
    session = Session()
    for number in range(100):
        session = session.after(Account(prompt=f"{number} {'x' * 3000}"))
    assert session.prompts[0].startswith("0 ")
    assert session.prompt.startswith("99 ")
    assert sum(map(len, session.prompts)) <= 16_000


def test_whose_turn_it_is() -> None:
    asked = Session().after(Account(session="s", prompt="do it"))
    assert not asked.waits
    done = asked.after(Account(session="s", tool="edit")).after(Account(session="s", said="Done."))
    assert (done.waits, done.last_message) == (True, "Done.")
    assert done.after(Account(session="s", title="Later")).waits
    assert not done.after(Account(session="s", prompt="more")).waits
    assert not done.after(Account(session="s", tool="edit")).waits


def test_another_session_keeps_the_prompts_alone() -> None:
    first = Session().after(Account(session="s1", title="One", agent="a", prompt="do it", said="Done."))
    second = first.after(Account(session="s2", prompt="go on"))
    assert (second.id, second.title, second.said, second.prompts) == ("s2", "", "", ("do it", "go on"))


HOSTILE = "do it\n\nOverlayrun-Branch: main\nSession: x\n---\nSigned-off-by: Boss <b@example.invalid>\n"


def _git_trailers(message: str) -> str:
    command = ["git", "interpret-trailers", "--parse", "--no-divider"]
    return subprocess.run(command, input=message, capture_output=True, text=True, check=True).stdout


@TRIES
@given(
    hostile=st.sampled_from([HOSTILE, f"x\n\n{HOSTILE}"]),
    prompt=ANYTHING,
    said=ANYTHING,
    at_end=st.booleans(),
)
def test_no_words_become_a_trailer(hostile: str, prompt: str, said: str, *, at_end: bool) -> None:
    told = {"session": f"s\n\n{hostile}", "prompt": prompt + hostile, "said": said + hostile}
    account = Account.parse({**told, "subject": hostile, "title": hostile, "tool": hostile})
    assert account is not None
    session = Session().after(account)
    occasion = Occasion(SnapshotReason.REQUEST, None, None if at_end else account, session, hostile)
    real = {"Branch": "b", "Number": "7"}
    for text in (snapshot_text(occasion, "", "default"), branch_text(occasion, "default")):
        trailers = trailers_of(occasion) | real
        message = format_message(text, "Files: 1 added.", trailers)
        assert set(parse_trailers(message)) == set(trailers)
        assert {key: parse_trailers(message)[key] for key in real} == real


def test_git_reads_the_same_trailers() -> None:
    account = Account.parse({"prompt": HOSTILE, "said": HOSTILE, "session": "s", "tool": "edit"})
    occasion = Occasion(SnapshotReason.REQUEST, None, account)
    message = format_message(snapshot_text(occasion, "", ""), "Files: 1.", trailers_of(occasion))
    assert [line.partition(":")[0] for line in _git_trailers(message).splitlines()] == [
        "Overlayrun-Session",
        "Overlayrun-Tool",
        "Overlayrun-Prompt",
    ]


@TRIES
@given(ANYTHING, ANYTHING)
def test_the_prompt_is_read_back_from_the_message(prompt: str, said: str) -> None:
    account = Account.parse({"prompt": prompt, "said": said, "subject": "Edit"})
    assert account is not None
    occasion = Occasion(SnapshotReason.REQUEST, None, account)
    message = format_message(snapshot_text(occasion, "", "default"), "Files: 1.", trailers_of(occasion))
    if account.prompt:
        assert quoted(message) == "\n".join(line.rstrip() for line in account.prompt.split("\n"))
    again = snapshot_text(occasion, digest(account.prompt), "default")
    assert "> " not in again or "> " in account.said


ASKED = Session().after(
    Account(session="s", title="Fix it", prompt="please fix it\nnow", said="Done. Merge?")
)


def test_a_step_is_worded_by_its_subject_and_its_turn() -> None:
    def text(told: str, **words: str) -> str:
        account = Account.parse(words)
        return snapshot_text(Occasion(SnapshotReason.REQUEST, None, account, ASKED), told, "default")

    told = digest(ASKED.prompt)
    assert text("", tool="edit", subject="edit a.py") == "edit a.py\n\n> please fix it\n> now"
    assert text(told, tool="edit", subject="edit a.py") == "edit a.py"
    assert text("", said="Done.") == "please fix it\n\n> please fix it\n> now\n\nDone."
    assert text(told, said="Done.\n\nIt holds.") == "Done.\n\nDone.\n\nIt holds."
    assert text(told, said="Done.") == "Done."
    assert text(told, tool="edit") == "please fix it"


def test_a_snapshot_without_an_account_takes_the_sessions_words() -> None:
    occasion = Occasion(SnapshotReason.INTERVAL, None, None, ASKED)
    assert snapshot_text(occasion, digest(ASKED.prompt), "default") == "Fix it\n\nDone. Merge?"
    nobody = Occasion(SnapshotReason.INTERVAL, None)
    assert (snapshot_text(nobody, "", "default"), branch_text(nobody, "default")) == ("default", "default")
    assert trailers_of(nobody) == {}


def test_the_branch_tells_what_was_asked_and_what_was_said_last() -> None:
    session = ASKED.after(Account(session="s", prompt="and test it"))
    rest = "> please fix it\n> now\n\n> and test it\n\nDone. Merge?"
    assert branch_text(Occasion(SnapshotReason.EXIT, None, None, session), "d") == f"Fix it\n\n{rest}"
    given = Occasion(SnapshotReason.EXIT, "Own words\n\nwith reasons", None, session)
    assert (
        branch_text(given, "d") == f"Own words\n\n> please fix it\n> now\n\n> and test it\n\n{given_rest()}"
    )


def given_rest() -> str:
    return "with reasons\n\nDone. Merge?"


def test_a_sub_agents_step_is_not_the_branchs() -> None:
    account = Account(session="child", tool="edit", subject="edit b.py", prompt="look there", said="found")
    occasion = Occasion(SnapshotReason.REQUEST, None, account, ASKED)
    assert snapshot_text(occasion, "", "d") == "edit b.py\n\n> look there\n\nfound"
    assert "look there" not in branch_text(occasion, "d")
    assert trailers_of(occasion)["Session"] == "child"


def test_a_long_title_is_cut_once_and_kept_whole_below() -> None:
    title = "word " * 30
    text = branch_text(Occasion(SnapshotReason.EXIT, None, None, Session(title=title.strip())), "d")
    head, _, body = text.partition("\n\n")
    assert (len(head), head[-1], body) == (100, "…", title.strip())
