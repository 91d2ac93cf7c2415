"""What members with local steps keep for themselves lasts: in checkpoints, successors, and other modes."""

from __future__ import annotations

import pytest
import server_runs
import torch

from dist_train.core.checkpoint import SHARED, load_part
from dist_train.core.optimizer_state import restore_optimizer
from dist_train.core.state import part_of
from dist_train.optimizers import build
from dist_train.tasks import make

ADAMW = {"name": "adamw", "lr": 0.01}
DILOCO = {"kind": "nesterov", "lr": 0.7, "momentum": 0.9}


def config_of(outer, workers=1, mode="bounded", steps=6):
    staleness = {"max_staleness": 0} if mode == "bounded" else {}
    parallel = {"mode": mode, "workers": workers, "local_steps": 2, "outer": outer, **staleness}
    return server_runs.config_of(parallel=parallel, optimizer=ADAMW, train={"steps": steps, "batch_size": 4})


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("outer", "mode", "workers"),
    [(DILOCO, "bounded", 1), (DILOCO, "bounded", 2), ({"kind": "elastic"}, "async", 1)],
)
@pytest.mark.parametrize("stop", [1, 3, 4])
def test_resume_equals_never_having_stopped(tmp_path, outer, mode, workers, stop):
    config = config_of(outer, workers, mode)
    whole = server_runs.Run(config).go()
    first = server_runs.Run(config).go_to(stop)
    origin = first.save(tmp_path)
    second = server_runs.Run(config, origin).go()
    assert equal(second.weights(), whole.weights())
    for run in (whole, first, second):
        run.close()


def adam_step(part):
    """The first parameter's count of steps in a checkpoint's optimizer state."""
    config = config_of(DILOCO)
    optimizer = build(make(config).model(), config.optimizer)
    restore_optimizer(optimizer, part_of(part, "optimizer"))
    return float(next(iter(optimizer.state.values()))["step"])


def test_other_modes_go_on_with_the_first_members_optimizer(tmp_path):
    run = server_runs.Run(config_of(DILOCO, workers=2)).go_to(3)
    # Three rounds of two steps.
    assert adam_step(load_part(run.save(tmp_path), SHARED)) == 6
    assert {member: left.scalars["step"] for member, left in run.server.inner.items()} == {0: 6, 1: 6}
    run.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_members_begin_with_the_optimizer_of_another_mode(tmp_path, workers):
    parallel = {"mode": "async", "workers": 1}
    train = {"steps": 5, "batch_size": 4}
    before = server_runs.Run(server_runs.config_of(parallel=parallel, optimizer=ADAMW, train=train)).go()
    shared = before.server.state.optimizer
    origin = before.save(tmp_path)
    after = server_runs.Run(config_of(DILOCO, workers, steps=9), origin)
    first = next(iter(shared.state.values()))
    for member in range(workers):
        left = after.server.inner[member]
        assert left.scalars == {"step": 5}
        placed = after.server.layout.parameters[0]
        assert torch.equal(placed.view(left.rows[0]), first["exp_avg"])
    after.go()
    assert {left.scalars["step"] for left in after.twin.deposits.copies().values()} == {5 + 4 * 2}
    before.close()
    after.close()


def test_the_successor_of_a_lost_process_goes_on_with_what_it_kept():
    whole, broken = (server_runs.Run(config_of(DILOCO)) for _ in range(2))
    whole.go()
    broken.go_to(3)
    broken.twin.kill(0)
    broken.seat(0)
    broken.go()
    assert equal(broken.weights(), whole.weights())
    whole.close()
    broken.close()


def test_a_gradient_whose_update_was_not_made_leaves_nothing(tmp_path):
    whole, first = (server_runs.Run(config_of(DILOCO, workers=2)) for _ in range(2))
    first.go_to(2)
    first.go(until=lambda: len(first.twin.referee.admission.gathered) == 1)
    first.twin.stop()
    second = server_runs.Run(config_of(DILOCO, workers=2), first.save(tmp_path)).go()
    assert equal(second.weights(), whole.go().weights())
    for run in (whole, first, second):
        run.close()
