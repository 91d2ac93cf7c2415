import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dist_train.rules.schedule import (
    Constant,
    Cosine,
    OneCycle,
    Restarts,
    Rewarm,
    Schedule,
    Step,
    Warmup,
    learning_rate,
    momentum,
    weight_decay_factor,
)

quick = settings(max_examples=60, deadline=None)
rates = st.floats(1e-4, 10.0)


def same(value):
    return pytest.approx(value, rel=1e-9, abs=1e-15)


class TestGoyal:
    """Goyal et al. 2017, section 5.1: 90 epochs, 0.1 for 256 samples, 5 epochs of warmup."""

    @staticmethod
    def published(iteration, per_epoch, batch):
        reference = 0.1 * batch / 256
        if batch > 256 and iteration < 5 * per_epoch:
            return 0.1 + (reference - 0.1) / (5 * per_epoch) * iteration
        epoch = iteration // per_epoch
        if epoch < 30:
            return reference
        if epoch < 60:
            return reference / 10
        return reference / 100 if epoch < 80 else reference / 1000

    @given(
        batch=st.integers(1, 65536), per_epoch=st.integers(1, 10_000), share=st.floats(0, 1, exclude_max=True)
    )
    @quick
    def test_every_iteration_has_the_published_rate(self, batch, per_epoch, share):
        epoch = per_epoch * batch
        schedule = Schedule(
            peak=0.1 * batch / 256,
            total=90 * epoch,
            warmup=Warmup(5 * epoch, start_lr=0.1, gradual=True),
            decay=Step((30.0 * epoch, 60.0 * epoch, 80.0 * epoch), gamma=0.1),
        )
        around = int(share * 90 * per_epoch)
        edges = [e * per_epoch + d for e in (0, 5, 30, 60, 80) for d in (-1, 0, 1)]
        for iteration in (around, *edges):
            if 0 <= iteration < 90 * per_epoch:
                expected = self.published(iteration, per_epoch, batch)
                assert learning_rate(schedule, iteration * batch) == same(expected)

    def test_the_constants_at_8192(self):
        schedule = Schedule(3.2, 90_000, Warmup(5000, 0.1, True), Step((30_000, 60_000, 80_000), 0.1))
        at = {0: 0.1, 2500: 1.65, 5000: 3.2, 29_999: 3.2, 30_000: 0.32, 60_000: 0.032, 80_000: 0.0032}
        assert {samples: learning_rate(schedule, samples) for samples in at} == same(at)

    def test_gradual_warmup_adds_the_same_at_every_iteration(self):
        schedule = Schedule(3.2, 10_000, Warmup(6400, 0.1, True), Constant())
        climb = [learning_rate(schedule, iteration * 64) for iteration in range(101)]
        assert [b - a for a, b in pairwise(climb)] == [pytest.approx(3.1 / 100)] * 100

    def test_constant_warmup_holds_the_start_and_then_jumps(self):
        schedule = Schedule(3.2, 10_000, Warmup(5000, 0.1, False), Step((8000,), 0.1))
        held = [learning_rate(schedule, samples) for samples in (0, 2500, 4999, 5000)]
        assert held == [0.1, 0.1, 0.1, 3.2]

    @pytest.mark.parametrize("peak", [0.05, 0.1])
    @pytest.mark.parametrize("gradual", [True, False])
    def test_at_the_base_batch_or_below_there_is_no_warmup(self, peak, gradual):
        decay = Cosine(0.0)
        warmed = Schedule(peak, 1000, Warmup(500, 0.1, gradual), decay)
        plain = Schedule(peak, 1000, None, decay)
        for samples in range(0, 1000, 50):
            assert learning_rate(warmed, samples) == learning_rate(plain, samples)

    def test_a_milestone_inside_the_warmup_takes_effect_at_its_end(self):
        schedule = Schedule(1.0, 1000, Warmup(100, 0.0, True), Step((50,), 0.1))
        assert learning_rate(schedule, 99) == same(0.99)
        assert learning_rate(schedule, 100) == same(0.1)


