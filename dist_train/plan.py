"""From configuration to arithmetic: how many samples make one update, and what follows from it.

Only the coupling's settings know how many samples one update consumes. Learning rate, warmup, epochs
and the end of training are derived from that number here, once, for every mode and for --dry-run.
"""

from __future__ import annotations

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
from dist_train.rules import topology
from dist_train.rules.sampling import BEGINNING, LastBatch, Position, micro_batches, split, updates_per_epoch
from dist_train.rules.scaling import scaled_learning_rate


def groups(parallel: Parallel, workers: int) -> list[list[int]]:
    """Return the ranks of each group, the workers that all-reduce their gradients: all of them in mode sync.

    Raises ValueError where ``workers`` cannot be cut into groups.
    """
    return topology.groups(workers, parallel.group_size if parallel.has_server else workers)


def group_count(parallel: Parallel, workers: int) -> int:
    """Return how many groups there are, at least one."""
    return max(1, workers // parallel.group_size) if parallel.has_server else 1


def quorum(parallel: Parallel, workers: int, backups: int | None = None) -> int:
    """Return how many gradients one update takes, each that of a group.

    Mode backup: N of N + b groups; ``backups``, if given, is the b in force, else one to be chosen counts as
    0. Mode bounded: one; with bound 0, all groups'. Mode async: ``aggregate``. Mode sync: its only group's.
    """
    count = group_count(parallel, workers)
    match parallel.mode:
        case "backup":
            configured = 0 if parallel.backups == "auto" else parallel.backups
            return max(1, count - (configured if backups is None else backups))
        case "bounded":
            return count if parallel.max_staleness == 0 else 1
        case "async":
            return parallel.aggregate
    return count


def samples_per_gradient(parallel: Parallel, train: Train, workers: int, backups: int | None = None) -> int:
    """Return how many samples a group sends the gradient of: a full one, the largest.

    Each of its workers contributes ``accumulate`` batches, times the steps between two exchanges.
    """
    if parallel.global_batch is not None:
        return -(-parallel.global_batch // quorum(parallel, workers, backups))
    assert train.batch_size is not None  # the configuration gives exactly one of the two
    group_size = workers // group_count(parallel, workers)
    return group_size * train.batch_size * train.accumulate * _steps_per_gradient(parallel)


def samples_per_update(parallel: Parallel, train: Train, workers: int, backups: int | None = None) -> int:
    """Return how many samples one update of a replica consumes (the effective global batch).

    Only gradients that count do: with b backup groups, those of the other N.
    """
    if parallel.global_batch is not None:
        return parallel.global_batch
    gradient = samples_per_gradient(parallel, train, workers, backups)
    return quorum(parallel, workers, backups) * gradient


def scaling_batch(parallel: Parallel, train: Train, workers: int, backups: int | None = None) -> int:
    """Return the batch that the learning rate follows: the samples of one step at that rate.

    That is an update, except with local steps: there the rate is that of a group's own steps (Douillard et
    al. 2023 tune it for one worker), while the server's outer optimizer has a rate of its own.
    """
    if parallel.outer_in_force is None:
        return samples_per_update(parallel, train, workers, backups)
    return -(-samples_per_gradient(parallel, train, workers, backups) // parallel.local_steps)


def _steps_per_gradient(parallel: Parallel) -> int:
    """The forward and backward passes' batches that one gradient spans; only one of the two is above 1."""
    return parallel.push_every * parallel.local_steps


def own_size(config: Config, train_size: int) -> int:
    """Return how many samples of a training set a replica trains on: where each has a part, the largest."""
    return -(-train_size // config.data_parts)


@dataclass(frozen=True)
class Lengths:
    """Conversions between epochs, steps and samples, for updates of ``batch`` samples."""

    train_size: int
    batch: int
    last_batch: LastBatch

    @property
    def updates_per_epoch(self) -> int:
        return updates_per_epoch(self.train_size, self.batch, self.last_batch)

    @property
    def epoch(self) -> int:
        """The samples that one epoch trains on: without the last ones where those are dropped."""
        return min(self.train_size, self.updates_per_epoch * self.batch)

    def samples(self, span: Span) -> int:
        """Return the samples in ``span``, counted from the start of training; at least one."""
        if span.samples is not None:
            return span.samples
        if span.epochs is not None:
            return max(1, round(span.epochs * self.epoch))
        assert span.steps is not None
        return self.samples_of_updates(span.steps)

    def samples_of_updates(self, updates: int) -> int:
        """Return the samples that ``updates`` consume from the beginning of an epoch on."""
        epochs, rest = divmod(updates, self.updates_per_epoch)
        return epochs * self.epoch + rest * self.batch

    def updates_for(self, samples: int, offset: int = 0) -> int:
        """Return how many updates it takes, from ``offset`` in an epoch on, to consume ``samples``."""
        here = self.rest_of_epoch(offset)
        left = samples - min(here * self.batch, self.train_size - offset)
        if left <= 0:
            return max(0, -(-samples // self.batch))
        epochs, rest = divmod(left, self.epoch)
        return here + epochs * self.updates_per_epoch + -(-rest // self.batch)

    def rest_of_epoch(self, offset: int) -> int:
        """Return how many updates are left in an epoch of which ``offset`` samples are consumed."""
        left = self.train_size - offset
        return left // self.batch if self.last_batch == "drop" else -(-left // self.batch)


@dataclass(frozen=True)
class Done:
    """What a run has behind it; ``offset``: samples consumed of the current epoch."""

    updates: int = 0
    samples: int = 0
    offset: int = 0


@dataclass(frozen=True)
class Plan:
    """The arithmetic of one run with a given number of workers and training samples."""

    workers: int
    lengths: Lengths
    schedule: rules.Schedule
    length: Span
    # Gradients in one update, samples in one gradient, and samples in one step at the scheduled rate.
    quorum: int
    samples_per_gradient: int
    scaling_batch: int

    @property
    def train_size(self) -> int:
        return self.lengths.train_size

    @property
    def samples_per_update(self) -> int:
        return self.lengths.batch

    @property
    def total_updates(self) -> int:
        return self.updates_left(0, 0, BEGINNING)

    def finished(self, updates: int, samples: int, position: Position) -> bool:
        """Say whether training is over, in the unit in which its length was given."""
        return self.updates_left(updates, samples, position) == 0

    def samples_in(self, span: Span) -> int:
        """Convert a length of training to samples."""
        return self.lengths.samples(span)

    def updates_left(self, updates: int, samples: int, position: Position) -> int:
        """Return how many updates are still to come from here."""
        if self.length.steps is not None:
            return max(0, self.length.steps - updates)
        if self.length.samples is not None:
            return self.lengths.updates_for(self.length.samples - samples, position.offset)
        epoch, offset = divmod(self.schedule.total, self.lengths.epoch)
        if position.epoch > epoch:
            return 0
        rest = self.lengths.rest_of_epoch(position.offset)
        if position.epoch == epoch:
            return min(rest, self.lengths.updates_for(offset - position.offset))
        whole = (epoch - position.epoch - 1) * self.lengths.updates_per_epoch
        return rest + whole + self.lengths.updates_for(offset)


def make_plan(
    config: Config,
    workers: int,
    train_size: int,
    rewarms: Sequence[rules.Rewarm] = (),
    done: Done = Done(),
    backups: int | None = None,
) -> Plan:
    """Derive the plan; raise ConfigError where the data and the settings contradict each other.

    What is ``done`` matters where the length is given in steps: those made with another batch held other
    numbers of samples. ``backups`` is the number in force where the configuration leaves it to be chosen.
    """
    parallel, train = config.parallel, config.train
    batch = samples_per_update(parallel, train, workers, backups)
    taken = quorum(parallel, workers, backups)
    _refuse_impossible(config, workers, train_size, batch, taken)
    lengths = Lengths(train_size, batch, config.train.last_batch)
    total = _total_samples(config.train.length, lengths, done)
    scaling = scaling_batch(parallel, train, workers, backups)
    peak = scaled_learning_rate(
        config.schedule.scaling, config.optimizer.lr, scaling, config.schedule.base_batch
    )
    return Plan(
        workers=workers,
        lengths=lengths,
        schedule=rules.Schedule(
            peak=peak,
            total=total,
            warmup=_warmup(config, lengths),
            decay=_decay(config, lengths, total, peak),
            rewarms=tuple(rewarms),
            decay_factors=_decay_factors(config, lengths),
        ),
        length=config.train.length,
        quorum=taken,
        samples_per_gradient=samples_per_gradient(parallel, train, workers, backups),
        scaling_batch=scaling,
    )


def _total_samples(length: Span, lengths: Lengths, done: Done) -> int:
    if length.steps is None:
        return lengths.samples(length)
    left, here = max(0, length.steps - done.updates), lengths.rest_of_epoch(done.offset)
    if left < here:
        return done.samples + left * lengths.batch
    rest_of_epoch = min(here * lengths.batch, lengths.train_size - done.offset)
    return done.samples + rest_of_epoch + lengths.samples_of_updates(left - here)


def _refuse_impossible(config: Config, workers: int, train_size: int, batch: int, taken: int) -> None:
    if train_size == 0:
        raise ConfigError(f"task {config.task}: the training set is empty")
    group_size = workers // group_count(config.parallel, workers)
    smallest = taken * group_size * _steps_per_gradient(config.parallel)
    if batch < smallest:
        among = f"among {workers} workers"
        if config.parallel.has_server:
            steps = f" x {_steps_per_gradient(config.parallel)} steps"
            among = f"into gradients: {taken} for an update x {group_size} workers of a group{steps}"
        raise ConfigError(
            f"parallel.global_batch: {batch} samples cannot be split {among}; give at least {smallest}"
        )
    if config.train.last_batch == "drop" and batch > train_size:
        raise ConfigError(
            f"train.last_batch: dropping leaves nothing to train on, since one update takes {batch} samples "
            f"and the training set has {train_size}; set train.last_batch to keep or shrink the batch"
        )
    if config.parallel.sync_batch_norm and _passes_differ(config, group_size, train_size, batch, taken):
        raise ConfigError(
            "parallel.sync_batch_norm: the workers meet in every forward pass, but some updates leave them "
            "different numbers of passes; set train.last_batch to drop, or use batches that divide the "
            f"{train_size} samples"
        )


def _passes_differ(config: Config, group_size: int, train_size: int, batch: int, taken: int) -> bool:
    """Whether some piece of some update leaves the workers of a group different numbers of passes."""
    rest = train_size % batch if config.train.last_batch == "keep" else 0
    pieces = {
        len(piece)
        for count in (min(batch, train_size), rest)
        for gradient in split(count, taken)
        for piece in split(len(gradient), _steps_per_gradient(config.parallel))
    }
    ends = (0, group_size - 1)
    for count in pieces:
        most, least = (len(micro_batches(count, rank, group_size, config.train.accumulate)) for rank in ends)
        if most != least:
            return True
    return False


def _warmup(config: Config, lengths: Lengths) -> rules.Warmup | None:
    warmup = config.schedule.warmup
    if isinstance(warmup, NoWarmup):
        return None
    start = config.optimizer.lr if warmup.start_lr is None else warmup.start_lr
    return rules.Warmup(lengths.samples(warmup), start, gradual=warmup.kind == "gradual")


def _decay_factors(config: Config, lengths: Lengths) -> tuple[tuple[float, float], ...]:
    steps = config.schedule.weight_decay
    if steps is None:
        return ()
    pairs = zip(steps.milestones, steps.factors, strict=True)
    return tuple((milestone * lengths.epoch, factor) for milestone, factor in pairs)


def _decay(config: Config, lengths: Lengths, total: int, peak: float) -> rules.Decay:
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
