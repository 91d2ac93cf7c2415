"""Gradients through a server, against the papers' formulas written out by hand, member after member."""

from __future__ import annotations

import pytest
import server_runs
import single_by_hand as hand
import torch
import toys

from dist_train.exchange.baton import in_step, one_by_one
from dist_train.rules.decisions import Answer, Returned
from dist_train.rules.sampling import Run

RATE = 0.1
PLAIN = {"name": "sgd", "lr": RATE, "momentum": 0.0}
CLOSE = {"rtol": 1e-5, "atol": 1e-7}


@pytest.fixture
def running():
    with server_runs.running() as make:
        yield make


@pytest.fixture
def run(running):
    return lambda *args, **sections: running(*args, optimizer=PLAIN, **sections)


def assert_close(found, expected):
    torch.testing.assert_close(found.weights(), expected, **CLOSE)


class TestAsynchronousUpdates:
    @pytest.mark.parametrize("members", [1, 2, 3])
    def test_each_gradient_is_of_what_was_read_and_is_applied_to_the_newest(self, run, members):
        found = run({"mode": "async", "workers": members}, steps=9).go(one_by_one())

        def update(newest, gradient, read, member, staleness):
            return hand.combined(lambda w, g: w - RATE * g, newest, gradient)

        assert_close(found, hand.stale(9, members, update))

    def test_members_that_read_together_push_gradients_of_one_version(self, run):
        found = run({"mode": "async", "workers": 3}, steps=6).go(in_step())
        assert found.staleness == [0, 1, 2, 0, 1, 2]


class TestARefusedGradient:
    @pytest.mark.parametrize("local", [{}, {"local_steps": 2}], ids=["each batch", "local steps"])
    def test_leaves_nothing_in_the_running_statistics(self, run, local):
        parallel = {"mode": "async", "workers": 3} | local
        found = run(parallel, steps=20, task=f"{toys.__file__}:Poisoned")
        found.go(one_by_one())
        answers = [each for each in found.twin.decisions if isinstance(each, Answer)]
        refused = {each.member for each in answers if each.reply.outcome == "refused"}
        assert refused
        trained = [each.push.member for step in found.steps[-6:] for each in step.contributions]
        assert refused <= set(trained)
        for statistics in found.server.statistics:
            assert statistics.isfinite().all()

    @pytest.mark.parametrize("settings", [{"fetch_every": 4}, {"fetch_every": 4, "push_every": 2}], ids=str)
    def test_leaves_nothing_in_the_member_s_own_parameters(self, run, settings):
        found = run({"mode": "async", "workers": 2} | settings, steps=20, task=f"{toys.__file__}:Poisoned")
        found.go(one_by_one())
        answers = [each for each in found.twin.decisions if isinstance(each, Answer)]
        # To each member one sample is no number once: whoever it is given to is refused that once.
        refused = [each.member for each in answers if each.reply.outcome == "refused"]
        assert 0 < len(refused) == len(set(refused))


class TestStalenessAwareUpdates:
    """Zhang et al. 2015, equation 4: the rate of a gradient is alpha_0 / tau."""

    def test_each_gradient_is_divided_by_its_staleness(self, run):
        parallel = {"mode": "async", "workers": 3, "damping": {"kind": "inverse"}}
        found = run(parallel, steps=6).go(one_by_one())

        def update(newest, gradient, read, member, staleness):
            return hand.combined(lambda w, g: w - RATE / max(1, staleness) * g, newest, gradient)

        assert found.staleness == [0, 1, 2, 2, 2, 2]
        assert_close(found, hand.stale(6, 3, update))

    def test_momentum_holds_each_gradient_damped(self, running):
        # A stale gradient's whole move, over all later steps, is its share: alpha_0 / tau / (1 - momentum).
        parallel = {"mode": "async", "workers": 3, "damping": {"kind": "inverse"}}
        found = running(parallel, steps=6, optimizer=PLAIN | {"momentum": 0.9}).go(one_by_one())
        velocity = hand.combined(torch.zeros_like, hand.first_weights())

        def update(newest, gradient, read, member, staleness):
            for name, made in gradient.items():
                velocity[name] = 0.9 * velocity[name] + made / max(1, staleness)
            return hand.combined(lambda w, v: w - RATE * v, newest, velocity)

        assert_close(found, hand.stale(6, 3, update))

    def test_within_an_update_of_several_the_fresher_ones_weigh_more(self, run):
        # Softsync, two gradients an update: the second update takes one fresh and one a version old.
        parallel = {"mode": "async", "workers": 4, "aggregate": 2, "damping": {"kind": "inverse"}}
        found = run(parallel, steps=2).go(in_step())
        begin = hand.first_weights()
        made = [hand.gradient(begin, rows) for rows in hand.pieces(4, 4)]
        first = hand.combined(lambda w, a, b: w - RATE * (a + b) / 2, begin, *made[:2])
        second = hand.combined(lambda w, a, b: w - RATE * (a + b) / 2, first, *made[2:])
        assert found.staleness == [0, 0, 1, 1]
        assert_close(found, second)


