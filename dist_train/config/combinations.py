"""Which settings cannot go together, and what to write instead.

Each rule yields the key to change and what is wrong with it. Rules that need the number of workers are
silent while that is "auto"; whoever has counted them asks again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from dist_train.config.parallel import DelayCompensated, ElasticOuter, InverseDamping, NoDamping, Parallel
from dist_train.config.problems import ROOT, KeyPath, dotted
from dist_train.config.schedule import OneCycle

if TYPE_CHECKING:
    from dist_train.config.codistill import Codistill
    from dist_train.config.schema import Config, Faults

Contradiction = tuple[KeyPath, str]

# What DDP offers inside a group, and the value that leaves it off.
OF_ALL_REDUCE = {"compression": "none", "sync_batch_norm": False, "find_unused_parameters": False}

NOT_ON_RAY = (
    "mode sync does not run on Ray; start it with torchrun or srun, or set parallel.mode to async, bounded "
    "or backup"
)


class Contradictions(ValueError):
    """All that does not go together, each with the key it is about."""

    def __init__(self, found: Iterable[Contradiction]) -> None:
        self.found = tuple(found)
        super().__init__("; ".join(lines(self.found)))


def lines(found: Iterable[Contradiction]) -> list[str]:
    """Write contradictions as one line each."""
    return [f"{dotted(path)}: {text}" if path else text for path, text in found]


def contradictions(config: Config) -> list[Contradiction]:
    """Return everything in ``config`` that cannot go together, in the order of its keys."""
    parallel = config.parallel
    found = [*_batch(config), *_mode(parallel), *_damping(parallel), *_downpour(parallel)]
    found += [
        *_local_steps(parallel),
        *_groups_of_one(config),
        *_batch_norm(config),
        *_replicas(config),
        *_momentum(config),
    ]
    found += [*_distill(config), *_bootstrap(config)]
    if parallel.workers != "auto":
        found += [
            *_workers(parallel, parallel.workers),
            *_slow(config.faults, parallel.workers * parallel.replicas),
        ]
    return found


def _key(name: str) -> KeyPath:
    return ("parallel", name)


def _batch(config: Config) -> Iterator[Contradiction]:
    if (config.train.batch_size is None) == (config.parallel.global_batch is None):
        yield (
            ROOT,
            "give exactly one of train.batch_size (per worker) and parallel.global_batch (all workers)",
        )


def _mode(parallel: Parallel) -> Iterator[Contradiction]:
    """Settings of one mode, given in another."""
    mode = parallel.mode
    if parallel.group_size > 1 and not parallel.has_server:
        text = "in mode sync all workers are one group; set it to 1, or choose another parallel.mode"
        yield _key("group_size"), text
    if parallel.backups != 0 and mode != "backup":
        yield _key("backups"), f"mode {mode} has no backup workers; set it to 0, or parallel.mode to backup"
    if parallel.max_staleness is not None and mode != "bounded":
        yield _key("max_staleness"), f"mode {mode} has no bound; set it to null, or parallel.mode to bounded"
    if parallel.max_staleness is None and mode == "bounded":
        text = "missing; mode bounded needs a whole number of at least 0: 3 to 10 are usual, 0 is synchronous"
        yield _key("max_staleness"), text
    if parallel.aggregate > 1 and mode != "async":
        yield _key("aggregate"), f"only mode async has it, and this is mode {mode}; set it to 1"
    if parallel.cluster.address is not None and not parallel.has_server:
        text = f"{NOT_ON_RAY}; null, and no --address, is this machine alone"
        yield (*_key("cluster"), "address"), text


def _replicas(config: Config) -> Iterator[Contradiction]:
    """Several models, and how they teach one another."""
    parallel, codistill = config.parallel, config.codistill
    if codistill is None:
        return
    if parallel.replicas == 1:
        yield ("codistill",), "one replica has nobody to learn from; set parallel.replicas to 2 or more"
    elif codistill.topology == "pairs" and parallel.replicas % 2:
        text = f"pairs need an even number of replicas, and there are {parallel.replicas}"
        yield ("codistill", "topology"), f"{text}; set it to all or ring"
    if codistill.by_prediction:
        yield from _by_prediction(parallel, codistill)
    if codistill.schedule is not None:
        yield from _scheduled(parallel, codistill)


def _by_prediction(parallel: Parallel, codistill: Codistill) -> Iterator[Contradiction]:
    if parallel.has_server:
        text = f"in mode {parallel.mode} no two replicas are at the same batch; set it to checkpoint"
        yield ("codistill", "exchange"), f"{text}, or parallel.mode to sync"
    if codistill.data != "same":
        text = "predictions are exchanged of the same batches; set it to same, or codistill.exchange to"
        yield ("codistill", "data"), f"{text} checkpoint"


def _scheduled(parallel: Parallel, codistill: Codistill) -> Iterator[Contradiction]:
    path = ("codistill", "schedule")
    if codistill.by_prediction:
        yield path, "exchange prediction has no teachers to change; set it to null"
    elif parallel.has_server:
        text = f"mode {parallel.mode} is repeated by dist-train replay; set it to null"
        yield path, text
    elif codistill.keep_posts != "all":
        text = "a replica may need a post long after it was made; set it to all"
        yield ("codistill", "keep_posts"), text


def _distill(config: Config) -> Iterator[Contradiction]:
    if config.distill is not None and config.parallel.has_server:
        text = f"mode {config.parallel.mode} has no teachers; set it to null, or parallel.mode to sync"
        yield ("distill",), text


def _bootstrap(config: Config) -> Iterator[Contradiction]:
    """Bagging is of several models that know nothing of one another."""
    if not config.data.bootstrap:
        return
    if config.parallel.replicas == 1:
        text = "one replica makes no ensemble; set it to false, or parallel.replicas to 2 or more"
        yield ("data", "bootstrap"), text
    elif config.codistill is not None:
        text = "codistill.data says what replicas that teach one another train on; set it to false"
        yield ("data", "bootstrap"), f"{text}, or codistill to null"


def _damping(parallel: Parallel) -> Iterator[Contradiction]:
    if isinstance(parallel.damping, NoDamping):
        return
    if parallel.always_fresh:
        bound = " with max_staleness 0" if parallel.mode == "bounded" else ""
        text = f"in mode {parallel.mode}{bound} every gradient is fresh, its staleness always 0"
        yield _key("damping"), f"{text}; set it to none"
    elif isinstance(parallel.damping, DelayCompensated) and parallel.outer_in_force is not None:
        # The square of a gradient stands for the curvature; that of a sum of steps does not.
        text = "delay_compensated corrects gradients, and local steps send none; set it to none or inverse"
        yield _key("damping"), text


def _downpour(parallel: Parallel) -> Iterator[Contradiction]:
    """Downpour's steps between exchanges (Dean et al. 2012, section 4.1).

    Backup and bounded promise which updates a gradient has seen, and a group that reads rarely breaks that.
    Between two reads a group's parameters are of no version, so that staleness says nothing about its
    gradients; Zhang et al. 2015 found damped gradients that were accrued to train worse models.
    """
    for name in ("fetch_every", "push_every"):
        if getattr(parallel, name) == 1:
            continue
        if parallel.mode != "async":
            text = f"only mode async has it, and this is mode {parallel.mode}; set it to 1, and use"
            yield _key(name), f"{text} parallel.local_steps or train.accumulate to exchange less often"
        elif parallel.outer_in_force is not None:
            text = "with local steps a group reads and sends once in parallel.local_steps; set it to 1"
            yield _key(name), text
        elif not isinstance(parallel.damping, NoDamping):
            text = f"damping {parallel.damping.kind} needs each gradient computed from one version and sent"
            yield _key(name), f"{text} on its own; set it to 1, or parallel.damping to none"


def _local_steps(parallel: Parallel) -> Iterator[Contradiction]:
    if parallel.outer_in_force is None:
        return
    if not parallel.has_server:
        name = "local_steps" if parallel.outer is None else "outer"
        text = "mode sync has no local steps; set parallel.mode to bounded and parallel.max_staleness to 0"
        yield _key(name), text
    if not isinstance(parallel.outer, ElasticOuter):
        return
    if parallel.has_server and parallel.mode != "async":
        text = f"elastic moves the centre for one group at a time, but this is mode {parallel.mode}"
        yield _key("outer"), f"{text}; set parallel.mode to async"
    if parallel.aggregate > 1:
        yield _key("aggregate"), "elastic moves the centre by the whole of each group's move; set it to 1"
    if isinstance(parallel.damping, InverseDamping):
        text = "elastic moves a group and the centre equally far, which damping would undo; set it to none"
        yield _key("damping"), text


def _groups_of_one(config: Config) -> Iterator[Contradiction]:
    parallel = config.parallel
    if not parallel.has_server or parallel.group_size > 1:
        return
    for name, off in OF_ALL_REDUCE.items():
        if getattr(parallel, name) != off:
            text = f"groups of one worker have no all-reduce; set it to {str(off).lower()}"
            yield _key(name), f"{text}, or parallel.group_size above 1"


def _momentum(config: Config) -> Iterator[Contradiction]:
    """A server lays out the optimizer's state before it begins: it cannot get a momentum later."""
    decay, optimizer = config.schedule.decay, config.optimizer
    moves = isinstance(decay, OneCycle) and decay.momentum is not None
    if config.parallel.has_server and moves and getattr(optimizer, "momentum", None) == 0:
        text = "schedule.decay.momentum moves the momentum of an optimizer without; set it above 0"
        yield ("optimizer", "momentum"), text


