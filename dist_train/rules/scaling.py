"""How the learning rate follows the batch."""

from __future__ import annotations

import math
from typing import Literal

Rule = Literal["linear", "sqrt", "none"]


def scaled_learning_rate(rule: Rule, base_lr: float, batch: int, base_batch: int | None) -> float:
    """Return the learning rate for updates of ``batch`` samples, counted over all workers.

    ``base_lr`` is the rate that suits updates of ``base_batch`` samples; without a base batch it is
    the rate whatever the batch. Linear: Goyal et al. 2017, section 2.1.
    """
    if base_batch is None or rule == "none":
        return base_lr
    growth = batch / base_batch
    return base_lr * (growth if rule == "linear" else math.sqrt(growth))
