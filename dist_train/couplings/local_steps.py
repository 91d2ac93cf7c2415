"""Local steps: a member trains by itself and hands in how far it came; the server takes an outer step.

Local SGD (Stich 2018) with plain averaging, DiLoCo (Douillard et al. 2023, algorithm 1) with an outer
Nesterov step, and elastic averaging (Zhang, Choromanska and LeCun 2015, algorithm 1), where members keep
their own parameters and are drawn to the server's. What goes to the server counts as a gradient there.

Elastic moves are made between two gradients: each is taken and applied at the same parameters, those after
the last move. (The paper takes the first gradient after a move at the parameters before it.) A member whose
parameters are not finite goes on from the centre.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dist_train.couplings import Apply, Coupling, Started
from dist_train.exchange.finite import is_finite
from dist_train.exchange.server import Flat, Inner, Server, Share, Turn, settle_statistics
from dist_train.optimizers.outer import attract


class LocalSteps:
    """``moving_rate`` is elastic averaging's alpha; None: members go on from the server's parameters.

    ``inner`` leaves, with every push, what the member keeps for itself; None where another worker does it.
    """

    writes = False

    def __init__(
        self,
        inside: Coupling,
        server: Server,
        flat: Flat,
        turn: Turn,
        share: Share,
        moving_rate: float | None = None,
        inner: Inner | None = None,
    ) -> None:
        self._inside = inside
        self._server = server
        self._flat = flat
        self._turn = turn
        self._share = share.elements
        self._moving_rate = moving_rate
        self._inner = inner
        self._deposit = 0
        # The buffers' values that came with the last push which was not refused.
        self._sound = torch.empty_like(server.memory.statistics)
        # The server's parameters that the steps begin from or, in elastic averaging, last read.
        self._centre = torch.empty_like(flat.host)

    def start(self, model: nn.Module) -> Started:
        started = self._inside.start(model)
        self._flat.statistics_into(self._sound)
        self._turn.join(self._server, self._flat)
        return started

    def objective(self, loss: Tensor, predictions: Tensor, batch: Any, share: float) -> Tensor:
        return self._inside.objective(loss, predictions, batch, share)

    def update(self, apply: Apply) -> None:
        if self._turn.part == 0 and self._moving_rate is None:
            # Taken here, not where it is read: a validation in between has it read anew.
            self._centre.copy_(self._flat.host)
        apply()
        self._turn.steps += 1
        if not self._turn.is_last:
            return
        self._flat.statistics_into(self._server.memory.statistics)
        if self._moving_rate is None:
            self._hand_in()
        else:
            self._be_drawn(self._moving_rate)

    def observe(self, metrics: Mapping[str, float]) -> None:
        self._inside.observe(metrics)

    @torch.no_grad()
    def _hand_in(self) -> None:
        """Push the distance travelled since the last read, and go on from what the server makes of it."""
        turn, flat, server, share = self._turn, self._flat, self._server, self._share
        travelled = server.memory.gradients[turn.buffer][share]
        travelled.copy_(flat.collect()[share]).neg_().add_(self._centre[share])
        self._push(travelled)
        turn.go_on(server, flat)

    @torch.no_grad()
    def _be_drawn(self, rate: float) -> None:
        """Move towards the centre, and push the opposite move for the centre to make: both do, or neither."""
        turn, flat, server, share = self._turn, self._flat, self._server, self._share
        turn.read(server, self._centre)
        local, pull = flat.collect().clone(), torch.empty_like(self._centre)
        flat.host.copy_(local)
        attract(flat.host, self._centre, rate, out=pull)
        server.memory.gradients[turn.buffer][share].copy_(pull[share])
        # It moves first, for what it leaves with the push is what it has once that counts.
        flat.arrived()
        self._push(pull[share])
        if not turn.counted:
            flat.host.copy_(self._centre if turn.was_refused else local)
            flat.arrived()

    def _push(self, gradient: Tensor) -> None:
        """Announce what was handed in, and what the member keeps for itself."""
        turn, memory = self._turn, self._server.memory
        push = turn.push(is_finite(gradient))
        if self._inner is not None and memory.deposits:
            scalars = self._inner.leave(memory.deposits[self._deposit])
            push = replace(push, deposit=self._deposit, scalars=scalars)
        turn.heard(self._server.push(push))
        settle_statistics(turn, self._flat, memory.statistics, self._sound)
        if turn.counted:
            # This deposit may be copied until the next one counts.
            self._deposit = 1 - self._deposit
