"""A replica's own part of the training data, or its own sample of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from dist_train.core.data import size_of
from dist_train.errors import ConfigError
from dist_train.rules.teaching import bootstrap_rows, rows_of


class Part(Dataset[Any]):
    """Some rows of a dataset: sample i is its row ``rows[i]``."""

    def __init__(self, whole: Dataset[Any], rows: NDArray[np.int64]) -> None:
        self._whole = whole
        self._rows = rows
        if callable(fetch := getattr(whole, "batch", None)):
            self.batch = lambda indices: fetch(rows[indices].tolist())

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return self._whole[int(self._rows[index])]


def own_part(whole: Dataset[Any], replica: int, replicas: int, seed: int) -> Part:
    """Return what is a replica's own of a training set; raises ConfigError where there is not enough."""
    size = size_of(whole)
    if size < replicas:
        raise ConfigError(
            f"codistill.data: the training set has {size} samples, too few for {replicas} disjoint parts; "
            "set it to same"
        )
    return Part(whole, rows_of(replica, replicas, size, seed))


def bootstrap_sample(whole: Dataset[Any], replica: int, seed: int) -> Part:
    """Return a replica's own sample of a training set, of its size and drawn with replacement."""
    return Part(whole, bootstrap_rows(replica, size_of(whole), seed))
