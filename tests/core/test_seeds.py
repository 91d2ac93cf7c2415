"""All generators of a worker are seeded, saved and restored together."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch

from dist_train.core.seeds import (
    generator_states,
    generators_untouched,
    restore_generators,
    seed_all,
    seed_host,
    worker_seed,
)

CPU = torch.device("cpu")


def draw():
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(2).tolist()


@pytest.mark.parametrize("seed", [seed_all, seed_host])
def test_a_seed_sets_all_generators(seed):
    seed(2**40 + 1)
    first = draw()
    seed(2**40 + 1)
    assert draw() == first


def test_saved_states_survive_json_and_bring_the_same_draws_back():
    seed_all(1)
    draw()
    tensors, values = generator_states(CPU)
    values = json.loads(json.dumps(values))
    expected = draw()
    seed_all(2)
    restore_generators(tensors, values, CPU)
    assert draw() == expected


@pytest.mark.parametrize("fails", [False, True])
def test_generators_are_left_as_they_were_found(fails):
    seed_all(1)
    expected = draw()
    seed_all(1)
    try:
        with generators_untouched(CPU):
            seed_all(7)
            draw()
            assert not fails
    except AssertionError:
        pass
    assert draw() == expected


def test_workers_and_positions_have_seeds_of_their_own():
    seeds = {worker_seed(5, rank, samples) for rank in range(4) for samples in (0, 32, 64)}
    assert len(seeds) == 12
