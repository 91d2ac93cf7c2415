"""One worker's learning: its position in the data, its step, its measurements."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import Dataset

from dist_train.config.schema import Config
from dist_train.core.data import Order, Samples, Share, training_batches, validation_batches
from dist_train.core.evaluation import Validator, evaluation_buffers, recomputed_statistics
from dist_train.core.seeds import generators_untouched, seed_all
from dist_train.core.state import State
from dist_train.core.step import GradientHalf, Numerics, UpdateHalf
from dist_train.core.timing import PHASES, StepClock
from dist_train.couplings import Coupling
from dist_train.errors import TrainingError
from dist_train.exchange.collective import Collective
from dist_train.optimizers import set_rate
from dist_train.plan import Plan
from dist_train.rules.sampling import Position
from dist_train.rules.schedule import learning_rate, momentum
from dist_train.rules.straggler import StepTimes
from dist_train.task import Task

SetPhase = Callable[[str, int], None]


@dataclass(frozen=True)
class Measurement:
    """What happened since the last measurement, the same on every worker; seconds are per step."""

    loss: float
    samples: int
    seconds: float
    times: list[StepTimes]  # one for each worker
    memory_mb: float  # the peak of any worker
    gradient_norm: float | None


@dataclass(frozen=True)
class Workplace:
    """What a learner needs to know of the worker it runs in."""

    rank: int
    workers: int
    numerics: Numerics
    collective: Collective
    phase: SetPhase


class Learner:
    """Steps through the data and keeps the counts; ``state`` is restored before ``begin``."""

    def __init__(self, config: Config, task: Task, state: State, coupling: Coupling, at: Workplace) -> None:
        self.config = config
        self.task = task
        self.state = state
        self.coupling = coupling
        self._at = at
        self._share = Share(at.rank, at.workers, config.train.accumulate)
        self._window_steps = 0
        self._window_samples = 0
        self._window_start = time.perf_counter()

    @cached_property
    def train_data(self) -> Dataset[Any]:
        return self._made_alike(self.task.train_data)

    @cached_property
    def validation_data(self) -> Dataset[Any]:
        return self._made_alike(self.task.validation_data)

    def _made_alike(self, make: Callable[[], Dataset[Any]]) -> Dataset[Any]:
        """Make a dataset from the run's seed: one that is drawn or split at random is the same everywhere."""
        with generators_untouched(self._at.numerics.device):
            seed_all(self.config.seed)
            return make()

    def begin(self, plan: Plan) -> None:
        """Wrap the model for training and start loading at the state's position."""
        self.plan = plan
        config, at, model = self.config, self._at, self.state.model
        counted = self.state.counted
        counted.seed = config.seed if counted.seed is None else counted.seed
        counted.train_size = plan.train_size
        last_batch = config.train.last_batch
        self._order = Order(counted.seed, plan.train_size, plan.samples_per_update, last_batch)
        self._samples = Samples(self.train_data, counted.seed, config.data.bad_samples)
        self._clock = StepClock(model, at.numerics.device)
        started = self.coupling.start(model)
        if config.train.compile:
            # A wrapper to call: the state's model keeps its type and the names of its parameters.
            started = replace(started, module=cast(nn.Module, torch.compile(started.module)))
        model.train()
        self._gradients = GradientHalf(
            self.task, started, self.coupling, at.numerics, self._clock, self._phase
        )
        self._update = UpdateHalf(self.state.optimizer, list(model.parameters()), config.train.clip_norm)
        self._loss_sum = torch.zeros((), device=at.numerics.device)
        self._batches = self._training_batches(self.state.counted.position)
        self._validator = self._make_validator()
        self._window_start = time.perf_counter()

    @property
    def finished(self) -> bool:
        counted = self.state.counted
        return self.plan.finished(counted.updates, counted.samples, counted.position)

    @property
    def rate(self) -> float:
        """The learning rate of the next update."""
        return learning_rate(self.plan.schedule, self.state.counted.samples)

    @property
    def has_unmeasured_steps(self) -> bool:
        return self._window_steps > 0

    def step(self) -> None:
        """Make one update: compute gradients, bring them together, apply them."""
        counted, optimizer = self.state.counted, self.state.optimizer
        taken = self._order.draw(counted.position)
        sizes = [len(offsets) for offsets in self._share.batches(taken.count)]
        set_rate(optimizer, self.rate, momentum(self.plan.schedule, counted.samples))
        self._gradients(self._batches, sizes, taken.count, self._loss_sum)
        self._phase("update")
        self.coupling.update(self._update)
        self._clock.end("update")
        counted.updates += 1
        counted.samples += taken.count
        counted.position = self._order.after(counted.position)
        self._window_steps += 1
        self._window_samples += taken.count

    def measure(self) -> Measurement:
        """Bring the workers' figures together; the one place where a healthy step waits for the device.

        Raises TrainingError, on all workers alike, when the loss is no longer a finite number.
        """
        times = self._clock.drain(self._window_steps)
        own = [getattr(times, phase) for phase in PHASES] + [peak_memory_mb(self._at.numerics.device)]
        figures = torch.tensor(own, dtype=torch.float64, device=self._loss_sum.device)
        rows = self._at.collective.gather(torch.cat([self._loss_sum.double().reshape(1), figures])).tolist()
        seconds = time.perf_counter() - self._window_start
        norm = self._update.gradient_norm
        measurement = Measurement(
            loss=sum(row[0] for row in rows) / max(1, self._window_samples),
            samples=self._window_samples,
            seconds=seconds,
            times=[StepTimes(**dict(zip(PHASES, row[1:-1], strict=True))) for row in rows],
            memory_mb=max(row[-1] for row in rows),
            gradient_norm=None if norm is None else float(norm),
        )
        self._loss_sum.zero_()
        self._window_steps = self._window_samples = 0
        self._window_start = time.perf_counter()
        if not math.isfinite(measurement.loss):
            raise TrainingError(
                f"the loss is {measurement.loss} by step {self.state.counted.updates}; lower optimizer.lr, "
                "lengthen schedule.warmup or set train.clip_norm. The last checkpoint is kept"
            )
        return measurement

    def validate(self, go_on: Callable[[], bool] = lambda: True) -> dict[str, float] | None:
        """Return loss and metrics over the whole validation set; training goes on as if it had not been.

        ``go_on`` is asked before every batch; None when a worker was told not to.
        """
        start = time.perf_counter()

        def alive() -> bool:
            self._at.phase("validating", self.state.counted.updates)
            return go_on()

        with self.delivered_model():
            metrics = self._validator(self.state.model, alive)
        if metrics is not None:
            self.coupling.observe(metrics)
        self._window_start += time.perf_counter() - start
        return metrics

    def delivered_model(self) -> ExitStack:
        """Give the model, for a while, the batch-norm statistics that it is validated and delivered with."""
        stack = ExitStack()
        number = self.config.validation.batch_norm_batches
        if number:
            batches = self._beating(self._training_batches(Position(0, 0)))
            recomputed = recomputed_statistics(
                self.state.model, batches, number, self.task, self._at.numerics
            )
            stack.enter_context(recomputed)
        stack.enter_context(evaluation_buffers(self.state.model, self._at.collective))
        return stack

    def _beating(self, batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            self._at.phase("validating", self.state.counted.updates)
            yield batch

    def close(self) -> None:
        """End the loading processes: they ignore SIGTERM, and Python's exit would wait for them."""
        self._batches = iter(())

    def _phase(self, name: str) -> None:
        self._at.phase(name, self.state.counted.updates + 1)

    def _training_batches(self, position: Position) -> Iterator[Any]:
        pin = self._at.numerics.device.type == "cuda"
        data = self.config.data
        return training_batches(self._samples, self._order, self._share, position, data, pin)

    def _make_validator(self) -> Validator:
        at, config = self._at, self.config
        share = -(-self.plan.samples_per_update // (at.workers * config.train.accumulate))
        loader, sizes = validation_batches(
            self.validation_data,
            at.rank,
            at.workers,
            config.validation.batch_size or share,
            config.data,
            pin=at.numerics.device.type == "cuda",
        )
        return Validator(self.task, loader, sizes, at.numerics, at.collective)


def peak_memory_mb(device: torch.device) -> float:
    """Return the most memory this worker has held so far: of its GPU, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
