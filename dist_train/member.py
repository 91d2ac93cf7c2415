"""The door of a member: one worker of a parameter-server run, from its first read to the server's last word.

Read it beside worker.py, the door of a synchronous worker: both make the same step (core/learner.py). What
comes next is decided there by arithmetic, here by the server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dist_train import optimizers, tasks
from dist_train.config import Config
from dist_train.config.schema import SGD, ElasticOuter
from dist_train.core.data import size_of
from dist_train.core.flat import Layout
from dist_train.core.flat_model import FlatModel, statistics_of, statistics_size
from dist_train.core.inner_state import InnerShape, InnerState
from dist_train.core.learner import Learner, Workplace
from dist_train.core.seeds import lease_seed, seed_all
from dist_train.core.staging import SideStream
from dist_train.core.state import State, facts_of, placed_model
from dist_train.couplings import Coupling
from dist_train.couplings.allreduce import AllReduce
from dist_train.couplings.local_steps import LocalSteps
from dist_train.couplings.server import ThroughServer
from dist_train.exchange.group import GroupServer
from dist_train.exchange.server import ALL, Server, Share, Sizes, Turn
from dist_train.optimizers.outer import moving_rate
from dist_train.plan import group_count, make_plan
from dist_train.replica import Post, Replica, by_version
from dist_train.rules.messages import ValidationPart, Work
from dist_train.rules.sampling import Run, parts_of
from dist_train.rules.schedule import NO_STEP
from dist_train.rules.slices import slices
from dist_train.rules.teaching import replica_seed
from dist_train.runtime.connect import Connection, numerics_of
from dist_train.runtime.place import Place
from dist_train.task import Task

# Opens this worker's way to the server, for a layout of that many elements and as many buffered values.
OpenServer = Callable[[int, int], Server]


@dataclass(frozen=True)
class RunOfAll:
    """The run that a worker belongs to: its directory, and how many workers train in it."""

    directory: Path
    workers: int


@dataclass
class Member:
    """The parts of one worker's training, held to the end."""

    config: Config
    learner: Learner
    server: Server
    flat: FlatModel
    turn: Turn
    place: Place


def serve(config: Config, connection: Connection, run: RunOfAll, open_server: OpenServer, turn: Turn) -> None:
    """Train as one worker of a member until the server says stop."""
    numerics, place, workers = numerics_of(config, connection.device), connection.place, run.workers
    task, state = made(config, connection.device, place.replica)
    model = state.model
    layout = Layout.of(model, config.optimizer)
    with connection.collective(facts_of(config, state), patient=True) as collective:
        leads = place.rank == 0
        own = open_server(layout.size, statistics_size(statistics_of(model)))
        server = own if place.workers == 1 else GroupServer(own, collective, leads)
        flat = FlatModel(model, layout, server.memory.parameters if leads else None)
        if connection.device.type == "cuda" and _may_stage(config):
            flat.stage_gradients(SideStream(connection.device))
        kept = InnerShape.of(config)
        inner = None if kept is None else InnerState(kept, state.optimizer, layout, model)
        post = Post(place.replica, run.directory, collective, place.rank, turn.member)
        replica = Replica(config, post, connection.device)
        coupling = coupling_of(config, connection, workers, server, flat, turn, inner)
        coupling = replica.coupled(coupling, task, by_version(turn))
        number = place.replica * workers + turn.member * place.workers + place.rank
        phase, life = connection.phase, place.attempt
        at = Workplace(place.rank, place.workers, numerics, collective, phase, number, place.replica, life)
        member = Member(config, Learner(config, task, state, coupling, at), server, flat, turn, place)
        begin(member, workers, inner)
        learner = member.learner
        turn.figures = lambda: replica.with_lessons(learner.figures(), turn.version.number)
        replica.take_newest(turn.version.number)
        try:
            train(member)
            replica.settle()
        finally:
            replica.close()
        learner.close()
        collective.barrier()


def made(config: Config, device: torch.device, replica: int = 0) -> tuple[Task, State]:
    """Make a worker's task and state from its replica's seed.

    The server has the optimizer: without local steps, what a member does by itself is plain descent.
    """
    seed_all(replica_seed(config.seed, replica))
    task = tasks.make(config)
    model = placed_model(task, config, device)
    local = config.parallel.outer_in_force is not None
    settings = config.optimizer if local else SGD(lr=config.optimizer.lr, momentum=0.0)
    return task, State(model, optimizers.build(model, settings), device)


def _may_stage(config: Config) -> bool:
    """Say whether a gradient that one backward pass has made is handed in as it is."""
    parallel, train = config.parallel, config.train
    passes = parallel.group_size * parallel.push_every * train.accumulate
    return parallel.outer_in_force is None and passes == 1 and train.clip_norm is None


