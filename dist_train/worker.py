"""The door: one worker, from configuration and place to last parameters. Read it top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from dist_train import optimizers, tasks
from dist_train.config import Config
from dist_train.core.commit import Committer
from dist_train.core.data import size_of
from dist_train.core.keeper import Keeper, Origin, agree_on_origin, open_keeper, plan_from, restore
from dist_train.core.learner import Learner, Workplace
from dist_train.core.seeds import seed_all, worker_seed
from dist_train.core.state import State, facts_of, placed_model
from dist_train.core.weights import write_weights
from dist_train.couplings.allreduce import AllReduce
from dist_train.errors import DONE, INTERRUPTED
from dist_train.exchange.agreement import StopAgreement
from dist_train.exchange.ballot import StoreBallot
from dist_train.layout import CHECKPOINTS, CONFIG, WEIGHTS, is_anothers
from dist_train.replica import Post, Replica, by_count
from dist_train.rules.teaching import replica_seed
from dist_train.rules.timetable import Timetable
from dist_train.runtime.connect import Connection, describe_device, numerics_of
from dist_train.student import Pupil
from dist_train.watch.logbook import Logbook, with_warning
from dist_train.watch.opening import Scene, announce, earlier, open_logbook
from dist_train.watch.profile import Profiler, open_profiler
from dist_train.watch.reporter import Reporter


@dataclass(frozen=True)
class Assignment:
    """What rank 0 has settled for all workers: where the run lives, whence it starts, which start it is."""

    run_dir: Path
    resume: str
    attempt: str


@dataclass(frozen=True)
class Training:
    """The parts of one worker's training, made once and held to the end."""

    config: Config
    learner: Learner
    replica: Replica
    keeper: Keeper
    reporter: Reporter
    stop: StopAgreement
    profiler: Profiler
    phase: Callable[[str, int], None]

    def saving(self) -> None:
        """Say that this worker is busy saving."""
        self.phase("saving", self.learner.state.counted.updates)

    def measured(self, rate: float) -> None:
        """Report the steps since the last report; ``rate`` is the learning rate of the last of them."""
        updates = self.learner.state.counted.updates
        self.reporter.measured(self.learner.measure(), rate, self.replica.figures(updates))


def work(config: Config, connection: Connection, given: Assignment, stop: StopAgreement) -> int:
    """Train as one worker; return the exit status: 0 done, 75 interrupted and saved."""
    numerics, place = numerics_of(config, connection.device), connection.place
    seed = replica_seed(config.seed, place.replica)
    seed_all(seed)
    task = tasks.make(config)
    model = placed_model(task, config, connection.device)
    state = State(model, optimizers.build(model, config.optimizer), connection.device)
    seed_all(worker_seed(seed, place.rank, 0))
    with connection.collective(facts_of(config, state)) as collective, ExitStack() as parts:
        rank, workers, phase = place.rank, place.workers, connection.phase
        at = Workplace(rank, workers, numerics, collective, phase, place.number, place.replica, place.attempt)
        post = Post(place.replica, given.run_dir, collective, rank, 0, given.attempt, stop.agreed_at)
        replica = Replica(config, post, connection.device)
        parts.callback(replica.close)
        coupling = replica.coupled(AllReduce(config.parallel, rank, workers), task, by_count(state))
        learner = Learner(config, task, state, coupling, at)
        replica.at_work(learner.workers_with, learner.waiting)
        replica.student.refuse_unfit(Pupil(task, state.model, learner.validation_data, numerics))
        training = _open(config, connection, given, learner, replica, stop, parts)
        status = _finish(training, connection, given, interrupted=_train(training))
        stop.close()
        learner.close()
        # Nobody leaves while another one still needs the store, which lives with rank 0.
        collective.barrier()
        return status


