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
from dist_train.core.keeper import Origin, find_origin, plan_from, restore
from dist_train.core.seeds import seed_all, worker_seed
from dist_train.core.state import Chosen, Counted, State, join
from dist_train.errors import ConfigError
from dist_train.exchange.ballot import StoreBallot
from dist_train.rules.sampling import Position, Run
from dist_train.rules.schedule import learning_rate
from dist_train.rules.teaching import replica_seed


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


def test_a_number_of_backups_that_was_chosen_stays_in_force():
    parallel = {"mode": "backup", "workers": 4, "backups": "auto"}
    config = runs.config_of(schedule={"base_batch": 4}, parallel=parallel)
    # Of four gradients of four samples, one is not waited for.
    plan, note = plan_from(config, state_at(config, 48, 0.3, 12), 4, 400, backups=1)
    assert (plan.quorum, note) == (3, None)
    assert learning_rate(plan.schedule, 48) == pytest.approx(0.3)


def test_the_rate_of_local_steps_goes_by_the_batch_of_one_of_them():
    parallel = {"mode": "bounded", "max_staleness": 0, "workers": 2, "local_steps": 5}
    config = runs.config_of(parallel=parallel, schedule={"base_batch": 4, "rewarm": {"samples": 100}})
    # From all-reduce with two workers: the same rate would now be one of half the batch.
    state = state_at(config, 40, 0.2, 8)
    plan, note = plan_from(config, state, 2, 400)
    assert (plan.samples_per_update, state.chosen.batch) == (2 * 5 * 4, 4)
    assert note == "batch of one local step 8 -> 4: learning rate 0.2 -> 0.1, climbing over 100 samples"
    assert [learning_rate(plan.schedule, at) for at in (40, 140)] == pytest.approx([0.2, 0.1])
    assert plan_from(config, state, 2, 400)[1] is None


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


@pytest.mark.parametrize(
    ("unfinished", "steps", "total"),
    [
        # Of 15 steps 5 are done; updates of 8 over 100 samples: the epoch's last one holds 4.
        ((), 15, 40 + 7 * 8 + 4 + 2 * 8),
        # Two updates hold the 10 unfinished samples.
        ((Run(0, 20, 7), Run(0, 35, 3)), 15, 40 + 10 + 7 * 8 + 4),
        # The end comes before the unfinished samples do.
        ((Run(0, 20, 10),), 6, 40 + 8),
        ((Run(0, 20, 10),), 5, 40),
    ],
)
def test_a_schedule_in_steps_ends_with_the_last_whatever_samples_are_unfinished(unfinished, steps, total):
    config = runs.config_of(train={"steps": steps, "batch_size": 8}, schedule={"decay": {"kind": "cosine"}})
    state = state_at(config, 40, 0.1, 8)
    state.counted.unfinished = unfinished
    plan, _ = plan_from(config, state, 1, 100)
    assert plan.schedule.total == total


@pytest.mark.parametrize(("workers", "refused"), [(1, False), (2, False), (3, True)])
def test_unfinished_samples_too_few_for_all_are_refused_where_workers_meet_in_every_pass(workers, refused):
    config = runs.config_of(
        train={"steps": 9, "batch_size": None}, parallel={"global_batch": 8, "sync_batch_norm": True}
    )
    state = state_at(config, 40, 0.1, 8)
    state.counted.unfinished = (Run(0, 20, 10),)
    if refused:
        with pytest.raises(ConfigError, match="sync_batch_norm: the checkpoint's last 2 unfinished samples"):
            plan_from(config, state, workers, 400)
    else:
        plan_from(config, state, workers, 400)


@pytest.mark.parametrize(
    ("offset", "unfinished", "refused"), [(40, (), True), (0, (), False), (0, (Run(0, 4, 2),), True)]
)
def test_other_data_in_the_middle_of_an_epoch_is_refused(offset, unfinished, refused):
    config = runs.config_of()
    state = state_at(config, 40, 0.1, 4)
    state.counted.train_size, state.counted.position = 400, Position(1, offset)
    state.counted.unfinished = unfinished
    if refused:
        with pytest.raises(ConfigError, match="401 samples, and had 400"):
            plan_from(config, state, 1, 401)
    else:
        plan_from(config, state, 1, 401)


def test_a_run_that_has_checkpoints_goes_on_from_them_wherever_it_once_began(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    begun = saved(first, 12, {SHARED: Part()})
    assert find_origin(second, str(first)) == Origin(begun)
    own = saved(second, 20, {SHARED: Part()})
    assert find_origin(second, str(first)) == Origin(own)


def saved(run_dir, step, parts):
    ballot = StoreBallot(HashStore(), "b", 0, 1)
    committer = Committer(run_dir / "checkpoints", 0, 1, "a", ballot, (3, None))
    return committer.commit(Draft(1, step, Facts(step, "hash"), parts)).path


def test_a_replica_that_begins_as_another_s_copy_draws_from_a_seed_of_its_own(tmp_path):
    config = runs.config_of()
    state = state_at(config, 40, 0.1, 4)
    state.counted.seed = 5
    parts = {SHARED: state.shared_part(), "rank_00000": state.own_part()}
    own_seed, drawn = replica_seed(5, 1), []
    for run_dir in (tmp_path / "alone", tmp_path / "run" / "replica_1"):
        origin = saved(run_dir, 10, parts)
        again = state_at(config, 0, None, 4)
        restore(again, origin, rank=0, workers=1, seed=own_seed, replica=1)
        drawn.append(torch.rand(3))
        assert again.counted.seed == (None if run_dir.name == "alone" else 5)
    seed_all(worker_seed(own_seed, 0, 40))
    assert torch.equal(torch.rand(3), drawn[0])
    assert not torch.equal(*drawn)


@pytest.mark.parametrize(("with_generators", "workers"), [(True, 1), (True, 2), (False, 1)])
def test_generators_go_on_where_one_worker_as_before_finds_its_own_and_are_seeded_anew_elsewhere(
    tmp_path, with_generators, workers
):
    config = runs.config_of()
    seed_all(8)
    state = state_at(config, 40, 0.1, 4)
    own = state.own_part() if with_generators else join({"buffers": Part()})
    going_on = torch.rand(3)
    seed_all(worker_seed(5, 0, 40))
    anew = torch.rand(3)
    origin = saved(tmp_path, 10, {SHARED: state.shared_part(), "rank_00000": own})
    restore(state_at(config, 0, None, 4), origin, rank=0, workers=workers, seed=5)
    assert torch.equal(torch.rand(3), going_on if with_generators and workers == 1 else anew)
