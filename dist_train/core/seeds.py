"""Every random number generator of a worker: seeded, saved and restored together."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dist_train.rules.sampling import sample_seed


def seed_all(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators (CPU and all GPUs)."""
    seed_host(seed)
    # torch.manual_seed asks every kind of device; for a GPU not yet in use it notes down the caller's stack.
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)


def seed_host(seed: int) -> None:
    """Seed Python's, NumPy's and torch's CPU generators; those of the GPUs, which dropout uses, stay."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


def worker_seed(seed: int, rank: int, samples: int) -> int:
    """Return the seed of one worker's own randomness (dropout), from ``samples`` trained on."""
    return sample_seed(seed, rank, samples)


def lease_seed(seed: int, epoch: int, offset: int, rank: int) -> int:
    """Return the seed of the randomness (dropout) with which one worker trains on one lease: a gradient is
    the same whoever computes it, and whenever."""
    return sample_seed(sample_seed(seed, epoch, offset), rank, 0)


def generator_states(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return this worker's generator states: torch's as byte tensors, the others as JSON values."""
    tensors = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    tensors["numpy"] = torch.from_numpy(np.asarray(keys, dtype=np.uint32).view(np.uint8).copy())
    values = {
        "python": [version, list(words), gauss],
        "numpy": [kind, int(position), int(has_gauss), float(cached)],
    }
    return tensors, values


def restore_generators(
    tensors: Mapping[str, Tensor], values: Mapping[str, Any], device: torch.device
) -> None:
    """Set the generators to states that ``generator_states`` returned."""
    torch.set_rng_state(tensors["torch"].cpu())
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"].cpu(), device)
    version, words, gauss = values["python"]
    random.setstate((version, tuple(words), gauss))
    kind, position, has_gauss, cached = values["numpy"]
    keys = tensors["numpy"].cpu().numpy().view(np.uint32)
    np.random.set_state((kind, keys, position, has_gauss, cached))


@contextmanager
def generators_untouched(device: torch.device | None = None) -> Iterator[None]:
    """Leave Python's, NumPy's and torch's generators (CPU, and ``device`` if a GPU) as they were found."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gpu = torch.cuda.get_rng_state(device) if device is not None and device.type == "cuda" else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if device is not None and gpu is not None:
            torch.cuda.set_rng_state(gpu, device)
