"""What a parameter server makes of local steps: the outer optimizers, all of them SGD.

A member that has made steps of its own pushes how far it came from the parameters it read, in place of a
gradient: ``read - local``. Stepping against it, as against any gradient, moves the server to where the
member went.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dist_train.config import schema


def server_optimizer(outer: schema.AnyOuter) -> schema.SGD:
    """Return the server's optimizer; its rate is not scheduled, and nothing is decayed a second time.

    Averaging takes the members' mean (Stich 2018). DiLoCo has Nesterov's momentum on it (Douillard et al.
    2023, algorithm 1), in torch's form. The elastic centre takes what ``attract`` gives it.
    """
    if isinstance(outer, schema.NesterovOuter):
        return schema.SGD(lr=outer.lr, momentum=outer.momentum, nesterov=outer.momentum > 0)
    return schema.SGD(lr=1.0, momentum=0.0)


def moving_rate(outer: schema.ElasticOuter, groups: int) -> float:
    """Return alpha; by default 0.9 / groups (Zhang, Choromanska, LeCun 2015, section 4: beta = 0.9)."""
    return 0.9 / groups if outer.moving_rate is None else outer.moving_rate


@torch.no_grad()
def attract(local: Tensor, centre: Tensor, rate: float, out: Tensor) -> None:
    """Draw a member and the centre towards each other (Zhang, Choromanska, LeCun 2015, algorithm 1).

    ``local`` moves, in place, by the share ``rate`` of its distance from ``centre``; ``out`` gets the
    opposite move, by which the centre comes to meet it, as a gradient: ``rate * (centre - local)``.
    """
    torch.sub(centre, local, out=out).mul_(rate)
    local.add_(out)
