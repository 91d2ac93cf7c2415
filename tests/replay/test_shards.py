"""What a replay holds of the server: whole states to go back to, versions as long as they are read."""

from __future__ import annotations

import pytest
import server_runs
import torch

from dist_train.replay.shards import Shards, Versions, beginning, server_state
from dist_train.rules.messages import Version
from dist_train.rules.schedule import Scheduled


@pytest.mark.parametrize("shards", [1, 3])
def test_shards_that_go_back_go_on_as_before(shards: int) -> None:
    config = server_runs.config_of(optimizer={"name": "adam", "lr": 0.1})
    server = server_state(config, 1, None)
    made = Shards(server.layout, server.shape.optimizer, shards, config.parallel.damping)
    made.load(0, beginning(server))
    gradients = torch.randn(3, server.layout.size, generator=torch.Generator().manual_seed(0))

    def step(number: int) -> None:
        made.take(0, gradients[number], 4.0, None, 1.0)
        made.step(number + 1, Scheduled(0.1))

    step(0)
    kept = made.copy()
    step(1)
    ahead, checksums = made.parameters(), made.checksums()
    step(2)
    assert not torch.equal(made.parameters(), ahead)
    made.load(1, kept)
    step(1)
    assert torch.equal(made.parameters(), ahead)
    assert made.checksums() == checksums
    assert len(checksums) == shards


class TestVersions:
    def test_are_kept_until_the_last_entry_that_reads_them(self) -> None:
        first, second = Version(0, 1), Version(0, 2)
        versions = Versions({first: 3, second: 5})
        versions.keep(first, torch.ones(2))
        versions.keep(second, torch.zeros(2))
        versions.forget_after(2)
        assert versions.read(first).tolist() == [1, 1]
        versions.forget_after(3)
        with pytest.raises(KeyError):
            versions.read(first)
        assert versions.read(second).tolist() == [0, 0]

    def test_nobody_wants_a_version_that_is_never_read(self) -> None:
        versions = Versions({Version(0, 1): 3})
        assert versions.wants(Version(0, 1))
        assert not versions.wants(Version(0, 2))
