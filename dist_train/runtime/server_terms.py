"""From configuration and plan to what a parameter-server run agrees on: the referee's terms."""

from __future__ import annotations

from dist_train.config import Config
from dist_train.config.schema import Parallel
from dist_train.optimizers import normalises
from dist_train.optimizers.outer import server_optimizer
from dist_train.plan import Plan
from dist_train.rules.admission import Rule
from dist_train.rules.dealing import Deck
from dist_train.rules.schedule import scheduled
from dist_train.rules.terms import Terms
from dist_train.rules.timetable import Timetable


def terms_of(config: Config, plan: Plan, members: int) -> Terms:
    """Return the terms of a run with so many members; ``plan`` is that of the backups in force."""
    parallel, outer = config.parallel, config.parallel.outer_in_force
    optimizer = config.optimizer if outer is None else server_optimizer(outer)
    return Terms(
        rule=Rule(
            quorum=plan.quorum,
            drop_late=parallel.mode == "backup",
            bound=parallel.max_staleness or None,
            read_own=parallel.mode != "async" or parallel.aggregate == 1,
        ),
        deck=Deck(
            size=plan.train_size,
            batch=plan.samples_per_update,
            parts=plan.quorum,
            last_batch=config.train.last_batch,
            in_step=plan.quorum == members and parallel.mode != "async",
        ),
        timetable=Timetable(
            config.logging.every_steps,
            config.validation.every_epochs or 1,
            config.validation.every_steps,
            config.checkpoint.every_steps,
        ),
        epoch_samples=plan.lengths.epoch,
        scheduled=lambda samples: scheduled(plan.schedule, samples),
        finished=plan.finished,
        own_steps=own_steps(parallel),
        outer_rate=None if outer is None else optimizer.lr,
        inverse=parallel.damping.kind == "inverse",
        compensates=parallel.damping.kind == "delay_compensated",
        normalises=normalises(optimizer),
        snapshot_every=parallel.server.snapshot_every,
    )


def own_steps(parallel: Parallel) -> int:
    """Return how many steps a member makes by itself for one push; 0: it reads after each of its batches.

    Without local steps these are its own progress between two reads (Dean et al. 2012, section 4.1).
    """
    if parallel.outer_in_force is not None:
        return parallel.local_steps
    return parallel.push_every if max(parallel.fetch_every, parallel.push_every) > 1 else 0
