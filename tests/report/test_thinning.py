"""Tests of tables that stay short: what is kept of what was added."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_train.report.thinning import Joining, Thinned

JOINING: dict[str, Joining] = {
    "at": "last",
    "since": "first",
    "total": "sum",
    "low": "lowest",
    "high": "highest",
}


def filled(values: list[float], limit: int, blocks: int) -> Thinned:
    table = Thinned(JOINING, limit)
    places = np.arange(len(values), dtype=float)
    for rows, at in zip(
        np.array_split(np.array(values), blocks), np.array_split(places, blocks), strict=True
    ):
        table.add(at=at, since=at, total=rows, low=rows, high=rows)
    return table


def test_what_fits_is_kept_as_it_is() -> None:
    table = filled([3.0, 1.0, 2.0], limit=2, blocks=1)
    assert table.column("total").tolist() == [3.0, 1.0, 2.0]
    assert table.column("at").tolist() == [0.0, 1.0, 2.0]


def test_of_what_does_not_fit_neighbours_join() -> None:
    table = filled([5.0, 1.0, 2.0, 8.0, 4.0], limit=2, blocks=1)
    assert table.column("since").tolist() == [0.0, 2.0, 4.0]
    assert table.column("at").tolist() == [1.0, 3.0, 4.0]
    assert table.column("total").tolist() == [6.0, 10.0, 4.0]
    assert table.column("low").tolist() == [1.0, 2.0, 4.0]
    assert table.column("high").tolist() == [5.0, 8.0, 4.0]


whole_numbers = st.lists(st.integers(-1000, 1000).map(float), min_size=1, max_size=300)


@settings(deadline=None)
@given(whole_numbers, st.integers(1, 20), st.integers(1, 9))
def test_it_is_short_and_loses_neither_extremes_nor_sums(
    values: list[float], limit: int, blocks: int
) -> None:
    table = filled(values, limit, blocks)
    assert len(table) <= 2 * limit
    assert table.column("total").sum() == sum(values)
    assert table.column("low").min() == min(values)
    assert table.column("high").max() == max(values)
    assert table.column("since")[0] == 0
    assert table.column("at")[-1] == len(values) - 1


@settings(deadline=None)
@given(whole_numbers, st.integers(1, 20), st.integers(2, 9))
def test_it_does_not_matter_in_which_blocks_rows_come(values: list[float], limit: int, blocks: int) -> None:
    one, several = filled(values, limit, 1), filled(values, limit, blocks)
    for name in JOINING:
        assert one.column(name).tolist() == several.column(name).tolist()


def test_rows_may_be_tables_themselves() -> None:
    table = Thinned({"seconds": "sum"}, limit=1)
    table.add(seconds=np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    assert table.column("seconds").tolist() == [[4.0, 6.0], [5.0, 6.0]]


def test_an_empty_table_has_empty_columns() -> None:
    assert len(Thinned(JOINING, 1).column("at")) == 0


def test_columns_of_other_names_are_refused() -> None:
    with pytest.raises(ValueError, match="columns"):
        Thinned(JOINING, 1).add(at=np.zeros(1))
    with pytest.raises(ValueError, match="nothing"):
        Thinned(JOINING, 0)
