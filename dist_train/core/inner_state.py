"""What a member with local steps keeps for itself from one exchange to the next.

Its own optimizer's state (DiLoCo's AdamW goes on through all rounds: Douillard et al. 2023, algorithm 1) and,
in elastic averaging, its own parameters. It leaves a copy with every push, for checkpoints and successors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.optim import Optimizer

from dist_train.config import Config
from dist_train.config.schema import ElasticOuter
from dist_train.core.flat import (
    FlatState,
    Layout,
    flatten_optimizer_state,
    restore_optimizer_state,
    state_keys,
)
from dist_train.core.flat_model import FlatModel

PARAMETERS = "parameters"


def inner_keys(config: Config) -> tuple[str, ...]:
    """Return the names of the vectors that a member leaves, each over the whole layout; none in other modes."""
    outer = config.parallel.outer_in_force
    if outer is None:
        return ()
    return (*state_keys(config.optimizer), *((PARAMETERS,) if isinstance(outer, ElasticOuter) else ()))


class InnerState:
    """The member's side; ``rows`` are the vectors named by ``inner_keys``, in their order."""

    def __init__(self, config: Config, optimizer: Optimizer, flat: FlatModel) -> None:
        self._keys = inner_keys(config)
        self._settings = config.optimizer
        self._optimizer = optimizer
        self._flat = flat

    def leave(self, rows: Sequence[Tensor]) -> dict[str, float]:
        """Copy the state into ``rows``, and return its scalars."""
        state = flatten_optimizer_state(self._optimizer, self._flat.layout, self._settings)
        vectors = {PARAMETERS: self._flat.collect(), **state.vectors}
        for key, row in zip(self._keys, rows, strict=True):
            row.copy_(vectors[key])
        return state.scalars

    def take(self, rows: Sequence[Tensor], scalars: Mapping[str, float]) -> None:
        """Go on from a state that was left."""
        vectors = dict(zip(self._keys, rows, strict=True))
        own = vectors.pop(PARAMETERS, None)
        restore_inner(self._optimizer, self._flat.layout, vectors, scalars)
        if own is not None:
            self._flat.host.copy_(own)
            self._flat.arrived()


def restore_inner(
    optimizer: Optimizer, layout: Layout, vectors: Mapping[str, Tensor], scalars: Mapping[str, float]
) -> None:
    """Give a whole model's optimizer the state that a member left; parameters among it are passed over."""
    kept = {key: vector for key, vector in vectors.items() if key != PARAMETERS}
    restore_optimizer_state(optimizer, layout, FlatState(kept, dict(scalars)))
