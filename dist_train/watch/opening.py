"""The beginning of a run, for a person: the arithmetic spelt out, and the book opened at the right page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dist_train.config import Config, dump_config
from dist_train.config.schema import Span
from dist_train.core.keeper import Origin
from dist_train.core.learner import updates_left
from dist_train.core.state import Counted
from dist_train.layout import METRICS, TENSORBOARD
from dist_train.plan import Plan
from dist_train.rules.schedule import learning_rate
from dist_train.watch.aftermath import measures, readable
from dist_train.watch.coupling_facts import coupling_facts, replica_facts, student_facts
from dist_train.watch.course import Earlier
from dist_train.watch.display import Display, open_display
from dist_train.watch.figures import Length, counted
from dist_train.watch.logbook import Logbook, NoLogbook, RunLogbook
from dist_train.watch.scalars import NoScalars, Scalars

LAST_BATCH = {"keep": "shorter", "drop": "left out"}


@dataclass(frozen=True)
class Scene:
    """What is about to train, apart from the configuration."""

    device: str
    parameters: int
    started_by: str
    attempt: int


def arithmetic(config: Config, plan: Plan) -> dict[str, str]:
    """Spell out how the settings become gradients, batch, steps, learning rate and warmup."""
    batch, schedule = plan.samples_per_update, plan.schedule
    facts = {
        **replica_facts(config),
        **student_facts(config),
        **coupling_facts(config, plan),
        "global batch": _batch_text(config, plan),
        "epoch": f"{plan.train_size:,} samples = {plan.lengths.updates_per_epoch:,} steps of {batch:,}"
        + ("" if plan.train_size % batch == 0 else f", the last one {LAST_BATCH[config.train.last_batch]}"),
        "training": f"{plan.total_updates:,} steps = {schedule.total:,} samples"
        f" = {schedule.total / plan.lengths.epoch:.4g} epochs",
        "learning rate": _rate_text(config, plan),
    }
    if schedule.warmup is not None:
        warmup, updates = schedule.warmup, plan.lengths.updates_for(schedule.warmup.samples)
        shape = "gradual" if warmup.gradual else "constant"
        used = "" if warmup.start_lr < schedule.peak else "; not used, since the rate does not rise"
        facts["warmup"] = (
            f"{shape} from {warmup.start_lr:.6g} to {schedule.peak:.6g} in {updates:,} steps = "
            f"{warmup.samples:,} samples{used}"
        )
    decay = config.schedule.decay.model_dump(exclude={"kind"}, exclude_none=True)
    settings = ", ".join(f"{name.replace('_', ' ')} {_setting_text(value)}" for name, value in decay.items())
    facts["decay"] = f"{config.schedule.decay.kind}{f' ({settings})' if settings else ''}"
    before_last = plan.samples_in(Span(steps=plan.total_updates - 1)) if plan.total_updates > 1 else 0
    facts["last learning rate"] = f"{learning_rate(schedule, before_last):.6g}"
    return facts


def _setting_text(value: object) -> str:
    return " ".join(f"{each:g}" for each in value) if isinstance(value, tuple) else f"{value:g}"


def _batch_text(config: Config, plan: Plan) -> str:
    batch, workers, accumulate = plan.samples_per_update, plan.workers, config.train.accumulate
    if config.parallel.has_server:
        return f"{batch:,} = {counted(plan.quorum, 'gradient')} of {plan.samples_per_gradient:,} samples"
    if config.parallel.global_batch is not None:
        share = batch / (workers * accumulate)
        return f"{batch:,} (parallel.global_batch) = {workers} workers x {share:g} x {accumulate} accumulated"
    return f"{batch:,} = {workers} workers x {config.train.batch_size} x {accumulate} accumulated"


def _rate_text(config: Config, plan: Plan) -> str:
    base, rule, base_batch = config.optimizer.lr, config.schedule.scaling, config.schedule.base_batch
    ratio = f"{plan.scaling_batch}/{base_batch}"
    if base_batch is None or rule == "none":
        return f"{plan.schedule.peak:.6g} (not scaled)"
    factor = ratio if rule == "linear" else f"sqrt({ratio})"
    return f"{plan.schedule.peak:.6g} = {base:g} x {factor} ({rule} scaling)"


def announce(
    book: Logbook,
    config: Config,
    plan: Plan,
    scene: Scene,
    run_dir: Path,
    counts: Counted,
    origin: Origin,
    rescaled: str | None,
) -> None:
    """Open the run's output with its arithmetic, and write down how it starts."""
    if scene.attempt == 0:
        book.start(start_facts(config, plan, scene, run_dir))
    for reason in origin.rejected:
        book.event({"event": "checkpoint_rejected", "warning": f"passed over a damaged checkpoint: {reason}"})
    start = {"event": "start", "step": counts.updates, "samples": counts.samples, "workers": plan.workers}
    if origin.path is None:
        book.event({**start, "started_by": scene.started_by, "attempt": scene.attempt})
    else:
        note = f"resumed from {origin.path}: step {counts.updates:,}, {counts.samples:,} samples"
        book.event({**start, "started_by": scene.started_by, "attempt": scene.attempt, "note": note})
    if rescaled is not None:
        book.event({"event": "rescaled", "step": counts.updates, "note": rescaled})


def start_facts(config: Config, plan: Plan, scene: Scene, run_dir: Path) -> dict[str, str]:
    """Return the block that opens a run's output, label to text."""
    workers = counted(plan.workers, "worker")
    model = config.model.name if config.model is not None else "the task's own"
    return {
        "run": config.name,
        "task": config.task,
        "model": f"{model}, {scene.parameters:,} parameters",
        "workers": f"{workers} on {scene.device}, {config.train.precision}, {config.parallel.mode}",
        **arithmetic(config, plan),
        "run directory": str(run_dir),
    }


def length_of(plan: Plan, counts: Counted) -> Length:
    """Return how long the run is, all in all, seen from where it stands."""
    steps = counts.updates + updates_left(plan, counts)
    return Length(steps, plan.schedule.total, plan.schedule.total / plan.lengths.epoch)


def open_logbook(
    config: Config,
    plan: Plan,
    run_dir: Path,
    rank: int,
    attempt: int,
    counts: Counted,
    display: Display | None = None,
) -> Logbook:
    """Open the book where the state is; every rank but 0 gets one that writes nothing.

    It shows what happens on ``display``, or on standard output.
    """
    if rank != 0:
        return NoLogbook()
    step = counts.updates
    display = open_display(length_of(plan, counts)) if display is None else display
    purge = step + 1 if step else None
    scalars: Scalars | NoScalars = NoScalars()
    if config.logging.tensorboard:
        scalars = Scalars(run_dir / TENSORBOARD, display.warning, purge, dump_config(config))
        if attempt:
            scalars.restarts(step, attempt)
    return RunLogbook(run_dir, display, scalars, step)


def earlier(run_dir: Path, step: int) -> Earlier:
    """Return what the run has behind it at ``step``, from its own records."""
    path = run_dir / METRICS
    if step == 0:
        return Earlier()
    kept = [line for line in readable(path) if line.get("step", 0) <= step]
    validations = [line for line in kept if line["kind"] == "val" and isinstance(line["loss"], float)]
    best = min(validations, key=lambda line: float(line["loss"]), default=None)
    return Earlier(
        wall_s=max((float(line.get("wall_s", 0)) for line in kept), default=0.0),
        best=None if best is None else {"step": best["step"], **measures(best)},
    )
