"""A run made ready as its workers were: seeds, buffers, numbers, and what cannot be made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_train.config import load_config
from dist_train.core.weights import write_weights
from dist_train.delivered import find
from dist_train.errors import ConfigError
from dist_train.evaluate.subject import batch_size, prepare
from dist_train.rules.teaching import replica_seed

Make = Callable[..., Path]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 100),
        ({"validation": {"batch_size": 7}}, 7),
        ({"parallel": {"workers": 3, "global_batch": 100}, "train": {"epochs": 1}}, 34),
        ({"parallel": {"workers": 2, "global_batch": 100}, "train": {"epochs": 1, "accumulate": 5}}, 10),
        ({"parallel": {"global_batch": 100}, "train": {"epochs": 1}}, 100),
    ],
)
def test_batches_are_as_large_as_a_workers(configured: Make, settings: Any, expected: int) -> None:
    assert batch_size(load_config(configured("run", **settings) / "config.yaml")) == expected


def test_every_replica_gets_its_weights_and_what_they_lack_from_its_seed(done: Make) -> None:
    rows = [torch.rand(5, 3), torch.rand(5, 3)]
    models = prepare(find(done("run", *rows, seed=7))).models
    for number, (model, expected) in enumerate(zip(models, rows, strict=True)):
        assert torch.equal(model.state_dict()["rows"], expected)
        torch.manual_seed(replica_seed(7, number))
        assert torch.equal(dict(model.named_buffers())["drawn"], torch.rand(1))
        assert not model.training


def test_numbers_are_held_as_the_run_held_them(done: Make) -> None:
    assert not prepare(find(done("full", 1))).numerics.bf16
    train = {"epochs": 1, "batch_size": 1, "precision": "bf16", "channels_last": True}
    numerics = prepare(find(done("half", 1, train=train))).numerics
    assert (numerics.bf16, numerics.channels_last) == (True, True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to run on")
def test_a_run_from_a_gpu_is_measured_on_a_cpu_where_there_is_none(done: Make) -> None:
    run_dir = done("run", 1, parallel={"workers": 1, "device": "cuda"})
    assert prepare(find(run_dir)).numerics.device.type == "cpu"


def refusal(run_dir: Path) -> str:
    with pytest.raises(ConfigError) as refused:
        prepare(find(run_dir))
    (problem,) = refused.value.problems
    return problem


def test_weights_of_another_model_are_refused(done: Make) -> None:
    run_dir = done("run", 1)
    write_weights(torch.nn.Linear(2, 3), run_dir / "model.safetensors")
    problem = refusal(run_dir)
    assert problem.startswith(f"{run_dir}/model.safetensors: the weights are of another model: it lacks ")
    assert "it has in addition bias, weight; use the code" in problem


def test_a_task_that_is_not_there_says_where_to_start(done: Make, tmp_path: Path) -> None:
    run_dir = done("run", 1)
    config = run_dir / "config.yaml"
    config.write_text(config.read_text().replace(str(Path(__file__).parent), "elsewhere"))
    problem = refusal(run_dir)
    assert problem.startswith(f"{run_dir}: task: elsewhere/table_task.py:Table: there is no file ")
    assert problem.endswith("its path is relative to the folder that the run was started in")


def test_a_task_without_samples_is_refused(done: Make) -> None:
    problem = refusal(done("run", 1, task_options={"size": 0}))
    assert problem.endswith("run: the validation set is empty; there is nothing to measure on")


def test_a_task_that_fails_is_refused_in_one_line(done: Make) -> None:
    run_dir = done("run", 1)
    config = run_dir / "config.yaml"
    config.write_text(config.read_text().replace("task_options: {}", "task_options: {classes: -1}"))
    assert refusal(run_dir).startswith(f"{run_dir}: no model of task ")


def test_the_table_has_a_row_for_each_label(done: Make) -> None:
    assert prepare(find(done("run", 1))).samples == 5
