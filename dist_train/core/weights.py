"""The final weights in one safetensors file: what a run delivers."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from dist_train.core.tensor_files import sync_folder, write_tensors


def write_weights(model: nn.Module, path: Path) -> None:
    """Write the model's state_dict, whole or not at all: ``load_state_dict(load_file(path))`` reads it."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    write_tensors(temporary, {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
    temporary.replace(path)
    sync_folder(path.parent)
