"""The same samples, augmented alike, whoever loads them; a loader that fails is an error, not a hang."""

from __future__ import annotations

import logging
import multiprocessing
from contextlib import closing

import by_hand
import pytest
import runs
import torch
import toys
from worker_group import WorkerGroup

from dist_train.config.schema import Data
from dist_train.core import data
from dist_train.core.data import (
    LeasedBatches,
    Order,
    Samples,
    Share,
    leased_batches,
    size_of,
    training_batches,
    validation_batches,
    without_trouble,
)
from dist_train.errors import TrainingError
from dist_train.rules.sampling import Cursor, Position, Run


def batches(dataset, number, workers=1, cursor=Cursor(Position(0, 0)), rank=0, settings=None):  # noqa: B008
    order, share = Order(5, len(dataset), 6, "keep"), Share(rank, workers, 1)
    settings = settings or Data()
    samples = Samples(dataset, order.seed, settings.bad_samples)
    loaded = training_batches(samples, order, share, cursor, settings, pin=False)
    return [next(loaded) for _ in range(number)]


def leasing(dataset, rank=0, workers=1, accumulate=1, **settings):
    """Return what to feed with leases, and the batches of them."""
    leased = LeasedBatches(Order(5, len(dataset), 6, "keep"), Share(rank, workers, accumulate))
    return leased, leased_batches(Samples(dataset, 5, 0), leased, Data(**settings), pin=False)


def taken(batches, number):
    """Return the rows of the next ``number`` batches; the inputs of ``Rows`` are their indices."""
    return [next(batches).tolist() for _ in range(number)]


class Rows(torch.utils.data.Dataset):
    """A sample is its own index."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return index


def test_augmentation_depends_on_the_sample_and_not_on_who_loads_it():
    dataset = toys.Points(20, noisy=True)
    whole = torch.cat([inputs for inputs, _ in batches(dataset, 3)])
    parts = [batches(dataset, 3, workers=2, rank=rank) for rank in (0, 1)]
    together = torch.cat([inputs for pair in zip(*parts, strict=True) for inputs, _ in pair])
    assert torch.equal(whole, together)
    resumed = torch.cat([inputs for inputs, _ in batches(dataset, 2, cursor=Cursor(Position(0, 6)))])
    assert torch.equal(whole[6:], resumed)


def test_unfinished_runs_are_loaded_first_and_may_be_of_several_epochs():
    first, second = by_hand.order(5, 0, 20).tolist(), by_hand.order(5, 1, 20).tolist()
    cursor = Cursor(Position(1, 10), (Run(0, 16, 4), Run(1, 2, 5)))
    loaded = [batch.tolist() for batch in batches(Rows(20), 3, cursor=cursor)]
    assert loaded == [first[16:] + second[2:4], second[4:7], second[10:16]]


class TestLeases:
    @pytest.mark.parametrize("loaders", [0, pytest.param(2, marks=pytest.mark.processes)])
    def test_they_are_loaded_in_the_order_they_are_fed_in_however_far_ahead(self, loaders):
        leased, loaded = leasing(Rows(20), loaders=loaders)
        epochs = [by_hand.order(5, epoch, 20).tolist() for epoch in range(3)]
        leases = [Run(epoch, offset, 3) for offset in (0, 7, 14) for epoch in (1, 0, 2)]
        expected = [epochs[lease.epoch][lease.offset : lease.offset + 3] for lease in leases]
        others = len(multiprocessing.active_children())
        with closing(loaded):
            for lease in leases[:2]:
                leased.feed(lease)
            found = taken(loaded, 2)
            leased.feed(leases[2])
            found += taken(loaded, 1)
            for lease in leases[3:]:
                leased.feed(lease)
            found += taken(loaded, 6)
            assert len(multiprocessing.active_children()) == others + loaders
        assert found == expected
        assert leased.due == 0
        assert len(multiprocessing.active_children()) == others

    def test_a_group_shares_a_lease_and_accumulates_its_shares(self):
        order, found = by_hand.order(5, 0, 20).tolist(), []
        for rank in range(2):
            leased, loaded = leasing(Rows(20), rank, workers=2, accumulate=2)
            leased.feed(Run(0, 4, 10))
            assert leased.due == 2
            found += taken(loaded, 2)
        assert found == [order[4:7], order[7:9], order[9:12], order[12:14]]

    def test_a_worker_without_a_share_is_handed_the_first_sample(self):
        leased, loaded = leasing(Rows(20), rank=2, workers=3)
        leased.feed(Run(0, 4, 2))
        assert taken(loaded, 1) == [[by_hand.order(5, 0, 20)[4]]]

    def test_a_lease_for_local_steps_is_cut_into_steps_before_it_is_shared(self):
        order, found = by_hand.order(5, 0, 20).tolist(), []
        for rank in range(2):
            leased, loaded = leasing(Rows(20), rank, workers=2)
            leased.feed(Run(0, 0, 8), steps=2)
            found.append(taken(loaded, 2))
        assert found == [[order[0:2], order[4:6]], [order[2:4], order[6:8]]]

    def test_a_lease_of_fewer_samples_than_steps_makes_fewer_steps(self):
        leased, loaded = leasing(Rows(20))
        leased.feed(Run(0, 0, 2), steps=5)
        assert leased.due == 2
        assert taken(loaded, 2) == [[row] for row in by_hand.order(5, 0, 20)[:2]]

    def test_they_are_augmented_as_the_same_samples_are_in_any_mode(self):
        dataset = toys.Points(20, noisy=True)
        leased, loaded = leasing(dataset)
        leased.feed(Run(0, 6, 6))
        inputs, _ = next(loaded)
        _, (expected, _) = batches(dataset, 2)
        assert torch.equal(inputs, expected)

    def test_asking_for_more_than_was_fed_is_an_error_and_no_wait(self):
        leased, loaded = leasing(Rows(20))
        leased.feed(Run(0, 0, 4))
        next(loaded)
        with pytest.raises(RuntimeError, match="no lease holds one: feed a lease first"):
            next(loaded)

    def test_a_failure_while_loading_is_an_error_here(self):
        leased, loaded = leasing(toys.Points(6, bad=(2,)))
        leased.feed(Run(0, 0, 6))
        with pytest.raises(TrainingError, match="bad sample point 2"):
            next(loaded)


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
