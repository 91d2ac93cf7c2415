"""The server of a replay: the shards of the run in one process, and the past versions that are still read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dist_train import optimizers, tasks
from dist_train.config import Config
from dist_train.core.damping import delay_compensation
from dist_train.core.flat import FlatState, Layout
from dist_train.core.seeds import seed_all
from dist_train.core.server_state import ServerState, Shape
from dist_train.core.shard import PlainSlots, Shard, ShardState, parts
from dist_train.core.state import State
from dist_train.exchange.areas import Area, checksum
from dist_train.optimizers.outer import server_optimizer
from dist_train.plan import group_count
from dist_train.rules.messages import Version


class Shards:
    """As many shards as the run had, cut alike: ``state`` is what they begin from, at update ``step``."""

    def __init__(self, config: Config, state: ServerState, shards: int, step: int) -> None:
        self.layout = state.layout
        settings = state.shape.optimizer
        self._shards = [
            (
                Shard(
                    self.layout, part, settings, PlainSlots(len(part)), delay_compensation(config.parallel.damping)
                ),
                part,
            )
            for part in parts(self.layout, shards, settings)
        ]
        self.load(step, _beginning(state))

    def load(self, step: int, state: ShardState) -> None:
        """Go on from a copy of ``state`` as of update ``step``."""
        for shard, part in self._shards:
            shard.load(step, state.part(part))

    def copy(self) -> ShardState:
        """Return a copy of all that the shards hold."""
        states = [shard.state() for shard, _ in self._shards]

        def joined(vectors: Sequence[Mapping[object, Tensor]], key: object) -> Tensor:
            return torch.cat([each[key] for each in vectors])

        optimizers_, squares = [each.optimizer for each in states], [each.mean_squares for each in states]
        vectors = {key: joined([each.vectors for each in optimizers_], key) for key in optimizers_[0].vectors}
        return ShardState(
            self.parameters(),
            FlatState(vectors, dict(optimizers_[0].scalars)),
            {member: joined(squares, member) for member in squares[0]},
        )

    def take(self, member: int, gradient: Tensor, weight: float, base: Tensor | None) -> None:
        """Add a gradient over the whole layout to the coming step."""
        for shard, part in self._shards:
            inside = slice(part.start, part.stop)
            shard.take(member, gradient[inside], weight, None if base is None else base[inside])

    def step(self, version: int, rate: float, momentum: float | None) -> None:
        for shard, _ in self._shards:
            shard.step(version, rate, momentum)

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


def server_state(config: Config, workers: int, origin: Path | None) -> ServerState:
    """Make the state that the server began from: the initialisation, or a checkpoint."""
    seed_all(config.seed)
    model = tasks.make(config).model()
    state = State(model, optimizers.build(model, config.optimizer), torch.device("cpu"))
    parallel, outer = config.parallel, config.parallel.outer_in_force
    shape = Shape(
        optimizer=config.optimizer if outer is None else server_optimizer(outer),
        outer=outer is not None,
        members=group_count(parallel, workers),
        group_size=parallel.group_size,
        mean_squares=getattr(parallel.damping, "variant", None) == "adaptive",
    )
    server = ServerState(state, Layout.of(model, config.optimizer), shape)
    if origin is not None:
        server.restore(origin)
    return server


def _beginning(server: ServerState) -> ShardState:
    vectors, layout = server.vectors, server.layout
    area = Area(
        layout.vector(),
        {key: layout.vector() for key in vectors.keys},
        {member: layout.vector() for member in vectors.members},
    )
    scalars = server.begin(area)
    return ShardState(area.parameters, FlatState(area.optimizer, scalars), area.mean_squares)
