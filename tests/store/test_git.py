from __future__ import annotations

from pathlib import Path

import pytest

from overlayrun.errors import HostError
from overlayrun.store.git import GitFailed, clean_environment, config_environment, git

pytestmark = pytest.mark.shared  # bytes to and from git's processes


def test_big_input_and_big_output_at_once(tmp_path: Path) -> None:
    git(["init", "-q", str(tmp_path)])
    tree = b"4b825dc642cb6eb9a060e54bf8d69288fbee4904"  # the empty one, which git knows without a look at the disk
    answer = git(["cat-file", "--batch-check"], cwd=str(tmp_path), input=(tree + b"\n") * 200_000)
    assert answer == (tree + b" tree 0\n") * 200_000


def test_a_git_that_ends_before_it_read_everything(tmp_path: Path) -> None:
    with pytest.raises(GitFailed) as caught:
        git(["no-such-command"], cwd=str(tmp_path), input=b"x" * 10_000_000)
    assert caught.value.code == 1
    assert "no-such-command" in str(caught.value.details)


def test_without_check_the_output_counts(tmp_path: Path) -> None:
    assert git(["rev-parse", "--verify", "-q", "HEAD"], cwd=str(tmp_path), check=False) == b""


def test_variables_that_redirect_git_are_dropped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    git(["init", "-q", str(tmp_path / "one")])
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE"):
        monkeypatch.setenv(name, "/nowhere")
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.bare")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "true")
    answer = git(["rev-parse", "--show-toplevel", "--is-bare-repository"], cwd=str(tmp_path / "one"))
    assert answer.decode().split() == [str((tmp_path / "one").resolve()), "false"]


def test_the_place_of_the_users_configuration_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config").write_text("[user]\n\tname = Chosen\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))
    assert git(["config", "user.name"], cwd="/").strip() == b"Chosen"


def test_a_bare_repository_in_a_tree_is_not_opened(tmp_path: Path) -> None:
    git(["init", "-q", "--bare", str(tmp_path / "planted")])
    with pytest.raises(GitFailed):
        git(["rev-parse", "--git-dir"], cwd=str(tmp_path / "planted"))
    assert git(["rev-parse", "--git-dir"], git_dir=str(tmp_path / "planted"))


def test_configuration_for_one_process_takes_any_value(tmp_path: Path) -> None:
    env = config_environment([("overlayrun.x", "a=b\n'\"")])
    assert git(["config", "-z", "overlayrun.x"], cwd=str(tmp_path), env=env) == b"a=b\n'\"\0"


def test_a_missing_git_is_the_hosts_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(HostError):
        git(["version"])


def test_the_environment_is_a_copy() -> None:
    clean_environment()["X"] = "1"
    assert "X" not in clean_environment()
