"""The rivals of the parameter server are what they are said to be."""

import pytest
import torch
from torch import nn

from benchmarks.contestants import floor
from benchmarks.machine import environment
from benchmarks.server_speed import floor as floor_contestant
from benchmarks.turns import Stage
from benchmarks.workload import BATCH, LEARNING_RATE, MOMENTUM, make_columns, make_model


class TestTheFloor:
    def test_its_flat_vector_holds_every_parameter_once_each_on_a_cache_line(self):
        model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1))
        flat = torch.zeros(floor.flat_size(model))
        views = floor.views(flat, model)
        for view in views:
            view.add_(1)
        assert flat.sum() == sum(parameter.numel() for parameter in model.parameters())
        assert all((view.data_ptr() - flat.data_ptr()) % 64 == 0 for view in views)

    def test_training_begins_at_the_model_that_everybody_trains(self):
        torch.manual_seed(0)
        model = make_model("tiny")
        flat = floor.initial("tiny")
        for view, parameter in zip(floor.views(flat, model), model.parameters(), strict=True):
            assert torch.equal(view, parameter)

    @pytest.mark.processes
    @pytest.mark.parametrize("parts", ["floor", "compute"])
    def test_it_takes_turns_with_any_of_its_parts_and_leaves_nothing(self, parts, tmp_path):
        with Stage([floor_contestant("tiny", parts)], tmp_path, environment()) as stage:
            assert stage.rounds(2, steps=5, warmup=1)[parts][1] > 0
            # The server and two workers.
            assert len(stage.jobs[0].processes()) == 3


class TestTheServerOfRaysExample:
    def test_two_gradients_in_turn_move_the_weights_as_sgd_with_momentum_by_hand(self):
        pytest.importorskip("ray")
        from benchmarks.contestants.ray_actors import DataWorker, ParameterServer

        server, worker = ParameterServer("tiny"), DataWorker("tiny", rank=0)
        weights = {name: value.clone() for name, value in server.get_weights().items()}
        expected = [value.double() for value in weights.values()]
        velocity = [torch.zeros_like(value) for value in expected]
        for _ in range(2):
            gradients = worker.compute_gradients(weights)
            weights = {name: value.clone() for name, value in server.apply_gradients(gradients).items()}
            for place, gradient in enumerate(gradients):
                velocity[place] = MOMENTUM * velocity[place] + torch.from_numpy(gradient).double()
                expected[place] = expected[place] - LEARNING_RATE * velocity[place]
        for value, exact in zip(weights.values(), expected, strict=True):
            assert torch.allclose(value.double(), exact, atol=1e-6)

    def test_a_worker_draws_batches_of_the_size_that_all_draw(self):
        pytest.importorskip("ray")
        from benchmarks.contestants.ray_actors import DataWorker

        inputs, labels = next(DataWorker("tiny", rank=0).batches)
        assert inputs.shape == (BATCH, *make_columns("tiny", 1)[0].shape[1:])
        assert labels.shape == (BATCH,)
