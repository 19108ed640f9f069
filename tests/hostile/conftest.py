"""One world a test module; every test also asserts what its run left on the host."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hostile.world import Attack, World, make_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A user with secrets, and a repository with a second branch."""
    yield from make_world(tmp_path_factory.mktemp("world"), other=True)


@pytest.fixture(autouse=True)
def _host_is_sound(request: pytest.FixtureRequest) -> Iterator[None]:
    """Checks Z1 to Z7 of each run that a test looks at."""
    yield
    for given in request.node.funcargs.values():
        if isinstance(given, Attack):
            given.assert_sound()
