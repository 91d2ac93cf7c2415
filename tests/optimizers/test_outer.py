"""Outer optimizers against their published algorithms, written out on plain numbers."""

from __future__ import annotations

import pytest
import torch

from dist_train.config import schema
from dist_train.optimizers import over
from dist_train.optimizers.outer import attract, moving_rate, server_optimizer


def moved(outer, start, deltas):
    """Return a server's parameter after each of the outer gradients ``deltas``."""
    settings = server_optimizer(outer)
    weight = torch.tensor([start], dtype=torch.float64)
    optimizer = over([{"params": [weight], "weight_decay": settings.weight_decay}], settings)
    path = []
    for delta in deltas:
        weight.grad = torch.tensor([delta], dtype=torch.float64)
        optimizer.step()
        path.append(weight.item())
    return path


class TestAverage:
    def test_the_server_lands_on_the_mean_of_the_members(self):
        start, members = 8.0, [2.0, 3.0, 7.0]
        delta = sum(start - member for member in members) / 3
        assert moved(schema.AverageOuter(), start, [delta]) == [4.0]

    def test_nothing_is_carried_over_to_the_next_round(self):
        assert moved(schema.AverageOuter(), 8.0, [4.0, 0.0, 0.0]) == [4.0, 4.0, 4.0]


class TestNesterov:
    @pytest.mark.parametrize(("rate", "momentum"), [(0.7, 0.9), (0.5, 0.25), (0.7, 0.0)])
    def test_it_is_momentum_looking_one_step_ahead(self, rate, momentum):
        deltas = [1.0, -0.5, 2.0, 0.25]
        weight, velocity, expected = 3.0, 0.0, []
        for delta in deltas:
            velocity = momentum * velocity + delta
            weight -= rate * (delta + momentum * velocity)
            expected.append(weight)
        found = moved(schema.NesterovOuter(lr=rate, momentum=momentum), 3.0, deltas)
        assert found == pytest.approx(expected, rel=1e-12)

    def test_the_defaults_are_those_of_the_paper(self):
        # Sutskever's look-ahead makes the first step 0.7 * (1 + 0.9).
        assert moved(schema.NesterovOuter(), 0.0, [1.0]) == pytest.approx([-1.33])


class TestElastic:
    def test_both_move_by_the_same_share_of_their_distance(self):
        local, centre, out = torch.tensor([10.0]), torch.tensor([2.0]), torch.empty(1)
        attract(local, centre, 0.25, out)
        assert local.item() == 8.0
        assert centre.item() == 2.0
        assert moved(schema.ElasticOuter(), 2.0, [out.item()]) == [4.0]

    def test_several_members_in_turn_are_the_published_asynchronous_algorithm(self):
        rate, members, centre = 0.125, [4.0, -8.0, 16.0], 0.0
        expected_members, expected_centre = list(members), centre
        for index in (0, 1, 2, 1, 0):
            difference = rate * (expected_members[index] - expected_centre)
            expected_members[index] -= difference
            expected_centre += difference

            local, out = torch.tensor([members[index]]), torch.empty(1)
            attract(local, torch.tensor([centre]), rate, out)
            members[index] = local.item()
            [centre] = moved(schema.ElasticOuter(), centre, [out.item()])
        assert (members, centre) == (expected_members, expected_centre)

    def test_parameters_that_are_being_trained_may_be_moved(self):
        local = torch.nn.Parameter(torch.tensor([10.0]))
        attract(local, torch.tensor([2.0]), 0.25, torch.empty(1))
        assert local.item() == 8.0
        assert local.requires_grad

    def test_the_moving_rate_is_shared_among_the_groups_unless_given(self):
        assert moving_rate(schema.ElasticOuter(), 4) == pytest.approx(0.225)
        assert moving_rate(schema.ElasticOuter(moving_rate=0.5), 4) == 0.5


@pytest.mark.parametrize(
    "outer", [schema.AverageOuter(), schema.NesterovOuter(), schema.ElasticOuter()], ids=lambda o: o.kind
)
def test_the_server_decays_no_weights(outer):
    assert moved(outer, 5.0, [0.0, 0.0]) == [5.0, 5.0]
