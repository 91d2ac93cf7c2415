"""Ray, and nowhere else: a cluster, actors of plain classes on it, arrays between its nodes, its jobs.

Nobody else sees a Ray type. What actors are, whatever runs them, is in remote.py. No call is repeated here
by itself: a call that a network fault may have swallowed raises Unreachable, at once, and ``insist``
repeats it for those whose calls carry an identity of their own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from dist_train.errors import ConfigError, TrainingError
from dist_train.rules.resources import Bundle, Resources, missing, node_by_node, occupied
from dist_train.runtime.access import AUTO, admit, keep_to_guarded, knock_at_head, knock_at_jobs, wanted
from dist_train.runtime.place import set_variables
from dist_train.runtime.ray_environment import LOOPBACK, QUICK, QUIET
from dist_train.runtime.remote import (
    ActorFailed,
    ActorGone,
    Answer,
    Host,
    Origin,
    Process,
    Unreachable,
    name_of,
    process_of,
    signal_process,
    unwrap,
)

# On one machine the actors share what there is: Ray's count of CPUs must not keep any from starting.
LOCAL_CPUS = 10_000
OBJECT_STORE_BYTES = 128 * 2**20
CONCURRENT_CALLS = 10_000
# Seconds between two attempts of a call, and between two looks at a busy cluster.
RETRY_S, LOOK_S = 0.05, 1.0
# What does not come from another node is asked for anew after these seconds.
ASK_AGAIN_S = 5.0
# A node that does not start a process within these seconds is taken for lost.
REMOTE_KILL_S = 15.0

# One token for all clusters of this process: Ray reads it once.
_TOKEN = secrets.token_hex(32)

Say = Callable[[str], None]


def _ray() -> Any:
    """Import Ray when it is first needed: it reads its environment then."""
    if "ray" not in sys.modules:
        set_variables(QUIET)
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            f'this run needs Ray ({error}): pip install "dist-train[ray]", or choose parallel.mode: sync'
        ) from error
    return ray


@dataclass(frozen=True)
class Actor:
    """An object in a process of its own; may be handed to other actors.

    Calls raise what the method raised if that is a ConfigError or a TrainingError, else ActorFailed;
    ActorGone when its process has ended; Unreachable when there was no answer.
    """

    name: str
    handle: Any

    def ask(self, method: str, *arguments: Any, timeout_s: float | None = None) -> Any:
        """Call and wait for the answer, at most ``timeout_s``."""
        ray = _ray()
        try:
            answer: Answer = _awaited(self.handle.call.remote(method, *arguments), timeout_s)
        except ray.exceptions.RayError as error:
            raise self._translated(error, method) from error
        return unwrap(answer)

    async def request(self, method: str, *arguments: Any) -> Any:
        """Call; the answer is awaited in the running event loop."""
        ray = _ray()
        try:
            answer: Answer = await self.handle.call.remote(method, *arguments)
        except ray.exceptions.RayError as error:
            raise self._translated(error, method) from error
        return unwrap(answer)

    async def insist(self, method: str, *arguments: Any) -> Any:
        """Call until there is an answer; only for methods that know a repeated call when they see one."""
        while True:
            try:
                return await self.request(method, *arguments)
            except Unreachable:
                await asyncio.sleep(RETRY_S)

    def keep_asking(self, method: str, *arguments: Any) -> Any:
        """The blocking ``insist``, for threads."""
        while True:
            try:
                return self.ask(method, *arguments)
            except Unreachable:
                time.sleep(RETRY_S)

    def post(self, method: str, *arguments: Any) -> None:
        """Call without waiting; the answer, and whether there is one, stays unknown."""
        self.handle.call.remote(method, *arguments)

    def kill(self) -> None:
        """End the actor's process; a stopped one ends within some 5 s (at once with kill_process)."""
        _ray().kill(self.handle, no_restart=True)

    def _translated(self, error: Exception, method: str) -> TrainingError:
        ray = _ray()
        if isinstance(error, ray.exceptions.GetTimeoutError):
            return Unreachable(f"{self.name} did not answer {method} in time")
        if isinstance(error, ray.exceptions.ActorUnavailableError):
            return Unreachable(f"{self.name} could not be reached for {method}")
        if isinstance(error, ray.exceptions.RayActorError):
            return ActorGone(f"{self.name} has ended")
        if isinstance(error, ray.exceptions.RayTaskError):
            return ActorFailed(f"{self.name}: {method}: {error.cause}", str(error))
        return Unreachable(f"{self.name}: {method}: {type(error).__name__}: {error}")


