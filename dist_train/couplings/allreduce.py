"""Synchronous data parallelism: one all-reduce of the gradients in every step (Goyal et al. 2017, section 3).

The gradient of a step is the mean over all samples of the update, whatever their split among the workers.
DistributedDataParallel averages over workers, so each worker weights its loss by its share of the
samples times the number of workers: equal shares give Goyal's 1/(kn), uneven ones stay exact (remark 3).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dist_train.config.schema import Parallel
from dist_train.couplings import Apply, Started
from dist_train.errors import ConfigError


@dataclass(frozen=True)
class Exchange:
    """How a bucket of gradients becomes that of all workers: ``hook``, given ``state`` and the bucket."""

    state: Any
    hook: Callable[[Any, dist.GradBucket], torch.futures.Future[Tensor]]


class AllReduce:
    """One group of workers that hold equal parameters; the state is owned by all and written by rank 0."""

    def __init__(self, parallel: Parallel, rank: int, workers: int) -> None:
        self.writes = rank == 0
        self._parallel = parallel
        self._workers = workers

    def start(self, model: nn.Module) -> Started:
        if self._workers == 1:
            return Started(model, nullcontext)
        if self._parallel.sync_batch_norm:
            if next(model.parameters()).device.type == "cpu":
                raise ConfigError("parallel.sync_batch_norm: torch offers it on GPUs only; set it to false")
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return distributed(model, self._parallel, compression(self._parallel))

    def objective(self, loss: Tensor, predictions: Tensor, batch: Any, share: float) -> Tensor:
        del predictions, batch
        return loss * (share * self._workers)

    def update(self, apply: Apply) -> None:
        apply()

    def observe(self, metrics: Mapping[str, float]) -> None:
        del metrics


def distributed(
    model: nn.Module, parallel: Parallel, exchange: Exchange | None, group: dist.ProcessGroup | None = None
) -> Started:
    """Wrap a model so that its backward pass brings gradients together, over ``group`` or else all workers.

    ``exchange`` takes the place of the mean that torch computes.
    """
    device = next(model.parameters()).device
    with warnings.catch_warnings():
        # Its successor would still overwrite every worker's buffers with rank 0's at the start.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        module = DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            process_group=group,
            # Batch statistics stay with each worker (Goyal et al. 2017, section 4).
            broadcast_buffers=False,
            bucket_cap_mb=_bucket_mb(parallel, model, device),
            gradient_as_bucket_view=True,
            find_unused_parameters=parallel.find_unused_parameters,
        )
    if exchange is not None:
        # Not the hook itself: of one called bf16_compress_hook torch says that it needs NCCL, though Gloo can
        # add bf16 too.
        module.register_comm_hook(exchange.state, lambda state, bucket: exchange.hook(state, bucket))

    def local() -> AbstractContextManager[None]:
        return module.no_sync()

    return Started(module, local)


def compression(parallel: Parallel, group: dist.ProcessGroup | None = None) -> Exchange | None:
    """Return how workers bring compressed gradients together, None where they are not compressed."""
    if parallel.compression == "bf16":
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

        return Exchange(group, bf16_compress_hook)
    if parallel.compression == "powersgd":
        from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as powersgd

        state = powersgd.PowerSGDState(
            group,
            matrix_approximation_rank=parallel.powersgd_rank,
            start_powerSGD_iter=parallel.powersgd_start,
        )
        return Exchange(state, powersgd.powerSGD_hook)
    return None


def _bucket_mb(parallel: Parallel, model: nn.Module, device: torch.device) -> float | None:
    if parallel.compression != "powersgd" or device.type == "cuda":
        return parallel.bucket_mb
    # Over Gloo, PowerSGD's collectives for two buckets get in one another's way: one must hold all.
    return sum(parameter.nbytes for parameter in model.parameters()) / 2**20 + 1
