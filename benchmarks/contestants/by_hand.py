"""The loop that a good engineer writes with DistributedDataParallel, as PyTorch's documentation advises.

torchrun --standalone --nproc-per-node 2 -m benchmarks.contestants.by_hand mlp [--fused]
"""

from __future__ import annotations

import argparse
import warnings
from itertools import count

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from benchmarks.workload import (
    BATCH,
    LEARNING_RATE,
    LOG_EVERY,
    MOMENTUM,
    Memory,
    loss_of,
    make_columns,
    make_model,
    whole,
)

# Buffers are not broadcast in every step: the fastest choice, and dist_train's own.
warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("workload")
    parser.add_argument("--fused", action="store_true")
    arguments = parser.parse_args()

    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = DistributedDataParallel(
        make_model(arguments.workload), gradient_as_bucket_view=True, broadcast_buffers=False
    )
    optimizer = torch.optim.SGD(
        model.parameters(), LEARNING_RATE, MOMENTUM, fused=True if arguments.fused else None
    )
    data = Memory(*make_columns(arguments.workload))
    sampler = DistributedSampler(data)
    loader = DataLoader(data, BATCH, sampler=sampler, collate_fn=whole, drop_last=True)
    step = 0
    for epoch in count():
        sampler.set_epoch(epoch)
        for batch in loader:
            loss, _ = loss_of(model, batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            if step % LOG_EVERY == 0 and dist.get_rank() == 0:
                print(f"step {step}: loss {loss.item():.4f}", flush=True)


if __name__ == "__main__":
    main()
