"""What a member with local steps keeps for itself from one exchange to the next.

Its own optimizer's state (DiLoCo's AdamW goes on through all rounds: Douillard et al. 2023, algorithm 1) and,
in elastic averaging, its own parameters. It leaves a copy with every push, for checkpoints and successors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dist_train.config import Config
from dist_train.config.schema import AnyOptimizer, ElasticOuter
from dist_train.core.flat import (
    FlatState,
    Layout,
    flatten_optimizer_state,
    restore_optimizer_state,
    state_keys,
)

PARAMETERS = "parameters"


@dataclass(frozen=True)
class InnerShape:
    """``settings`` are those of the member's own optimizer; ``elastic``: it keeps its parameters too."""

    settings: AnyOptimizer
    elastic: bool

    @classmethod
    def of(cls, config: Config) -> InnerShape | None:
        """Return None where members keep nothing, as they make no steps of their own."""
        outer = config.parallel.outer_in_force
        return None if outer is None else cls(config.optimizer, isinstance(outer, ElasticOuter))

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of the vectors that are kept, each over the whole layout, in the order of a deposit."""
        return (*state_keys(self.settings), *((PARAMETERS,) if self.elastic else ()))


def kept_vectors(config: Config) -> int:
    """Return how many vectors one deposit of a member holds."""
    shape = InnerShape.of(config)
    return 0 if shape is None else len(shape.keys)


class InnerState:
    """A model and its optimizer as a deposit sees them: ``rows`` are the vectors named by ``shape.keys``."""

    def __init__(self, shape: InnerShape, optimizer: Optimizer, layout: Layout, model: nn.Module) -> None:
        self._shape = shape
        self._optimizer = optimizer
        self._layout = layout
        self._parameters = dict(model.named_parameters())

    @torch.no_grad()
    def leave(self, rows: Sequence[Tensor]) -> dict[str, float]:
        """Copy the state into ``rows``, and return its scalars."""
        state = flatten_optimizer_state(self._optimizer, self._layout, self._shape.settings)
        for key, row in zip(self._shape.keys, rows, strict=True):
            if key == PARAMETERS:
                self._layout.flatten(self._parameters, row)
            else:
                row.copy_(state.vectors[key])
        return state.scalars

    def take_optimizer(self, rows: Sequence[Tensor], scalars: Mapping[str, float]) -> None:
        """Go on with the optimizer's state that was left."""
        vectors = dict(zip(self._shape.keys, rows, strict=True))
        vectors.pop(PARAMETERS, None)
        restore_optimizer_state(self._optimizer, self._layout, FlatState(vectors, dict(scalars)))

    def take(self, rows: Sequence[Tensor], scalars: Mapping[str, float]) -> None:
        """Go on from all that was left."""
        self.take_optimizer(rows, scalars)
        if self._shape.elastic:
            self._layout.unflatten(rows[self._shape.keys.index(PARAMETERS)], self._parameters)
