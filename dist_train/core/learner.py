"""One worker's learning: its position in the data, its step, its measurements."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import Dataset

from dist_train.config.schema import Config
from dist_train.core.data import (
    LeasedBatches,
    Order,
    Samples,
    Share,
    leased_batches,
    made_alike,
    training_batches,
    validation_batches,
)
from dist_train.core.evaluation import Validator, evaluation_buffers, recomputed_statistics
from dist_train.core.injected_faults import injected_faults
from dist_train.core.partition import bootstrap_sample, own_part
from dist_train.core.state import Counted, State
from dist_train.core.step import GradientHalf, Numerics, UpdateHalf
from dist_train.core.timing import PHASES, StepClock
from dist_train.couplings import Coupling
from dist_train.errors import TrainingError
from dist_train.exchange.collective import Collective
from dist_train.exchange.server import Figures
from dist_train.optimizers import set_for_update
from dist_train.plan import Plan
from dist_train.rules.injection import Who
from dist_train.rules.sampling import BEGINNING, Cursor, samples_in
from dist_train.rules.schedule import Scheduled, learning_rate, scheduled
from dist_train.rules.straggler import StepTimes
from dist_train.rules.teaching import replica_seed
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
    """What a learner needs to know of the worker it runs in.

    ``rank`` and ``workers`` are those of its group; ``number`` is its own among all workers of the run, those
    of all replicas one after the other.
    """

    rank: int
    workers: int
    numerics: Numerics
    collective: Collective
    phase: SetPhase
    number: int = 0
    # Which of several models it trains.
    replica: int = 0
    # How often it was started before.
    life: int = 0


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
        self._in_phase = "starting"

    @cached_property
    def train_data(self) -> Dataset[Any]:
        config, at = self.config, self._at
        whole = made_alike(self.task.train_data, config.seed, at.numerics.device)
        if config.data.bootstrap:
            return bootstrap_sample(whole, at.replica, config.seed)
        parts = config.data_parts
        return whole if parts == 1 else own_part(whole, at.replica, parts, config.seed)

    @cached_property
    def validation_data(self) -> Dataset[Any]:
        return made_alike(self.task.validation_data, self.config.seed, self._at.numerics.device)

    def begin(self, plan: Plan) -> None:
        """Get ready to train, and start loading where the state's counts say."""
        self.prepare(plan)
        self._batches = self._training_batches(self.state.counted.cursor)

    def prepare(self, plan: Plan) -> None:
        """Wrap the model for training: from here on ``step_on`` makes a step on batches given to it."""
        self.plan = plan
        config, at, model = self.config, self._at, self.state.model
        counted = self.state.counted
        own_seed = config.seed if config.draws_alike else replica_seed(config.seed, at.replica)
        counted.seed = own_seed if counted.seed is None else counted.seed
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
        who = Who(at.number, at.life)
        self._faults = injected_faults(config.faults, who, counted.updates)
        self._loss_sum = torch.zeros((), device=at.numerics.device)
        self._batches = iter(())
        self._validators: dict[tuple[int, int], Validator] = {}
        # A validation set that cannot be used is an error now, not after the first epoch.
        self._validator(at.rank, at.workers)
        self._window_start = time.perf_counter()

    @property
    def finished(self) -> bool:
        return updates_left(self.plan, self.state.counted) == 0

    @property
    def rate(self) -> float:
        """The learning rate of the next update."""
        return learning_rate(self.plan.schedule, self.state.counted.samples)

    @property
    def has_unmeasured_steps(self) -> bool:
        return self._window_steps > 0

    def step(self) -> None:
        """Make one update on the next samples, and count it."""
        counted = self.state.counted
        taken = self._order.draw(counted.cursor)
        self.step_on(self._batches, taken.count, scheduled(self.plan.schedule, counted.samples))
        counted.updates += 1
        counted.samples += taken.count
        counted.cursor = self._order.after(counted.cursor)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Wait inside for other replicas, which is none of this worker's own work; nor does it hang then."""
        interrupted = self._in_phase
        self._phase("waiting")
        with self._clock.waiting():
            yield
        self._phase(interrupted)

    def workers_with(self, batch: int) -> int:
        """Return how many workers of the group have a batch of that number in the next update: the first."""
        count, at = self._order.draw(self.state.counted.cursor).count, self._at
        ranks = range(at.workers)
        return sum(len(replace(self._share, rank=rank).batches(count)) > batch for rank in ranks)

    def step_on(self, batches: Iterator[Any], count: int, made_with: Scheduled) -> None:
        """Compute gradients, bring them together, apply them; the state's counts are the caller's.

        ``batches`` yields this worker's share of the step's ``count`` samples.
        """
        sizes = [len(offsets) for offsets in self._share.batches(count)]
        set_for_update(self.state.optimizer, self.config.optimizer, made_with)
        self._gradients(batches, sizes, count, self._loss_sum)
        if self._faults is not None:
            self._faults(self._clock)
        self._phase("update")
        self.coupling.update(self._update)
        self._clock.end("update")
        self._window_steps += 1
        self._window_samples += count

    def figures(self) -> Figures:
        """Return what this worker alone measured since the last call, before its update is done with."""
        times, norm = self._clock.drain(1), self._update.gradient_norm
        loss = float(self._loss_sum)
        self._loss_sum.zero_()
        return Figures(
            loss=loss,
            seconds={phase: getattr(times, phase) for phase in PHASES},
            memory_mb=peak_memory_mb(self._at.numerics.device),
            gradient_norm=None if norm is None else float(norm),
        )

    def leased(self) -> tuple[LeasedBatches, Generator[Any, None, None]]:
        """Return what to feed with leases, and this worker's batches of them for ``step_on``.

        Whoever asks for them closes them: as with ``close``, loading processes would outlast the training.
        """
        leases = LeasedBatches(self._order, self._share)
        return leases, leased_batches(self._samples, leases, self.config.data, self._pin)

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
        with self.delivered_model():
            validator = self._validator(self._at.rank, self._at.workers)
            metrics = validator(self.state.model, self._alive_while(go_on))
        if metrics is not None:
            self.coupling.observe(metrics)
        self._window_start += time.perf_counter() - start
        return metrics

    def validate_part(
        self, part: int, parts: int, go_on: Callable[[], bool] = lambda: True
    ) -> tuple[dict[str, float], int] | None:
        """Return loss and metrics summed over one part of the validation set, and the samples in it.

        Asks no other worker, and takes the model as it is; None when ``go_on`` was False before a batch.
        """
        start, validator = time.perf_counter(), self._validator(part, parts)
        sums = validator.sums(self.state.model, self._alive_while(go_on))
        self._window_start += time.perf_counter() - start
        if sums is None:
            return None
        return {name: float(total) for name, total in sums.items()}, sum(validator.sizes)

    def _alive_while(self, go_on: Callable[[], bool]) -> Callable[[], bool]:
        def alive() -> bool:
            self._at.phase("validating", self.state.counted.updates)
            return go_on()

        return alive

    def delivered_model(self) -> ExitStack:
        """Give the model, for a while, the batch-norm statistics that it is validated and delivered with."""
        stack = ExitStack()
        number = self.config.validation.batch_norm_batches
        if number:
            batches = self._beating(self._training_batches(Cursor(BEGINNING)))
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
        self._in_phase = name
        self._at.phase(name, self.state.counted.updates + 1)

    @property
    def _pin(self) -> bool:
        return self._at.numerics.device.type == "cuda"

    def _training_batches(self, cursor: Cursor) -> Iterator[Any]:
        return training_batches(self._samples, self._order, self._share, cursor, self.config.data, self._pin)

    def _validator(self, part: int, parts: int) -> Validator:
        """Return the validator of one part of the set, made once."""
        key = (part, parts)
        if key not in self._validators:
            at, config = self._at, self.config
            share = -(-self.plan.samples_per_update // (self.plan.workers * config.train.accumulate))
            size = config.validation.batch_size or config.train.batch_size or share
            data = validation_batches(self.validation_data, part, parts, size, config.data, self._pin)
            self._validators[key] = Validator(self.task, *data, at.numerics, at.collective)
        return self._validators[key]


def updates_left(plan: Plan, counted: Counted) -> int:
    """Return how many updates are still to come: unfinished runs first, then what was never dealt."""
    if plan.length.steps is not None:
        return max(0, plan.length.steps - counted.updates)
    waiting, batch = samples_in(counted.unfinished), plan.samples_per_update
    if plan.length.samples is not None:
        left = max(0, plan.length.samples - counted.samples)
        if left <= waiting:
            return -(-left // batch)
    first = -(-waiting // batch)
    return first + plan.updates_left(counted.updates + first, counted.samples + waiting, counted.position)


def peak_memory_mb(device: torch.device) -> float:
    """Return the most memory this worker has held so far: of its GPU, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
