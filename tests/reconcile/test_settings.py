"""Settings of the reconciler: flags over git configuration over overlayrun.toml, and what can't be meant."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from overlayrun.errors import UsageError
from overlayrun.reconcile.settings import LandingMode, Settings, read_settings

if TYPE_CHECKING:
    from conftest import UserRepo

pytestmark = pytest.mark.shared


def settings(repo: UserRepo) -> Settings:
    return read_settings(str(repo.root))


def test_without_any_the_defaults_hold(repo: UserRepo) -> None:
    assert settings(repo) == Settings()


def test_the_file_says_what_git_configuration_overrules(
    repo: UserRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(repo.home))
    repo.write(
        "overlayrun.toml",
        '[reconcile]\ncheck = "make test"\nslots = 3\ntimeout = "5m"\nonly = ["overlay/*"]\nmode = "squash"\n'
        "require-approval = true\n",
    )
    repo.git("config", "overlayrun.reconcile.slots", "4")
    repo.git("config", "overlayrun.reconcile.require-approval", "no")
    found = settings(repo)
    assert (found.check, found.slots, found.timeout) == ("make test", 4, 300.0)
    assert (found.only, found.mode, found.require_approval) == (("overlay/*",), LandingMode.SQUASH, False)


def test_what_is_given_overrules_both() -> None:
    assert Settings(check="a", slots=3).merged({"check": "b", "slots": None, "only": ()}).check == "b"
    assert Settings(check="a", slots=3).merged({"check": "b", "slots": None}).slots == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[reconcile]\nslots = 0\n", "slots can't be '0'"),
        ("[reconcile]\nchek = 'a'\n", "no key 'chek'"),
        ("[reconcil]\ncheck = 'a'\n", "'reconcil' is no table"),
        ("[reconcile\n", "can't be read"),
        ("[reconcile]\nmode = 'octopus'\n", "mode can't be 'octopus'"),
        ("reconcile = 3\n", "'reconcile' is no table"),
    ],
)
def test_a_file_that_can_not_be_meant_is_refused_by_name(repo: UserRepo, text: str, words: str) -> None:
    repo.write("overlayrun.toml", text)
    with pytest.raises(UsageError, match=words):
        settings(repo)


def test_config_shows_and_sets_them(repo: UserRepo) -> None:
    assert repo.overlayrun("config", "reconcile.check", "pytest -q").code == 0
    assert repo.git("config", "overlayrun.reconcile.check") == "pytest -q"
    shown = json.loads(repo.overlayrun("config", "--json").out)["settings"]
    assert shown["reconcile.check"] == {"value": "pytest -q", "from": "local"}
    assert shown["reconcile.slots"] == {"value": "2", "from": "default"}
    assert repo.overlayrun("config", "reconcile.slots", "none").code == 3


def test_config_names_the_file_as_a_source(repo: UserRepo) -> None:
    repo.write("overlayrun.toml", "[reconcile]\nslots = 5\n")
    shown = json.loads(repo.overlayrun("config", "--json").out)["settings"]
    assert shown["reconcile.slots"] == {"value": "5", "from": "overlayrun.toml"}
