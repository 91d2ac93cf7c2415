"""The process around one worker: its signals, its pulse, its log, its last words."""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dist_train import tasks
from dist_train.config import Config
from dist_train.errors import FAILED, REFUSED, ConfigError, Mismatch
from dist_train.rules.liveness import Limits
from dist_train.rules.teaching import companions_of
from dist_train.runtime import children
from dist_train.runtime import run_dir as directories
from dist_train.runtime.opening import open_run_directory
from dist_train.runtime.place import Place, relay_address
from dist_train.runtime.pulse import PulseWriter
from dist_train.runtime.signals import StopSignals
from dist_train.watch.aftermath import write_failure
from dist_train.watch.logs import worker_logs

if TYPE_CHECKING:
    from dist_train.exchange.agreement import Others

log = logging.getLogger(__name__)


class Phases:
    """Where the worker is: remembered for its last words, and passed on to its pulse."""

    def __init__(self, pulse: PulseWriter) -> None:
        self._pulse = pulse
        self.name, self.step = "starting", 0

    def __call__(self, name: str, step: int) -> None:
        self.name, self.step = name, step
        self._pulse.phase(name, step)


def be_worker(config: Config, place: Place, run_dir: Path | None, resume: str) -> int:
    """Be one worker of a run to its end; does not return but ends the process with the exit status.

    Ending without the interpreter's own clean-up keeps a worker from hanging in libraries whose peers
    have gone.
    """
    if place.launcher_pid is not None:
        children.die_with_launcher(place.launcher_pid)
    children.dump_stacks_on_request()
    signals = StopSignals()
    pulse = PulseWriter(place.pulse, place.local_rank)
    status = FAILED
    with worker_logs(place.rank, place.host):
        status = _guarded(config, place, run_dir, resume, signals, Phases(pulse), pulse)
    pulse.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _guarded(
    config: Config,
    place: Place,
    run_dir: Path | None,
    resume: str,
    signals: StopSignals,
    phases: Phases,
    pulse: PulseWriter,
) -> int:
    """Run the worker and turn whatever goes wrong into a report and an exit status."""
    known: list[Path] = [] if run_dir is None else [run_dir]
    try:
        return _run(config, place, run_dir, resume, signals, phases, pulse, known.append)
    except BaseException as error:
        refused = isinstance(error, ConfigError | Mismatch)
        if not refused:
            log.exception("worker %d failed in step %d, phase %s", place.rank, phases.step, phases.name)
        # Without a launcher, a refused worker may not write: the directory may be another run's.
        if known and (place.launched or not refused):
            children.report_crash(known[-1], place.rank, phases.name, phases.step, error)
        if not place.launched and place.rank == 0:
            for line in str(error).splitlines():
                print(f"dist-train: {line}", file=sys.stderr, flush=True)
            if known and not refused:
                write_failure(config, known[-1], f"{type(error).__name__}: {error}")
        return REFUSED if refused else FAILED


def _run(
    config: Config,
    place: Place,
    run_dir: Path | None,
    resume: str,
    signals: StopSignals,
    phases: Phases,
    pulse: PulseWriter,
    found: Callable[[Path], None],
) -> int:
    from dist_train.exchange.agreement import StopAgreement
    from dist_train.runtime.connect import connect
    from dist_train.worker import Assignment, work

    connection = connect(place, config.parallel, phases)
    if not place.launched:
        recovery = config.recovery
        # From inside, a worker that hangs and one that waits for a peer look alike until the group gives up.
        hung_after_s = max(recovery.hung_after_s, config.parallel.timeout_s)
        limits = Limits(recovery.frozen_after_s, hung_after_s, recovery.start_timeout_s)
        pulse.watch_self(limits, place.rank)
    with ExitStack() as held:

        def settle() -> dict[str, Any]:
            directory = run_dir or directories.create(Path("runs"), config.name)
            if not place.launched:
                held.enter_context(directories.Lock(directory))
                if problems := tasks.check(config):
                    raise ConfigError(problems)
                open_run_directory(config, directory, resume, os.environ)
            return {"run_dir": str(directory), "attempt": uuid.uuid4().hex[:12]}

        settled = connection.from_rank_0("assignment", settle)
        directory = Path(settled["run_dir"])
        found(directory)
        others = _others(config, place)
        stop = StopAgreement(connection.store, place.rank, place.workers, others=others)
        signals.connect(stop.request)
        pulse.every_tick(stop.poll)
        # "none" speaks of the first start; after a restart there may be checkpoints to go on from.
        origin = "auto" if place.attempt and resume == "none" else resume
        given = Assignment(directory, origin, settled["attempt"])
        return work(config, connection, given, stop)


def _others(config: Config, place: Place) -> Others | None:
    """Return the replicas that this one stops together with, for the worker that asks them."""
    from dist_train.runtime.relay import HaltByLine

    codistill, replicas = config.codistill, config.parallel.replicas
    if place.rank != 0 or codistill is None or not codistill.by_prediction:
        return None
    return HaltByLine(
        relay_address(), place.replica, companions_of(place.replica, replicas, codistill.topology)
    )
