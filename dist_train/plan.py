"""From configuration to arithmetic: how many samples make one update, and what follows from it.

Only the coupling's settings know how many samples one update consumes. Learning rate, warmup, epochs
and the end of training are derived from that number here, once, for every mode and for --dry-run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dist_train.config.schema import (
    Config,
    ConstantDecay,
    CosineDecay,
    CosineRestarts,
    NoWarmup,
    OneCycle,
    Parallel,
    Span,
    StepDecay,
    Train,
)
from dist_train.errors import ConfigError
from dist_train.rules import schedule as rules
from dist_train.rules.sampling import Position, updates_per_epoch
from dist_train.rules.scaling import scaled_learning_rate


def samples_per_update(parallel: Parallel, train: Train, workers: int) -> int:
    """Return how many samples one update of a replica consumes (the effective global batch).

    Synchronous mode: every worker contributes ``accumulate`` batches to each update.
    """
    if parallel.global_batch is not None:
        return parallel.global_batch
    assert train.batch_size is not None  # the configuration gives exactly one of the two
    return workers * train.batch_size * train.accumulate


@dataclass(frozen=True)
class Plan:
    """The arithmetic of one run with a given number of workers and training samples."""

    workers: int
    train_size: int
    samples_per_epoch: int
    samples_per_update: int
    updates_per_epoch: int
    total_updates: int
    schedule: rules.Schedule
    length: Span

    def finished(self, updates: int, samples: int, position: Position) -> bool:
        """Say whether training is over, in the unit in which its length was given."""
        if self.length.steps is not None:
            return updates >= self.length.steps
        if self.length.samples is not None:
            return samples >= self.length.samples
        assert self.length.epochs is not None
        return position.epoch + position.offset / self.train_size >= self.length.epochs

    def samples_in(self, span: Span) -> int:
        """Convert a length of training to samples."""
        return _Lengths(self.samples_per_epoch, self.samples_per_update, self.updates_per_epoch).samples(span)

    def updates_left(self, updates: int, samples: int, position: Position) -> int:
        """Return how many updates are still to come from here."""
        if self.length.steps is not None:
            return max(0, self.length.steps - updates)
        if self.length.samples is not None:
            epochs = (self.length.samples - samples) / self.samples_per_epoch
        else:
            assert self.length.epochs is not None
            epochs = self.length.epochs - position.epoch - position.offset / self.train_size
        return max(0, math.ceil(epochs * self.updates_per_epoch - 1e-9))


def make_plan(config: Config, workers: int, train_size: int, rewarms: Sequence[rules.Rewarm] = ()) -> Plan:
    """Derive the plan; raise ConfigError where the data and the settings contradict each other."""
    batch = samples_per_update(config.parallel, config.train, workers)
    _refuse_impossible(config, workers, train_size, batch)
    per_epoch = updates_per_epoch(train_size, batch, config.train.last_batch)
    lengths = _Lengths(_samples_per_epoch(config, train_size, batch), batch, per_epoch)
    total = lengths.samples(config.train.length)
    peak = scaled_learning_rate(
        config.schedule.scaling, config.optimizer.lr, batch, config.schedule.base_batch
    )
    return Plan(
        workers=workers,
        train_size=train_size,
        samples_per_epoch=lengths.epoch,
        samples_per_update=batch,
        updates_per_epoch=per_epoch,
        total_updates=lengths.updates(config.train.length),
        schedule=rules.Schedule(
            peak=peak,
            total=total,
            warmup=_warmup(config, lengths),
            decay=_decay(config, lengths, total, peak),
            rewarms=tuple(rewarms),
        ),
        length=config.train.length,
    )


@dataclass(frozen=True)
class _Lengths:
    """Conversions between epochs, steps and samples; ``epoch`` is the samples that one trains on."""

    epoch: int
    batch: int
    updates_per_epoch: int

    def samples(self, span: Span) -> int:
        if span.samples is not None:
            return span.samples
        if span.epochs is not None:
            return round(span.epochs * self.epoch)
        assert span.steps is not None
        epochs, rest = divmod(span.steps, self.updates_per_epoch)
        return epochs * self.epoch + rest * self.batch

    def updates(self, span: Span) -> int:
        if span.steps is not None:
            return span.steps
        return math.ceil(self.samples(span) / self.epoch * self.updates_per_epoch - 1e-9)


def _samples_per_epoch(config: Config, train_size: int, batch: int) -> int:
    """Return the samples that one epoch trains on: without the last ones where those are dropped."""
    return train_size - train_size % batch if config.train.last_batch == "drop" else train_size


def _refuse_impossible(config: Config, workers: int, train_size: int, batch: int) -> None:
    if train_size == 0:
        raise ConfigError(f"task {config.task}: the training set is empty")
    if batch < workers:
        raise ConfigError(
            f"parallel.global_batch: {batch} samples cannot be split among {workers} workers; "
            f"give at least {workers}"
        )
    if config.train.last_batch == "drop" and batch > train_size:
        raise ConfigError(
            f"train.last_batch: dropping leaves nothing to train on, since one update takes {batch} samples "
            f"and the training set has {train_size}; set train.last_batch to keep or shrink the batch"
        )


def _warmup(config: Config, lengths: _Lengths) -> rules.Warmup | None:
    warmup = config.schedule.warmup
    if isinstance(warmup, NoWarmup):
        return None
    start = config.optimizer.lr if warmup.start_lr is None else warmup.start_lr
    return rules.Warmup(lengths.samples(warmup), start, gradual=warmup.kind == "gradual")


def _decay(config: Config, lengths: _Lengths, total: int, peak: float) -> rules.Decay:
    decay = config.schedule.decay
    if isinstance(decay, CosineDecay | CosineRestarts) and decay.min_lr > peak:
        raise ConfigError(
            f"schedule.decay.min_lr: {decay.min_lr:g} is above the learning rate after scaling, {peak:.6g}; "
            "lower it"
        )
    match decay:
        case ConstantDecay():
            return rules.Constant()
        case StepDecay():
            return rules.Step(tuple(m * lengths.epoch for m in decay.milestones), decay.gamma)
        case CosineDecay():
            return rules.Cosine(decay.min_lr)
        case CosineRestarts(cycles=int(cycles)):
            warmup = _warmup(config, lengths)
            warmup_samples = warmup.samples if warmup is not None and warmup.start_lr < peak else 0
            return rules.Restarts(max(1.0, (total - warmup_samples) / cycles), 1.0, decay.min_lr)
        case CosineRestarts(first_epochs=float(epochs)):
            return rules.Restarts(epochs * lengths.epoch, decay.factor, decay.min_lr)
        case OneCycle():
            return rules.OneCycle(decay.triangle, decay.start_factor, decay.final_factor, decay.momentum)
    raise AssertionError(f"unreachable: {decay}")
