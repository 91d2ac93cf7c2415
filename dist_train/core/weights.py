"""The final weights in one safetensors file: what a run delivers. And those inside a checkpoint."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor, nn

from dist_train.core.checkpoint import SHARED, load_part
from dist_train.core.state import load_tensors, part_of, unique_tensors
from dist_train.core.tensor_files import read_tensors, sync_folder, write_tensors
from dist_train.errors import ConfigError, TrainingError


def write_weights(model: nn.Module, path: Path) -> None:
    """Write the model's state_dict, whole or not at all: ``load_state_dict(load_file(path))`` reads it."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    write_tensors(temporary, {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
    temporary.replace(path)
    sync_folder(path.parent)


def load_weights(model: nn.Module, path: Path) -> None:
    """Give the model, on any device, the weights that ``write_weights`` wrote.

    Raises ConfigError in one line where the file is not whole or is of another model.
    """
    try:
        saved = read_tensors(path)
    except SafetensorError as error:
        raise ConfigError(
            f"{path}: not a whole safetensors file ({error}); the run's command, given again, writes it anew"
        ) from error
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    missing, surplus = sorted(own.keys() - saved.keys()), sorted(saved.keys() - own.keys())
    found = [f"it lacks {', '.join(missing[:3])}"] if missing else []
    found += [f"it has in addition {', '.join(surplus[:3])}"] if surplus else []
    found += [
        f"{name} has shape {list(saved[name].shape)} there and {list(own[name].shape)} here"
        for name in sorted(own.keys() & saved.keys())
        if saved[name].shape != own[name].shape
    ][:1]
    if found:
        raise ConfigError(
            f"{path}: the weights are of another model: {'; '.join(found)}; use the code and the "
            "configuration that the run was made with"
        )
    # What else a model's state holds besides tensors is in no safetensors file.
    model.load_state_dict(saved, strict=False)


def load_snapshot(model: nn.Module, checkpoint: Path) -> None:
    """Give the model, on any device, the weights that a checkpoint holds; raises ConfigError if it cannot."""
    try:
        load_tensors(unique_tensors(model), part_of(load_part(checkpoint, SHARED), "model").tensors)
    except TrainingError as error:
        raise ConfigError(f"{checkpoint}: {error}") from error
