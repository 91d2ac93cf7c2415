"""The run of several replicas: starts each as a run of its own, starts again the one that died, sums up.

A replica is what `dist-train run` starts without others: a launcher, its workers, and a run directory
``replica_0``, ``replica_1``, ... with records and checkpoints. They meet on the board alone, so the end of
one stops nobody.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dist_train.config import Config
from dist_train.errors import DONE, FAILED, INTERRUPTED, REFUSED
from dist_train.layout import BOARD, CONFIG, LOGS, replica_folder
from dist_train.rules import recovery
from dist_train.rules.recovery import Attempt, Failure, Restart, Stop, after_failure
from dist_train.runtime import children
from dist_train.runtime.children import Child
from dist_train.runtime.launcher import POLL_S, Signals, available_cpus
from dist_train.runtime.opening import newest_step
from dist_train.runtime.place import relay_variables, replica_variables
from dist_train.runtime.relay import CLOSE_S, RelayThread, Waits
from dist_train.runtime.run_dir import gpu_count
from dist_train.watch.aftermath import write_interruption
from dist_train.watch.replica_summary import sum_up

Say = Callable[[str], None]
OnEvent = Callable[[dict[str, Any]], None]

# What replicas get beyond their own grace to save and stop.
PATIENCE_S = 10.0


@dataclass
class _Replica:
    """One replica through all its starts; ``status`` is final, ``due`` when it is to start again."""

    number: int
    directory: Path
    child: Child | None = None
    started_from: int = 0
    attempts: list[Attempt] = field(default_factory=list)
    due: float | None = 0.0
    status: int | None = None


class _Run:
    def __init__(
        self, config: Config, directory: Path, resume: str, variables: Mapping[str, str], say: Say
    ) -> None:
        self._config = config
        self._directory = directory
        self._resume = resume
        self._variables = variables
        self._say = say
        settings = config.recovery
        self._limits = recovery.Limits(settings.max_restarts, settings.backoff_s, settings.max_backoff_s)
        self.replicas = [
            _Replica(number, directory / replica_folder(number)) for number in range(config.parallel.replicas)
        ]
        self._asked = 0
        self._deadline: float | None = None
        (directory / BOARD).mkdir(exist_ok=True)
        codistill = config.codistill
        self._relay: RelayThread | None = None
        if codistill is not None and codistill.by_prediction:
            # A stop has to leave time to save in.
            halt_s = min(codistill.patience_s, config.recovery.grace_s / 3)
            waits = Waits(config.parallel.timeout_s, codistill.patience_s, halt_s)
            parallel = config.parallel
            self._relay = RelayThread(parallel.replicas, int(parallel.workers), waits, codistill.burn_in)

    def watch(self, signals: Signals, on_event: OnEvent) -> None:
        """Return when every replica has come to its end."""
        while any(replica.status is None for replica in self.replicas):
            for number in signals.wait(POLL_S):
                self._pass_on(number)
            if self._deadline is not None and time.monotonic() > self._deadline:
                self._say("killed: replicas that did not stop in time")
                self.kill()
            for replica in self.replicas:
                self._look_after(replica, on_event)

    def kill(self) -> None:
        children.kill([replica.child for replica in self.replicas if replica.child is not None])

    def close(self) -> None:
        if self._relay is not None and not self._relay.close():
            self._say(f"the relay of predictions was not closed within {CLOSE_S:g} s; the run ends anyway")

    def _pass_on(self, number: signal.Signals) -> None:
        """Ask everybody to save and stop; asked again by SIGTERM or SIGINT, kill them."""
        self._asked += number in (signal.SIGTERM, signal.SIGINT)
        if self._asked > 1:
            self.kill()
            return
        self._stop_all()

    def _stop_all(self) -> None:
        self._deadline = time.monotonic() + self._config.recovery.grace_s + PATIENCE_S
        for replica in self.replicas:
            if replica.child is not None:
                replica.child.send(signal.SIGTERM)
            elif replica.status is None:
                replica.status, replica.due = INTERRUPTED, None

    def _look_after(self, replica: _Replica, on_event: OnEvent) -> None:
        if replica.due is not None and time.monotonic() >= replica.due:
            self._start(replica)
        if replica.child is None or replica.child.status is None:
            return
        child, status = replica.child, replica.child.status
        replica.child = None
        if self._relay is not None:
            self._relay.gone(replica.number)
        if status == REFUSED and not replica.attempts and self._deadline is None:
            why = children.last_line(child).removeprefix("dist-train: ")
            self._say(f"replica {replica.number} is refused, and the others stop: {why}")
            self._stop_all()
        if status in (DONE, INTERRUPTED, REFUSED) or self._deadline is not None:
            # One that was asked to stop before it could hear has nothing to save.
            unheard = self._deadline is not None and status == -signal.SIGTERM
            known = status if status in (DONE, REFUSED, INTERRUPTED) else FAILED
            replica.status = INTERRUPTED if unheard else known
            return
        self._failed(replica, child, status, on_event)

    def _start(self, replica: _Replica) -> None:
        replica.due = None
        replica.started_from = newest_step(replica.directory)
        replica.directory.mkdir(parents=True, exist_ok=True)
        # "none" speaks of the first start.
        resume = "auto" if replica.attempts and self._resume == "none" else self._origin(replica)
        argv = [sys.executable, "-m", "dist_train", "run", str(self._directory / CONFIG)]
        argv += ["--run-dir", str(replica.directory), "--resume", resume]
        log = self._directory / LOGS / f"{replica_folder(replica.number)}.log"
        log.parent.mkdir(exist_ok=True)
        replica.child = children.start(argv, replica.number, self._environment(replica.number), log, ())

    def _origin(self, replica: _Replica) -> str:
        """Where it resumes from: its own part of another run of several replicas, if there is one."""
        if self._resume in ("auto", "none"):
            return self._resume
        part = Path(self._resume) / replica_folder(replica.number)
        return str(part) if part.is_dir() else self._resume

    def _environment(self, number: int) -> dict[str, str]:
        parallel = self._config.parallel
        everybody = int(parallel.workers) * parallel.replicas
        shared = {"OMP_NUM_THREADS": str(max(1, available_cpus() // everybody))}
        return {
            **shared,
            **self._variables,
            **replica_variables(number, os.getpid()),
            **({} if self._relay is None else relay_variables(self._relay.address)),
            **_gpus_of(number, int(parallel.workers), self._variables),
        }

    def _failed(self, replica: _Replica, child: Child, status: int, on_event: OnEvent) -> None:
        """Start it again where that may help: its launcher was killed, not its training given up."""
        number, killed = replica.number, status < 0
        what = f"was killed by {signal.Signals(-status).name}" if killed else children.last_line(child)
        failure = Failure(
            number, newest_step(replica.directory), "training", str(status), what, time.monotonic(), killed
        )
        replica.attempts.append(Attempt(replica.started_from, failure))
        on_event({"event": "replica_failure", "replica": number, "status": status, "error": what})
        decision: Restart | Stop = Stop("its workers failed, and its own launcher gave them up")
        if killed:
            decision = after_failure(replica.attempts, self._limits)
        if isinstance(decision, Stop):
            self._say(f"replica {number} {what}; {decision.reason}; log: {child.log}; the others go on")
            on_event({"event": "replica_gave_up", "replica": number, "reason": decision.reason})
            replica.status = FAILED
            return
        self._say(f"replica {number} {what}; it starts again in {decision.delay_s:.1f} s, the others go on")
        on_event({"event": "replica_restart", "replica": number, "from_step": failure.step})
        replica.due = time.monotonic() + decision.delay_s


def launch_replicas(
    config: Config, directory: Path, resume: str, variables: Mapping[str, str], say: Say, on_event: OnEvent
) -> int:
    """Train all replicas to their ends and return the exit status: the worst of theirs.

    The first SIGTERM, SIGINT, SIGUSR1 or SIGUSR2 asks all of them to save and stop, a second one kills them.
    No process outlives this one.
    """
    run = _Run(config, directory, resume, variables, say)
    started = time.monotonic()
    with Signals() as signals:
        try:
            run.watch(signals, on_event)
        finally:
            run.kill()
            run.close()
    status = worst([FAILED if each.status is None else each.status for each in run.replicas])
    if status != REFUSED:
        for each in run.replicas:
            if each.status == INTERRUPTED:
                # Its launcher may have been stopped before it could do that itself.
                write_interruption(config, each.directory)
        restarts = sum(len(each.attempts) for each in run.replicas)
        for line in sum_up(config, directory, status, time.monotonic() - started, restarts):
            say(line)
    return status


def worst(statuses: list[int]) -> int:
    """Return the exit status of a run whose replicas ended so: refused, failed, interrupted, or done."""
    return next((status for status in (REFUSED, FAILED, INTERRUPTED) if status in statuses), DONE)


def _gpus_of(number: int, workers: int, variables: Mapping[str, str]) -> dict[str, str]:
    """Give a replica GPUs of its own, where there are any."""
    gpus = gpu_count(variables)
    if not gpus:
        return {}
    given = variables.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given is not None else [str(each) for each in range(gpus)]
    return {"CUDA_VISIBLE_DEVICES": ",".join(names[number * workers : (number + 1) * workers])}
