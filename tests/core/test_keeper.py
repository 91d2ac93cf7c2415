"""Where a run starts from, and what becomes of the learning rate when the number of workers changed."""

from __future__ import annotations

import pytest
import runs
import torch
from torch import nn
from torch.distributed import HashStore

from dist_train import optimizers
from dist_train.core.checkpoint import SHARED, Facts, Part
from dist_train.core.commit import Committer, Draft
from dist_train.core.keeper import Origin, find_origin, plan_from
from dist_train.core.state import Chosen, Counted, State
from dist_train.errors import ConfigError
from dist_train.exchange.ballot import StoreBallot
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


def test_steps_made_with_another_batch_do_not_move_the_end_of_the_schedule():
    config = runs.config_of(train={"steps": 60, "batch_size": 4}, schedule={"decay": {"kind": "cosine"}})
    state = state_at(config, 120, 0.05, 4)
    before, _ = plan_from(config, state_at(config, 120, None, 4), 1, 10_000)
    plan, _ = plan_from(config, state, 2, 10_000)
    # 30 steps of 4 samples are done, 30 of 8 are to come.
    assert before.schedule.total == 60 * 4
    assert plan.schedule.total == 120 + 30 * 8
    assert learning_rate(plan.schedule, plan.schedule.total) == pytest.approx(0)


@pytest.mark.parametrize(("offset", "refused"), [(40, True), (0, False)])
def test_other_data_in_the_middle_of_an_epoch_is_refused(offset, refused):
    config = runs.config_of()
    state = state_at(config, 40, 0.1, 4)
    state.counted.train_size, state.counted.position = 400, Position(1, offset)
    if refused:
        with pytest.raises(ConfigError, match="401 samples, and had 400"):
            plan_from(config, state, 1, 401)
    else:
        plan_from(config, state, 1, 401)


def test_a_run_that_has_checkpoints_goes_on_from_them_wherever_it_once_began(tmp_path):
    def save(run_dir, step):
        ballot = StoreBallot(HashStore(), "b", 0, 1)
        committer = Committer(run_dir / "checkpoints", 0, 1, "a", ballot, (3, None))
        outcome = committer.commit(Draft(1, step, Facts(step, "hash"), {SHARED: Part()}))
        return outcome.path

    first, second = tmp_path / "first", tmp_path / "second"
    begun = save(first, 12)
    assert find_origin(second, str(first)) == Origin(begun)
    own = save(second, 20)
    assert find_origin(second, str(first)) == Origin(own)
