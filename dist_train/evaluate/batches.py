"""The validation sets of one run or of two, batch by batch in step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Any

import torch
from torch import Tensor

from dist_train.core.data import size_of
from dist_train.errors import ConfigError
from dist_train.evaluate.subject import Subject, batch_size

# Is given each run's batch, which is on no device yet, and the samples in it.
Do = Callable[[Sequence[Any], int], object]


def each_batch(subjects: Sequence[Subject], do: Do) -> None:
    """Call ``do`` with every batch of the validation sets, which must have the same samples.

    Raises ConfigError where they have not.
    """
    first = subjects[0]
    for other in subjects[1:]:
        _refuse_other_size(first, other)
    most = min(batch_size(subject.delivered.config) for subject in subjects)
    found = [subject.batches(most) for subject in subjects]
    with torch.no_grad(), ExitStack() as closed:
        loaded = [closed.enter_context(closing(batches)) for batches, _ in found]
        seen = 0
        for batches, size in zip(zip(*loaded, strict=True), found[0][1], strict=True):
            for other, batch in zip(subjects[1:], batches[1:], strict=True):
                if not alike(batches[0], batch):
                    raise _other_samples(first, other, f"{seen + 1:,} to {seen + size:,}")
            do(batches, size)
            seen += size


def alike(first: Any, second: Any) -> bool:
    """Whether two batches (tensors nested in tuples, lists and dicts) hold the same values, NaN being one."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        if first.shape != second.shape or first.dtype != second.dtype:
            return False
        return torch.equal(first, second) or bool(
            ((first == second) | ((first != first) & (second != second))).all()
        )
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(alike(first[key], second[key]) for key in first)
    if isinstance(first, (tuple, list)) and isinstance(second, (tuple, list)):
        return len(first) == len(second) and all(map(alike, first, second))
    return bool(first == second)


def _refuse_other_size(first: Subject, other: Subject) -> None:
    sizes = size_of(first.data), size_of(other.data)
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"{other.delivered.run_dir}: {sizes[1]:,} validation samples, and {first.delivered.run_dir} has "
            f"{sizes[0]:,}; two runs are compared on the same samples: evaluate these each by itself"
        )


def _other_samples(first: Subject, other: Subject, which: str) -> ConfigError:
    return ConfigError(
        f"{other.delivered.run_dir}: validation samples {which} are not those of {first.delivered.run_dir}; "
        "two runs are compared on the same samples: have the task split its data alike whatever the seed, or "
        "evaluate these each by itself"
    )
