"""Is a vector free of NaN and infinity? Asked of every gradient, so it must cost next to nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Elements that are still in a core's own cache when they are looked at after having been copied.
BLOCK = 2**17


def is_finite(values: Tensor) -> bool:
    """Say whether a vector holds neither NaN nor infinity."""
    # One fast pass; only its result may overflow where no element does.
    return bool(torch.isfinite(torch.dot(values, values))) or bool(torch.isfinite(values).all())


def copy_finite(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> bool:
    """Copy each source to its target, contiguous and on a CPU; say whether all that was copied is finite."""
    squares: list[Tensor] = []
    for target, source in zip(targets, sources, strict=True):
        if not source.is_contiguous():
            # Only its copy has the elements in the order of blocks.
            source = target.copy_(source)
        blocks = torch.split(target.view(-1), BLOCK), torch.split(source.view(-1), BLOCK)
        for block, origin in zip(*blocks, strict=True):
            if source is not target:
                block.copy_(origin)
            squares.append(torch.dot(block, block))
    if not squares or bool(torch.isfinite(torch.stack(squares)).all()):
        return True
    return all(bool(torch.isfinite(target).all()) for target in targets)
