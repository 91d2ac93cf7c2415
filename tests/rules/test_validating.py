"""Tests of a validation that is dealt out."""

from __future__ import annotations

import pytest

from dist_train.rules.messages import ValidationPart
from dist_train.rules.validating import ValidationJob


class TestValidationJob:
    def test_parts_are_dealt_in_order_until_there_are_no_more(self) -> None:
        job = ValidationJob(7, step=20, parts=2)
        assert job.deal(1) == ValidationPart(7, 20, 0, 2)
        assert job.deal(0) == ValidationPart(7, 20, 1, 2)
        assert job.deal(2) is None
        assert job.members == {0, 1}

    def test_the_means_are_over_all_samples(self) -> None:
        job = ValidationJob(1, 5, 2)
        job.deal(0)
        job.deal(1)
        job.measured(1, 1, {"loss": 6.0, "accuracy": 2.0}, 3)
        assert not job.done
        job.measured(0, 0, {"loss": 4.0, "accuracy": 3.0}, 5)
        assert job.done
        assert job.means() == {"accuracy": 5 / 8, "loss": 10 / 8}

    def test_the_means_do_not_depend_on_who_came_first(self) -> None:
        values, means = [0.1, 0.2, 0.3], set()
        for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
            job = ValidationJob(1, 5, 3)
            for member in range(3):
                job.deal(member)
            for member in order:
                job.measured(member, member, {"loss": values[member]}, 1)
            means.add(job.means()["loss"])
        assert len(means) == 1

    def test_a_part_that_comes_twice_counts_once(self) -> None:
        job = ValidationJob(1, 5, 1)
        job.deal(0)
        job.measured(0, 0, {"loss": 1.0}, 1)
        job.measured(0, 0, {"loss": 9.0}, 1)
        assert job.means() == {"loss": 1.0}

    def test_the_part_of_one_who_is_gone_is_dealt_again(self) -> None:
        job = ValidationJob(1, 5, 2)
        job.deal(0)
        job.deal(1)
        job.lost(0)
        job.lost(2)
        job.measured(0, 0, {"loss": 1.0}, 1)
        assert not job.done
        again = job.deal(1)
        assert again is not None
        assert again.part == 0

    def test_a_part_without_samples_may_know_no_figure(self) -> None:
        job = ValidationJob(1, 5, 2)
        job.deal(0)
        job.deal(1)
        job.measured(0, 0, {"loss": 3.0}, 2)
        job.measured(1, 1, {}, 0)
        assert job.means() == {"loss": pytest.approx(1.5)}
