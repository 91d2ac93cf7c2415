"""Tests of the sample ledger, against a plain table of counts."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_train.rules.ledger import Ledger

SIZE = 12
runs = st.tuples(
    st.integers(min_value=0, max_value=4), st.integers(0, SIZE - 1), st.integers(min_value=1, max_value=SIZE)
).map(lambda run: (run[0], run[1], min(run[2], SIZE - run[1])))


class Table:
    """How many times each place was trained, one number for each: the ledger's meaning."""

    def __init__(self) -> None:
        self.times: dict[int, list[int]] = {}

    def count(self, epoch: int, offset: int, count: int, by: int) -> None:
        row = self.times.setdefault(epoch, [0] * SIZE)
        for place in range(offset, offset + count):
            row[place] += by

    def can_lose(self, epoch: int, offset: int, count: int) -> bool:
        row = self.times.get(epoch, [0] * SIZE)
        return min(row[offset : offset + count]) > 0

    def report(self) -> dict[int, dict[int, int]]:
        return {epoch: dict(Counter(row)) for epoch, row in self.times.items() if any(row)}


class TestReport:
    def test_an_epoch_in_order_was_trained_once(self) -> None:
        ledger = Ledger(10)
        for offset in (0, 4, 8):
            ledger.trained(0, offset, min(4, 10 - offset))
        assert ledger.report() == {0: {1: 10}}

    def test_says_what_was_left_out_and_what_came_twice(self) -> None:
        ledger = Ledger(10)
        ledger.trained(0, 0, 6)
        ledger.trained(0, 4, 4)
        assert ledger.report() == {0: {0: 2, 1: 6, 2: 2}}

    def test_of_nothing_is_empty(self) -> None:
        assert Ledger(10).report() == {}

    def test_training_that_was_lost_never_happened(self) -> None:
        ledger = Ledger(10)
        ledger.trained(0, 0, 10)
        ledger.trained(1, 0, 4)
        ledger.lost(1, 0, 4)
        ledger.lost(0, 8, 2)
        assert ledger.report() == {0: {0: 2, 1: 8}}
        ledger.trained(0, 8, 2)
        assert ledger.report() == {0: {1: 10}}

    @given(st.lists(st.tuples(runs, st.booleans()), max_size=60))
    def test_agrees_with_a_table_of_every_place(
        self, changes: list[tuple[tuple[int, int, int], bool]]
    ) -> None:
        ledger, table = Ledger(SIZE), Table()
        for run, loses in changes:
            if not loses:
                ledger.trained(*run)
                table.count(*run, 1)
            elif table.can_lose(*run):
                ledger.lost(*run)
                table.count(*run, -1)
            else:
                with pytest.raises(ValueError, match="not trained"):
                    ledger.lost(*run)
            assert ledger.report() == table.report()
        assert Ledger.from_state(json.loads(json.dumps(ledger.to_state()))).report() == table.report()


class TestSummary:
    def test_names_epochs_in_a_row_that_were_trained_alike_once(self) -> None:
        ledger = Ledger(10)
        for epoch in range(5):
            ledger.trained(epoch, 0, 10)
        ledger.trained(5, 0, 3)
        assert ledger.summary() == [
            {"epochs": [0, 4], "samples": {"1": 10}},
            {"epochs": [5, 5], "samples": {"0": 7, "1": 3}},
        ]

    def test_counts_samples_and_not_places(self) -> None:
        ledger = Ledger(10)
        ledger.trained(0, 0, 4)
        ledger.trained(1, 5, 4)
        assert ledger.summary() == [{"epochs": [0, 1], "samples": {"0": 6, "1": 4}}]

    def test_epochs_apart_are_apart(self) -> None:
        ledger = Ledger(10)
        ledger.trained(0, 0, 10)
        ledger.trained(2, 0, 10)
        assert [entry["epochs"] for entry in ledger.summary()] == [[0, 0], [2, 2]]


class TestMemory:
    def test_a_long_run_costs_no_more_than_a_short_one(self) -> None:
        ledger = Ledger(100)
        for epoch in range(2000):
            # Two members in turn, the second ahead of the first; the last 4 samples are never trained.
            for offset in range(0, 96, 32):
                ledger.trained(epoch, offset + 16, 16)
                ledger.trained(epoch, offset, 16)
        assert ledger.to_state()["epochs"] == [[0, 1999, [[0, 96, 1]]]]

    def test_an_old_epoch_can_be_opened_again_and_closes_without_a_trace(self) -> None:
        ledger = Ledger(100)
        for epoch in range(10):
            ledger.trained(epoch, 0, 100)
        ledger.lost(4, 10, 20)
        assert len(ledger.to_state()["epochs"]) == 3
        ledger.trained(4, 10, 20)
        assert ledger.to_state()["epochs"] == [[0, 9, [[0, 100, 1]]]]

    def test_an_epoch_that_becomes_like_the_next_is_kept_with_it(self) -> None:
        ledger = Ledger(100)
        for epoch in range(5):
            ledger.trained(epoch, 0, 100)
        for epoch in (4, 3):
            ledger.trained(epoch, 0, 50)
        assert [entry[:2] for entry in ledger.to_state()["epochs"]] == [[0, 2], [3, 4]]


class TestRefusals:
    @pytest.mark.parametrize("run", [(-1, 0, 1), (0, -1, 1), (0, 0, 0), (0, 9, 2)])
    def test_places_that_the_set_does_not_have(self, run: tuple[int, int, int]) -> None:
        with pytest.raises(ValueError, match="has no places"):
            Ledger(10).trained(*run)

    def test_a_refused_loss_changes_nothing(self) -> None:
        ledger = Ledger(10)
        ledger.trained(0, 0, 5)
        before = ledger.to_state()
        with pytest.raises(ValueError, match="places 5 to 6 were not trained"):
            ledger.lost(0, 4, 2)
        with pytest.raises(ValueError, match="not trained"):
            ledger.lost(1, 0, 1)
        assert ledger.to_state() == before

    def test_an_empty_training_set(self) -> None:
        with pytest.raises(ValueError, match="at least one sample"):
            Ledger(0)
