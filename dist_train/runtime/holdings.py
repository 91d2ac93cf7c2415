"""What the coordinator holds: the state, the memory that shards begin from and return to, checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dist_train import tasks
from dist_train.config import Config
from dist_train.core.keeper import Keeper
from dist_train.core.seeds import seed_all
from dist_train.core.server_state import ServerState
from dist_train.core.shard import parts
from dist_train.core.state import Counted
from dist_train.core.weights import write_weights
from dist_train.exchange.areas import areas, held, held_bytes
from dist_train.exchange.deposits import Deposit
from dist_train.exchange.segments import Segment
from dist_train.rules.referee import Start
from dist_train.rules.teaching import replica_seed
from dist_train.runtime.shard_process import Blueprint

# Two, so that one is whole while the other is written.
AREAS = 2


@dataclass(frozen=True)
class Kept:
    """What an area holds: the state after ``start``'s updates, and the counts that belong to it."""

    start: Start
    scalars: dict[str, float]
    # What was counted, as JSON's types, by name: the ledger, the tally, the choice of backups.
    counts: dict[str, Any]
    # Each member's buffers.
    statistics: tuple[Tensor, ...]
    # What members with local steps kept for themselves.
    inner: dict[int, Deposit] = field(default_factory=dict)
    # The learning rate of the next update, and the batch that it goes by.
    rate: float | None = None
    batch: int | None = None


class Holdings:
    """Made before the shards, from the configuration and, if there is one, from a checkpoint."""

    def __init__(self, config: Config, workers: int, origin: Path | None, replica: int = 0) -> None:
        self._config = config
        seed_all(replica_seed(config.seed, replica))
        self.server = ServerState.of(config, tasks.make(config).model(), workers)
        if origin is not None:
            self.server.restore(origin)
        vectors = self.server.vectors
        layout = self.server.layout
        self._memory = Segment.create(AREAS * vectors.bytes)
        self._areas = areas(self._memory, vectors, AREAS)
        self._held_memory = Segment.create(held_bytes(layout.size, self.server.statistics_size))
        self._held = held(self._held_memory, layout.size, self.server.statistics_size)
        self._kept: list[Kept | None] = [None] * AREAS
        self.saving: int | None = None

    @property
    def counted(self) -> Counted:
        return self.server.state.counted

    def begin(self, start: Start) -> tuple[int, Kept]:
        """Fill the first area with the state as it is; return it and what it holds."""
        server, chosen = self.server, self.server.state.chosen
        scalars, statistics = server.begin(self._areas[0]), self.statistics()
        kept = Kept(start, scalars, server.counts, statistics, dict(server.inner), chosen.rate, chosen.batch)
        self._kept[0] = kept
        return 0, kept

    def statistics(self) -> tuple[Tensor, ...]:
        """Return a copy of each member's buffers as they are now."""
        return tuple(own.clone() for own in self.server.statistics)

    def blueprints(self, shards: int, threads: int, hazards: int = 0) -> list[Blueprint]:
        """Return what each shard is made from; ConfigError for more shards than can be cut."""
        server, layout = self.server, self.server.layout
        return [
            Blueprint(
                number=number,
                layout=layout.to_json(),
                part=part,
                settings=server.shape.optimizer,
                damping=self._config.parallel.damping,
                vectors=server.vectors,
                area_count=AREAS,
                areas=self._memory.address,
                held=self._held_memory.address,
                statistics=server.statistics_size,
                checks=self._config.train.deterministic,
                threads=threads,
                hazards=hazards,
            )
            for number, part in enumerate(parts(layout, shards, server.shape.optimizer))
        ]

    @property
    def held_memory(self) -> Segment:
        return self._held_memory

    def hold_statistics(self) -> None:
        """Put the mean of the members' buffers beside the parameters that the shards have put there."""
        self._held[1].copy_(self.server.mean_statistics())

    def held_values(self) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Return the parameters that are held for a validation and the buffers' values, for another node."""
        parameters, statistics = self._held
        return parameters.numpy(), statistics.numpy()

    @property
    def has_room(self) -> bool:
        """Whether an area may be written that does not hold the newest state; if not, wait for the save."""
        newest = self.newest()
        return newest is None or any(area not in (self.saving, newest[0]) for area in range(AREAS))

    def next_area(self) -> int:
        """Return the area to be written next, whose content counts no more: the older one."""
        steps = [-1 if kept is None else kept.start.updates for kept in self._kept]
        candidates = [area for area in range(AREAS) if area != self.saving]
        area = min(candidates, key=lambda each: steps[each])
        self._kept[area] = None
        return area

    def keep(self, area: int, kept: Kept) -> None:
        self._kept[area] = kept

    def newest(self) -> tuple[int, Kept] | None:
        """Return the newest area that holds a whole state."""
        whole = [(kept.start.updates, area) for area, kept in enumerate(self._kept) if kept is not None]
        if not whole:
            return None
        _, area = max(whole)
        kept = self._kept[area]
        assert kept is not None
        return area, kept

    def take(self, area: int) -> None:
        """Take an area's content as the state that checkpoints and weights are written from."""
        kept = self._kept[area]
        assert kept is not None
        self.server.inner |= kept.inner
        self.server.take(self._areas[area], kept.scalars, kept.statistics)
        start = kept.start
        self.server.state.counted = replace(
            self.counted,
            updates=start.updates,
            samples=start.samples,
            position=start.position,
            unfinished=start.unfinished,
            owes_validation=start.owes_validation,
        )
        chosen = self.server.state.chosen
        chosen.rate, chosen.batch = kept.rate, kept.batch
        self.server.counts = kept.counts

    def save(self, keeper: Keeper, area: int, alive: Callable[[], None]) -> None:
        """Start a checkpoint of an area; returns when the area may be written again."""
        self.take(area)
        keeper.save_parts(self.server.state, self.server.parts(), alive)

    def finish(self, keeper: Keeper, alive: Callable[[], None]) -> None:
        """Write the last checkpoint, of the state taken last."""
        keeper.finish_parts(self.server.state, self.server.parts(), alive)

    def write_weights(self, path: Path) -> None:
        self.server.deliver()
        write_weights(self.server.state.model, path)
