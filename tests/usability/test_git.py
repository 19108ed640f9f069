"""Git inside: the flows of a day's work give the same commits as outside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from conftest import UserRepo

    from .conftest import Same

pytestmark = pytest.mark.shared  # git's own commands

DATE: Final = (
    "export GIT_AUTHOR_DATE='2024-05-06T07:08:09Z' GIT_COMMITTER_DATE='2024-05-06T07:08:09Z'\nset -e\n"
)
"""The same instant on both sides, so that the ids of commits can be compared."""

REBASE: Final = """
for name in one two three; do echo $name >$name; git add $name; git commit -qm "$name"; done
GIT_SEQUENCE_EDITOR="sed -i -e 's/^pick \\([^ ]* two\\)/fixup \\1/' -e '3s/^pick/reword/'" \
    GIT_EDITOR="sed -i 1s/three/drei/" git rebase -qi HEAD~3
git commit -q --amend --no-edit --author 'Some One <one@example.invalid>'
git log --format='%H %an %s' --stat
"""

STASH: Final = """
echo changed >>README; echo new >untracked; git add src
git stash push -qu -m kept; git status --porcelain; git stash list; git stash pop -q
git status --porcelain; git add -A; git commit -qm stashed; git rev-parse HEAD
"""

BRANCHES: Final = """
git switch -qc side; echo side >>README; git commit -qam side; git tag -a -m tagged v1
git switch -q -; echo other >other; git add other; git commit -qm other
git merge -q --no-edit --log side; git revert --no-edit HEAD~1; git cherry-pick HEAD~1^1
git mv tool.sh moved.sh; git rm -q link; git commit -qm moved; git blame -l README; git describe
git bisect start HEAD HEAD~3 >/dev/null; git bisect run test -e tool.sh | grep 'first bad'; git bisect reset 2>&1
git reset -q --hard HEAD~1; git clean -qfdx; git log --graph --format=%H; git ls-files -s; git fsck --strict
"""


@pytest.mark.by_both
def test_rebase_and_amend_give_the_same_commits(repo: UserRepo, same: Same) -> None:
    assert "drei" in same(DATE + REBASE)
    assert repo.git("rev-parse", "b") == repo.git("rev-parse", "main")


def test_stash_and_branches_give_the_same_commits(repo: UserRepo, same: Same) -> None:
    assert "On b: kept" in same(f"git switch -qC b\n{DATE}{STASH}{BRANCHES}")
    assert repo.git("rev-parse", "b") == repo.git("rev-parse", "HEAD")


def test_a_clone_of_the_own_tree_can_be_pushed_to_it(same: Same) -> None:
    script = (
        "git init -q --bare $HOME/remote; git remote add elsewhere $HOME/remote; git push -q elsewhere HEAD:m;"
        "git clone -q -b m $HOME/remote $HOME/clone; cd $HOME/clone; echo x >new; git add new; git commit -qm new;"
        "git push -q; cd - >/dev/null; git fetch -q elsewhere; git merge -q --ff-only elsewhere/m; git log --format=%H"
    )
    assert len(same(DATE + script).split()) == 3
