"""Tests of the sample ledger, against a plain table of counts."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_train.rules.ledger import Ledger, carried, ledger_at
from dist_train.rules.sampling import Cursor, Position, Run, advance, draw

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


class TestAfterTrainingInOrder:
    """Of synchronous training only the cursor and the number of samples are known."""

    @staticmethod
    def trained(cursor: Cursor, batches: list[int]) -> tuple[list[Run], Cursor]:
        """Return what synchronous training in these batches takes, and the cursor after it."""
        runs: list[Run] = []
        for batch in batches:
            runs += draw(cursor, SIZE, batch, "keep").runs
            cursor = advance(cursor, SIZE, batch, "keep")
        return runs, cursor

    def test_all_before_the_cursor_was_trained_once_but_the_unfinished(self) -> None:
        cursor = Cursor(Position(2, 7), (Run(1, 8, 2), Run(2, 0, 3)))
        assert ledger_at({}, cursor, 22, 10).report() == {0: {1: 10}, 1: {0: 2, 1: 8}, 2: {0: 6, 1: 4}}

    def test_nothing_was_trained_before_the_beginning(self) -> None:
        assert ledger_at({}, Cursor(Position(0, 0)), 0, 10).report() == {}

    def test_a_ledger_of_this_very_state_is_as_it_was(self) -> None:
        ledger = Ledger(10)
        ledger.trained(0, 4, 3)
        cursor = Cursor(Position(0, 7), (Run(0, 0, 4),))
        counts = {"ledger": ledger.to_state()}
        assert ledger_at(counts, cursor, 3, 10).to_state() == ledger.to_state()

    @given(st.lists(st.integers(1, SIZE), max_size=20), st.lists(st.integers(1, SIZE), max_size=20))
    def test_an_earlier_ledger_goes_on_as_if_it_had_counted_all_along(
        self, first: list[int], second: list[int]
    ) -> None:
        unfinished = (Run(0, 5, 2), Run(0, 1, 3))
        ledger = Ledger(SIZE)
        for run in (Run(0, 0, 1), Run(0, 4, 1)):
            ledger.trained(run.epoch, run.offset, run.count)
        counts, cursor = {"ledger": ledger.to_state()}, Cursor(Position(0, 7), unfinished)
        for batches in (first, second):
            counts = json.loads(json.dumps(carried(counts, cursor)))
            runs, cursor = self.trained(cursor, batches)
            for run in runs:
                ledger.trained(run.epoch, run.offset, run.count)
            found = ledger_at(counts, cursor, ledger.samples, SIZE)
            assert found.report() == ledger.report()
            counts = {"ledger": found.to_state()}

    @pytest.mark.parametrize(("samples", "size"), [(18, 10), (20, 8)])
    def test_where_samples_were_left_out_or_of_another_set_it_begins_here_and_says_so(
        self, samples: int, size: int
    ) -> None:
        before = Ledger(10)
        before.trained(0, 0, 10)
        counts, cursor = (
            carried({"ledger": before.to_state()}, Cursor(Position(1, 0))),
            Cursor(Position(2, 0)),
        )
        ledger = ledger_at(counts, cursor, samples, size)
        assert (ledger.since, ledger.report()) == (samples, {})
        ledger.trained(2, 0, 3)
        later = Ledger.from_state(json.loads(json.dumps(ledger.to_state())))
        assert (later.since, later.samples) == (samples, samples + 3)


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
