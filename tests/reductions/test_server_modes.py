"""Every mode of the parameter server collapses into a simpler one: bit for bit, where arithmetic allows.

Members, shards and referee are the real ones; the twin sets the order in which members move.
"""

from __future__ import annotations

from functools import partial
from itertools import islice, product

import by_hand
import numpy as np
import pytest
import server_runs
import single_by_hand as hand
import torch
import torch.nn.functional as F
import toys

from dist_train.exchange.baton import in_step, one_by_one, seeded

# 50 samples in updates of 12, or 4: the last of an epoch is short.
UPDATES = 11
CLOSE = {"rtol": 2e-4, "atol": 2e-6}

# One worker is never stale, whatever is done about it.
OF_ONE_WORKER = {
    "async": {"mode": "async"},
    "bounded": {"mode": "bounded", "max_staleness": 3},
    "backup": {"mode": "backup"},
}
# What makes all members compute every gradient of an update from the same parameters.
SYNCHRONOUS = {
    "backup with none": {"mode": "backup", "backups": 0},
    "bound 0": {"mode": "bounded", "max_staleness": 0},
    "softsync of all, in step": {"mode": "async"},
}


def sgd(momentum, nesterov=False):
    return partial(torch.optim.SGD, lr=0.1, momentum=momentum, nesterov=nesterov, fused=True)


