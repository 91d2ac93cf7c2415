"""k workers at batch n are one worker at batch kn; accumulation is distribution; every sample counts once."""

from __future__ import annotations

from itertools import islice

import by_hand
import pytest
import runs
import torch
import torch.nn.functional as F
from toys import Exploding, Plain

pytestmark = pytest.mark.processes

SEED, SIZE, GLOBAL = 5, 50, 12
# Two epochs of 50 samples in batches of 12: the fifth and the tenth hold two, fewer than three workers.
UPDATES = 11
EXACT = {"rtol": 1e-9, "atol": 1e-12}


def expected(task, update, rate, decay=0.0, clip=None, batch=GLOBAL, updates=UPDATES, drop=False):
    torch.manual_seed(SEED)
    model = task.model().train()
    data = task.train_data()

    def mean_loss(model, rows):
        return F.cross_entropy(model(data.inputs[rows]), data.classes[rows])

    batches = list(islice(by_hand.global_batches(SEED, task.size, batch, drop), updates))
    losses = by_hand.descend(model, mean_loss, batches, update, rate, decay, clip)
    return model.state_dict(), losses


def settings(name, workers, accumulate=1, clip=None, batch=GLOBAL, **sections):
    _, chosen = by_hand.OPTIMIZERS[name]
    train = {"steps": 1000, "batch_size": batch // workers // accumulate, "accumulate": accumulate}
    return runs.config_of(
        optimizer=chosen | {"weight_decay": 0.02}, train=train | {"clip_norm": clip}, **sections
    )


def assert_same(results, weights, losses):
    for result in results:
        torch.testing.assert_close(result["weights"], dict(weights), **EXACT)
        assert result["losses"] == pytest.approx(losses, rel=1e-6)


@pytest.mark.parametrize("norm", ["none", "frozen"])
@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("name", by_hand.OPTIMIZERS)
def test_workers_together_make_the_update_of_one_at_their_global_batch(group, name, workers, norm):
    task, (update, chosen) = Plain(norm=norm), by_hand.OPTIMIZERS[name]
    results = group(workers).run(runs.train, settings(name, workers), task, UPDATES)
    assert_same(results, *expected(task, update, chosen["lr"], 0.02))


@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize(("workers", "accumulate"), [(1, 3), (1, 6), (2, 3), (3, 2)])
def test_accumulation_is_distribution(group, workers, accumulate, clip):
    task = Plain()
    config = settings("sgd", workers, accumulate, clip)
    results = group(workers).run(runs.train, config, task, UPDATES)
    assert_same(results, *expected(task, by_hand.sgd, 0.1, 0.02, clip))


def test_clipping_bites_in_these_runs():
    free, _ = expected(Plain(), by_hand.sgd, 0.1, 0.02)
    clipped, _ = expected(Plain(), by_hand.sgd, 0.1, 0.02, clip=0.3)
    assert not torch.allclose(free["0.weight"], clipped["0.weight"], rtol=1e-3)


@pytest.mark.parametrize("size", [49, 51, 56, 59])
def test_an_uneven_last_batch_is_averaged_over_its_samples(group, size):
    task = Plain(size=size)
    results = group(3).run(runs.train, settings("sgd", 3), task, UPDATES)
    assert_same(results, *expected(task, by_hand.sgd, 0.1, 0.02))


@pytest.mark.parametrize("size", [5, 1])
def test_a_data_set_smaller_than_the_batch_is_one_update_per_epoch(group, size):
    task = Plain(size=size)
    results = group(3).run(runs.train, settings("sgd", 3), task, 3)
    assert_same(results, *expected(task, by_hand.sgd, 0.1, 0.02, updates=3))


def test_a_global_batch_that_the_workers_cannot_share_equally_is_still_a_mean_over_samples(group):
    task = Plain()
    train = {"steps": 1000, "accumulate": 2}
    config = runs.config_of(parallel={"global_batch": 10}, train=train, optimizer={"name": "sgd", "lr": 0.1})
    results = group(3).run(runs.train, config, task, UPDATES)
    assert_same(results, *expected(task, by_hand.sgd, 0.1, batch=10))


def test_a_last_batch_that_is_dropped_is_not_trained_on(group):
    task = Plain()
    train = {"steps": 1000, "batch_size": 6, "last_batch": "drop"}
    config = runs.config_of(train=train)
    results = group(2).run(runs.train, config, task, UPDATES)
    assert_same(results, *expected(task, by_hand.sgd, 0.1, drop=True))


def test_each_worker_keeps_the_batch_norm_statistics_of_its_own_batches(group):
    task = Plain(norm="batch")
    # A rate too small to move the weights.
    config = runs.config_of(train={"steps": 9, "batch_size": 6}, optimizer={"name": "sgd", "lr": 1e-30})
    for rank, result in enumerate(group(2).run(runs.train, config, task, 3)):
        weights, mean = result["weights"], torch.zeros(8)
        for batch in islice(by_hand.global_batches(SEED, SIZE, GLOBAL), 3):
            own = task.train_data().inputs[batch[6 * rank : 6 * rank + 6]]
            mean = 0.9 * mean + 0.1 * (own @ weights["0.weight"].T + weights["0.bias"]).mean(0)
        torch.testing.assert_close(weights["1.running_mean"], mean)


def test_a_worker_without_a_share_keeps_its_batch_norm_statistics(group):
    # Of 14 samples the first update takes 12 and the second 2: one for each of two workers.
    task = Plain(size=14, norm="channels")
    first, second = (group(3).run(runs.train, runs.config_of(), task, updates) for updates in (1, 2))
    still = [
        torch.equal(before["weights"]["2.running_mean"], after["weights"]["2.running_mean"])
        for before, after in zip(first, second, strict=True)
    ]
    assert still == [False, False, True]


def test_a_worker_without_a_share_can_train_a_batch_norm_that_needs_two_samples(group):
    # Two workers: the last update holds one sample, which is rank 0's; its own batch norm is frozen.
    task = Plain(size=9, norm="frozen")
    results = group(2).run(runs.train, runs.config_of(), task, 4)
    assert_same(results, *expected(task, by_hand.sgd, 0.1, batch=8, updates=4))


def test_the_loss_is_the_mean_over_samples_since_the_last_measurement(group):
    task, updates = Plain(), 5
    config = runs.config_of()
    _, losses = expected(task, by_hand.sgd, 0.1, updates=updates)
    sizes = [12, 12, 12, 12, 2]
    mean = sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / sum(sizes)
    for measured in group(3).run(runs.train_and_measure, config, task, updates):
        assert measured.samples == SIZE
        assert measured.loss == pytest.approx(mean, rel=1e-6)
        assert len(measured.times) == 3


def test_a_loss_that_is_no_number_is_an_error_on_every_worker(group):
    results = group(2).attempt(runs.train, runs.config_of(), Exploding(), UPDATES)
    assert [result.kind for result in results] == ["TrainingError", "TrainingError"]
    assert "the loss is nan by step" in results[0].message
    assert "\n" not in results[0].message