def _open(
    config: Config,
    connection: Connection,
    given: Assignment,
    learner: Learner,
    replica: Replica,
    stop: StopAgreement,
    parts: ExitStack,
) -> Training:
    """Restore the state, open the book, and start everything that runs beside training."""
    place, state = connection.place, learner.state
    origin = agree_on_origin(given.run_dir, given.resume, connection.from_rank_0)
    if origin.path is not None:
        restore(state, origin.path, place.rank, place.workers, replica.seed, replica.number)
    sizes = {"training": size_of(learner.train_data), "validation": size_of(learner.validation_data)}
    connection.compare("data", {"size of the data for": {name: str(size) for name, size in sizes.items()}})
    plan, rescaled = plan_from(config, state, place.workers, sizes["training"])
    book = open_logbook(config, plan, given.run_dir, place.rank, place.attempt, state.counted)
    parts.callback(book.close)
    parameters = sum(parameter.numel() for parameter in state.model.parameters())
    scene = Scene(describe_device(connection.device), parameters, place.started_by, place.attempt)
    announce(book, config, plan, scene, given.run_dir, state.counted, origin, rescaled)
    learner.begin(plan)
    replica.on_event(book.event)
    if origin.path is not None and not is_anothers(origin.path, replica.number):
        replica.restore(origin.path)
    keeper = _open_keeper(config, connection, given, book, origin, learner)
    before = earlier(given.run_dir, state.counted.updates)
    profiler = open_profiler(config.logging.profile, given.run_dir, place.rank)
    parts.callback(profiler.stop)
    reporter = Reporter(book, config, plan, state.counted, place.attempt, before, replica=replica.number)
    return Training(config, learner, replica, keeper, reporter, stop, profiler, connection.phase)


def _open_keeper(
    config: Config, connection: Connection, given: Assignment, book: Logbook, origin: Origin, learner: Learner
) -> Keeper:
    step, writes = learner.state.counted.updates, learner.coupling.writes
    rank, workers = connection.place.rank, connection.place.workers
    ballot = StoreBallot(connection.store, f"ballot/{given.attempt}", rank, workers)
    retention = (config.checkpoint.keep_last, config.checkpoint.keep_every_steps)
    committer = Committer(given.run_dir / CHECKPOINTS, rank, workers, given.attempt, ballot, retention)
    return open_keeper(config, committer, origin, step, writes, lambda event: book.event(with_warning(event)))


def _train(training: Training) -> bool:
    """Step until training is over or all workers have agreed to stop; return whether they have."""
    config, learner, counted = training.config, training.learner, training.learner.state.counted
    timetable = Timetable(
        config.logging.every_steps,
        config.validation.every_epochs or 1,
        config.validation.every_steps,
        config.checkpoint.every_steps,
    )
    training.profiler.start()
    if counted.owes_validation:
        _validate(training)
    while not learner.finished:
        if training.stop.reached(counted.updates):
            return True
        rate = learner.rate
        learner.step()
        training.profiler.step()
        due = timetable.after(counted.updates, counted.cursor, learner.finished)
        counted.owes_validation = due.validation
        if due.log:
            training.measured(rate)
        if due.checkpoint:
            training.keeper.save(learner.state, learner.rate, training.saving, training.replica.part())
        if due.validation:
            _validate(training)
    return counted.owes_validation


def _validate(training: Training) -> None:
    """Validate, unless all workers agree to stop meanwhile: then the validation stays owed."""
    start, counted = time.monotonic(), training.learner.state.counted
    metrics = training.learner.validate(lambda: not training.stop.agreed_at(counted.updates))
    if metrics is not None:
        counted.owes_validation = False
        training.reporter.validated(metrics, time.monotonic() - start)


def _finish(training: Training, connection: Connection, given: Assignment, interrupted: bool) -> int:
    """Save what there is; when training is over, deliver the weights."""
    learner, reporter = training.learner, training.reporter
    connection.phase("finishing", learner.state.counted.updates)
    training.replica.settle()
    if learner.has_unmeasured_steps:
        training.measured(learner.rate)
    if not interrupted and not reporter.has_validated:
        _validate(training)
    if interrupted:
        training.keeper.finish(learner.state, learner.rate, training.saving, training.replica.part())
        resume = f"dist-train run {given.run_dir / CONFIG} --run-dir {given.run_dir}"
        reporter.finish("interrupted", given.run_dir, None, resume)
        return INTERRUPTED
    weights = given.run_dir / WEIGHTS
    with learner.delivered_model():
        if learner.coupling.writes:
            write_weights(learner.state.model, weights)
    # After the weights: a disk too full for the last checkpoint must not cost the result.
    training.keeper.finish(learner.state, learner.rate, training.saving, training.replica.part())
    reporter.finish("done", given.run_dir, weights)
    return DONE
