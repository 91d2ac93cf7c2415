"""Groups of real workers, started once per test module, and directories of runs that are done."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_train import tasks
from dist_train.config import dump_config, load_config
from dist_train.core.weights import write_weights

# What runs in the workers is imported there by name.
sys.path.append(str(Path(__file__).parent / "reductions"))

GIVEN: dict[str, Any] = {
    "name": "done",
    "parallel": {"workers": 2, "device": "cpu"},
    "train": {"epochs": 1, "batch_size": 100},
    "optimizer": {"name": "sgd", "lr": 0.1},
}
TABLE = f"{Path(__file__).parent / 'evaluate' / 'table_task.py'}:Table"


@pytest.fixture(scope="module")
def group() -> Iterator[Callable[[int], object]]:
    """Gives the group of as many workers as asked for; its ``run`` calls a function in each of them."""
    from worker_group import WorkerGroups

    groups = WorkerGroups()
    yield groups.of
    groups.close()


@pytest.fixture
def configured(tmp_path: Path) -> Callable[..., Path]:
    """Make the directory of a run that has delivered nothing yet; its settings go over those above."""

    def make(name: str, **settings: Any) -> Path:
        run_dir = tmp_path / name
        run_dir.mkdir()
        config = load_config(GIVEN | {"task": TABLE} | settings)
        (run_dir / "config.yaml").write_text(dump_config(config))
        return run_dir

    return make


@pytest.fixture
def done(configured: Callable[..., Path]) -> Callable[..., Path]:
    """Make the directory of a run that has delivered ``models``: each a table's rows, or a seed."""

    def make(name: str, *models: torch.Tensor | int, **settings: Any) -> Path:
        run_dir = configured(name, **settings)
        task = tasks.make(load_config(run_dir / "config.yaml"))
        for number, given in enumerate(models):
            folder = run_dir if len(models) == 1 else run_dir / f"replica_{number}"
            folder.mkdir(exist_ok=True)
            torch.manual_seed(given if isinstance(given, int) else 0)
            model = task.model()
            if isinstance(given, torch.Tensor):
                model.load_state_dict({"rows": given}, strict=False)
            write_weights(model, folder / "model.safetensors")
        return run_dir

    return make
