"""Tests of the coordinator's memory: whole states side by side, and a version held still."""

from __future__ import annotations

from contextlib import closing

import pytest
import torch

from dist_train.exchange.areas import Vectors, areas, checksum, held, held_bytes
from dist_train.exchange.segments import Segment

SIZES = [
    Vectors(16, ()),
    Vectors(40, ("momentum_buffer",)),
    Vectors(37, ("exp_avg", "exp_avg_sq"), (0, 1, 2)),
    Vectors(5, (), (4,)),
]


def rows(area):
    return [area.parameters, *area.optimizer.values(), *area.mean_squares.values()]


@pytest.mark.parametrize("vectors", SIZES, ids=str)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_states_lie_side_by_side_and_never_on_one_another(vectors, count):
    with closing(Segment.create(count * vectors.bytes)) as segment:
        laid = areas(segment, vectors, count)
        every = [row for area in laid for row in rows(area)]
        assert len(every) == count * vectors.count
        for number, row in enumerate(every):
            assert row.shape == (vectors.size,)
            row.fill_(number)
        for number, row in enumerate(every):
            assert (row == number).all()


def test_a_state_has_a_vector_for_each_name_and_each_member():
    with closing(Segment.create(SIZES[2].bytes)) as segment:
        (area,) = areas(segment, SIZES[2], 1)
        assert list(area.optimizer) == ["exp_avg", "exp_avg_sq"]
        assert list(area.mean_squares) == [0, 1, 2]


def test_another_process_finds_the_same_state_in_the_same_place():
    with closing(Segment.create(2 * SIZES[2].bytes)) as segment:
        mine, theirs = (areas(Segment.open(segment.address), SIZES[2], 2) for _ in range(2))
        mine[1].mean_squares[2].fill_(7.0)
        assert (theirs[1].mean_squares[2] == 7.0).all()


@pytest.mark.parametrize("statistics", [0, 1, 9])
def test_a_held_version_and_its_statistics_lie_apart(statistics):
    with closing(Segment.create(held_bytes(37, statistics))) as segment:
        parameters, values = held(segment, 37, statistics)
        assert (parameters.shape, values.shape) == ((37,), (statistics,))
        assert (parameters.dtype, values.dtype) == (torch.float32, torch.float64)
        parameters.fill_(1.0)
        values.fill_(2.0)
        assert (parameters == 1.0).all()
        assert (values == 2.0).all()


class TestChecksum:
    def test_it_is_crc_32(self):
        # The check value of CRC-32: that of the text 123456789.
        text = torch.tensor(list(b"123456789"), dtype=torch.uint8)
        assert checksum([text]) == checksum([text[:4], text[4:]]) == 0xCBF43926

    def test_one_bit_makes_a_difference(self):
        vector = torch.zeros(1000)
        other = vector.clone()
        other[999] = torch.finfo(torch.float32).tiny
        assert checksum([vector]) != checksum([other])

    def test_it_is_of_bits_and_not_of_values(self):
        assert checksum([torch.tensor([0.0])]) != checksum([torch.tensor([-0.0])])
