"""Groups of real workers, started once per test module."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# What runs in the workers is imported there by name.
sys.path.append(str(Path(__file__).parent / "reductions"))


@pytest.fixture(scope="module")
def group() -> Iterator[Callable[[int], object]]:
    """Gives the group of as many workers as asked for; its ``run`` calls a function in each of them."""
    from worker_group import WorkerGroups

    groups = WorkerGroups()
    yield groups.of
    groups.close()
