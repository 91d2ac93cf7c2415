"""Where a run starts from, and what becomes of the learning rate when the number of workers changed."""

from __future__ import annotations

import pytest
import runs
import torch
from torch import nn

from dist_train import optimizers
from dist_train.core.keeper import Origin, find_origin, plan_from
from dist_train.core.state import Chosen, Counted, State
from dist_train.errors import ConfigError
from dist_train.rules.sampling import Position
from dist_train.rules.schedule import learning_rate


def state_at(config, samples, rate, batch):
    model = nn.Linear(2, 2)
    chosen = Chosen(rate=rate, batch=batch)
    counted = Counted(samples // batch, samples, Position(0, samples))
    return State(model, optimizers.build(model, config.optimizer), torch.device("cpu"), counted, chosen)


def test_an_unchanged_batch_changes_nothing():
    config = runs.config_of(schedule={"base_batch": 4})
    plan, note = plan_from(config, state_at(config, 40, 0.2, 8), 2, 400)
    assert note is None
    assert learning_rate(plan.schedule, 40) == pytest.approx(0.2)


def test_another_batch_takes_the_rate_of_the_scaling_rule_and_says_so():
    config = runs.config_of(schedule={"base_batch": 4})
    state = state_at(config, 40, 0.1, 4)
    plan, note = plan_from(config, state, 3, 400)
    assert learning_rate(plan.schedule, 40) == pytest.approx(0.3)
    assert note == "global batch 4 -> 12: learning rate 0.1 -> 0.3"
    assert state.chosen.batch == 12


def test_a_climb_starts_from_the_old_rate_and_ends_at_the_new():
    config = runs.config_of(schedule={"base_batch": 4, "rewarm": {"samples": 100}})
    state = state_at(config, 40, 0.1, 4)
    plan, note = plan_from(config, state, 3, 400)
    seen = [learning_rate(plan.schedule, samples) for samples in (40, 90, 140, 200)]
    assert seen == pytest.approx([0.1, 0.2, 0.3, 0.3])
    assert "climbing over 100 samples" in note


def test_a_climb_that_is_interrupted_goes_on():
    config = runs.config_of(schedule={"base_batch": 4, "rewarm": {"samples": 100}})
    state = state_at(config, 40, 0.1, 4)
    plan_from(config, state, 3, 400)
    state.counted.samples, state.chosen.rate = 88, 0.196
    plan, note = plan_from(config, state, 3, 400)
    assert note is None
    assert learning_rate(plan.schedule, 90) == pytest.approx(0.2)


def test_an_empty_run_directory_starts_anew(tmp_path):
    assert find_origin(tmp_path, "auto") == Origin(None)
    assert find_origin(tmp_path, "none") == Origin(None)


def test_a_path_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="neither a checkpoint nor a run directory"):
        find_origin(tmp_path, str(tmp_path / "elsewhere"))
