"""What a server dealt and did not train, synchronous training trains: each sample exactly once."""

from __future__ import annotations

from collections import Counter

import by_hand
import pytest
import runs
import torch
import torch.nn.functional as F
import toys

from dist_train.core.state import Counted
from dist_train.rules.sampling import Position, Run

pytestmark = pytest.mark.processes

SEED, SIZE = 5, 40
# Leases of 5 samples: the first 30 places are dealt, and the second and the fifth lease are not trained.
TRAINED = [Run(0, 0, 5), Run(0, 10, 5), Run(0, 15, 5), Run(0, 25, 5)]
UNFINISHED = (Run(0, 20, 5), Run(0, 5, 5))


def counts():
    return Counted(4, 20, Position(0, 30), UNFINISHED, seed=SEED, train_size=SIZE)


def rows(*pieces):
    return [row for run in pieces for row in by_hand.order(SEED, run.epoch, SIZE)[run.offset :][: run.count]]


# Two samples per worker and update: 10 samples leave none of one, two or three workers without a share.
@pytest.mark.parametrize("legs", [(1,), (2,), (3,), (3, 1), (1, 2), (2, 3, 1)])
def test_every_sample_of_the_epoch_is_trained_exactly_once(group, tmp_path, legs):
    ledger = tmp_path / "ledger"
    options = {"size": SIZE, "ledger": str(ledger)}
    config = runs.config_of(
        task=f"{toys.__file__}:Plain",
        task_options=options,
        train={"epochs": 1, "batch_size": 2},
        logging={"every_steps": 1, "tensorboard": False},
    )
    task = toys.Plain(**options)
    group(1).run(runs.train_leases, config, task, tmp_path, TRAINED, counts())
    assert sorted(map(int, ledger.read_text().split())) == sorted(rows(*TRAINED))
    for leg, workers in enumerate(legs, 1):
        stop = None if leg == len(legs) else 4 + leg
        status = group(workers).run(runs.run, config, tmp_path, stop)
        assert status == [0 if stop is None else 75] * workers
    assert Counter(map(int, ledger.read_text().split())) == dict.fromkeys(range(SIZE), 1)
    samples = [line["samples"] for line in runs.lines(tmp_path, "train")]
    assert samples[-1] == SIZE
    assert runs.lines(tmp_path, "val")[-1]["epoch"] == 1


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_updates_are_the_means_over_the_unfinished_samples_and_then_over_fresh_ones(group, workers):
    task = toys.Plain(size=SIZE)
    config = runs.config_of(
        train={"epochs": 1}, parallel={"global_batch": 6}, optimizer={"name": "sgd", "lr": 0.1}
    )
    waiting, fresh = rows(*UNFINISHED), rows(Run(0, 30, 10))
    batches = [waiting[:6], waiting[6:], fresh[:6], fresh[6:]]
    torch.manual_seed(SEED)
    model, data = task.model().train(), task.train_data()

    def mean_loss(model, batch):
        return F.cross_entropy(model(data.inputs[batch]), data.classes[batch])

    losses = by_hand.descend(model, mean_loss, batches, by_hand.sgd, 0.1)
    for result in group(workers).run(runs.train, config, task, 4, counts()):
        torch.testing.assert_close(result["weights"], dict(model.state_dict()), rtol=1e-9, atol=1e-12)
        assert result["losses"] == pytest.approx(losses, rel=1e-6)
