"""Tests of the choice of backup workers, with arrivals whose order statistics are known."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import pytest

from dist_train.rules.backups import Choice, choose

# One of five is 0.3 s late in every round.
STRAGGLER = [[1.0, 1.0, 1.3, 1.0, 1.0], [1.3, 1.0, 1.0, 1.0, 1.0]]


def speedups(arrivals: list[list[float]]) -> list[float]:
    return [candidate.speedup for candidate in choose(arrivals).table]


def exponential_rows(workers: int, points: int) -> list[list[float]]:
    """Give every worker a row of its own quantiles, so that rows together are exponentially distributed.

    The quantiles are dealt over the rows by multiplication modulo a prime, one multiplier a worker.
    """
    return [
        [-math.log1p(-((row * multiplier) % points) / points) for multiplier in PRIMITIVES[:workers]]
        for row in range(1, points)
    ]


PRIMITIVES = (1, 12345, 54321, 77777)


class TestChoice:
    def test_one_straggler_is_worth_one_backup(self) -> None:
        choice = choose(STRAGGLER)
        assert choice.backups == 1
        # Four gradients in 1 s instead of five in 1.3 s.
        assert choice.table[1].speedup == pytest.approx(Fraction(4, 5) * Fraction(13, 10))
        assert [candidate.step_s for candidate in choice.table] == pytest.approx([1.3, 1, 1, 1, 1])

    def test_even_workers_are_worth_none(self) -> None:
        assert speedups([[2.0] * 4] * 3) == [1.0, 0.75, 0.5, 0.25]
        assert choose([[2.0] * 4] * 3).backups == 0

    def test_of_two_equally_good_the_smaller_is_taken(self) -> None:
        # 2 gradients in 2 s, or 1 in 1 s.
        assert choose([[1.0, 2.0]]).backups == 0

    def test_the_time_is_that_of_the_last_gradient_needed_averaged_over_rounds(self) -> None:
        choice = choose([[3.0, 1.0, 2.0], [6.0, 4.0, 5.0]])
        assert [candidate.step_s for candidate in choice.table] == [4.5, 3.5, 2.5]

    def test_the_peak_may_lie_in_between(self) -> None:
        # Gradients per second: 50/60, 49/48, 48/47.9.
        arrivals = [[47.9] * 48 + [48.0, 60.0]]
        assert choose(arrivals).backups == 1

    def test_exponential_arrivals_have_harmonic_order_statistics(self) -> None:
        # The mean of the k-th of W exponential times is 1/W + ... + 1/(W - k + 1).
        steps = [candidate.step_s for candidate in choose(exponential_rows(4, 100_003)).table]
        harmonic = [sum(1 / rank for rank in range(b + 1, 5)) for b in range(4)]
        assert steps == pytest.approx(harmonic, rel=0.02)

    def test_no_more_are_chosen_than_are_allowed(self) -> None:
        arrivals = [[1.0, 1.0, 9.0, 9.0]]
        assert choose(arrivals).backups == 2
        assert choose(arrivals, most=1).backups == 0
        assert len(choose(arrivals, most=1).table) == 2
        assert len(choose(arrivals, most=9).table) == 4

    def test_a_gradient_that_never_comes_is_not_waited_for(self) -> None:
        choice = choose([[1.0, 1.0, math.inf], [1.0, 1.0, 1.0]])
        assert choice.backups == 1
        assert [candidate.speedup for candidate in choice.table] == [0.0, math.inf, math.inf]

    def test_one_worker_has_no_choice(self) -> None:
        assert choose([[1.0]]).backups == 0


class TestReason:
    def test_says_what_a_backup_brings_and_who_is_late(self) -> None:
        assert choose(STRAGGLER).why == (
            "b = 1 makes 4% more samples per second than b = 0: "
            "the slowest of 5 arrives 0.3 s after the others"
        )
        assert choose([[1.0, 1.0, 4.0, 4.0]]).why.endswith("the slowest 2 of 4 arrive 3 s after the others")

    def test_says_what_the_next_best_would_cost(self) -> None:
        assert choose([[2.0] * 4]).why == (
            "b = 0: waiting for all 4 pays; b = 1 would make 25% fewer samples per second"
        )

    def test_says_when_there_is_nothing_to_compare(self) -> None:
        assert choose([[1.0]]).why == "b = 0: there is one worker, and nobody to back it up"
        assert choose([[1.0, 2.0]], most=0).why == "b = 0: no backups are allowed"
        assert choose([[1.0, math.inf]]).why == "b = 1: the slowest of 2 did not always arrive"


class TestRecord:
    def test_is_json_with_the_whole_table(self) -> None:
        record = json.loads(json.dumps(choose([[1.0, 3.0]]).record()))
        assert record["chosen"] == 1
        assert record["table"] == [
            {"backups": 0, "step_s": 3.0, "speedup": 1.0},
            {"backups": 1, "step_s": 1.0, "speedup": 1.5},
        ]

    def test_is_read_again(self) -> None:
        choice = choose([[1.0, 2.0, 4.0]])
        assert Choice.from_record(json.loads(json.dumps(choice.record()))).record() == choice.record()


class TestRefusals:
    @pytest.mark.parametrize("arrivals", [[], [[]], [[1.0], [1.0, 2.0]]])
    def test_rows_must_be_of_one_length(self, arrivals: list[list[float]]) -> None:
        with pytest.raises(ValueError, match="of one length"):
            choose(arrivals)

    @pytest.mark.parametrize("time", [-1.0, math.nan])
    def test_times_must_be_times(self, time: float) -> None:
        with pytest.raises(ValueError, match="seconds of at least 0"):
            choose([[time, 1.0]])
