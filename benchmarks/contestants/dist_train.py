"""dist_train as its users run it, with everything that is on by default but the periodic checkpoint.

dist-train run benchmarks/contestants/dist_train.yaml task_options.workload=mlp
"""

from __future__ import annotations

from torch import Tensor, nn

from benchmarks.workload import SAMPLES, loss_of, make_columns, make_model
from dist_train import Rows, Task


class Workload(Task):
    def __init__(self, workload: str) -> None:
        self.workload = workload

    def model(self) -> nn.Module:
        return make_model(self.workload)

    def train_data(self) -> Rows:
        return Rows(*make_columns(self.workload))

    def validation_data(self) -> Rows:
        return Rows(*make_columns(self.workload, samples=SAMPLES // 16))

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return loss_of(model, batch)
