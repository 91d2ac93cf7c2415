"""Validation counts every sample once, on any number of workers, and leaves training untouched."""

from __future__ import annotations

import by_hand
import pytest
import runs
import torch
import torch.nn.functional as F
from toys import Noisy, Plain

from dist_train.core.step import Numerics

pytestmark = pytest.mark.processes


def validated(group, workers, task, config=None, updates=3, often=False):
    config = config or runs.config_of(parallel={"global_batch": 12}, train={"steps": 1000})
    return group(workers).run(runs.train_and_validate, config, task, updates, often)


def by_itself(task, weights):
    """Judge the weights on the whole validation set at once."""
    model, data = task.model(), task.validation_data()
    model.load_state_dict(weights)
    model.eval()
    with torch.no_grad():
        predictions = model(data.inputs)
    right = (predictions.argmax(1) == data.classes).double().mean().item()
    loss = F.cross_entropy(predictions, data.classes).item()
    return {"accuracy": right, "mean_accuracy": right, "loss": loss}


@pytest.mark.parametrize("validation", [17, 12, 2, 1])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_workers_finds_the_mean_over_all_samples(group, workers, validation):
    task = Plain(validation=validation)
    for result in validated(group, workers, task):
        assert result["metrics"] == pytest.approx(by_itself(task, result["weights"]), rel=1e-12)


def test_what_is_validated_and_delivered_has_the_mean_of_the_workers_statistics(group):
    task = Plain(norm="batch")
    results = validated(group, 2, task)
    own = [result["weights"]["1.running_mean"] for result in results]
    assert not torch.equal(*own)
    for result in results:
        torch.testing.assert_close(result["delivered"]["1.running_mean"], (own[0] + own[1]) / 2)
        assert result["metrics"] == pytest.approx(by_itself(task, result["delivered"]), rel=1e-12)
        for name, tensor in result["weights"].items():
            assert torch.equal(tensor, result["after"][name])


@pytest.mark.parametrize("loaders", [0, 2])
def test_validation_leaves_training_untouched_bit_for_bit(group, loaders):
    train = {"steps": 1000, "batch_size": 4}
    config = runs.config_of(train=train, data={"loaders": loaders}, validation={"batch_norm_batches": 2})
    seldom, often = (validated(group, 2, Noisy(), config, 4, often) for often in (False, True))
    for left, right in zip(seldom, often, strict=True):
        assert left["generators"] == right["generators"]
        for name, tensor in left["weights"].items():
            assert torch.equal(tensor, right["weights"][name]), name


@pytest.mark.parametrize("workers", [1, 2])
def test_recomputed_statistics_are_the_mean_over_the_first_training_batches(group, workers):
    task, number = Plain(norm="batch"), 3
    train = {"steps": 1000, "batch_size": 12 // workers}
    config = runs.config_of(train=train, validation={"batch_norm_batches": number})
    results = validated(group, workers, task, config)
    rows = by_hand.order(5, 0, task.size)[: 12 * number].reshape(number * workers, -1)
    for result in results:
        weights = result["weights"]
        batches = task.train_data().inputs[rows] @ weights["0.weight"].T + weights["0.bias"]
        expected = batches.mean(1).mean(0), batches.var(1).mean(0)
        delivered = result["delivered"]["1.running_mean"], result["delivered"]["1.running_var"]
        torch.testing.assert_close(delivered, expected)


def test_frozen_batch_norm_keeps_its_statistics_when_others_are_recomputed(group):
    config = runs.config_of(validation={"batch_norm_batches": 2})
    for result in validated(group, 2, Plain(norm="frozen"), config):
        assert torch.equal(result["delivered"]["1.running_mean"], result["weights"]["1.running_mean"])


def test_synchronised_batch_norm_is_refused_on_cpus(group):
    config = runs.config_of(parallel={"sync_batch_norm": True}, train={"steps": 9, "batch_size": 5})
    results = group(2).attempt(runs.train, config, Plain(norm="batch"), 1)
    assert [result.kind for result in results] == ["ConfigError"] * 2


@pytest.mark.parametrize("hook", ["bf16", "powersgd"])
def test_compressed_gradients_train_nearly_as_exact_ones(group, hook):
    compression = {"powersgd_rank": 1, "powersgd_start": 2}
    exact, compressed = (
        group(2).run(runs.train, runs.config_of(parallel=compression | {"compression": name}), Plain(), 30)[0]
        for name in ("none", hook)
    )
    tolerance = 2**-7 if hook == "bf16" else 0.3
    assert compressed["losses"][-1] < compressed["losses"][0]
    assert compressed["losses"] == pytest.approx(exact["losses"], rel=tolerance)
    assert compressed["losses"] != exact["losses"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_compiled_model_makes_the_same_updates_under_the_same_names(group, workers):
    plain, compiled = (
        runs.config_of(train={"steps": 9, "batch_size": 5, "compile": chosen}) for chosen in (False, True)
    )
    expected = group(workers).run(runs.train, plain, Plain(), 3)
    found = group(workers).run(runs.train_compiled, compiled, Plain(), 3)
    for left, (right, graphs) in zip(expected, found, strict=True):
        torch.testing.assert_close(left["weights"], right["weights"], rtol=1e-9, atol=1e-12)
        assert graphs > 0


def test_images_are_placed_channels_last_and_other_tensors_as_they_are():
    numerics = Numerics(torch.device("cpu"), channels_last=True)
    images, rows = numerics.place((torch.rand(2, 3, 4, 5), torch.rand(2, 3)))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert rows.is_contiguous()


def test_the_forward_pass_is_in_bf16_where_asked_for():
    weight = torch.rand(4, 4)
    for bf16, kind in ((True, torch.bfloat16), (False, torch.float32)):
        with Numerics(torch.device("cpu"), bf16=bf16).context():
            assert (weight @ weight).dtype == kind
