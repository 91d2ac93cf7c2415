"""dist_train: train any PyTorch model on many workers; how tightly they are coupled is configuration.

from dist_train import Task, load_config, train
summary = train(load_config("configs/digits-sync.yaml"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dist_train.config import load_config as load_config
    from dist_train.runtime.start import train as train
    from dist_train.task import Rows as Rows
    from dist_train.task import Task as Task

__version__ = "0.1.0"

_HOMES = {
    "Rows": "dist_train.task",
    "Task": "dist_train.task",
    "load_config": "dist_train.config",
    "train": "dist_train.runtime.start",
}

__all__ = ["Rows", "Task", "load_config", "train"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that the package itself costs nothing."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'dist_train' has no attribute {name!r}")
