"""Real worker processes that wait for work: one start, many cases."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

LIMIT_S = 40.0


@dataclass(frozen=True)
class Seat:
    """A worker's place in a group; ``store`` is fresh for every case."""

    rank: int
    workers: int
    store: Any

    @contextmanager
    def collective(self) -> Iterator[Any]:
        import torch.distributed as dist

        from dist_train.exchange.collective import Alone, TorchCollective
        from dist_train.runtime.connect import closed_groups

        if self.workers == 1:
            yield Alone()
            return
        store = dist.PrefixStore("group", self.store)
        limit = timedelta(seconds=LIMIT_S / 2)
        dist.init_process_group("gloo", store=store, rank=self.rank, world_size=self.workers, timeout=limit)
        try:
            yield TorchCollective()
        finally:
            closed_groups.append(dist.group.WORLD)
            dist.destroy_process_group()


@dataclass(frozen=True)
class Failure:
    """An exception in a worker: the name of its type, its message, where it came from."""

    kind: str
    message: str
    trace: str


class WorkerGroup:
    """As many workers as ``size``, connected through a store that this process serves."""

    def __init__(self, size: int) -> None:
        import torch.distributed as dist

        context = multiprocessing.get_context("forkserver")
        # Workers are forked from a server that has imported what is slow; the optimizers import dynamo.
        context.set_forkserver_preload(
            ["dist_train.worker", "torch._dynamo", "torch.nn.parallel.distributed"]
        )
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._pipes, self._processes = [], []
        for rank in range(size):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, rank, size, self._store.port))
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Return what ``function(seat, *args)`` returns in each worker, by rank; it must not fail."""
        results = self.attempt(function, *args)
        failures = [result for result in results if isinstance(result, Failure)]
        assert not failures, "\n".join(failure.trace for failure in failures)
        return results

    def attempt(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Like ``run``, with a Failure in the place of a result that a worker has not come to."""
        task = pickle.dumps((function, args))
        for pipe in self._pipes:
            pipe.send_bytes(task)
        deadline = time.monotonic() + LIMIT_S
        results = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(max(0.0, deadline - time.monotonic())):
                self.close()
                raise TimeoutError(f"worker {rank} hangs in {function.__name__}{args}")
            results.append(pickle.loads(pipe.recv_bytes()))
        return results

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(2)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
        self._pipes, self._processes = [], []


class WorkerGroups:
    """Groups by size, each started when it is first asked for."""

    def __init__(self) -> None:
        self._groups: dict[int, WorkerGroup] = {}

    def of(self, size: int) -> WorkerGroup:
        if size not in self._groups or not self._groups[size]._processes:
            self._groups[size] = WorkerGroup(size)
        return self._groups[size]

    def close(self) -> None:
        for group in self._groups.values():
            group.close()


def _serve(pipe: Connection, rank: int, size: int, port: int) -> None:
    """Work off cases until the other end of the pipe is closed."""
    import torch
    import torch.distributed as dist

    from dist_train.runtime.connect import closed_groups

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for as long as the process lives
    served = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=LIMIT_S / 2))
    number = 0
    while True:
        try:
            function, args = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        number += 1
        try:
            result = function(Seat(rank, size, dist.PrefixStore(f"case/{number}", served)), *args)
        except Exception as error:
            # torch's handler would otherwise raise once more for the same dead loading process.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            result = Failure(type(error).__name__, str(error), traceback.format_exc())
            # Iterators of a DataLoader end at once when they are let go, but slowly when they are garbage.
            traceback.clear_frames(error.__traceback__)
        # A case's loading processes and its DDP end with it, not in the middle of a later one.
        gc.collect()
        closed_groups.clear()
        pipe.send_bytes(pickle.dumps(result))
