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
    # Infinite where an element is, or where the squares of finite ones overflow.
    norms: list[Tensor] = []
    small: tuple[list[Tensor], list[Tensor]] = ([], [])
    for target, source in zip(targets, sources, strict=True):
        if target.numel() <= BLOCK:
            small[0].append(target)
            small[1].append(source)
        else:
            norms += _copy_blocks(target, source)
    if small[0]:
        torch._foreach_copy_(*small)
        norms += torch._foreach_norm(small[0])
    if not norms or bool(torch.isfinite(torch.stack(norms)).all()):
        return True
    return all(bool(torch.isfinite(target).all()) for target in targets)


def _copy_blocks(target: Tensor, source: Tensor) -> list[Tensor]:
    """Copy block by block and return the sum of squares of each, taken while it is near."""
    if not source.is_contiguous():
        # Only its copy has the elements in the order of blocks.
        source = target.copy_(source)
    squares: list[Tensor] = []
    blocks = torch.split(target.view(-1), BLOCK), torch.split(source.view(-1), BLOCK)
    for block, origin in zip(*blocks, strict=True):
        if source is not target:
            block.copy_(origin)
        squares.append(torch.dot(block, block))
    return squares