# Optimizers of torch, fused as the program's own, and the settings that stand for them.
TORCH = {
    "sgd": (sgd(0.0), {"name": "sgd", "lr": 0.1, "momentum": 0.0}),
    "momentum": (sgd(0.9), {"name": "sgd", "lr": 0.1, "momentum": 0.9}),
    "nesterov": (sgd(0.9, nesterov=True), {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "adam": (partial(torch.optim.Adam, lr=0.01, fused=True), {"name": "adam", "lr": 0.01}),
    "adamw": (
        partial(torch.optim.AdamW, lr=0.01, fused=True),
        {"name": "adamw", "lr": 0.01, "weight_decay": 0.0},
    ),
}


@pytest.fixture
def run():
    with server_runs.running() as make:
        yield lambda parallel, steps=UPDATES, **sections: make(parallel, steps, **sections)


def batches(size, count=UPDATES, drop=False):
    return list(islice(by_hand.global_batches(hand.SEED, hand.SIZE, size, drop), count))


def in_one_update(mode, workers):
    """Return the settings of a synchronous mode of so many workers."""
    whole = {"aggregate": workers} if mode == "softsync of all, in step" else {}
    return SYNCHRONOUS[mode] | {"workers": workers} | whole


def assert_equal(found, expected):
    assert found.keys() >= expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def assert_close(found, expected):
    torch.testing.assert_close({name: found[name] for name in expected}, expected, **CLOSE)


# -- one worker is plain training, bit for bit ---------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 2, 3])
@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize("mode", OF_ONE_WORKER)
def test_one_worker_through_any_number_of_shards_is_plain_training(run, mode, name, shards):
    make, chosen = TORCH[name]
    found = run(
        parallel=OF_ONE_WORKER[mode] | {"server": {"shards": shards}},
        optimizer=chosen | {"weight_decay": 0.02},
        steps=15,
    ).go()
    assert_equal(found.weights(), hand.trained(make, batches(4, 15), decay=0.02))
    assert found.staleness == [0] * 15


@pytest.mark.parametrize("local", [{}, {"local_steps": 2}], ids=["gradients", "local steps"])
def test_rate_momentum_and_weight_decay_move_as_in_plain_training(run, local):
    make, chosen = TORCH["momentum"]
    schedule = {
        "decay": {"kind": "one_cycle", "momentum": [0.5, 0.9]},
        "weight_decay": {"milestones": [0.3, 0.7], "factors": [0.5, 0]},
    }
    found = run(
        parallel={"mode": "async"} | local,
        optimizer=chosen | {"weight_decay": 0.02},
        schedule=schedule,
        steps=12 // local.get("local_steps", 1),
    ).go()
    made_with = found.twin.referee.terms.scheduled
    assert {made_with(4 * step).weight_decay for step in range(12)} == {1, 0.5, 0}
    assert_close(found.weights(), hand.trained(make, batches(4, 12), decay=0.02, made_with=made_with))


@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_one_worker_accumulates_and_clips_as_plain_training_does(run, accumulate, clip):
    make, chosen = TORCH["momentum"]
    train = {"batch_size": 4, "accumulate": accumulate, "clip_norm": clip}
    found = run(parallel={"mode": "async"}, optimizer=chosen, train=train).go().weights()
    assert_equal(found, hand.trained(make, batches(4 * accumulate), accumulate=accumulate, clip=clip))


def test_lars_on_whole_parameters_is_lars(run):
    update, chosen = by_hand.OPTIMIZERS["lars"]
    found = run(
        parallel={"mode": "async", "server": {"shards": 3}}, optimizer=chosen | {"weight_decay": 0.02}
    )
    assert_close(found.go().weights(), descended(update, 4, 2.0, 0.02))


# -- all members in step are one worker at their whole batch -------------------------------------------------


def descended(update, batch, rate, decay=0.0, drop=False, updates=UPDATES):
    """Descend in double precision on whole batches, and return the parameters in single precision."""
    network = hand.model().double()
    data = toys.Points(hand.SIZE, 1)

    def mean_loss(model, rows):
        return F.cross_entropy(model(data.inputs[rows]), data.classes[rows])

    by_hand.descend(network, mean_loss, batches(batch, updates, drop), update, rate, decay)
    return {name: parameter.detach().float() for name, parameter in network.named_parameters()}


# An epoch's last two samples keep two members busy; the third of softsync goes on to the next epoch.
@pytest.mark.parametrize(
    ("mode", "workers", "last_batch"),
    [
        case
        for case in product(SYNCHRONOUS, [2, 3], ["keep", "drop"])
        if case != ("softsync of all, in step", 3, "keep")
    ],
)
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_members_in_step_are_one_worker_at_their_whole_batch(run, mode, name, workers, last_batch):
    update, chosen = by_hand.OPTIMIZERS[name]
    found = run(
        parallel=in_one_update(mode, workers) | {"server": {"shards": 2}},
        train={"batch_size": 12 // workers, "last_batch": last_batch},
        optimizer=chosen | {"weight_decay": 0.02},
    ).go(in_step())
    expected = descended(update, 12, chosen["lr"], 0.02, last_batch == "drop")
    assert_close(found.weights(), expected)
    assert set(found.staleness) == {0}


@pytest.mark.parametrize("mode", ["backup with none", "bound 0"])
def test_in_a_synchronous_mode_the_order_of_members_changes_nothing_of_the_mean(run, mode):
    update, chosen = by_hand.OPTIMIZERS["sgd"]
    for schedule in (one_by_one(), seeded(1), seeded(2)):
        found = run(parallel=SYNCHRONOUS[mode] | {"workers": 3}, optimizer=chosen).go(schedule)
        assert_close(found.weights(), descended(update, 12, 0.1))


def test_two_members_of_equal_share_make_the_plain_mean_of_their_gradients_bit_for_bit(run):
    make, chosen = TORCH["momentum"]
    found = run(parallel=SYNCHRONOUS["bound 0"] | {"workers": 2}, optimizer=chosen, steps=5).go()
    network = hand.model()
    optimizer = make([{"params": list(network.parameters())}])
    for batch in batches(8, 5):
        weights = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
        halves = [hand.gradient(weights, half) for half in np.split(batch, 2)]
        for name, parameter in network.named_parameters():
            parameter.grad = (halves[0][name] + halves[1][name]) / 2
        optimizer.step()
    assert_equal(found.weights(), dict(network.named_parameters()))


def test_softsync_out_of_step_is_not_synchronous(run):
    stale = run(parallel={"mode": "async", "workers": 2, "aggregate": 2}, steps=5).go(one_by_one())
    assert max(stale.staleness) == 1


# -- what changes nothing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["constant", "adaptive"])
def test_delay_compensation_of_strength_0_is_none(run, variant):
    damping = {"kind": "delay_compensated", "variant": variant, "strength": 0.0}
    chosen = {"name": "adam", "lr": 0.01}
    plain, compensated = (
        run(parallel={"mode": "async", "workers": 3, "damping": each}, optimizer=chosen).go(one_by_one())
        for each in ({"kind": "none"}, damping)
    )
    assert plain.staleness == compensated.staleness == [0, 1, *[2] * (UPDATES - 2)]
    assert_equal(compensated.weights(), plain.weights())


def test_inverse_damping_of_gradients_at_most_one_update_old_is_none(run):
    plain, damped = (
        run(parallel={"mode": "async", "workers": 2, "damping": {"kind": kind}}).go(one_by_one())
        for kind in ("none", "inverse")
    )
    assert max(plain.staleness) == 1
    assert_equal(damped.weights(), plain.weights())


def test_inverse_damping_of_older_gradients_is_some(run):
    plain, damped = (
        run(parallel={"mode": "async", "workers": 3, "damping": {"kind": kind}}).go(one_by_one())
        for kind in ("none", "inverse")
    )
    assert not torch.equal(damped.weights()["0.weight"], plain.weights()["0.weight"])


def test_a_bound_that_nobody_meets_is_none(run):
    bounded, free = (
        run(parallel=mode | {"workers": 3}).go(one_by_one())
        for mode in ({"mode": "bounded", "max_staleness": 2}, {"mode": "async"})
    )
    assert_equal(bounded.weights(), free.weights())


def test_reading_and_pushing_every_batch_is_asynchronous_training(run):
    explicit = {"fetch_every": 1, "push_every": 1, "aggregate": 1, "group_size": 1}
    named, plain = (
        run(parallel={"mode": "async", "workers": 2} | each).go(one_by_one()) for each in (explicit, {})
    )
    assert_equal(named.weights(), plain.weights())


# -- local steps ---------------------------------------------------------------------------------------------


def test_one_local_step_and_an_average_are_one_gradient_of_all(run):
    chosen = {"name": "sgd", "lr": 0.1, "momentum": 0.0}
    parallel = SYNCHRONOUS["bound 0"] | {"workers": 3, "local_steps": 1, "outer": {"kind": "average"}}
    found = run(parallel=parallel, optimizer=chosen, steps=4).go()
    assert_close(found.weights(), hand.trained(TORCH["sgd"][0], batches(12, 4)))


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_a_single_member_that_is_averaged_trains_alone(run, name):
    make, chosen = TORCH[name]
    found = run(parallel={"mode": "async", "local_steps": 3}, optimizer=chosen, steps=4).go()
    assert_close(found.weights(), hand.trained(make, batches(4, 12)))


def test_a_nesterov_step_of_rate_1_without_momentum_is_an_average(run):
    outer = {"kind": "nesterov", "lr": 1.0, "momentum": 0.0}
    plain, named = (
        run(parallel=SYNCHRONOUS["bound 0"] | {"workers": 2, "local_steps": 2, "outer": each}).go()
        for each in ({"kind": "average"}, outer)
    )
    assert_equal(named.weights(), plain.weights())
