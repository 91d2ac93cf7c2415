"""Delay compensation against the published formula, on numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dist_train.config import schema
from dist_train.core.damping import DelayCompensation, delay_compensation


def compensated(compensation, gradient, current, base, member=0):
    vectors = [torch.tensor(values, dtype=torch.float32) for values in (gradient, current, base)]
    out = torch.full_like(vectors[0], float("nan"))
    compensation.compensate(member, *vectors, out)
    return out.tolist()


class TestConstant:
    def test_every_element_is_moved_by_the_square_of_its_gradient_times_its_distance(self):
        # 2 + 0.25 * 4 * (5 - 3) = 4;  -1 + 0.25 * 1 * (0 - 8) = -3;  0 stays 0 however far.
        found = compensated(DelayCompensation(0.25, None), [2, -1, 0], [5, 0, 100], [3, 8, -100])
        assert found == [4.0, -3.0, 0.0]

    def test_a_fresh_gradient_is_left_as_it_is_to_the_bit(self):
        gradient = torch.randn(1000, generator=torch.Generator().manual_seed(0))
        parameters, out = torch.randn(1000), torch.empty(1000)
        DelayCompensation(0.04, None).compensate(0, gradient, parameters, parameters.clone(), out)
        assert torch.equal(out, gradient)


class TestAdaptive:
    def test_without_memory_the_square_becomes_the_size_of_the_gradient(self):
        # ms = 9, so that lambda * 9 = 2 / 3 * 9 = 6:  -3 + 6 * 0.5 = 0 and 3 + 6 * 0.5 = 6.
        found = compensated(DelayCompensation(2.0, 0.0), [-3, 3], [0.5, 0.5], [0, 0])
        assert found == pytest.approx([0.0, 6.0], abs=1e-6)

    def test_the_mean_square_begins_at_zero_and_forgets_slowly(self):
        compensation = DelayCompensation(2.0, 0.75)
        # ms = 0.25 * 4 = 1:  2 + 2 * 4 * 0.5 = 6.  Then ms = 0.75 + 0.25 * 1 = 1:  1 + 2 * 1 * 0.5 = 2.
        assert compensated(compensation, [2], [1.5], [1]) == pytest.approx([6.0])
        assert compensated(compensation, [1], [1.5], [1]) == pytest.approx([2.0])
        # Then ms = 0.75 + 0.25 * 13 = 4:  sqrt(13) + 2 / 2 * 13 * 0.5.
        root = 13**0.5
        assert compensated(compensation, [root], [1.5], [1]) == pytest.approx([root + 6.5])

    def test_every_member_has_a_mean_square_of_its_own(self):
        compensation = DelayCompensation(2.0, 0.75)
        compensated(compensation, [100], [0], [0], member=3)
        # ms = 0.25 * 16 = 4:  4 + 2 / 2 * 16 * 0.5 = 12, whatever member 3 has sent.
        assert compensated(compensation, [4], [0.5], [0], member=1) == pytest.approx([12.0])
        compensated(compensation, [0], [0], [0], member=3)
        assert {member: ms.tolist() for member, ms in compensation.mean_squares.items()} == {
            3: [1875.0],
            1: [4.0],
        }

    def test_a_gradient_of_zero_stays_zero(self):
        assert compensated(DelayCompensation(2.0, 0.95), [0], [100], [-100]) == [0.0]

    def test_the_term_under_the_root_is_the_published_one(self):
        # With ms = 0.25 * 4e-8 = 1e-8:  sqrt(1e-8 + 1e-7) = sqrt(1.1e-7).
        found = compensated(DelayCompensation(2.0, 0.75), [2e-4], [1e4], [0])
        assert found == pytest.approx([2e-4 + 2 / 1.1e-7**0.5 * 4e-8 * 1e4], rel=1e-5)

    def test_loaded_mean_squares_are_gone_on_from_and_not_shared(self):
        saved = {2: torch.tensor([4.0])}
        compensation = DelayCompensation(2.0, 0.75)
        compensation.load(saved)
        # ms = 0.75 * 4 + 0.25 * 4 = 4:  2 + 1 * 4 * 0.5 = 4.
        assert compensated(compensation, [2], [0.5], [0], member=2) == pytest.approx([4.0])
        compensated(compensation, [0], [0], [0], member=2)
        assert saved[2].item() == 4.0


@pytest.mark.parametrize("decay", [None, 0.95])
def test_long_vectors_are_compensated_to_their_end_and_the_inputs_left_alone(decay):
    generator = torch.Generator().manual_seed(1)
    gradient, current, base = torch.randn(3, 300_016, generator=generator).unbind()
    before = [vector.clone() for vector in (gradient, current, base)]
    compensation, out = DelayCompensation(0.5, decay), torch.empty_like(gradient)
    compensation.compensate(0, gradient, current, base, out)

    g, w, b = (vector.double().numpy() for vector in before)
    strength = 0.5 if decay is None else 0.5 / np.sqrt(0.05 * g * g + 1e-7)
    np.testing.assert_allclose(out.numpy(), g + strength * g * g * (w - b), rtol=1e-4, atol=1e-5)
    assert all(map(torch.equal, (gradient, current, base), before))


class TestSettings:
    @pytest.mark.parametrize(
        "damping",
        [
            schema.NoDamping(),
            schema.InverseDamping(),
            schema.DelayCompensated(strength=0.0),
            schema.DelayCompensated(variant="constant", strength=0.0),
        ],
    )
    def test_where_nothing_is_compensated_there_is_nothing_to_do(self, damping):
        assert delay_compensation(damping) is None

    def test_the_strengths_are_the_published_ones_unless_given(self):
        constant = delay_compensation(schema.DelayCompensated(variant="constant"))
        adaptive = delay_compensation(schema.DelayCompensated(variant="adaptive"))
        chosen = delay_compensation(schema.DelayCompensated(variant="adaptive", strength=1.0, decay=0.0))
        assert (constant.strength, constant.decay) == (0.04, None)
        assert (adaptive.strength, adaptive.decay) == (2.0, 0.95)
        assert (chosen.strength, chosen.decay) == (1.0, 0.0)