@dataclass(frozen=True)
class Ref:
    """An array in the object store, from where any node may fetch it while its maker lives."""

    handle: Any

    def fetch(self, timeout_s: float | None = None) -> NDArray[np.float32]:
        """Return the array, read-only; on the node that has it, without a copy. Unreachable if it is lost."""
        try:
            return cast("NDArray[np.float32]", _awaited(self.handle, timeout_s))
        except _ray().exceptions.RayError as error:
            raise Unreachable(f"an array cannot be fetched: {_line(error)}") from error


def _awaited(handle: Any, timeout_s: float | None) -> Any:
    """Wait for an object, at most ``timeout_s``; Ray itself asks for a lost one after long waits only."""
    limit_s = inf if timeout_s is None else timeout_s
    waited_s, patience_s = 0.0, ASK_AGAIN_S
    while True:
        patience_s = min(patience_s, limit_s - waited_s)
        try:
            return _ray().get(handle, timeout=patience_s)
        except _ray().exceptions.GetTimeoutError:
            waited_s += patience_s
            if waited_s >= limit_s:
                raise
        # A large array may take longer, and gets twice the time.
        patience_s *= 2


def put(array: NDArray[np.float32]) -> Ref:
    """Copy an array to the object store; it stays there for as long as somebody has the Ref."""
    return Ref(_ray().put(array))


def node_id() -> str:
    """Name the node that this process is on."""
    return str(_ray().get_runtime_context().get_node_id())


def node_address() -> str:
    """Return the network address at which other nodes reach the node that this process is on."""
    return str(_ray().util.get_node_ip_address())


def this_process() -> Process:
    """Describe this process for ``kill_process``."""
    return process_of(os.getpid(), node_id())


def kill_process(process: Process, number: int) -> bool:
    """Send a signal to a process on any node; False if it had ended, or its node is lost."""
    if process.node == node_id():
        return signal_process(process, number)
    ray = _ray()
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(process.node, soft=False)
    task = ray.remote(num_cpus=0, max_retries=3, scheduling_strategy=there)(signal_process)
    try:
        return bool(ray.get(task.remote(process, number), timeout=REMOTE_KILL_S))
    except ray.exceptions.RayError:
        return False


@dataclass(frozen=True)
class Reservation:
    """Bundles of resources that are the run's; ``nodes[i]`` is the node that bundle i lies on.

    Bundles that ask for the same are numbered node by node: consecutive ones are near each other.
    """

    nodes: tuple[str, ...]
    bundles: tuple[Resources, ...]
    group: Any
    order: tuple[int, ...]


class Cluster:
    """Ray, joined or started; leaving the ``with`` block ends the actors, and the Ray that it started."""

    def __init__(self, address: str) -> None:
        self.address = address
        # Ray ends an actor when the handle it was made with is forgotten.
        self._actors: list[Actor] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._actors.clear()
        _ray().shutdown()

    def reserve(self, bundles: Sequence[Bundle], patience_s: float, say: Say) -> Reservation:
        """Reserve resources, each bundle on one node and all as close together as they fit.

        ConfigError at once if the cluster is too small, TrainingError if still busy after ``patience_s``.
        """
        ray = _ray()
        if lack := missing(self._offered(), bundles):
            keys = "parallel.workers, parallel.group_size or parallel.cluster.worker_cpus"
            raise ConfigError(f"{lack}; add nodes, or lower {keys}")
        group = ray.util.placement_group([dict(bundle.needs) for bundle in bundles], strategy="PACK")
        deadline, told = time.monotonic() + patience_s, False
        while not group.wait(LOOK_S):
            state = occupied([ray.available_resources()], bundles)
            if time.monotonic() > deadline:
                ray.util.remove_placement_group(group)
                raise TrainingError(
                    f"the cluster is busy: after {patience_s:g} s (parallel.cluster.wait_s) it has {state}"
                )
            if not told:
                say(f"waiting for the cluster: {state}")
                told = True
        return _in_order(ray, group, [bundle.needs for bundle in bundles])

    def start(
        self,
        cls: type | str,
        arguments: Sequence[Any],
        reservation: Reservation,
        bundle: int,
        name: str,
        environment: Mapping[str, str],
        gpus: float = 0,
    ) -> Actor:
        """Start a process on a bundle's node that makes a ``cls`` of ``arguments``; does not wait for it.

        If it cannot be made, every call says why. ``environment`` holds from the first instruction on;
        ``gpus`` are visible to the actor alone.
        """
        ray = _ray()
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        place = PlacementGroupSchedulingStrategy(
            reservation.group, placement_group_bundle_index=reservation.order[bundle]
        )
        options = {
            "num_cpus": 0,
            "num_gpus": gpus,
            "max_concurrency": CONCURRENT_CALLS,
            "max_restarts": 0,
            "max_task_retries": 0,
            "scheduling_strategy": place,
            "runtime_env": {"env_vars": {**QUICK, **environment}},
        }
        # Tools show a process by the name of its class.
        hosted = ray.remote(**options)(type(name.replace(" ", "_"), (Host,), {}))
        actor = Actor(name, hosted.remote(Origin.of_this_process(), name_of(cls), tuple(arguments)))
        self._actors.append(actor)
        return actor

    def gpus(self) -> int:
        """Count the GPUs of the cluster, busy ones too."""
        return int(sum(node.get("GPU", 0) for node in self._offered()))

    def _offered(self) -> list[Resources]:
        return [node["Resources"] for node in _ray().nodes() if node["Alive"]]


