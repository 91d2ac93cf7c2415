"""From a place to a connected worker: device, store, process group."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import HashStore, PrefixStore, Store, TCPStore

from dist_train.config.schema import Config, Parallel
from dist_train.core.step import Numerics
from dist_train.errors import ConfigError, TrainingError
from dist_train.exchange.collective import Alone, Collective, TorchCollective
from dist_train.exchange.handshake import Facts, handshake
from dist_train.runtime.place import Place, set_unless_given

# Groups that were closed, held so that DDP is never the last to let go of one: it would end the group while
# holding Python's lock and wait for gloo's threads, which may themselves wait for this lock.
closed_groups: list[object] = []


RANK_0_LIMIT = timedelta(hours=12)


@dataclass(frozen=True)
class Connection:
    """A worker's way to its peers: ``store`` at once, collectives only once the workers have agreed."""

    place: Place
    device: torch.device
    store: Store
    timeout: timedelta
    phase: Callable[[str, int], None]

    def from_rank_0(self, topic: str, make: Callable[[], Any]) -> Any:
        """Have rank 0 call ``make`` and return its result, which JSON must hold, on every rank.

        When rank 0 refuses (ConfigError), every rank refuses with the same words.
        """
        key = f"from_rank_0/{topic}"
        if self.place.rank == 0:
            try:
                answer = {"value": make()}
            except ConfigError as error:
                self.store.set(key, json.dumps({"refused": error.problems}))
                raise
            self.store.set(key, json.dumps(answer))
        # Rank 0 may verify hundreds of gigabytes; should it die, the store dies with it and the wait ends.
        self.store.wait([key], RANK_0_LIMIT)
        told = json.loads(self.store.get(key))
        if "refused" in told:
            raise ConfigError(told["refused"])
        return told["value"]

    def compare(self, topic: str, facts: Facts) -> None:
        """Compare ``facts`` with all workers; raises Mismatch when they differ."""
        place, patience_s = self.place, self.timeout.total_seconds()
        handshake(PrefixStore(topic, self.store), place.rank, place.workers, facts, patience_s)

    @contextmanager
    def collective(self, facts: Facts, patient: bool = False) -> Iterator[Collective]:
        """Compare ``facts`` with all workers, then open the group; close it when all went well.

        ``patient``: rank 0 speaks for the group, to somebody who may let it wait for as long as it takes.
        Raises Mismatch when the workers differ, TrainingError when some never came. After a failure the
        group is left as it is: to close it could wait for peers that have gone.
        """
        place = self.place
        self.compare("run", facts)
        if place.workers == 1:
            yield Alone()
            return
        cuda = self.device.type == "cuda"
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=PrefixStore("group", self.store),
            rank=place.rank,
            world_size=place.workers,
            timeout=self.timeout,
            device_id=self.device if cuda else None,
        )
        yield TorchCollective(RANK_0_LIMIT if patient else None)
        closed_groups.append(dist.group.WORLD)
        dist.destroy_process_group()


def connect(place: Place, parallel: Parallel, phase: Callable[[str, int], None]) -> Connection:
    """Choose the device and reach the store; raises TrainingError when it cannot be reached.

    ``phase`` is told where the worker is, for whoever watches it.
    """
    timeout = timedelta(seconds=parallel.timeout_s)
    device = choose_device(place, parallel)
    try:
        return Connection(place, device, _open_store(place, timeout), timeout, phase)
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        where = f"{place.master_address}:{place.master_port}"
        reason = str(error).splitlines()[0]
        raise TrainingError(f"rank {place.rank} cannot reach the store at {where}: {reason}") from error


def choose_device(place: Place, parallel: Parallel) -> torch.device:
    """Return this worker's device: its own GPU where there are GPUs, else the CPU."""
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if parallel.device == "cpu" or (parallel.device == "auto" and not available):
        return torch.device("cpu")
    # Slurm may show each task its own GPU only, as number 0.
    index = 0 if place.started_by == "srun" and available == 1 else place.local_rank
    if index >= available:
        raise ConfigError(
            f"parallel.workers: {place.local_workers} workers on {place.host} but {available} GPUs; start at "
            "most one worker per GPU, or set parallel.device to cpu"
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def describe_device(device: torch.device) -> str:
    """Name a device for a person."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def numerics_of(config: Config, device: torch.device) -> Numerics:
    """Set torch's global switches as the configuration asks and return how numbers are held."""
    deterministic = config.train.deterministic
    if deterministic:
        set_unless_given("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if deterministic != torch.are_deterministic_algorithms_enabled():
        # Setting it imports torch's compiler, which takes seconds.
        torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    return Numerics(device, config.train.precision == "bf16", config.train.channels_last)


def _open_store(place: Place, timeout: timedelta) -> Store:
    if place.workers == 1:
        return HashStore()
    serves = place.rank == 0 and not place.agent_store
    store = TCPStore(
        place.master_address,
        place.master_port,
        is_master=serves,
        timeout=timeout,
        wait_for_workers=False,
        master_listen_fd=place.listen_fd if serves else None,
    )
    # torchrun's store outlives a restart of the workers: each attempt needs keys of its own.
    return PrefixStore(f"dist_train/{place.attempt}", store)
