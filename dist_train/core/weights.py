"""The final weights in one safetensors file: what a run delivers."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from dist_train.core.tensor_files import sync_folder, write_tensors


def write_weights(model: nn.Module, path: Path) -> None:
    """Write the model's state_dict, whole or not at all: ``load_state_dict(load_file(path))`` reads it."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_tensors(temporary, tensors)
    temporary.replace(path)
    sync_folder(path.parent)