def _in_order(ray: Any, group: Any, bundles: Sequence[Resources]) -> Reservation:
    """Number bundles of the same resources by their nodes, in the order in which those first occur."""
    placed = ray.util.placement_group_table(group)["bundles_to_node_id"]
    nodes = [str(placed[index]) for index in range(len(bundles))]
    order = node_by_node(nodes, bundles)
    return Reservation(tuple(nodes[index] for index in order), tuple(bundles), group, tuple(order))


def start_local(home: Path, gpus: int = 0, object_store_bytes: int = OBJECT_STORE_BYTES) -> Cluster:
    """Start a Ray of this run's own on this machine, for this user and this machine alone.

    Everything it keeps lies in ``home``: a private folder that exists, and whose path is short (Unix
    sockets allow some 100 characters). Raises TrainingError if Ray does not start.
    """
    token = home / "token"
    # Created for its owner alone, not opened to others and then closed.
    with open(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(_TOKEN)
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_AUTH_TOKEN": ""}
    set_variables({**LOOPBACK, **variables})
    try:
        address = _init(
            num_cpus=LOCAL_CPUS,
            num_gpus=gpus,
            include_dashboard=False,
            object_store_memory=object_store_bytes,
            _node_ip_address="127.0.0.1",
            _temp_dir=str(home / "ray"),  # Ray opens this folder to everybody
        )
    except ConfigError:
        raise
    except Exception as error:
        raise TrainingError(f"Ray does not start: {_line(error)}") from error
    return Cluster(address)


def join(address: str) -> Cluster:
    """Join a running cluster at HOST:PORT, or the one this machine is part of at ``auto``.

    ConfigError if there is none, or if it is open to strangers (see access.py).
    """
    admit(address)
    _ray()
    keep_to_guarded(address, knock_at_head)
    try:
        cluster = Cluster(_init(address=address))
    except Exception as error:
        raise _unanswered(address, "no Ray cluster can be joined", error) from error
    try:
        if address == AUTO:
            keep_to_guarded(cluster.address, knock_at_head)
    except ConfigError:
        cluster.close()
        raise
    return cluster


def jobs(address: str) -> Any:
    """Return a client of Ray's Jobs API at ``http://HOST:8265``; ConfigError if nobody answers there."""
    admit(address)
    _ray()
    keep_to_guarded(address, knock_at_jobs)
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(address)
    except Exception as error:
        raise _unanswered(address, "Ray's Jobs API does not answer", error) from error
    for name in ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return client


def _unanswered(address: str, what: str, error: Exception) -> ConfigError:
    refused = isinstance(error, _ray().exceptions.AuthenticationError)
    return wanted(address) if refused else ConfigError(f"--address {address}: {what}: {_line(error)}")


def _init(**options: Any) -> str:
    """Connect this process to Ray and return the address of the cluster."""
    set_variables(QUICK)
    ray = _ray()
    stop_handler = signal.getsignal(signal.SIGTERM)
    context = ray.init(log_to_driver=False, logging_level=logging.CRITICAL, **options)
    # Ray takes SIGTERM for itself, and would exit without saving.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop_handler)
    return str(context.address_info["gcs_address"])


def _line(error: Exception) -> str:
    return textwrap.shorten(f"{type(error).__name__}: {error}", 300)