class TestDelayCompensation:
    """Zheng et al. 2016, equation 10 and section 4: each member compensates from its own backup."""

    @pytest.mark.parametrize("members", [2, 3])
    def test_with_a_constant_strength(self, run, members):
        damping = {"kind": "delay_compensated", "variant": "constant", "strength": 0.7}
        found = run({"mode": "async", "workers": members, "damping": damping}, steps=8).go(one_by_one())

        def update(newest, gradient, read, member, staleness):
            return hand.combined(
                lambda w, g, bak: w - RATE * (g + 0.7 * g * g * (w - bak)), newest, gradient, read
            )

        assert_close(found, hand.stale(8, members, update))

    @pytest.mark.parametrize("shards", [1, 3])
    def test_with_a_strength_that_adapts_to_each_member_s_gradients(self, run, shards):
        damping = {"kind": "delay_compensated", "variant": "adaptive", "strength": 2.0, "decay": 0.9}
        parallel = {"mode": "async", "workers": 2, "damping": damping, "server": {"shards": shards}}
        found = run(parallel, steps=8).go(one_by_one())
        squares = {}

        def update(newest, gradient, read, member, staleness):
            zero = hand.combined(torch.zeros_like, newest)
            squares[member] = hand.combined(
                lambda ms, g: 0.9 * ms + 0.1 * g * g, squares.get(member, zero), gradient
            )
            return hand.combined(
                lambda w, g, bak, ms: w - RATE * (g + 2.0 / torch.sqrt(ms + 1e-7) * g * g * (w - bak)),
                newest,
                gradient,
                read,
                squares[member],
            )

        assert_close(found, hand.stale(8, 2, update))


