"""The same samples, augmented alike, whoever loads them; a loader that fails is an error, not a hang."""

from __future__ import annotations

import logging

import pytest
import runs
import torch
import toys
from worker_group import WorkerGroup

from dist_train.config.schema import Data
from dist_train.core import data
from dist_train.core.data import (
    Order,
    Samples,
    Share,
    size_of,
    training_batches,
    validation_batches,
    without_trouble,
)
from dist_train.errors import TrainingError
from dist_train.rules.sampling import Position


def batches(dataset, number, workers=1, position=Position(0, 0), rank=0, settings=None):  # noqa: B008
    order, share = Order(5, len(dataset), 6, "keep"), Share(rank, workers, 1)
    settings = settings or Data()
    samples = Samples(dataset, order.seed, settings.bad_samples)
    loaded = training_batches(samples, order, share, position, settings, pin=False)
    return [next(loaded) for _ in range(number)]


def test_augmentation_depends_on_the_sample_and_not_on_who_loads_it():
    dataset = toys.Points(20, noisy=True)
    whole = torch.cat([inputs for inputs, _ in batches(dataset, 3)])
    parts = [batches(dataset, 3, workers=2, rank=rank) for rank in (0, 1)]
    together = torch.cat([inputs for pair in zip(*parts, strict=True) for inputs, _ in pair])
    assert torch.equal(whole, together)
    resumed = torch.cat([inputs for inputs, _ in batches(dataset, 2, position=Position(0, 6))])
    assert torch.equal(whole[6:], resumed)


def test_augmentation_is_another_in_the_next_epoch():
    dataset = toys.Points(6, noisy=True)
    (first, _), (second, _) = batches(dataset, 2)
    assert sorted(first[:, 0].tolist()) != pytest.approx(sorted(second[:, 0].tolist()))


def test_loading_leaves_the_generators_of_the_worker_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    batches(toys.Points(20, noisy=True), 2)
    assert torch.equal(torch.rand(4), expected)


def test_a_bad_sample_is_named_and_replaced_by_the_next_one(caplog):
    dataset = toys.Points(6, bad=(2,))
    with caplog.at_level(logging.WARNING):
        ((inputs, _),) = batches(dataset, 1, settings=Data(bad_samples=1))
    expected = dataset.inputs[[0, 1, 3, 3, 4, 5]]
    assert sorted(inputs[:, 0].tolist()) == sorted(expected[:, 0].tolist())
    assert "point 2" in caplog.text


@pytest.mark.parametrize(("bad", "budget"), [((2,), 0), ((1, 4), 1)])
def test_more_bad_samples_than_allowed_are_an_error(bad, budget):
    with pytest.raises(TrainingError, match=rf"point \d: .*data\.bad_samples allows {budget}"):
        batches(toys.Points(6, bad=bad), 1, settings=Data(bad_samples=budget))


def test_validation_parts_are_disjoint_and_cover_the_set():
    dataset = toys.Points(17)
    seen, sizes = [], []
    for rank in range(3):
        loader, shares = validation_batches(dataset, rank, 3, 4, Data(), pin=False)
        seen += [inputs for inputs, _ in loader]
        sizes += shares
    assert torch.equal(torch.cat(seen), dataset.inputs)
    assert [len(inputs) for inputs in seen] == sizes


def test_an_empty_validation_set_is_refused():
    with pytest.raises(TrainingError, match="the validation set is empty"):
        validation_batches(toys.Points(0), 0, 1, 4, Data(), pin=False)


def test_a_dataset_without_a_length_is_refused():
    with pytest.raises(TrainingError, match="has no length"):
        size_of(torch.utils.data.Dataset())


@pytest.mark.processes
def test_a_dataset_drawn_at_random_is_the_same_on_every_worker(group):
    one, two = group(2).run(runs.first_inputs, runs.config_of(), toys.Drawn())
    assert torch.equal(one, two)


@pytest.mark.processes
def test_a_loading_process_that_dies_is_an_error():
    config = runs.config_of(data={"loaders": 1})
    worker = WorkerGroup(1)
    try:
        (failure,) = worker.attempt(runs.train, config, toys.Dying(size=12), 4)
    finally:
        worker.close()
    # Either torch sees the death, or the worker the end of what the process was handing over.
    assert failure.kind in ("RuntimeError", "ConnectionResetError", "EOFError")


@pytest.mark.processes
def test_a_bad_sample_in_a_loading_process_is_the_workers_error(group):
    config = runs.config_of(data={"loaders": 1})
    (failure,) = group(1).attempt(runs.train, config, toys.Plain(size=12, bad=(7,)), 4)
    assert failure.kind == "TrainingError"
    assert "point 7" in failure.message


def test_a_bad_sample_counts_once_however_many_epochs_meet_it(caplog):
    dataset = toys.Points(6, bad=(2,))
    with caplog.at_level(logging.WARNING):
        batches(dataset, 5, settings=Data(bad_samples=1))
    assert caplog.text.count("point 2") == 1


def test_a_loading_process_hands_on_its_error_in_its_own_words(monkeypatch):
    monkeypatch.setattr(data, "get_worker_info", lambda: "a loading process")
    samples = Samples(toys.Points(6, bad=(2,)), 0, 0)
    trouble = samples.__getitems__([(0, 2)])
    with pytest.raises(TrainingError, match=r"^bad sample point 2: [^\n]*$"):
        next(without_trouble([trouble]))


def test_every_bad_sample_beyond_the_budget_is_named():
    samples = Samples(toys.Points(6, bad=(2, 3)), 0, 0)
    for bad in (2, 3):
        with pytest.raises(TrainingError, match=f"bad sample point {bad}"):
            samples.__getitems__([(0, bad)])
