"""When a run begins, whence its state; while it runs, what goes into a checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dist_train.config import Config, dump_config
from dist_train.core.checkpoint import (
    SHARED,
    Facts,
    Part,
    load_part,
    newest,
    rank_part,
    read_manifest,
    server_counts,
    steps_in,
    verify,
)
from dist_train.core.commit import Committer, Outcome, clean
from dist_train.core.saver import Saver
from dist_train.core.seeds import seed_all, worker_seed
from dist_train.core.state import Counted, State
from dist_train.errors import ConfigError, TrainingError
from dist_train.layout import CHECKPOINTS, is_anothers
from dist_train.plan import Done, Plan, make_plan
from dist_train.rules.ledger import carried
from dist_train.rules.sampling import micro_batches, samples_in
from dist_train.rules.schedule import Rewarm, learning_rate

# How often a worker that waits for the disk shows that it is alive.
BEAT_S = 0.5

NOTHING: Mapping[str, Part] = MappingProxyType({})

# Has rank 0 compute a value that JSON can hold, and returns it on every rank.
FromRank0 = Callable[[str, Callable[[], Any]], Any]


@dataclass(frozen=True)
class Origin:
    """Where a run starts from: a checkpoint or, when ``path`` is None, its initialisation.

    ``rejected`` says of each later checkpoint that was passed over why it cannot be used.
    """

    path: Path | None
    rejected: tuple[str, ...] = ()


def agree_on_origin(run_dir: Path, resume: str, from_rank_0: FromRank0) -> Origin:
    """Let rank 0 clear up, verify and choose; every worker then restores from the same checkpoint."""

    def find() -> dict[str, Any]:
        clean(run_dir / CHECKPOINTS)
        origin = find_origin(run_dir, resume)
        return {"path": None if origin.path is None else str(origin.path), "rejected": origin.rejected}

    found = from_rank_0("origin", find)
    return Origin(None if found["path"] is None else Path(found["path"]), tuple(found["rejected"]))


def find_origin(run_dir: Path, resume: str) -> Origin:
    """Choose the newest checkpoint that verifies; raises ConfigError when there should be one and is not.

    ``resume`` is ``auto``, ``none``, or the path of a run directory or of one checkpoint.
    """
    own = run_dir / CHECKPOINTS
    if resume == "none":
        if steps_in(own):
            raise ConfigError(
                f"--resume none: {run_dir} holds checkpoints; give another --run-dir or --resume auto"
            )
        return Origin(None)
    if resume == "auto":
        return _newest(own, required=bool(steps_in(own)))
    if steps_in(own):
        # The run has come further than where it once began from.
        return _newest(own, required=True)
    path = Path(resume)
    if path.name.startswith("step_"):
        verify(path)
        return Origin(path)
    folder = path / CHECKPOINTS if (path / CHECKPOINTS).is_dir() else path
    if not steps_in(folder):
        raise ConfigError(f"--resume {resume}: neither a checkpoint nor a run directory that holds one")
    return _newest(folder, required=True)


def _newest(directory: Path, required: bool) -> Origin:
    found, passed_over = newest(directory)
    rejected = tuple(f"{each.path.name}: {each.reason}" for each in passed_over)
    if found is None and required:
        raise TrainingError(
            f"{directory}: no checkpoint can be used ({'; '.join(rejected)}); "
            "give another --run-dir to start anew"
        )
    return Origin(None if found is None else found.path, rejected)


def restore(state: State, origin: Path, rank: int, workers: int, seed: int, replica: int = 0) -> None:
    """Give ``state`` what the checkpoint at ``origin`` holds for this worker.

    With another number of workers than it was saved by, and where it holds none, generators are seeded anew
    from the samples counted. So are they in a replica that begins as a copy of another model, and from here
    on it has an order of the data of its own.
    """
    saved_by = read_manifest(origin).workers
    state.restore_shared(load_part(origin, SHARED))
    if counts := server_counts(origin):
        state.counted.carried = carried(counts, state.counted.cursor)
    copied = is_anothers(origin, replica)
    if copied:
        state.counted.seed = None
    own = load_part(origin, rank_part(rank % saved_by))
    if not state.restore_own(own, generators=saved_by == workers and not copied):
        seed_all(worker_seed(seed, rank, state.counted.samples))


def plan_from(
    config: Config, state: State, workers: int, train_size: int, backups: int | None = None
) -> tuple[Plan, str | None]:
    """Make the plan for a new or restored state, and say in a line what changed in the learning rate.

    Where the batch that the rate goes by changed since the state was saved, the rate follows the scaling
    rule, at once or, with schedule.rewarm, climbing from the old rate. ``backups`` is the number in force
    where the configuration leaves it to be chosen.
    """
    chosen, counted, samples = state.chosen, state.counted, state.counted.samples
    _refuse_other_data(state, train_size)
    old_rate, old_batch = chosen.rate, chosen.batch
    first = make_plan(config, workers, train_size, backups=backups)
    chosen.batch = first.scaling_batch
    _refuse_uneven_passes(config, counted, workers, first.samples_per_update)
    done = done_before(config, counted, first.samples_per_update)
    if old_rate is None or old_batch is None or old_batch == chosen.batch:
        return make_plan(config, workers, train_size, chosen.rewarms, done, backups), None
    chosen.rewarms = ()
    plan = make_plan(config, workers, train_size, done=done, backups=backups)
    what = "global batch" if config.parallel.outer_in_force is None else "batch of one local step"
    rate, note = (
        learning_rate(plan.schedule, samples),
        f"{what} {old_batch} -> {chosen.batch}: learning rate",
    )
    if rate == old_rate:
        return plan, f"{note} stays {rate:.6g}"
    note = f"{note} {old_rate:.6g} -> {rate:.6g}"
    if config.schedule.rewarm is None or rate == 0:
        return plan, note
    span = plan.samples_in(config.schedule.rewarm)
    chosen.rewarms = (Rewarm(samples, span, old_rate / rate),)
    plan = make_plan(config, workers, train_size, chosen.rewarms, done, backups)
    return plan, f"{note}, climbing over {span} samples"


def _refuse_other_data(state: State, train_size: int) -> None:
    counted = state.counted
    inside = counted.position.offset or counted.unfinished
    if counted.train_size not in (None, train_size) and inside:
        raise ConfigError(
            f"the training set has {train_size} samples, and had {counted.train_size} when the checkpoint "
            "was saved in the middle of an epoch: samples would be skipped and repeated; use the same data"
        )


def done_before(config: Config, counted: Counted, batch: int) -> Done:
    """Return what will be done when the data reach the position: unfinished runs come before it.

    They are trained in updates of ``batch`` samples.
    """
    waiting = samples_in(counted.unfinished)
    updates = -(-waiting // batch)
    if config.train.length.steps is not None:
        updates = min(updates, max(0, config.train.length.steps - counted.updates))
    samples = counted.samples + min(waiting, updates * batch)
    return Done(counted.updates + updates, samples, counted.position.offset)


def _refuse_uneven_passes(config: Config, counted: Counted, workers: int, batch: int) -> None:
    rest, accumulate = samples_in(counted.unfinished) % batch, config.train.accumulate
    passes = {len(micro_batches(rest, rank, workers, accumulate)) for rank in (0, workers - 1)}
    if config.parallel.sync_batch_norm and len(passes) > 1:
        raise ConfigError(
            f"parallel.sync_batch_norm: the checkpoint's last {rest} unfinished samples give the {workers} "
            "workers different numbers of passes, and they meet in every pass; resume without it, or with "
            "fewer workers"
        )


def open_keeper(
    config: Config,
    committer: Committer,
    origin: Origin,
    step: int,
    writes: bool,
    on_event: Callable[[dict[str, Any]], None],
) -> Keeper:
    """Open the checkpoints of a run that begins at ``step``, from a checkpoint of its own or otherwise."""
    config_hash = hashlib.sha256(dump_config(config).encode()).hexdigest()
    own = origin.path is not None and origin.path.parent == committer.directory
    return Keeper(Saver(committer, on_event), committer.rank, writes, config_hash, step if own else None)


class Keeper:
    """One worker's checkpoints: what goes into them and that none is written twice."""

    def __init__(
        self, saver: Saver, rank: int, writes: bool, config_hash: str, saved_step: int | None
    ) -> None:
        self._saver = saver
        self._rank = rank
        self._writes = writes
        self._config_hash = config_hash
        self._saved_step = saved_step

    def save(
        self, state: State, rate: float, alive: Callable[[], None], further: Mapping[str, Part] = NOTHING
    ) -> None:
        """Start a checkpoint of ``state``; ``rate`` is the learning rate of its next update.

        ``further`` parts are written by the worker that writes the state. Waits for the checkpoint before, if
        that is still being written, and calls ``alive`` meanwhile.
        """
        if state.counted.updates == self._saved_step:
            return
        state.chosen.rate = rate
        parts: dict[str, Part] = {rank_part(self._rank): state.own_part()}
        if self._writes:
            parts |= {SHARED: state.shared_part(), **further}
        self.save_parts(state, parts, alive)

    def save_parts(self, state: State, parts: Mapping[str, Part], alive: Callable[[], None]) -> None:
        """Start a checkpoint of these parts of ``state``, unless its step is saved already."""
        step = state.counted.updates
        if step == self._saved_step:
            return
        self._settle(alive)
        self._saver.save(step, Facts(state.counted.samples, self._config_hash), parts)
        self._saved_step = step

    def _settle(self, alive: Callable[[], None]) -> Outcome | None:
        while self._saver.busy:
            alive()
            self._saver.wait(BEAT_S)
        return self._saver.wait()

    def finish(
        self, state: State, rate: float, alive: Callable[[], None], further: Mapping[str, Part] = NOTHING
    ) -> None:
        """Save the last state, once more if the first try fails, and wait for the disk.

        Raises TrainingError when it could not be saved.
        """
        self._insist(state, lambda: self.save(state, rate, alive, further), alive)

    def finish_parts(self, state: State, parts: Mapping[str, Part], alive: Callable[[], None]) -> None:
        """Save these parts of the last state likewise."""
        self._insist(state, lambda: self.save_parts(state, parts, alive), alive)

    def _insist(self, state: State, save: Callable[[], None], alive: Callable[[], None]) -> None:
        reason = None
        for _ in range(2):
            save()
            outcome = self._settle(alive)
            if outcome is None or outcome.path is not None:
                self._saver.close()
                return
            self._saved_step, reason = None, outcome.reason
        raise TrainingError(f"the checkpoint of step {state.counted.updates} could not be written: {reason}")
