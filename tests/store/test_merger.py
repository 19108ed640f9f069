from __future__ import annotations

import fcntl
import gc
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from overlayrun.errors import StoreError
from overlayrun.model import CommitId
from overlayrun.store.merger import Conflict, Merged, MergeEngine, Stage, merge_once
from overlayrun.store.pack import ObjectWriter

from .history import Content, History, Node, link

pytestmark = pytest.mark.shared  # merges of git

LINES = "".join(f"{n}\n" for n in range(20))


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "repo")


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary directories go."""
    (tmp_path / "places").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "places"))
    return tmp_path / "places"


def kinds(merged: Merged) -> dict[bytes, str]:
    return {conflict.path: conflict.kind for conflict in merged.conflicts}


def children() -> set[int]:
    me = os.getpid()
    return {int(pid) for pid in Path(f"/proc/self/task/{me}/children").read_text().split()}


def test_disjoint_changes_merge(history: History) -> None:
    base = history.commit({"a": LINES, "b": "1\n"})
    target = history.commit({"a": "top\n" + LINES, "b": "1\n"}, base)
    source = history.commit({"a": LINES + "end\n", "b": "2\n", "c": "3\n"}, base)
    merged = merge_once(history.git_dir, target, source)
    assert merged == Merged(merged.tree)
    assert merged.is_clean
    assert history.show(merged.tree, "a") == f"top\n{LINES}end"
    assert (history.show(merged.tree, "b"), history.show(merged.tree, "c")) == ("2", "3")


def test_a_conflict_tells_path_kind_and_stages(history: History) -> None:
    base = history.commit({"a": "1\n", "b": "1\n", "odd name": "1\n"})
    target = history.commit({"a": "2\n", "odd name": "t\n", "new": "t\n"}, base)
    source = history.commit({"a": "3\n", "b": "2\n", "odd name": "1\n", "new": "s\n"}, base)
    merged = merge_once(history.git_dir, target, source)

    def stage(number: int, commit: str, path: str) -> Stage:
        return Stage(number, b"100644", history.git("rev-parse", f"{commit}:{path}"))

    assert not merged.is_clean
    assert merged.conflicts == (
        Conflict(b"a", "contents", (stage(1, base, "a"), stage(2, target, "a"), stage(3, source, "a"))),
        Conflict(b"b", "modify/delete", (stage(1, base, "b"), stage(3, source, "b"))),
        Conflict(b"new", "add/add", (stage(2, target, "new"), stage(3, source, "new"))),
    )
    assert any(message.startswith("CONFLICT (content): Merge conflict in a") for message in merged.messages)


def test_with_conflicts_the_tree_is_the_automatic_merge_with_marked_bases(history: History) -> None:
    base = history.commit({"a": "1\n", "b": "1\n"})
    target = history.commit({"a": "2\n", "b": "1\n"}, base)
    source = history.commit({"a": "3\n", "b": "2\n"}, base)
    merged = merge_once(history.git_dir, target, source)
    marked = f"<<<<<<< {target}\n2\n||||||| {base[:7]}\n1\n=======\n3\n>>>>>>> {source}"
    assert history.show(merged.tree, "a") == marked
    assert history.show(merged.tree, "b") == "2"


def test_the_wanted_base_need_not_be_the_natural_one(history: History) -> None:
    base = history.commit({"a": "1\n", "b": "1\n"})
    dirty = history.commit({"a": "dirty\n", "b": "1\n"}, base)
    source = history.commit({"a": "dirty\n", "b": "2\n"}, dirty)
    with MergeEngine(history.git_dir, base) as engine:
        merged = engine.merge(base, source, dirty)
        natural = engine.merge(base, source)
    assert (history.show(merged.tree, "a"), history.show(merged.tree, "b")) == ("1", "2")
    assert history.show(natural.tree, "a") == "dirty"
    assert history.git("for-each-ref") == ""


def test_without_a_common_history_there_is_no_merge_unless_a_base_is_given(history: History) -> None:
    one, other = history.commit({"a": "1\n"}), history.commit({"b": "1\n"})
    for alone in (False, True):
        with MergeEngine(history.git_dir, one, alone=alone) as engine:
            with pytest.raises(StoreError, match=f"{one} and {other} have no history in common"):
                engine.merge(one, other)
            merged = engine.merge(one, other, history.commit({}))
        assert history.files(merged.tree).keys() == {"a", "b"}


def test_attributes_come_from_the_rules_alone(history: History) -> None:
    (history.path / ".gitattributes").write_text("* -merge\n")  # the user's own, uncommitted
    rule = {"d/.gitattributes": "u merge=union\n"}
    base = history.commit({**rule, "d/u": "0\n"})
    target = history.commit({**rule, "d/u": "0\nt\n"}, base)
    source = history.commit({"d/.gitattributes": "u -merge\n", "d/u": "0\ns\n"}, base)
    merged = merge_once(history.git_dir, target, source)
    assert history.show(merged.tree, "d/u") == "0\nt\ns"
    assert kinds(merge_once(history.git_dir, source, target)) == {b"d/u": "binary"}
    with MergeEngine(history.git_dir, None) as engine:
        assert kinds(engine.merge(target, source)) == {b"d/u": "contents"}


def test_attributes_count_in_a_bare_repository(history: History) -> None:
    rule = {".gitattributes": "u merge=union\n"}
    base = history.commit({**rule, "u": "0\n"})
    target, source = (history.commit({**rule, "u": f"0\n{text}\n"}, base) for text in "ts")
    history.git("config", "core.bare", "true")
    assert history.show(merge_once(history.git_dir, target, source).tree, "u") == "0\nt\ns"


def test_an_engine_tells_which_commits_its_rules_fit(history: History) -> None:
    rules = {"a/.gitattributes": "u merge=union\n", "b/.gitattributes": "u -merge\n"}
    first = history.commit(rules)
    commits = {
        "other files": (history.commit({**rules, "x": "1\n", "gitattributes": "1\n"}, first), True),
        "one changed": (history.commit({**rules, "a/.gitattributes": "u -merge\n"}, first), False),
        "one gone": (history.commit({"a/.gitattributes": "u merge=union\n"}, first), False),
        "one a link": (history.commit({**rules, "b/.gitattributes": link("x")}, first), False),
        "one more": (history.commit({**rules, ".gitattributes": "x text\n"}, first), False),
        "none": (history.commit({"x": "1\n"}), False),
        "the same": (first, True),
    }
    with MergeEngine(history.git_dir, first) as engine, MergeEngine(history.git_dir, None) as bare:
        assert {name: engine.fits(commit) for name, (commit, _) in commits.items()} == {
            name: fits for name, (_, fits) in commits.items()
        }
        assert [name for name, (commit, _) in commits.items() if bare.fits(commit)] == ["none"]


def test_rules_are_found_anew_when_the_commit_known_before_is_gone(history: History) -> None:
    first = history.commit({".gitattributes": "u merge=union\n", "u": "0\n"})
    merge_once(history.git_dir, first, first)
    kept = history.commit({".gitattributes": "u -merge\n", "u": "0\n"})
    history.git("branch", "kept", kept)
    history.git("gc", "-q", "--prune=now")
    target, source = (
        history.commit({".gitattributes": "u -merge\n", "u": text}, kept) for text in ("t\n", "s\n")
    )
    assert kinds(merge_once(history.git_dir, target, source)) == {b"u": "binary"}


def test_a_source_chooses_no_driver_of_the_users(history: History) -> None:
    history.git("config", "merge.run.driver", f"touch {history.path}/ran; cat %A >/dev/null")
    base = history.commit({"a": "1\n"})
    target = history.commit({"a": "2\n"}, base)
    source = history.commit({"a": "3\n", ".gitattributes": "a merge=run\n"}, base)
    assert kinds(merge_once(history.git_dir, target, source)) == {b"a": "contents"}
    assert not (history.path / "ran").exists()
    target = history.commit({"a": "2\n", ".gitattributes": "a merge=run\n"}, base)
    assert merge_once(history.git_dir, target, source).is_clean
    assert (history.path / "ran").exists()


def test_a_source_chooses_no_driver_when_the_user_renormalizes(history: History) -> None:
    history.git("config", "merge.run.driver", "true")
    history.git("config", "merge.renormalize", "true")
    base = history.commit({"a": "1\n"})
    target = history.commit({"a": "2\n"}, base)
    source = history.commit({"a": "3\n", ".gitattributes": "a merge=run\n"}, base)
    assert kinds(merge_once(history.git_dir, target, source)) == {b"a": "contents"}
    with MergeEngine(history.git_dir, None) as engine:
        assert kinds(engine.merge(target, source)) == {b"a": "contents"}


@pytest.mark.parametrize("alone", [False, True])
def test_a_driver_that_talks_and_reads_does_not_disturb(history: History, *, alone: bool) -> None:
    other = history.commit({})
    noise = rf"printf '1\0{history.git('rev-parse', other + '^{tree}')}\0\0'"
    history.git("config", "merge.talk.driver", f"cat; {noise}; echo made by %P >%A # so it ends")
    base = history.commit({"a": "1\n", ".gitattributes": "a merge=talk\n"})
    target = history.commit({"a": "2\n", ".gitattributes": "a merge=talk\n"}, base)
    source = history.commit({"a": "3\n", ".gitattributes": "a merge=talk\n"}, base)
    with MergeEngine(history.git_dir, target, alone=alone) as engine:
        for _ in range(3):
            assert history.show(engine.merge(target, source).tree, "a") == "made by a"


def test_the_users_files_index_and_refs_stay(history: History) -> None:
    base = history.commit({"a": "1\n"})
    source = history.commit({"a": "1\n", "b": "2\n"}, base)
    history.git("read-tree", base)
    index = (history.path / ".git/index").read_bytes()
    merge_once(history.git_dir, base, source)
    assert (history.path / ".git/index").read_bytes() == index
    assert [path.name for path in history.path.iterdir()] == [".git"]
    assert history.git("for-each-ref") == ""


def test_attributes_in_the_users_index_do_not_count(history: History) -> None:
    base = history.commit({"u": "0\n"})
    target = history.commit({"u": "0\nt\n"}, base)
    source = history.commit({"u": "0\ns\n"}, base)
    history.git("read-tree", history.commit({".gitattributes": "u merge=union\n"}))
    assert kinds(merge_once(history.git_dir, target, source)) == {b"u": "contents"}


def test_attributes_that_are_a_link_do_not_count(history: History) -> None:
    rule: dict[str, Content] = {".gitattributes": link("u merge=union")}
    base = history.commit({**rule, "u": "0\n"})
    target = history.commit({**rule, "u": "0\nt\n"}, base)
    source = history.commit({**rule, "u": "0\ns\n"}, base)
    assert kinds(merge_once(history.git_dir, target, source)) == {b"u": "contents"}


def test_a_tree_that_leads_out_of_its_directory_writes_nothing_there(history: History, places: Path) -> None:
    def tree(*entries: tuple[bytes, bytes, str]) -> str:
        data = b"".join(b"%b %b\0%b" % (mode, name, bytes.fromhex(oid)) for mode, name, oid in entries)
        command = ["git", "hash-object", "-t", "tree", "-w", "--stdin", "--literally"]
        return subprocess.check_output(command, cwd=history.path, input=data).decode().strip()

    blob = history.git("rev-parse", history.commit({"x": "u merge=union\n"}) + ":x")
    inner = tree((b"100644", b".gitattributes", blob))
    evil = history.git("commit-tree", "-m", "x", tree((b"40000", b"..", tree((b"40000", b"..", inner)))))
    with MergeEngine(history.git_dir, CommitId(evil)):
        assert not list(places.glob("*/.gitattributes"))
        assert not (places / ".gitattributes").exists()


def test_attributes_too_deep_for_any_checkout_are_passed_over(history: History) -> None:
    deep = "/".join(["d" * 200] * 25)
    base = history.commit(
        {f"{deep}/.gitattributes": "u merge=union\n", ".gitattributes": "u merge=union\n", "u": "0\n"}
    )
    target = history.commit({".gitattributes": "u merge=union\n", "u": "0\nt\n"}, base)
    with MergeEngine(history.git_dir, base) as engine:
        assert engine.merge(target, history.commit({"u": "0\ns\n"}, base)).is_clean


def test_objects_made_after_its_start_are_seen(history: History) -> None:
    base = history.commit({"a": LINES})
    with MergeEngine(history.git_dir, base) as engine:
        target, source = history.commit({"a": f"t{LINES}"}, base), history.commit({"a": f"{LINES}s"}, base)
        assert history.show(engine.merge(target, source).tree, "a") == f"t{LINES}s"
        # In a pack by another process, loose by libgit2's side, and after the packs it knows are gone.
        history.git("config", "fastimport.unpackLimit", "0")
        text = history.git("cat-file", "commit", source).replace("\nx", "\nanother")
        with ObjectWriter(f"{history.git_dir}/objects") as writer:
            again = CommitId(writer.add(b"commit", text.encode()).hex())
            writer.finish()
        assert history.show(engine.merge(target, again).tree, "a") == f"t{LINES}s"
        for name, commit in (("t", target), ("s", source), ("again", again)):
            history.git("branch", name, commit)
        history.git("gc", "-q", "--prune=now")
        third = history.commit({"a": f"3{LINES}s"}, source)
        assert history.show(engine.merge(again, third).tree, "a") == f"3{LINES}s"


def test_after_a_commit_that_does_not_exist_it_goes_on(history: History) -> None:
    base = history.commit({"a": "1\n"})
    source = history.commit({"a": "2\n"}, base)
    absent = CommitId("12345678" * 5)
    for alone in (False, True):
        with MergeEngine(history.git_dir, base, alone=alone) as engine:
            for target, other in ((absent, source), (base, absent)):
                with pytest.raises(StoreError, match="git could not merge commit") as caught:
                    engine.merge(target, other)
                assert f"{absent} - not something we can merge" in str(caught.value.details)
                assert history.show(engine.merge(base, source).tree, "a") == "2"


def test_a_missing_blob_is_an_error_and_no_merge(history: History) -> None:
    base, lost = history.commit({"a": "1\n"}), Node("100644", b"only here\n")
    target, source = history.commit({"a": lost}, base), history.commit({"a": "3\n"}, base)
    blob = history.git("rev-parse", f"{target}:a")
    (history.path / ".git/objects" / blob[:2] / blob[2:]).unlink()
    with MergeEngine(history.git_dir, base) as engine:
        with pytest.raises(StoreError, match="git could not merge commit"):
            engine.merge(target, source)
        assert engine.merge(base, source).is_clean


def test_a_process_that_was_killed_is_replaced(history: History) -> None:
    base = history.commit({"a": "1\n"})
    source = history.commit({"a": "2\n"}, base)
    before = children()
    with MergeEngine(history.git_dir, base) as engine:
        engine.merge(base, source)
        (pid,) = children() - before
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert history.show(engine.merge(base, source).tree, "a") == "2"
        assert len(children() - before) == 1


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def test_an_interrupted_merge_leaves_nothing_of_its_answer(history: History, tmp_path: Path) -> None:
    history.git("config", "merge.slow.driver", f"echo $$ >{tmp_path}/pid; sleep 600")
    rule = {".gitattributes": "a merge=slow\n"}
    base = history.commit({**rule, "a": "1\n", "b": "1\n"})
    target, source = (
        history.commit({**rule, "a": "2\n", "b": "1\n"}, base),
        history.commit({**rule, "a": "3\n"}, base),
    )
    other = history.commit({**rule, "a": "1\n", "b": "2\n"}, base)
    with MergeEngine(history.git_dir, base) as engine:
        engine.merge(base, other)
        with pytest.raises(KeyboardInterrupt), interrupted_after(0.5):
            engine.merge(target, source)
        assert history.show(engine.merge(base, other).tree, "b") == "2"
    pid = int((tmp_path / "pid").read_text())
    for _ in range(500):  # whoever adopts it has to reap it
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.02)
    pytest.fail("the driver goes on")


def test_closing_leaves_no_process_no_descriptor_and_no_directory(history: History, places: Path) -> None:
    base = history.commit({"a": "1\n"})
    source = history.commit({"a": "2\n"}, base)
    gc.collect()  # what other tests left open closes now, not in between
    before = children(), os.listdir("/proc/self/fd")
    engine = MergeEngine(history.git_dir, base)
    engine.merge(base, source)
    with pytest.raises(StoreError):
        engine.merge(base, CommitId("12345678" * 5))
    engine.merge(base, source)
    assert list(places.iterdir())
    engine.close()
    engine.close()
    assert (children(), os.listdir("/proc/self/fd")) == before
    assert list(places.iterdir()) == []


def test_without_a_place_for_its_files_there_is_an_error(history: History, places: Path) -> None:
    places.rmdir()
    with pytest.raises(StoreError, match="no place to lay out attributes"):
        MergeEngine(history.git_dir, None)


def test_what_clears_old_temporary_files_leaves_its_directory_alone(history: History, places: Path) -> None:
    with MergeEngine(history.git_dir, None):
        (place,) = places.iterdir()
        fd = os.open(place, os.O_RDONLY)
        try:
            with pytest.raises(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(fd)


def test_one_engine_merges_hundreds_as_fresh_processes_do(history: History) -> None:
    base = history.commit({f"f{n}": LINES for n in range(10)})
    target = history.commit({**{f"f{n}": LINES for n in range(10)}, "f3": f"t\n{LINES}"}, base)
    sources = []
    for number in range(20):
        files = {f"f{n}": LINES for n in range(10)}
        files[f"f{number % 7}"] = f"{number}\n{LINES}"
        sources.append(history.commit(files, base))
    with (
        MergeEngine(history.git_dir, target) as engine,
        MergeEngine(history.git_dir, target, alone=True) as fresh,
    ):
        expected = [fresh.merge(target, source) for source in sources]
        assert {merged.is_clean for merged in expected} == {True, False}
        before = children()
        for _ in range(10):
            assert [engine.merge(target, source) for source in sources] == expected
        assert len(children() - before) == 1


def test_without_stdbuf_it_merges_the_same(
    history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = history.commit({"a": "1\n"})
    target, source = history.commit({"a": "2\n"}, base), history.commit({"a": "3\n"}, base)
    expected = merge_once(history.git_dir, target, source)
    (tmp_path / "bin").mkdir()
    for name in ("git", "sh"):
        (tmp_path / "bin" / name).symlink_to(f"/usr/bin/{name}")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with MergeEngine(history.git_dir, base) as engine:
        for _ in range(3):
            assert engine.merge(target, source) == expected
            assert engine.merge(base, source).is_clean
