from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import UserRepo

pytestmark = pytest.mark.shared

PROGRAM = Path(__file__).parent.parent / "scripts/_replay.py"


def replay(*args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, str(PROGRAM), *args], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done


def replayed(repo: UserRepo, *args: str) -> dict[str, Any]:
    data = json.loads(replay(str(repo.root), "--json", *args).stdout)
    assert data["schema"] == 1
    (report,) = data["repositories"]
    assert isinstance(report, dict)
    return report


def branch(repo: UserRepo, name: str, start: str, **files: str) -> None:
    repo.git("checkout", "-q", "-b", name, start)
    repo.commit(f"Work on {name}", **files)
    repo.git("checkout", "-q", "main")


@pytest.fixture
def merged(repo: UserRepo) -> tuple[UserRepo, dict[str, str]]:
    """One merge of each result, by its name."""
    start = repo.commit("Start", a="1\n", b="1\n", c="1\n")
    found = {}
    branch(repo, "same", start, b="2\n")
    repo.commit("On main", a="2\n")
    repo.git("merge", "-q", "--no-ff", "-m", "Merge same", "same")
    found["clean, same"] = repo.git("rev-parse", "HEAD")
    branch(repo, "other", start, c="2\n")
    repo.git("merge", "-q", "--no-ff", "--no-commit", "other")
    found["clean, other"] = repo.commit("Merge other, with a fix", fix="1\n")
    branch(repo, "conflict", start, a="3\n", b="3\n")
    repo.git("merge", "-q", "--no-ff", "--no-commit", "-s", "ours", "conflict")
    found["conflict"] = repo.commit("Merge conflict", a="23\n")
    repo.git("checkout", "-q", "--orphan", "stranger")
    repo.commit("Of another history", d="1\n")
    repo.git("checkout", "-q", "main")
    repo.git(
        "merge", "-q", "--no-ff", "--allow-unrelated-histories", "-s", "ours", "-m", "Merge it", "stranger"
    )
    found["not merged"] = repo.git("rev-parse", "HEAD")
    return repo, found


def test_merges_are_counted_by_their_result(merged: tuple[UserRepo, dict[str, str]]) -> None:
    repo, commits = merged
    report = replayed(repo)
    assert {kind: report[kind] for kind in commits} == dict.fromkeys(commits, 1)
    assert {row["result"]: row["commit"] for row in report["rows"]} == commits
    assert (report["repository"], report["merges"], report["conflicted paths"]) == (repo.root.name, 4, 2)
    (conflict,) = (row["conflicts"] for row in report["rows"] if "conflicts" in row)
    assert conflict == [{"path": "a", "kind": "contents"}, {"path": "b", "kind": "contents"}]
    (why,) = (row["why"] for row in report["rows"] if "why" in row)
    assert "no history in common" in why


def test_the_newest_are_taken_from_the_wanted_revision(merged: tuple[UserRepo, dict[str, str]]) -> None:
    repo, commits = merged
    rows = replayed(repo, "--last", "2", "--from", "main~1")["rows"]
    assert [row["commit"] for row in rows] == [commits["clean, other"], commits["conflict"]]


def test_each_merge_is_by_the_attributes_of_its_own_target(repo: UserRepo) -> None:
    start = repo.commit("Start", a="0\n")
    for number in range(2):
        branch(repo, f"plain{number}", start, **{f"new{number}": "1\n"})
        branch(repo, f"union{number}", start, a=f"0\n{number}\n")
    repo.commit("On main", a="0\nmain\n")
    repo.commit("Rule", **{".gitattributes": "a merge=union\n"})
    repo.git("merge", "-q", "--no-ff", "-m", "Merge", "union0")
    repo.git("merge", "-q", "--no-ff", "-m", "Merge", "plain0")
    repo.git("rm", "-q", ".gitattributes")
    repo.commit("No rule")
    repo.git("merge", "-q", "--no-ff", "--no-commit", "-s", "ours", "union1")
    repo.commit("Merge union1", a="1\n")
    results = [row["result"] for row in replayed(repo)["rows"]]
    assert results == ["clean, same", "clean, same", "conflict"]


def test_the_table_has_a_row_for_each_repository(merged: tuple[UserRepo, dict[str, str]]) -> None:
    repo, _ = merged
    heads, rule, *rows = replay(str(repo.root), str(repo.root / ".git")).stdout.splitlines()
    assert [cell.strip() for cell in heads.strip("|").split("|")][:3] == [
        "repository",
        "merges",
        "clean, same",
    ]
    assert set(rule) == {"|", "-"}
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[:7] for row in cells] == [[repo.root.name, "4", "1", "1", "1", "1", "2"]] * 2


def test_the_repository_stays_as_it_is(merged: tuple[UserRepo, dict[str, str]]) -> None:
    repo, _ = merged

    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() if path.is_file() else b"" for path in repo.root.rglob("*")}

    before = content()
    replayed(repo)
    assert content() == before


def test_what_is_no_repository_is_said(tmp_path: Path) -> None:
    assert "not a git repository" in replay(str(tmp_path), code=1).stderr