def coupling_of(
    config: Config,
    connection: Connection,
    workers: int,
    server: Server,
    flat: FlatModel,
    turn: Turn,
    inner: InnerState | None = None,
) -> Coupling:
    """Make what the configuration couples a member by: each gradient, or local steps, through the server."""
    parallel, place = config.parallel, connection.place
    inside = AllReduce(parallel, place.rank, place.workers)
    share = _share(flat.layout, place.rank, place.workers)
    outer = parallel.outer_in_force
    if outer is None:
        return ThroughServer(inside, server, flat, turn, share, parallel.fetch_every)
    groups = group_count(parallel, workers)
    rate = moving_rate(outer, groups) if isinstance(outer, ElasticOuter) else None
    return LocalSteps(inside, server, flat, turn, share, rate, inner if place.rank == 0 else None)


def _share(layout: Layout, rank: int, workers: int) -> Share:
    """Divide what a group hands in among its workers, at the borders of parameters."""
    if workers == 1:
        return ALL
    pieces = min(workers, len(layout.offsets))
    if rank >= pieces:
        return Share(slice(0, 0), slice(0, 0))
    part = slices(layout.size, pieces, layout.offsets)[rank]
    numbers = [number for number, start in enumerate(layout.offsets) if start in part]
    return Share(slice(numbers[0], numbers[-1] + 1), slice(part.start, part.stop))


def begin(member: Member, workers: int, inner: InnerState | None = None) -> None:
    """Make data and model ready, and join."""
    config, learner, turn, parallel = member.config, member.learner, member.turn, member.config.parallel
    turn.figures = learner.figures
    turn.parts = parallel.push_every * parallel.local_steps
    data = config.data
    turn.ahead = 1 + (data.loaders * data.prefetch) // (turn.parts * config.train.accumulate)
    train, validation = size_of(learner.train_data), size_of(learner.validation_data)
    parameters = f"{member.flat.layout.size:,}"
    welcome = member.server.enlist(Sizes(train, validation, parameters))
    learner.state.counted.seed = welcome.seed
    member.flat.take_statistics(welcome.statistics)
    learner.prepare(make_plan(config, workers, train))
    if inner is not None and welcome.scalars is not None:
        inner.take(member.server.memory.deposits[0], welcome.scalars)


def train(member: Member) -> None:
    """Do what the server says, until it says stop."""
    learner, turn = member.learner, member.turn
    leases, batches = learner.leased()
    new: Sequence[Work] = tuple(turn.work)
    try:
        while turn.reply is not None and not turn.reply.stop:
            if turn.reply.forget:
                # What was loaded ahead belongs to leases that were withdrawn.
                batches.close()
                leases, batches = learner.leased()
            for work in new:
                leases.feed(Run(work.lease.epoch, work.lease.offset, work.lease.count), turn.parts)
            if turn.reply.validation is not None:
                _validate(member, turn.reply.validation)
            else:
                _lease(member, batches)
            new = turn.reply.work
    finally:
        batches.close()


def _lease(member: Member, batches: Iterator[Any]) -> None:
    """Train on the lease in hand, in its parts; with the last of them the gradient is handed in."""
    learner, turn = member.learner, member.turn
    work = turn.work[0]
    lease = work.lease
    seed = learner.state.counted.seed
    assert seed is not None
    seed_all(lease_seed(seed, lease.epoch, lease.offset, member.place.rank))
    pieces = parts_of(Run(lease.epoch, lease.offset, lease.count), turn.parts)
    for part, piece in enumerate(pieces):
        turn.part, turn.is_last = part, part == len(pieces) - 1
        turn.weight = piece.count / lease.count
        learner.step_on(batches, piece.count, work.own[part] if work.own else NO_STEP)
    if turn.was_refused:
        # What made its own steps not finite may be what its optimizer remembers.
        learner.state.optimizer.state.clear()
    learner.state.counted.updates = turn.version.number


def _validate(member: Member, part: ValidationPart) -> None:
    """Measure a part of the validation set with the version that is held for it."""
    place, flat, server, turn = member.place, member.flat, member.server, member.turn
    # Others read anew what they go on from.
    is_elastic = isinstance(member.config.parallel.outer_in_force, ElasticOuter)
    kept = flat.collect().clone() if is_elastic else None
    statistics = torch.empty_like(server.memory.statistics)
    flat.statistics_into(statistics)
    held = torch.empty_like(statistics)
    server.read_held(flat.host, held)
    flat.arrived()
    flat.take_statistics(held)
    number, parts = part.part * place.workers + place.rank, part.parts * place.workers
    measured = member.learner.validate_part(number, parts)
    assert measured is not None
    if kept is not None:
        flat.host.copy_(kept)
        flat.arrived()
    flat.take_statistics(statistics)
    turn.heard(server.measured(turn.measured(part, *measured)))
    if kept is None:
        # What it waited for when it was given this part is in by now.
        turn.go_on(server, flat)
