"""Rust inside: cargo builds and tests a crate, and finds what was built outside still fresh."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from .conftest import run_outside

if TYPE_CHECKING:
    from conftest import UserRepo

    from .conftest import Needs

pytestmark = pytest.mark.shared  # what cargo does

SOURCE: Final = """\
pub fn double(n: u32) -> u32 { 2 * n }

#[cfg(test)]
mod tests {
    #[test]
    fn doubles() { assert_eq!(super::double(21), 42); }

    #[test]
    fn threads() {
        let handles: Vec<_> = (0..50).map(|n| std::thread::spawn(move || super::double(n))).collect();
        assert_eq!(handles.into_iter().map(|handle| handle.join().unwrap()).sum::<u32>(), 2450);
    }
}
"""


def test_cargo_builds_and_tests_and_what_was_built_stays_fresh(repo: UserRepo, needs: Needs) -> None:
    needs("cargo")
    repo.env["CARGO_NET_OFFLINE"] = "true"
    repo.write("Cargo.toml", '[package]\nname = "sample"\nversion = "1.0.0"\nedition = "2021"\n')
    repo.write("build.rs", 'fn main() { println!("cargo:rustc-env=MADE=yes"); }\n')
    repo.write("src/lib.rs", SOURCE)
    repo.write("src/main.rs", 'fn main() { println!("{} {}", env!("MADE"), sample::double(21)); }\n')
    repo.write(".gitignore", "/target/\nCargo.lock\n")
    repo.commit("a crate")
    cargo = "set -e; cargo build 2>&1 | grep -E '^ *(Compiling|Fresh|error)' || :; target/debug/sample\n"

    fresh = repo.inside(cargo, branch="fresh")
    assert [line.split()[0] for line in fresh.splitlines()] == ["Compiling", "yes"], fresh
    tests = repo.inside("cargo test 2>&1", branch="fresh")
    assert "test tests::doubles ... ok" in tests
    assert "test tests::threads ... ok" in tests

    built = run_outside(repo, cargo)
    assert built.stdout == fresh, built.stderr
    assert repo.inside(cargo, branch="warm") == "yes 42\n"
    change = "sed -i 's/2 \\* n/3 * n/' src/lib.rs\n"
    assert repo.inside(change + cargo, branch="warm").splitlines()[-1] == "yes 63"
    assert run_outside(repo, cargo).stdout == "yes 42\n"
    assert repo.git("diff", "--name-only", "main", "warm") == "src/lib.rs"