def _batch_norm(config: Config) -> Iterator[Contradiction]:
    if config.parallel.has_server and config.validation.batch_norm_batches:
        text = f"mode {config.parallel.mode} validates with the mean of the groups' running averages"
        yield ("validation", "batch_norm_batches"), f"{text}; set it to 0"


def _workers(parallel: Parallel, workers: int) -> Iterator[Contradiction]:
    if not parallel.has_server:
        return
    groups, rest = divmod(workers, parallel.group_size)
    if rest:
        text = f"{workers} workers cannot be cut into groups of {parallel.group_size}"
        yield _key("group_size"), f"{text}; make parallel.workers a multiple of {parallel.group_size}"
        return
    if parallel.mode == "backup" and parallel.backups == "auto" and groups == 1:
        text = "a single group leaves none to choose backups from; give at least"
        yield _key("backups"), f"{text} {2 * parallel.group_size} parallel.workers, or set it to 0"
    if parallel.mode == "backup" and parallel.backups != "auto" and parallel.backups >= groups:
        text = f"{parallel.backups} of {groups} groups leave none whose gradients count"
        yield _key("backups"), f"{text}; give at most {groups - 1}"
    if parallel.mode == "async" and parallel.aggregate > groups:
        text = f"an update of {parallel.aggregate} gradients waits for more than the {groups} groups send"
        yield _key("aggregate"), f"{text}; give at most {groups}, or use train.accumulate"


def _slow(faults: Faults, workers: int) -> Iterator[Contradiction]:
    for worker in faults.slow:
        if worker >= workers:
            text = f"there is no worker {worker}: the workers are 0 to {workers - 1}"
            yield ("faults", "slow", worker), text
