"""Lightning with everything off that costs time: no progress bar, no checkpoints, no sanity check.

torchrun --standalone --nproc-per-node 2 -m benchmarks.contestants.lightning mlp
"""

from __future__ import annotations

import sys
import tempfile
import warnings

import torch
from lightning import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
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


class Classifier(LightningModule):
    def __init__(self, workload: str) -> None:
        super().__init__()
        self.model = make_model(workload)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model(inputs)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        loss, _predictions = loss_of(self.model, batch)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), LEARNING_RATE, MOMENTUM)


def main(workload: str) -> None:
    seed_everything(0)
    data = Memory(*make_columns(workload))
    loader = DataLoader(data, BATCH, shuffle=True, collate_fn=whole, drop_last=True)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            devices=2,
            strategy=DDPStrategy(gradient_as_bucket_view=True, broadcast_buffers=False),
            max_epochs=-1,
            logger=CSVLogger(folder),
            log_every_n_steps=LOG_EVERY,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.fit(Classifier(workload), loader)


if __name__ == "__main__":
    main(sys.argv[1])
