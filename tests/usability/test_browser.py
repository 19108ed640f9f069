"""Programs that make sandboxes of their own: refused with the switch named, at work with it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from conftest import UserRepo

    from .conftest import Needs

PAGE: Final = (
    "<p id=p>before</p><script>p.textContent = 'made by ' + [1, 2, 3].map(n => n * 14).pop()</script>"
)
BROWSER: Final = "chromium-headless-shell --disable-gpu --dump-dom file://$PWD/page.html"
# The user's namespace named: run by root it is root without privileges, which bwrap takes for privileged.
BWRAP: Final = (
    "bwrap --unshare-user --unshare-pid --unshare-net --ro-bind / / --dev /dev --proc /proc --tmpfs /tmp"
)


@pytest.fixture
def page(repo: UserRepo, needs: Needs) -> UserRepo:
    needs("chromium-headless-shell", "bwrap")
    repo.write("page.html", PAGE)
    repo.commit("a page")
    return repo


def test_what_it_refuses_is_named_with_its_switch(page: UserRepo) -> None:
    for command in _asking():
        done = page.sh(f"{command} >&2")
        assert done.code != 0
        (hint,) = [line for line in done.ours if "--allow-userns" in line]
        assert command[:5] in hint


def _asking() -> list[str]:
    """Commands that ask for a sandbox of their own: run by root Chromium refuses to start without asking."""
    return [f"{BWRAP} true"] + ([BROWSER] if os.geteuid() else [])


def test_a_browser_renders_a_page_with_its_own_sandbox_or_without(page: UserRepo) -> None:
    assert "made by 42" in page.inside(f"{BROWSER} --no-sandbox")
    if os.geteuid():
        assert "made by 42" in page.inside(BROWSER, "--allow-userns")


def test_an_agent_that_sandboxes_its_commands_works_with_the_switch(page: UserRepo) -> None:
    script = f"{BWRAP} --bind $PWD $PWD sh -c 'echo $$ >made; ! touch /etc/passwd 2>/dev/null'; cat made"
    assert page.inside(script, "--allow-userns") == "2\n"
    assert page.show("b", "made") == "2\n"
