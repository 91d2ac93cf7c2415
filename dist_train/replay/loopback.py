"""Process groups of torch.distributed between workers that are all in this process."""

from __future__ import annotations

import threading
from datetime import timedelta
from functools import cache

import torch
from torch.distributed import HashStore, ProcessGroup, ProcessGroupGloo, Store

TIMEOUT = timedelta(seconds=60)


@cache
def process_groups(workers: int) -> tuple[ProcessGroup, ...]:
    """Return the group of ``workers`` as each of them sees it, by rank; always the same for a number.

    They live as long as the process: DistributedDataParallel must not be the last to let go of one.
    """
    store, made = HashStore(), dict[int, ProcessGroup]()

    def join(rank: int) -> None:
        made[rank] = _joined(store, rank, workers)

    # Each of them returns when all are there.
    threads = [threading.Thread(target=join, args=(rank,)) for rank in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tuple(made[rank] for rank in range(workers))


def _joined(store: Store, rank: int, workers: int) -> ProcessGroup:
    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = TIMEOUT
    options._devices = [ProcessGroupGloo.create_device(hostname="127.0.0.1")]
    gloo = ProcessGroupGloo(store, rank, workers, options)
    group = ProcessGroup(store, rank, workers)
    group._register_backend(torch.device("cpu"), ProcessGroup.BackendType.GLOO, gloo)
    group._set_default_backend(ProcessGroup.BackendType.GLOO)
    return group
