"""A parameter-server run made again from its log, in one process, to the same parameters bit for bit.

The gradients of an asynchronous run depend on the order in which everything happened. events.jsonl holds that
order, and a gradient is a function of the parameters it was computed from and of its samples: so the members
compute again what they computed, the shards take the same steps, and where the two part is where to look.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dist_train import layout
from dist_train.config import Config, load_config
from dist_train.config.schema import Faults
from dist_train.core.checkpoint import SHARED, load_part, newest
from dist_train.core.flat import Layout
from dist_train.core.seeds import generators_untouched
from dist_train.core.state import part_of
from dist_train.core.tensor_files import read_tensors
from dist_train.errors import ConfigError
from dist_train.replay.course import Counts, Course, Different
from dist_train.replay.log import Attempt, attempts, without_undone
from dist_train.replay.shards import beginning, server_state
from dist_train.replay.teachers import posts_of
from dist_train.watch.records import read

__all__ = ["Different", "replay"]


def replay(run_dir: Path) -> str:
    """Make the run in ``run_dir`` again; return a line that says how much is the same.

    Raises Different where it first differs, and ConfigError for a run that cannot be replayed.
    """
    config = _configuration(run_dir)
    found = _attempts(run_dir, config)
    goal = _goal(run_dir, found[-1].last_step)
    with _numerics_kept(), generators_untouched():
        counts, vector, placed = _run(config, run_dir, found, goal)
    if goal is None:
        compared = "no weights or checkpoint to compare with"
    elif vector is None:
        raise ConfigError(f"{goal.file}: of update {goal.step}, which the log does not hold")
    else:
        _compare(goal, placed, vector)
        compared = f"the parameters are those of {goal.file}, bit for bit"
    checks = f", {counts.checked} of them checked" if counts.checked else ""
    return f"{counts.updates} updates of {counts.gradients} gradients made again{checks}: {compared}"


@dataclass(frozen=True)
class Goal:
    """What the run came to: the parameters after update ``step``, by name."""

    file: Path
    step: int
    parameters: Mapping[str, Tensor]


def _run(
    config: Config, run_dir: Path, found: list[Attempt], goal: Goal | None
) -> tuple[Counts, Tensor | None, Layout]:
    origin = _origin(run_dir, found[0])
    server = server_state(config, found[0].workers, origin, found[0].replica)
    state, counts, vector = beginning(server), Counts(), None
    for attempt in found:
        with closing(Course(config, attempt, server, state, counts, posts_of(config, run_dir))) as course:
            kept = course.run(None if goal is None else goal.step)
            vector = vector if kept is None else kept
            state = course.shards.copy()
    return counts, vector, server.layout


# -- what is there to replay ---------------------------------------------------------------------------


def _configuration(run_dir: Path) -> Config:
    file = run_dir / layout.CONFIG
    if not file.exists():
        raise ConfigError(f"{run_dir}: no run directory, as {layout.CONFIG} is missing")
    config = load_config(file)
    parallel = config.parallel
    if not parallel.has_server:
        raise ConfigError(
            f"{run_dir}: a run in mode sync has no log of decisions; only those with a server have"
        )
    if parallel.device == "cuda" or (parallel.device == "auto" and _gpus(run_dir)):
        raise ConfigError(f"{run_dir}: it ran on GPUs, whose sums a CPU does not repeat bit for bit")
    here = parallel.model_copy(update={"device": "cpu"})
    data = config.data.model_copy(update={"loaders": 0})
    return config.model_copy(update={"parallel": here, "data": data, "faults": Faults()})


def _gpus(run_dir: Path) -> list[Any]:
    file = run_dir / layout.ENVIRONMENT
    described = json.loads(file.read_text()) if file.exists() else {}
    return list(described.get("gpus", ()))


def _attempts(run_dir: Path, config: Config) -> list[Attempt]:
    """Return the attempts from the first one on whose beginning is there."""
    file = run_dir / layout.EVENTS
    if not file.exists():
        raise ConfigError(f"{run_dir}: no {layout.EVENTS}, the log that a replay follows")
    try:
        found = without_undone(attempts(read(file)))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not found:
        raise ConfigError(f"{file}: no server_start: nothing was trained in mode {config.parallel.mode}")
    changes = [number for number, attempt in enumerate(found) if number and attempt.changed]
    first, reason = (changes[-1], f"{found[changes[-1]].changed} changed") if changes else (0, "it began")
    for number in range(first, len(found)):
        if found[number].origin is None or _origin(run_dir, found[number]) is not None:
            return found[number:]
    raise ConfigError(
        f"{found[first].origin}: the checkpoint from which the run went on when {reason} is there no more; "
        "keep it by checkpoint.keep_last or checkpoint.keep_every_steps"
    )


def _origin(run_dir: Path, attempt: Attempt) -> Path | None:
    """Return the checkpoint that an attempt began from, also if the run directory was moved since."""
    if attempt.origin is None:
        return None
    path = Path(attempt.origin)
    return next((each for each in (path, run_dir / layout.CHECKPOINTS / path.name) if each.exists()), None)


# -- what it came to -----------------------------------------------------------------------------------


def _goal(run_dir: Path, last_step: int) -> Goal | None:
    """Return the final weights of a run that is done, else its newest checkpoint."""
    summary, weights = run_dir / layout.SUMMARY, run_dir / layout.WEIGHTS
    if summary.exists() and json.loads(summary.read_text()).get("status") == "done" and weights.exists():
        return Goal(weights, last_step, read_tensors(weights))
    checkpoint, _ = newest(run_dir / layout.CHECKPOINTS)
    if checkpoint is None:
        return None
    model = part_of(load_part(checkpoint.path, SHARED), "model")
    return Goal(checkpoint.path, checkpoint.manifest.step, model.tensors)


def _compare(goal: Goal, placed: Layout, vector: Tensor) -> None:
    for name, own in placed.views(vector).items():
        there = goal.parameters.get(name)
        if there is None or there.shape != own.shape:
            raise Different(f"after update {goal.step}: {goal.file} has no parameter {name} like the model's")
        if not torch.equal(own, there):
            most = (own - there).abs().max().item()
            raise Different(
                f"after update {goal.step}: parameter {name} differs from {goal.file} by up to {most:.3g}, "
                "though the losses of all gradients are the same"
            )


@contextmanager
def _numerics_kept() -> Iterator[None]:
    """Leave torch's global switches as they were found."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark = benchmark
