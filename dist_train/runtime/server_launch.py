"""From a configuration to a running parameter server: Ray started or joined, resources reserved."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dist_train.config import Config
from dist_train.errors import FAILED, INTERRUPTED
from dist_train.layout import LOGS
from dist_train.rules import recovery
from dist_train.rules.recovery import Attempt, Failure, Stop, after_failure
from dist_train.rules.resources import Bundle, Resources
from dist_train.runtime import ray_cluster
from dist_train.runtime.conductor import Conductor
from dist_train.runtime.crew import FIRST_MEMBER_BUNDLE, SERVER_BUNDLE, Crew
from dist_train.runtime.interruption import Interruptible, sigterm_as_ctrl_c, stop_signals_to, the_first
from dist_train.runtime.launcher import available_cpus
from dist_train.runtime.letters import Order
from dist_train.runtime.opening import newest_step
from dist_train.runtime.place import find_replica, set_variables
from dist_train.runtime.ray_cluster import Cluster, Reservation
from dist_train.runtime.reaper import Reaper
from dist_train.runtime.run_dir import gpu_count, word_in

Say = Callable[[str], None]
OnEvent = Callable[[dict[str, Any]], None]


def launch_server(
    config: Config, run_dir: Path, resume: str, variables: Mapping[str, str], say: Say, on_event: OnEvent
) -> int:
    """Run to the end and return the exit status; no process of the run outlives this one.

    When the coordinator is lost, everything begins again from the newest checkpoint.
    """
    status: int | None = None
    try:
        with ExitStack() as held:
            held.enter_context(sigterm_as_ctrl_c())
            reaper = held.enter_context(Reaper.start())
            set_variables(reaper.variables)
            cluster = held.enter_context(_cluster(config, reaper.home, variables))
            gpus = _gpu_each(config, cluster)
            bundles = _bundles(config, gpus)
            reservation = cluster.reserve(bundles, config.parallel.cluster.wait_s, say)
            status = _attempts(config, run_dir, resume, (cluster, reservation), gpus, say, on_event)
    except (KeyboardInterrupt, SystemExit):
        # Once it is started Ray answers SIGTERM by SystemExit, until an attempt has handlers of its own. What
        # comes while Ray shuts down changes nothing of how the run has ended.
        if status is None:
            say("interrupted while no worker was running")
    return INTERRUPTED if status is None else status


def _attempts(
    config: Config,
    run_dir: Path,
    resume: str,
    where: tuple[Cluster, Reservation],
    gpus: int,
    say: Say,
    on_event: OnEvent,
) -> int:
    settings = config.recovery
    limits = recovery.Limits(settings.max_restarts, settings.backoff_s, settings.max_backoff_s)
    attempts: list[Attempt] = []
    while True:
        started_from = newest_step(run_dir)
        number = len(attempts)
        order = Order(
            config=config,
            run_dir=run_dir.absolute(),
            resume="auto" if number and resume == "none" else resume,
            attempt=number,
            workers=int(config.parallel.workers),
            started_by="launcher" if config.parallel.cluster.address is None else "ray",
            device="GPU" if gpus else "CPU",
            replica=(find_replica() or (0,))[0],
            near=_near(where[1]),
            word=word_in(run_dir),
        )
        attempt = Interruptible[int | Failure]()
        ended = attempt.run(_attempt(order, where, gpus, say, attempt))
        if not isinstance(ended, Failure):
            return ended
        step = newest_step(run_dir)
        say(f"{ended.error}; log: {run_dir / LOGS / 'coordinator.log'}")
        what = {"event": "failure", "attempt": number, "rank": ended.rank, "step": ended.step}
        on_event({**what, "error": ended.error})
        attempts.append(Attempt(started_from, ended))
        decision = after_failure(attempts, limits)
        if isinstance(decision, Stop):
            say(decision.reason)
            on_event({"event": "gave_up", "reason": decision.reason})
            return FAILED
        on_event({"event": "restart", "attempt": number + 1, "reason": ended.error, "from_step": step})
        say(f"restarting from step {step} in {decision.delay_s:.1f} s (attempt {number + 2})")
        with sigterm_as_ctrl_c():
            time.sleep(decision.delay_s)


async def _attempt(
    order: Order,
    where: tuple[Cluster, Reservation],
    gpus: int,
    say: Say,
    attempt: Interruptible[int | Failure],
) -> int | Failure:
    cluster, reservation = where
    crew = Crew(cluster, reservation, order, _environment(order, reservation), gpus)
    conductor = Conductor(order, crew, say)
    # Who started one of several replicas also kills it, and signals may reach both.
    stop = conductor.stop if find_replica() is None else the_first(conductor.stop)
    with stop_signals_to(stop):
        attempt.interrupted_by(lambda: stop(signal.SIGINT))
        try:
            return await conductor.run()
        finally:
            await crew.kill_all()


def _cluster(config: Config, home: Path, variables: Mapping[str, str]) -> Cluster:
    parallel = config.parallel
    if parallel.cluster.address is not None:
        return ray_cluster.join(parallel.cluster.address)
    return ray_cluster.start_local(home, 0 if parallel.device == "cpu" else gpu_count(variables))


def _gpu_each(config: Config, cluster: Cluster) -> int:
    """Return 1 if each worker gets a GPU of its own, 0 if all use the CPU.

    ``device: auto`` takes GPUs on this machine if there are any, as without a server, and on a cluster,
    whose GPUs may be there for others, if there is one for each worker of all replicas.
    """
    parallel = config.parallel
    if parallel.device == "cpu":
        return 0
    if parallel.device == "cuda":
        return 1
    needed = 1 if parallel.cluster.address is None else int(parallel.workers) * parallel.replicas
    return int(cluster.gpus() >= needed)


def _bundles(config: Config, gpus: int) -> list[Bundle]:
    """Say what the server asks of the cluster, then each group: its workers have to be on one node."""
    parallel = config.parallel
    size = parallel.group_size
    needs: Resources = {"CPU": size * parallel.cluster.worker_cpus, **({"GPU": size * gpus} if gpus else {})}
    group = Bundle("a worker" if size == 1 else f"a group of {size} workers", needs)
    # The coordinator, and each shard's computing thread.
    server = Bundle("the server", {"CPU": 1 + parallel.server.shards * parallel.server.copies})
    return [server, *[group] * (int(parallel.workers) // size)]


def _near(reservation: Reservation) -> tuple[int, ...]:
    """Return the members on the server's node."""
    own, members = reservation.nodes[SERVER_BUNDLE], reservation.nodes[FIRST_MEMBER_BUNDLE:]
    return tuple(member for member, node in enumerate(members) if node == own)


def _environment(order: Order, reservation: Reservation) -> dict[str, str]:
    workers, cluster = order.workers, order.config.parallel.cluster
    alone = len(set(reservation.nodes)) == 1
    shared = cluster.address is not None
    return {
        # On a cluster others have the rest; a machine of our own is divided among the workers.
        "OMP_NUM_THREADS": str(cluster.worker_cpus if shared else max(1, available_cpus() // workers)),
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        **({"GLOO_SOCKET_IFNAME": "lo"} if alone else {}),
    }
