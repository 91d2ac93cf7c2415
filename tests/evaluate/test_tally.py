"""Losses and metrics of replicas and ensembles, against the probabilities in the table."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dist_train.delivered import find
from dist_train.errors import ConfigError
from dist_train.evaluate.batches import each_batch
from dist_train.evaluate.report import Measured
from dist_train.evaluate.subject import prepare
from dist_train.evaluate.tally import Tally

Make = Callable[..., Path]

# The labels are 0, 1, 2, 0, 1.
FIRST = torch.tensor([[0.8, 0.1, 0.1], [0.4, 0.5, 0.1], [0.1, 0.7, 0.2], [0.6, 0.3, 0.1], [0.9, 0.05, 0.05]])
SECOND = torch.tensor([[0.2, 0.4, 0.4], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8], [0.2, 0.7, 0.1], [0.1, 0.85, 0.05]])
RIGHT = {0: (0.8, 0.5, 0.2, 0.6, 0.05), 1: (0.2, 0.3, 0.8, 0.2, 0.85)}
TOGETHER = tuple((a + b) / 2 for a, b in zip(RIGHT[0], RIGHT[1], strict=True))


def nats(right: tuple[float, ...]) -> float:
    """The mean loss of these probabilities of the right class."""
    return -sum(map(math.log, right)) / len(right)


def tallied(run_dir: Path) -> Measured:
    subject = prepare(find(run_dir))
    tally = Tally(subject)
    each_batch([subject], lambda batches, size: tally.add(batches[0], size))
    return tally.measured()


@pytest.mark.parametrize("size", [1, 2, 5])
def test_replicas_and_ensemble_by_hand(done: Make, size: int) -> None:
    run_dir = done("run", FIRST.log(), SECOND.log(), validation={"batch_size": size})
    found = tallied(run_dir)
    assert (found.run_dir, found.samples) == (run_dir, 5)
    assert found.replicas == (
        pytest.approx({"loss": nats(RIGHT[0]), "accuracy": 3 / 5}, rel=1e-5),
        pytest.approx({"loss": nats(RIGHT[1]), "accuracy": 2 / 5}, rel=1e-5),
    )
    # Together 0.5, 0.4, 0.5, 0.4 and 0.45 for the right class: all right but samples 2, 4 and 5.
    assert found.ensemble == pytest.approx({"loss": nats(TOGETHER), "accuracy": 2 / 5}, rel=1e-5)


def test_one_replica_has_no_ensemble(done: Make) -> None:
    assert tallied(done("run", FIRST.log())).ensemble is None


def test_a_loss_of_the_predictions_in_another_type_is_one_of_the_predictions(done: Make) -> None:
    run_dir = done("run", FIRST.log(), SECOND.log(), task_options={"loss": "retyped"})
    ensemble = tallied(run_dir).ensemble
    assert ensemble is not None
    assert ensemble["loss"] == pytest.approx(nats(TOGETHER), rel=1e-5)


@pytest.mark.parametrize("kind", ["twice", "scaled"])
def test_a_loss_of_more_than_that_leaves_the_metrics(done: Make, kind: str) -> None:
    run_dir = done("run", FIRST.log(), SECOND.log(), task_options={"loss": kind})
    assert tallied(run_dir).ensemble == {"accuracy": pytest.approx(2 / 5)}


def test_single_values_are_averaged_as_they_are(done: Make) -> None:
    options = {"loss": "squares", "classes": 1}
    run_dir = done("run", torch.zeros(5, 1), torch.full((5, 1), 4.0), task_options=options)
    ensemble = tallied(run_dir).ensemble
    # All samples are predicted 2, and are 0, 1, 2, 0 and 1.
    assert ensemble == {"loss": pytest.approx((4 + 1 + 0 + 4 + 1) / 5)}


def test_predictions_that_are_no_tensor_are_refused_where_they_are_needed(done: Make) -> None:
    options = {"loss": "mapping"}
    assert "loss" in tallied(done("one", FIRST, task_options=options)).replicas[0]
    with pytest.raises(ConfigError, match=r"two: the predictions of task .*Table are a dict;"):
        tallied(done("two", FIRST, SECOND, task_options=options))


def test_the_models_are_left_as_they_were(done: Make) -> None:
    subject = prepare(find(done("run", FIRST, SECOND)))
    before = [{name: value.clone() for name, value in model.state_dict().items()} for model in subject.models]
    tally = Tally(subject)
    each_batch([subject], lambda batches, size: tally.add(batches[0], size))
    for model, state in zip(subject.models, before, strict=True):
        assert not model._forward_hooks
        for name, value in model.state_dict().items():
            assert torch.equal(value, state[name]), name
