"""Tests of injected faults: delays and lifetimes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import NormalDist, fmean, median, pstdev

import pytest

from dist_train.rules.injection import Who, delay, lifetime, normal


@dataclass(frozen=True)
class Faults:
    step_s: float = 0.0
    slow: Mapping[int, float] = field(default_factory=dict)
    lognormal_sigma: float | None = None
    scale_s: float = 0.1
    mean_lifetime: float | None = None
    seed: int = 0


class TestDelay:
    def test_there_is_none_without_faults(self) -> None:
        assert delay(Faults(), Who(0), step=3, own_s=0.5) == 0.0

    def test_every_gradient_takes_so_much_longer(self) -> None:
        assert delay(Faults(step_s=0.25), Who(1), step=0, own_s=0.5) == 0.25

    @pytest.mark.parametrize(("worker", "seconds"), [(4, 5 * 0.5), (3, 0.5)])
    def test_a_slow_worker_takes_a_multiple_of_its_own_time(self, worker: int, seconds: float) -> None:
        assert 0.5 + delay(Faults(slow={4: 5.0}), Who(worker), 7, own_s=0.5) == seconds

    def test_a_slow_worker_is_slow_at_simulated_work_too(self) -> None:
        faults = Faults(step_s=0.25, slow={4: 5.0})
        assert 0.5 + delay(faults, Who(4), 0, own_s=0.5) == 5 * 0.75

    def test_a_random_delay_is_lognormal_around_its_median(self) -> None:
        faults = Faults(lognormal_sigma=0.5, scale_s=0.2)
        draws = [delay(faults, Who(0), step, own_s=1.0) for step in range(4000)]
        assert median(draws) == pytest.approx(0.2, rel=0.05)
        assert fmean(draws) == pytest.approx(0.2 * math.exp(0.5**2 / 2), rel=0.05)
        assert min(draws) > 0


class TestNormal:
    def test_is_a_function_of_seed_worker_and_step(self) -> None:
        keys = [(seed, Who(worker), step) for seed in range(3) for worker in range(3) for step in range(50)]
        draws = [normal(*key) for key in keys]
        assert draws == [normal(*key) for key in keys]
        assert len(set(draws)) == len(keys)

    @pytest.mark.parametrize("fixed", ["worker", "step"])
    def test_follows_the_normal_distribution_along_steps_and_along_workers(self, fixed: str) -> None:
        number = 4000
        draws = [normal(1, Who(0), n) if fixed == "worker" else normal(1, Who(n), 0) for n in range(number)]
        ordered, ideal = sorted(draws), NormalDist()
        apart = max(abs(ideal.cdf(value) - rank / number) for rank, value in enumerate(ordered))
        # Kolmogorov and Smirnov: exceeded by chance once in a hundred times at 1.63.
        assert apart < 1.63 / math.sqrt(number)
        neighbours = fmean(one * two for one, two in pairwise(draws))
        assert abs(neighbours) < 4 / math.sqrt(number)

    def test_any_seed_will_do(self) -> None:
        assert math.isfinite(normal(2**63 - 1, Who(0), 0))

    def test_does_not_change_when_a_worker_is_restarted(self) -> None:
        assert normal(1, Who(2, life=0), 7) == normal(1, Who(2, life=3), 7)


class TestLifetime:
    def test_has_no_end_without_faults(self) -> None:
        assert lifetime(Faults(), Who(0)) is None

    def test_is_a_function_of_seed_worker_and_life(self) -> None:
        who = [Who(number, life) for number in range(5) for life in range(5)]
        lives = [lifetime(Faults(mean_lifetime=1e9), worker) for worker in who]
        assert lives == [lifetime(Faults(mean_lifetime=1e9), worker) for worker in who]
        assert len(set(lives)) == len(who)
        assert lives != [lifetime(Faults(mean_lifetime=1e9, seed=1), worker) for worker in who]

    def test_is_exponential_around_its_mean(self) -> None:
        lives = [lifetime(Faults(mean_lifetime=1000.0), Who(0, life=life)) for life in range(4000)]
        known = [life for life in lives if life is not None]
        assert len(known) == len(lives)
        # Both are 1000 for an exponential distribution.
        assert fmean(known) == pytest.approx(1000, rel=0.05)
        assert pstdev(known) == pytest.approx(1000, rel=0.08)

    def test_lets_everybody_compute_at_least_one_gradient(self) -> None:
        assert min(lifetime(Faults(mean_lifetime=1.0), Who(0, life=life)) or 0 for life in range(500)) == 1
