"""Fixtures: folders over plain directories, for tests of the file system alone."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from folders.world import Folders


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folders]:
    """One mount for all tests of a module; each makes a branch of its own."""
    made = Folders(tmp_path_factory.mktemp("folders"))
    old = os.umask(0o022)
    yield made
    os.umask(old)
    made.close()
