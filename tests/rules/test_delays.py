"""Tests of injected delays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import NormalDist, fmean, median

import pytest

from dist_train.rules.delays import delay, normal


@dataclass(frozen=True)
class Faults:
    step_s: float = 0.0
    slow: Mapping[int, float] = field(default_factory=dict)
    lognormal_sigma: float | None = None
    scale_s: float = 0.1
    seed: int = 0


class TestDelay:
    def test_there_is_none_without_faults(self) -> None:
        assert delay(Faults(), worker=0, step=3, own_s=0.5) == 0.0

    def test_every_gradient_takes_so_much_longer(self) -> None:
        assert delay(Faults(step_s=0.25), worker=1, step=0, own_s=0.5) == 0.25

    @pytest.mark.parametrize(("worker", "seconds"), [(4, 5 * 0.5), (3, 0.5)])
    def test_a_slow_worker_takes_a_multiple_of_its_own_time(self, worker: int, seconds: float) -> None:
        assert 0.5 + delay(Faults(slow={4: 5.0}), worker, 7, own_s=0.5) == seconds

    def test_a_slow_worker_is_slow_at_simulated_work_too(self) -> None:
        faults = Faults(step_s=0.25, slow={4: 5.0})
        assert 0.5 + delay(faults, 4, 0, own_s=0.5) == 5 * 0.75

    def test_a_random_delay_is_lognormal_around_its_median(self) -> None:
        faults = Faults(lognormal_sigma=0.5, scale_s=0.2)
        draws = [delay(faults, 0, step, own_s=1.0) for step in range(4000)]
        assert median(draws) == pytest.approx(0.2, rel=0.05)
        assert fmean(draws) == pytest.approx(0.2 * math.exp(0.5**2 / 2), rel=0.05)
        assert min(draws) > 0


class TestNormal:
    def test_is_a_function_of_seed_worker_and_step(self) -> None:
        keys = [(seed, worker, step) for seed in range(3) for worker in range(3) for step in range(50)]
        draws = [normal(*key) for key in keys]
        assert draws == [normal(*key) for key in keys]
        assert len(set(draws)) == len(keys)

    @pytest.mark.parametrize("fixed", ["worker", "step"])
    def test_follows_the_normal_distribution_along_steps_and_along_workers(self, fixed: str) -> None:
        number = 4000
        draws = [normal(1, 0, n) if fixed == "worker" else normal(1, n, 0) for n in range(number)]
        ordered, ideal = sorted(draws), NormalDist()
        apart = max(abs(ideal.cdf(value) - rank / number) for rank, value in enumerate(ordered))
        # Kolmogorov and Smirnov: exceeded by chance once in a hundred times at 1.63.
        assert apart < 1.63 / math.sqrt(number)
        neighbours = fmean(one * two for one, two in pairwise(draws))
        assert abs(neighbours) < 4 / math.sqrt(number)

    def test_any_seed_will_do(self) -> None:
        assert math.isfinite(normal(2**63 - 1, 0, 0))