class TestCosine:
    @given(peak=rates, low=st.floats(0, 1), warmup=st.integers(0, 500), done=st.integers(0, 500))
    @quick
    def test_it_falls_from_the_end_of_the_warmup_to_the_end_of_training(self, peak, low, warmup, done):
        schedule = Schedule(peak, warmup + 500, Warmup(warmup, 0.0, True), Cosine(low * peak))
        expected = low * peak + (peak - low * peak) * math.cos(math.pi * done / 1000) ** 2
        assert learning_rate(schedule, warmup + done) == same(expected)

    def test_the_warmup_meets_it_without_a_jump(self):
        schedule = Schedule(1.0, 200_000, Warmup(100_000, 0.0, True), Cosine(0.0))
        before, at, after = (learning_rate(schedule, 100_000 + d) for d in (-1, 0, 1))
        assert at == same(1.0)
        assert before == pytest.approx(1, abs=2e-5)
        assert after == pytest.approx(1, abs=2e-5)

    def test_a_warmup_as_long_as_training_leaves_it_nothing(self):
        for total in (400, 500):
            schedule = Schedule(1.0, total, Warmup(500, 0.0, True), Cosine(0.0))
            assert learning_rate(schedule, 500) == same(total / 500)


class TestRestarts:
    @given(
        cycle=st.integers(1, 50),
        cycles=st.integers(1, 8),
        batch=st.integers(1, 512),
        short=st.integers(0, 49),
    )
    @quick
    def test_equal_cycles_are_those_of_snapshot_ensembles(self, cycle, cycles, batch, short):
        """Huang et al. 2017, equation 2; its t starts at 1, and M need not divide T."""
        iterations = cycle * cycles - min(short, cycles - 1)
        assume(-(-iterations // cycles) == cycle)
        schedule = Schedule(0.2, iterations * batch, None, Restarts(cycle * batch, factor=1.0, min_lr=0.0))
        for t in range(1, iterations + 1):
            expected = 0.2 / 2 * (math.cos(math.pi * ((t - 1) % cycle) / cycle) + 1)
            assert learning_rate(schedule, (t - 1) * batch) == same(expected)

    @given(
        first=st.integers(1, 40),
        factor=st.sampled_from([1, 2, 3]),
        batch=st.integers(1, 512),
        begin=st.integers(0, 30),
    )
    @quick
    def test_growing_cycles_are_those_of_sgdr(self, first, factor, batch, begin):
        """Loshchilov and Hutter 2016, equation 5, counted batch by batch as they describe it."""
        warmup = Warmup(begin * batch, 0.0, True)
        schedule = Schedule(0.05, 10**9, warmup, Restarts(first * batch, float(factor), min_lr=0.001))
        current, length = 0, first
        for iteration in range(begin, begin + 200):
            expected = 0.001 + 0.5 * (0.05 - 0.001) * (1 + math.cos(math.pi * current / length))
            assert learning_rate(schedule, iteration * batch) == same(expected)
            current += 1
            if current == length:
                current, length = 0, length * factor

    @given(cycles=st.integers(1, 60), total=st.integers(100, 10**6))
    @quick
    def test_cycles_that_are_not_whole_still_restart_on_time(self, cycles, total):
        schedule = Schedule(1.0, total, None, Restarts(total / cycles, 1.0, 0.0))
        whole_starts = [i * total // cycles for i in range(cycles) if i * total % cycles == 0]
        assert [learning_rate(schedule, start) for start in whole_starts] == [same(1.0)] * len(whole_starts)

    @pytest.mark.parametrize("cycles", [1, 3, 7])
    def test_training_ends_low_and_not_on_a_restart(self, cycles):
        schedule = Schedule(1.0, 1000, None, Restarts(1000 / cycles, 1.0, 0.1))
        assert learning_rate(schedule, 1000) == same(0.1)

    @pytest.mark.parametrize(("first", "factor"), [(0.0, 2.0), (-1.0, 1.0), (10.0, 0.5)])
    def test_cycles_without_a_length_or_that_shrink_are_refused(self, first, factor):
        with pytest.raises(ValueError, match="cycles must have a length"):
            Restarts(first, factor, 0.0)


class TestOneCycle:
    """Smith 2018: a triangle from max/10 to max and back, then a tail to max/100; momentum .95, .85, .95."""

    schedule = Schedule(1.0, 1000, None, OneCycle(0.8, 10.0, 100.0, momentum=(0.85, 0.95)))

    def test_the_rate_at_the_corners_and_between_them(self):
        at = {0: 0.1, 200: 0.55, 400: 1.0, 600: 0.55, 800: 0.1, 900: 0.055, 1000: 0.01}
        assert {samples: learning_rate(self.schedule, samples) for samples in at} == same(at)

    def test_momentum_moves_against_the_rate_and_stays_high_in_the_tail(self):
        at = {0: 0.95, 200: 0.90, 400: 0.85, 600: 0.90, 800: 0.95, 900: 0.95, 1000: 0.95, 2000: 0.95}
        assert {samples: momentum(self.schedule, samples) for samples in at} == same(at)

    def test_a_triangle_over_all_of_training_has_no_tail(self):
        schedule = Schedule(1.0, 1000, None, OneCycle(1.0, 10.0, 100.0, momentum=None))
        assert [learning_rate(schedule, s) for s in (0, 500, 1000)] == same([0.1, 1.0, 0.1])

    @given(samples=st.integers(0, 400))
    @quick
    def test_the_triangle_is_symmetric(self, samples):
        assert learning_rate(self.schedule, samples) == same(learning_rate(self.schedule, 800 - samples))

    def test_no_other_schedule_touches_the_momentum(self):
        for decay in (
            Constant(),
            Step((5,), 0.1),
            Cosine(0.0),
            Restarts(10, 1.0, 0.0),
            OneCycle(0.9, 10, 100, None),
        ):
            assert momentum(Schedule(1.0, 100, None, decay), 50) is None


class TestRewarm:
    def test_the_rate_climbs_from_the_old_to_the_new(self):
        schedule = Schedule(0.4, 1000, None, Constant(), (Rewarm(start=100, samples=200, ratio=0.25),))
        at = {0: 0.4, 99: 0.4, 100: 0.1, 200: 0.25, 299: 0.3985, 300: 0.4, 1000: 0.4}
        assert {samples: learning_rate(schedule, samples) for samples in at} == same(at)

    def test_it_descends_where_the_batch_shrank(self):
        schedule = Schedule(0.1, 1000, None, Constant(), (Rewarm(0, 100, ratio=4.0),))
        assert [learning_rate(schedule, s) for s in (0, 50, 100)] == same([0.4, 0.25, 0.1])

    def test_it_multiplies_the_decay_and_other_rewarms(self):
        rewarms = (Rewarm(0, 100, 0.5), Rewarm(50, 100, 0.5))
        schedule = Schedule(1.0, 1000, None, Step((60,), 0.1), rewarms)
        assert learning_rate(schedule, 75) == same(0.1 * (0.5 + 0.5 * 0.75) * (0.5 + 0.5 * 0.25))

    def test_over_no_samples_it_does_nothing(self):
        schedule = Schedule(1.0, 1000, None, Constant(), (Rewarm(10, 0, 0.5),))
        assert learning_rate(schedule, 10) == 1.0


DECAYS = [
    Constant(),
    Step((300.0, 700.5), 0.1),
    Cosine(0.01),
    Restarts(123.4, 1.5, 0.01),
    OneCycle(0.9, 10.0, 100.0, (0.85, 0.95)),
]


@pytest.mark.parametrize("decay", DECAYS, ids=lambda decay: type(decay).__name__)
class TestEverySchedule:
    @given(peak=rates, warmup=st.integers(0, 400), samples=st.integers(0, 1000))
    @quick
    def test_the_rate_is_positive_and_never_above_the_peak(self, decay, peak, warmup, samples):
        schedule = Schedule(peak + 0.01, 1000, Warmup(warmup, 0.01, True), decay)
        assert 0 < learning_rate(schedule, samples) <= (peak + 0.01) * (1 + 1e-12)

    def test_past_the_end_it_stays_as_at_the_end(self, decay):
        schedule = Schedule(1.0, 1000, Warmup(100, 0.1, True), decay)
        assert learning_rate(schedule, 5000) == learning_rate(schedule, 1000)

    @given(samples=st.integers(0, 1000), factor=st.floats(0.1, 10))
    @quick
    def test_scaling_the_peak_and_the_lowest_rate_scales_all(self, decay, samples, factor):
        scaled = replace(decay, min_lr=factor * decay.min_lr) if hasattr(decay, "min_lr") else decay
        one, other = Schedule(1.0, 1000, None, decay), Schedule(factor, 1000, None, scaled)
        assert learning_rate(other, samples) == same(factor * learning_rate(one, samples))


class TestWeightDecay:
    # Sodhani et al. 2020: from 1e-4 to 1e-5 at the first drop of the learning rate, to 0 at the second.
    COURSE = Schedule(0.1, 90, None, Constant(), decay_factors=((30, 0.1), (60, 0.0)))

    def test_it_falls_at_its_milestones(self):
        factors = [weight_decay_factor(self.COURSE, samples) for samples in (0, 29, 30, 59, 60, 90)]
        assert factors == [1.0, 1.0, 0.1, 0.1, 0.0, 0.0]

    def test_without_milestones_it_is_left_alone(self):
        assert weight_decay_factor(Schedule(0.1, 90, None, Constant()), 30) is None