class TestDownpour:
    """Dean et al. 2012, section 4.1: reads and pushes every few batches, local descent in between."""

    def rounds(self, weights, pieces, steps):
        """Return how far descent on the pieces, one after the other, comes from ``weights``."""
        local, rate = weights, RATE / steps
        accrued = hand.combined(torch.zeros_like, weights)
        for rows in pieces:
            made = hand.gradient(local, rows)
            accrued = hand.combined(lambda a, g: a + g / steps, accrued, made)
            local = hand.combined(lambda w, g: w - rate * g, local, made)
        return accrued

    @pytest.mark.parametrize("members", [1, 2])
    def test_reading_and_pushing_every_two_batches(self, run, members):
        parallel = {"mode": "async", "workers": members, "fetch_every": 2, "push_every": 2}
        found = run(parallel, steps=5).go(one_by_one())
        versions, pieces = [hand.first_weights()], hand.pieces(10, 4)
        for push in range(5):
            read = versions[max(0, push - members + 1)]
            accrued = self.rounds(read, pieces[2 * push : 2 * push + 2], 2)
            versions.append(hand.combined(lambda w, g: w - RATE * g, versions[-1], accrued))
        assert_close(found, versions[-1])

    def test_reading_every_three_batches_and_pushing_each(self, run):
        found = run({"mode": "async", "workers": 1, "fetch_every": 3}, steps=6).go()
        server = local = hand.first_weights()
        for number, rows in enumerate(hand.pieces(6, 4), 1):
            made = hand.gradient(local, rows)
            server, local = (hand.combined(lambda w, g: w - RATE * g, each, made) for each in (server, local))
            if number % 3 == 0:
                local = server
        assert_close(found, server)

    def test_in_between_a_member_follows_the_scheduled_rate(self, run):
        warmup = {"kind": "gradual", "samples": 20, "start_lr": 0.02}
        parallel = {"mode": "async", "workers": 1, "fetch_every": 3}
        found = run(parallel, steps=6, schedule={"scaling": "none", "warmup": warmup}).go()
        server = local = hand.first_weights()
        for number, rows in enumerate(hand.pieces(6, 4), 1):
            rate = 0.02 + (RATE - 0.02) * 4 * (number - 1) / 20
            made = hand.gradient(local, rows)
            server, local = (
                hand.combined(lambda w, g, rate=rate: w - rate * g, each, made) for each in (server, local)
            )
            if number % 3 == 0:
                local = server
        assert_close(found, server)

    def test_of_an_update_of_two_gradients_a_member_makes_its_own_half(self, run):
        parallel = {"mode": "async", "workers": 2, "aggregate": 2, "fetch_every": 2}
        found = run(parallel, steps=2).go(in_step())
        pieces, server = hand.pieces(4, 4), hand.first_weights()
        locals_ = [server, server]
        for update in (pieces[:2], pieces[2:]):
            made = [hand.gradient(local, rows) for local, rows in zip(locals_, update, strict=True)]
            server = hand.combined(lambda w, a, b: w - RATE * (a + b) / 2, server, *made)
            locals_ = [
                hand.combined(lambda w, g: w - RATE / 2 * g, local, own)
                for local, own in zip(locals_, made, strict=True)
            ]
        assert_close(found, server)

    def test_reading_every_batch_and_pushing_the_mean_of_three(self, run):
        found = run({"mode": "async", "workers": 1, "push_every": 3}, steps=3).go()
        weights, pieces = hand.first_weights(), hand.pieces(9, 4)
        for push in range(3):
            made = [hand.gradient(weights, rows) for rows in pieces[3 * push : 3 * push + 3]]
            weights = hand.combined(lambda w, a, b, c: w - RATE * (a + b + c) / 3, weights, *made)
        assert_close(found, weights)

    def test_an_uneven_last_push_is_the_mean_over_its_samples(self, run):
        # The epoch's last 2 samples are pushed as two batches of one; 50 = 6 * 8 + 2.
        found = run({"mode": "async", "workers": 1, "push_every": 2}, steps=7).go()
        weights, order = hand.first_weights(), hand.by_hand.order(hand.SEED, 0, hand.SIZE)
        for batch in range(7):
            made = hand.gradient(weights, order[8 * batch : 8 * batch + 8])
            weights = hand.combined(lambda w, g: w - RATE * g, weights, made)
        assert_close(found, weights)


class TestBackupWorkers:
    """Chen et al. 2016, section 3: an update takes the first N gradients, and drops the rest."""

    def test_of_three_the_slowest_trains_nothing_and_others_get_its_samples(self, run):
        found = run({"mode": "backup", "workers": 3, "backups": 1}, steps=3).go(in_step())
        # The third member is late with leases 2 and 5; by then the first two have begun with 3 and 4.
        pieces = hand.pieces(7, 4)
        weights = hand.first_weights()
        for pair in ((0, 1), (3, 4), (2, 6)):
            made = [hand.gradient(weights, pieces[lease]) for lease in pair]
            weights = hand.combined(lambda w, a, b: w - RATE * (a + b) / 2, weights, *made)
        assert_close(found, weights)
        late = [each for each in found.twin.decisions if isinstance(each, Returned)]
        assert [(each.member, each.run) for each in late] == [(2, Run(0, 8, 4)), (2, Run(0, 20, 4))]
