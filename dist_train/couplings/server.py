"""Gradients through a parameter server: asynchronous, bounded, softsync and backup workers alike.

Which gradient counts when is the server's matter (rules/admission.py); here a member only computes, hands in,
waits for its answer and reads (Dean et al. 2012, section 4.1: n_fetch and n_push are ``fetch_every`` and
``push_every``). Inside a group of workers the gradients are first brought together by another coupling.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dist_train.couplings import Apply, Coupling, Started
from dist_train.exchange.server import Flat, Server, Share, Turn, settle_statistics


class ThroughServer:
    """``share`` is what this worker of the group hands in."""

    writes = False

    def __init__(
        self, inside: Coupling, server: Server, flat: Flat, turn: Turn, share: Share, fetch_every: int = 1
    ) -> None:
        self._inside = inside
        self._server = server
        self._flat = flat
        self._turn = turn
        self._share = share
        self._fetch_every = fetch_every
        # The buffers' values that came with the last gradient which was not refused.
        self._sound = torch.empty_like(server.memory.statistics)

    def start(self, model: nn.Module) -> Started:
        started = self._inside.start(model)
        self._flat.statistics_into(self._sound)
        self._turn.join(self._server, self._flat)
        return started

    def objective(self, loss: Tensor, predictions: Tensor, batch: Any, share: float) -> Tensor:
        self._flat.expect_gradient(self._server.memory.gradients[self._turn.buffer])
        return self._inside.objective(loss, predictions, batch, share)

    def update(self, apply: Apply) -> None:
        turn, memory = self._turn, self._server.memory
        apply.clip()
        gradient, share = memory.gradients[turn.buffer], self._share.parameters
        finite = self._flat.gradient_into(gradient, share, weight=turn.weight, add=turn.part > 0)
        turn.steps += 1
        fetches = turn.steps % self._fetch_every == 0
        if not fetches:
            # The member's own progress until it reads again.
            apply.step()
        apply.clear()
        if turn.is_last:
            self._flat.statistics_into(memory.statistics)
            turn.heard(self._server.push(turn.push(finite)))
            settle_statistics(turn, self._flat, memory.statistics, self._sound)
            fetches = fetches or turn.was_overtaken or turn.was_refused
        if fetches:
            turn.go_on(self._server, self._flat)

    def observe(self, metrics: Mapping[str, float]) -> None:
        self._inside.observe(metrics)
