"""A run that was stopped and resumed is the run that never was: bit for bit on as many workers as before."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise

import pytest
import runs
import torch
import toys
from safetensors.torch import load_file

pytestmark = pytest.mark.processes

# 40 samples in batches of 8: five updates an epoch. Warmup ends after the third, decay comes after the fifth.
EPOCH, UPDATES = 5, 12
SCHEDULE = {
    "base_batch": 4,
    "warmup": {"kind": "gradual", "steps": 3},
    "decay": {"kind": "step", "milestones": [1], "gamma": 0.1},
}
NOISY = f"{toys.__file__}:Noisy"
PLAIN = f"{toys.__file__}:Plain"


def settings(workers=2, **sections):
    tree = {
        "task": NOISY,
        "task_options": {"size": 40},
        "train": {"steps": UPDATES, "batch_size": 8 // workers},
        "optimizer": {"name": "adam", "lr": 0.01},
        "schedule": SCHEDULE,
        "validation": {"batch_norm_batches": 2},
    }
    return runs.config_of(**tree | sections)


def go(group, run_dir, config, stops, workers=2, resume="auto"):
    """Run, stopping at each of ``stops``, and then to the end."""
    run_dir.mkdir(exist_ok=True)
    for stop in stops:
        assert group(workers).run(runs.run, config, run_dir, stop, resume) == [75] * workers
    assert group(workers).run(runs.run, config, run_dir, None, resume) == [0] * workers
    return run_dir


@pytest.fixture(scope="module")
def uninterrupted(group, tmp_path_factory):
    return go(group, tmp_path_factory.mktemp("runs") / "whole", settings(), [])


def assert_same_end(run_dir, other):
    left, right = runs.saved(run_dir, UPDATES), runs.saved(other, UPDATES)
    assert left.keys() == right.keys()
    assert len(left) > 20
    for name, value in left.items():
        same = torch.equal(value, right[name]) if isinstance(value, torch.Tensor) else value == right[name]
        assert same, name
    assert (run_dir / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    last, other_last = (runs.lines(folder, "val")[-1] for folder in (run_dir, other))
    measures = ("step", "samples", "epoch", "loss", "accuracy")
    assert [last[key] for key in measures] == [other_last[key] for key in measures]


def test_two_runs_are_equal_bit_for_bit(group, tmp_path, uninterrupted):
    assert_same_end(go(group, tmp_path / "again", settings(), []), uninterrupted)


@pytest.mark.parametrize(
    "stops",
    [[0], [2], [3], [EPOCH], [7], [4, 8], [EPOCH, EPOCH, 6], [UPDATES - 1]],
    ids=lambda stops: "then ".join(map(str, stops)),
)
def test_a_run_that_was_stopped_and_resumed_ends_as_if_it_had_not(group, tmp_path, uninterrupted, stops):
    assert_same_end(go(group, tmp_path / "resumed", settings(), stops), uninterrupted)


def test_loading_processes_and_a_resume_change_nothing(group, tmp_path, uninterrupted):
    config = settings(data={"loaders": 2, "prefetch": 3})
    assert_same_end(go(group, tmp_path / "loaded", config, [7]), uninterrupted)


def test_a_run_that_is_over_stays_as_it_is(group, tmp_path):
    run_dir = go(group, tmp_path / "over", settings(), [])
    weights, held = (run_dir / "model.safetensors").read_bytes(), runs.saved(run_dir, UPDATES)
    go(group, run_dir, settings(), [])
    assert (run_dir / "model.safetensors").read_bytes() == weights
    assert runs.saved(run_dir, UPDATES).keys() == held.keys()
    assert len(list((run_dir / "checkpoints").glob("step_*"))) == 1


def test_a_run_of_one_worker_resumes_bit_for_bit(group, tmp_path):
    config = settings(workers=1)
    whole = go(group, tmp_path / "whole", config, [], workers=1)
    assert_same_end(go(group, tmp_path / "resumed", config, [3, 7], workers=1), whole)


def test_accumulated_and_clipped_runs_resume_bit_for_bit(group, tmp_path):
    train = {"steps": UPDATES, "batch_size": 2, "accumulate": 2, "clip_norm": 0.5}
    config = settings(train=train, optimizer={"name": "sgd", "lr": 0.1})
    whole = go(group, tmp_path / "whole", config, [])
    assert_same_end(go(group, tmp_path / "resumed", config, [7]), whole)


@pytest.mark.parametrize("changes", [(1, 2), (3, 1), (2, 3, 1)])
def test_other_numbers_of_workers_skip_no_sample_and_repeat_none(group, tmp_path, changes):
    ledger, run_dir = tmp_path / "ledger", tmp_path / "run"
    run_dir.mkdir()
    options = {"size": 40, "ledger": str(ledger)}
    config = settings(task=PLAIN, task_options=options, train={"epochs": 2, "batch_size": 2}, validation={})
    for leg, workers in enumerate(changes, 1):
        stop = None if leg == len(changes) else 4 * leg
        status = group(workers).run(runs.run, config, run_dir, stop)
        assert status == [0 if stop is None else 75] * workers
    assert Counter(map(int, ledger.read_text().split())) == dict.fromkeys(range(40), 2)
    assert runs.lines(run_dir, "train")[-1]["samples"] == 80


@pytest.mark.parametrize("changes", [(1, 2), (2, 3), (3, 1)])
def test_a_constant_global_batch_makes_the_same_run_on_other_numbers_of_workers(group, tmp_path, changes):
    config = settings(
        task=PLAIN,
        task_options={"size": 40},
        train={"steps": UPDATES},
        parallel={"global_batch": 12},
        validation={},
    )
    whole = go(group, tmp_path / "whole", config, [], workers=1)
    (tmp_path / "changing").mkdir()
    before, after = changes
    group(before).run(runs.run, config, tmp_path / "changing", 6)
    group(after).run(runs.run, config, tmp_path / "changing", None)
    weights, expected = (load_file(run / "model.safetensors") for run in (tmp_path / "changing", whole))
    torch.testing.assert_close(weights, expected, rtol=1e-9, atol=1e-12)


def rates(run_dir):
    return {line["samples"]: line["lr"] for line in runs.lines(run_dir, "train")}


@pytest.mark.parametrize("rewarm", [None, {"samples": 24}])
def test_the_rate_follows_the_number_of_workers_at_once_or_climbing(group, tmp_path, rewarm):
    schedule = {"base_batch": 4, "scaling": "linear", "rewarm": rewarm}
    config = settings(
        task=PLAIN,
        task_options={"size": 400},
        train={"samples": 96, "batch_size": 4},
        optimizer={"name": "sgd", "lr": 0.1},
        schedule=schedule,
        validation={},
        logging={"every_steps": 1, "tensorboard": False},
    )
    group(1).run(runs.run, config, tmp_path, 6)
    group(3).run(runs.run, config, tmp_path, None)
    # A line's rate is that of the update that ends at its samples: 4 each by one worker, 12 by three.
    seen = rates(tmp_path)
    assert [seen[samples] for samples in range(4, 25, 4)] == pytest.approx([0.1] * 6)
    climb = [0.3] * 6 if rewarm is None else [0.1, 0.2, 0.3, 0.3, 0.3, 0.3]
    assert [seen[samples] for samples in range(36, 97, 12)] == pytest.approx(climb)


def test_powersgd_resumes_with_uncompressed_steps_and_says_nothing_of_equality(group, tmp_path):
    compression = {"compression": "powersgd", "powersgd_rank": 1, "powersgd_start": 2}
    run_dir = go(group, tmp_path / "run", settings(parallel=compression), [4])
    losses = [line["loss"] for line in runs.lines(run_dir, "train")]
    assert losses
    assert json.loads((run_dir / "summary.json").read_text())["status"] == "done"


def test_each_worker_finds_its_own_batch_norm_statistics_again(uninterrupted):
    held = runs.saved(uninterrupted, UPDATES)
    ours, theirs = (held[f"rank_0000{rank}.safetensors:buffers.1.running_mean"] for rank in (0, 1))
    assert not torch.equal(ours, theirs)
    delivered = load_file(uninterrupted / "model.safetensors")["1.running_mean"]
    assert not torch.equal(delivered, ours)


def test_losses_fall_in_these_runs(uninterrupted):
    losses = [line["loss"] for line in runs.lines(uninterrupted, "val")]
    assert all(later < earlier for earlier, later in pairwise(losses))
