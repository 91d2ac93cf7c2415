"""Tests of what the names in a run directory say."""

from __future__ import annotations

from pathlib import Path

import pytest

from dist_train.layout import is_anothers

OF_REPLICA_1 = Path("runs/two/replica_1/checkpoints/step_00000010")
ALONE = Path("runs/one/checkpoints/step_00000010")


@pytest.mark.parametrize(
    ("checkpoint", "replica", "copied"),
    [(ALONE, 0, False), (ALONE, 1, True), (OF_REPLICA_1, 1, False), (OF_REPLICA_1, 2, True)],
)
def test_a_replica_other_than_the_first_is_a_copy_of_what_is_not_its_own(
    checkpoint: Path, replica: int, copied: bool
) -> None:
    assert is_anothers(checkpoint, replica) is copied
