"""What a worker of the tests does: a few updates with a Learner, or a whole run through the door."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import toys
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed import HashStore
from worker_group import Seat

from dist_train import optimizers, worker
from dist_train.config.schema import Config
from dist_train.core.checkpoint import SHARED, Facts, rank_part
from dist_train.core.commit import Committer, Draft
from dist_train.core.learner import Learner, Measurement, Workplace
from dist_train.core.seeds import generator_states, seed_all, worker_seed
from dist_train.core.state import Counted, State, join, part_of
from dist_train.core.step import Numerics
from dist_train.couplings.allreduce import AllReduce
from dist_train.exchange.ballot import StoreBallot
from dist_train.plan import make_plan
from dist_train.rules.sampling import Run
from dist_train.rules.schedule import Scheduled
from dist_train.runtime.connect import Connection
from dist_train.runtime.place import Place
from dist_train.task import Task

CPU = torch.device("cpu")


def config_of(**sections: Any) -> Config:
    """Make a configuration: batches of 4 per worker, SGD at 0.1, and what is given."""
    tree: dict[str, Any] = {
        "name": "toy",
        "task": f"{toys.__file__}:Plain",
        "seed": 5,
        "train": {"steps": 1000, "batch_size": 4},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "logging": {"tensorboard": False},
    }
    return Config.model_validate(tree | sections)


def make_learner(
    config: Config, task: Task, rank: int, workers: int, collective: Any, numerics: Numerics | None = None
) -> Learner:
    """Make a learner from its initialisation, ready to begin."""
    seed_all(config.seed)
    model = task.model()
    state = State(model, optimizers.build(model, config.optimizer), CPU)
    seed_all(worker_seed(config.seed, rank, 0))
    at = Workplace(rank, workers, numerics or Numerics(CPU), collective, lambda *_: None)
    return Learner(config, task, state, AllReduce(config.parallel, rank, workers), at)


@contextmanager
def learning(
    seat: Seat, config: Config, task: Task, numerics: Numerics | None = None, counted: Counted | None = None
) -> Iterator[Learner]:
    """Give a learner at the beginning of its training, or where ``counted`` says."""
    with seat.collective() as collective:
        learner = make_learner(config, task, seat.rank, seat.workers, collective, numerics)
        learner.state.counted = counted or Counted()
        learner.begin(make_plan(config, seat.workers, len(learner.train_data)))
        try:
            yield learner
        finally:
            learner.close()


def weights_of(learner: Learner) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in learner.state.model.state_dict().items()}


def train(
    seat: Seat, config: Config, task: Task, updates: int, counted: Counted | None = None
) -> dict[str, Any]:
    """Make some updates; return the weights and each update's loss."""
    with learning(seat, config, task, counted=counted) as learner:
        losses = []
        for _ in range(updates):
            learner.step()
            losses.append(learner.measure().loss)
        return {"weights": weights_of(learner), "losses": losses}


def train_compiled(seat: Seat, config: Config, task: Task, updates: int) -> tuple[dict[str, Any], int]:
    """Like ``train``; also return how many graphs were made. They are run as they are, for want of time."""
    graphs: list[Any] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    with mock.patch.object(torch, "compile", partial(torch.compile, backend=backend)):
        return train(seat, config, task, updates), len(graphs)


def train_and_measure(seat: Seat, config: Config, task: Task, updates: int) -> Measurement:
    """Make some updates and measure them together."""
    with learning(seat, config, task) as learner:
        for _ in range(updates):
            learner.step()
        return learner.measure()


def train_and_validate(seat: Seat, config: Config, task: Task, updates: int, often: bool) -> dict[str, Any]:
    """Like ``train``; validates at the end or after every update."""
    with learning(seat, config, task) as learner:
        for _ in range(updates):
            learner.step()
            if often:
                learner.validate()
        before = weights_of(learner)
        metrics = {} if often else learner.validate()
        with learner.delivered_model():
            delivered = weights_of(learner)
        states, values = generator_states(CPU)
        generators = {name: state.tolist() for name, state in states.items()} | values
        after = weights_of(learner)
        return {
            "weights": before,
            "after": after,
            "delivered": delivered,
            "metrics": metrics,
            "generators": generators,
        }


def train_leases(
    seat: Seat, config: Config, task: Task, run_dir: Path, leases: list[Run], after: Counted
) -> None:
    """Make an update on each lease and save what a server would: counts ``after``, and no generators."""
    with learning(seat, config, task) as learner:
        feed, batches = learner.leased()
        for lease in leases:
            feed.feed(lease)
            learner.step_on(batches, lease.count, Scheduled(learner.rate))
        state = learner.state
        state.counted = after
        own = join({"buffers": part_of(state.own_part(), "buffers")})
        parts = {SHARED: state.shared_part(), rank_part(0): own}
        ballot = StoreBallot(HashStore(), "ballot", 0, 1)
        committer = Committer(run_dir / "checkpoints", 0, 1, "server", ballot, (3, None))
        outcome = committer.commit(Draft(1, after.updates, Facts(after.samples, "hash"), parts))
        assert outcome.path is not None, outcome.reason


class StopAt:
    """Stops all workers at one update, as a signal would; None: never."""

    reason = "test"

    def __init__(self, update: int | None) -> None:
        self._update = update

    def reached(self, boundary: int) -> bool:
        return self._update is not None and boundary >= self._update

    def agreed_at(self, boundary: int) -> bool:
        return self.reached(boundary)

    def close(self) -> None:
        return None


def run(seat: Seat, config: Config, run_dir: Path, stop_at: int | None, resume: str = "auto") -> int:
    """Be one worker of a run from the beginning, or from where it was left; return its exit status."""
    connection = Connection(
        Place(seat.rank, seat.workers), CPU, seat.store, timedelta(seconds=20), lambda *_: None
    )
    given = worker.Assignment(run_dir, resume, f"attempt-{stop_at}")
    return worker.work(config, connection, given, StopAt(stop_at))


def saved(run_dir: Path, step: int) -> dict[str, Any]:
    """Return all that the checkpoint of ``step`` holds, by file."""
    folder = run_dir / "checkpoints" / f"step_{step:08d}"
    held: dict[str, Any] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix == ".safetensors":
            held |= {f"{file.name}:{name}": value for name, value in load_file(file).items()}
        elif file.name != "manifest.json":
            held[file.name] = json.loads(file.read_text())
    return held


def lines(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    """Return the lines of one kind in the run's metrics."""
    read = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in read if line["kind"] == kind]


def first_inputs(seat: Seat, config: Config, task: Task) -> Tensor:
    """Return the inputs of the training set's first samples."""
    with learning(seat, config, task) as learner:
        return torch.stack([learner.train_data[index][0] for index in range(8)])
