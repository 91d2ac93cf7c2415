"""The asynchronous parameter server that Ray's documentation shows, with this benchmark's model and data.

python -m benchmarks.contestants.ray_actors mlp

As in https://docs.ray.io/en/latest/ray-core/examples/plot_parameter_server.html: one actor holds the model
and steps its optimizer, further actors compute gradients, and the driver takes whichever gradient
``ray.wait`` says is there. Gradients go as NumPy arrays and weights as a state_dict, as arguments and
results of calls. The example's evaluation after every tenth update is left out; the loss is logged instead.
"""

from __future__ import annotations

import sys
import tempfile
from itertools import count
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import RayActorError
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.workload import (
    BATCH,
    LEARNING_RATE,
    LOG_EVERY,
    MOMENTUM,
    Memory,
    loss_of,
    make_columns,
    make_model,
    whole,
)

WORKERS = 2

Weights = dict[str, Tensor]
Gradients = list[NDArray[np.float32]]


class ParameterServer:
    """Holds the model and its optimizer. As in the example the optimizer is torch's as it comes."""

    def __init__(self, workload: str) -> None:
        torch.manual_seed(0)
        self.model = make_model(workload)
        self.optimizer = torch.optim.SGD(self.model.parameters(), LEARNING_RATE, MOMENTUM)

    def apply_gradients(self, *gradients: Gradients) -> Weights:
        summed = [np.stack(of_one).sum(axis=0) for of_one in zip(*gradients, strict=True)]
        self.optimizer.zero_grad()
        for parameter, gradient in zip(self.model.parameters(), summed, strict=True):
            parameter.grad = torch.from_numpy(gradient)
        self.optimizer.step()
        return self.get_weights()

    def get_weights(self) -> Weights:
        return {name: value.cpu() for name, value in self.model.state_dict().items()}


class DataWorker:
    """Computes gradients of the weights it is given."""

    def __init__(self, workload: str, rank: int) -> None:
        torch.manual_seed(rank)
        self.model = make_model(workload)
        data = Memory(*make_columns(workload))
        self.loader = DataLoader(data, BATCH, shuffle=True, collate_fn=whole, drop_last=True)
        self.batches = iter(self.loader)
        self.loss = float("nan")

    def compute_gradients(self, weights: Weights) -> Gradients:
        self.model.load_state_dict(weights)
        try:
            batch = next(self.batches)
        except StopIteration:
            self.batches = iter(self.loader)
            batch = next(self.batches)
        self.model.zero_grad()
        loss, _ = loss_of(self.model, batch)
        loss.backward()
        self.loss = loss.item()
        return [parameter.grad.numpy() for parameter in self.model.parameters() if parameter.grad is not None]

    def last_loss(self) -> float:
        return self.loss


def main(workload: str) -> None:
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        ray.init(include_dashboard=False, _temp_dir=folder)
        try:
            train(workload)
        except RayActorError:
            print("a worker has gone", flush=True)
        finally:
            ray.shutdown()


def train(workload: str) -> None:
    """Apply gradients until a worker goes."""
    server: Any = ray.remote(ParameterServer).remote(workload)
    workers: list[Any] = [ray.remote(DataWorker).remote(workload, rank) for rank in range(WORKERS)]
    weights = server.get_weights.remote()
    computing = {worker.compute_gradients.remote(weights): worker for worker in workers}
    for update in count(1):
        ready, _ = ray.wait(list(computing))
        worker = computing.pop(ready[0])
        if update % LOG_EVERY == 0:
            print(f"update {update}: loss {ray.get(worker.last_loss.remote()):.4f}", flush=True)
        weights = server.apply_gradients.remote(ready[0])
        computing[worker.compute_gradients.remote(weights)] = worker


if __name__ == "__main__":
    main(sys.argv[1])
