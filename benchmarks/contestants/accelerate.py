"""Hugging Face Accelerate, with the same advice to DDP as the hand-written loop.

torchrun --standalone --nproc-per-node 2 -m benchmarks.contestants.accelerate mlp
"""

from __future__ import annotations

import sys
import warnings
from itertools import count

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from torch.utils.data import DataLoader

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

warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)


def main(workload: str) -> None:
    ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)
    accelerator = Accelerator(cpu=True, kwargs_handlers=[ddp])
    set_seed(0)
    model = make_model(workload)
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, MOMENTUM)
    data = Memory(*make_columns(workload))
    loader = DataLoader(data, BATCH, shuffle=True, collate_fn=whole, drop_last=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    step = 0
    for _ in count():
        for batch in loader:
            loss, _ = loss_of(model, batch)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step % LOG_EVERY == 0:
                accelerator.print(f"step {step}: loss {loss.item():.4f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
