"""The server of a replay: the shards of the run in one process, and the past versions that are still read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dist_train import tasks
from dist_train.config import Config
from dist_train.config.schema import AnyDamping, AnyOptimizer
from dist_train.core.damping import delay_compensation
from dist_train.core.flat import FlatState, Layout
from dist_train.core.seeds import seed_all
from dist_train.core.server_state import ServerState
from dist_train.core.shard import PlainSlots, Shard, ShardState, parts
from dist_train.exchange.areas import Area, checksum
from dist_train.rules.messages import Version
from dist_train.rules.schedule import Scheduled
from dist_train.rules.teaching import replica_seed


class Shards:
    """As many shards as the run had, cut alike."""

    def __init__(self, layout: Layout, settings: AnyOptimizer, shards: int, damping: AnyDamping) -> None:
        self._shards = [
            (Shard(layout, part, settings, PlainSlots(len(part)), delay_compensation(damping)), part)
            for part in parts(layout, shards, settings)
        ]

    def load(self, step: int, state: ShardState) -> None:
        """Go on from a copy of ``state`` as of update ``step``."""
        for shard, part in self._shards:
            shard.load(step, state.part(part))

    def copy(self) -> ShardState:
        """Return a copy of all that the shards hold."""
        states = [shard.state() for shard, _ in self._shards]
        optimizers = [each.optimizer for each in states]
        vectors = {
            key: torch.cat([each.vectors[key] for each in optimizers]) for key in optimizers[0].vectors
        }
        squares = {
            member: torch.cat([each.mean_squares[member] for each in states])
            for member in states[0].mean_squares
        }
        return ShardState(self.parameters(), FlatState(vectors, dict(optimizers[0].scalars)), squares)

    def take(self, member: int, gradient: Tensor, weight: float, base: Tensor | None, scale: float) -> None:
        """Add a gradient over the whole layout to the coming step."""
        for shard, part in self._shards:
            inside = slice(part.start, part.stop)
            own_base = None if base is None else base[inside]
            shard.take(member, gradient[inside], weight, own_base, scale=scale)

    def step(self, version: int, made_with: Scheduled) -> None:
        for shard, _ in self._shards:
            shard.step(version, made_with)

    def parameters(self) -> Tensor:
        """Return a copy of the newest parameters, over the whole layout."""
        return torch.cat([shard.state().parameters for shard, _ in self._shards])

    def checksums(self) -> list[int]:
        return [checksum([shard.state().parameters]) for shard, _ in self._shards]


class Versions:
    """Past parameters, each kept as long as a gradient to come was computed from it."""

    def __init__(self, last_uses: Mapping[Version, int]) -> None:
        """``last_uses`` are the indices of the entries up to which versions are read."""
        self._last_uses = last_uses
        self._kept: dict[Version, Tensor] = {}

    def wants(self, version: Version) -> bool:
        return version in self._last_uses

    def keep(self, version: Version, parameters: Tensor) -> None:
        self._kept[version] = parameters

    def read(self, version: Version) -> Tensor:
        """Raises KeyError for a version that was not made before it is read."""
        return self._kept[version]

    def forget_after(self, index: int) -> None:
        """Let go of what no entry after ``index`` reads."""
        self._kept = {
            version: kept for version, kept in self._kept.items() if self._last_uses[version] > index
        }


def server_state(config: Config, workers: int, origin: Path | None, replica: int = 0) -> ServerState:
    """Make the state that the server began from: the initialisation, or a checkpoint."""
    seed_all(replica_seed(config.seed, replica))
    server = ServerState.of(config, tasks.make(config).model(), workers)
    if origin is not None:
        server.restore(origin)
    return server


def beginning(server: ServerState) -> ShardState:
    """Return what shards begin from, over the whole layout."""
    vectors, layout = server.vectors, server.layout
    area = Area(
        layout.vector(),
        {key: layout.vector() for key in vectors.keys},
        {member: layout.vector() for member in vectors.members},
    )
    scalars = server.begin(area)
    return ShardState(area.parameters, FlatState(area.optimizer, scalars), area.mean_squares)
