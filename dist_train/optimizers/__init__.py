"""The optimizers: torch's own and LARS, over two groups of parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dist_train.config import schema
from dist_train.errors import TrainingError
from dist_train.optimizers.eager import eager
from dist_train.optimizers.lars import LARS
from dist_train.rules.schedule import Scheduled

_KINDS: dict[type[schema.Optimizer], type[torch.optim.Optimizer]] = {
    schema.SGD: torch.optim.SGD,
    schema.Adagrad: torch.optim.Adagrad,
    schema.RMSProp: torch.optim.RMSprop,
    schema.Adam: torch.optim.Adam,
    schema.AdamW: torch.optim.AdamW,
    schema.LARS: LARS,
}
_WITH_FUSED_STEP = (schema.SGD, schema.Adagrad, schema.Adam, schema.AdamW)
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def build(model: nn.Module, settings: schema.AnyOptimizer) -> torch.optim.Optimizer:
    """Make the optimizer of all of the model's trainable parameters, each once.

    The model must already be on its device and in its memory format. The groups are named "weights"
    and "norm and bias"; the second holds every normalisation parameter, bias and vector, and is not
    decayed unless the settings say so (Goyal et al. 2017, section 5.1). An empty group is left out.
    Raises TrainingError if nothing is trainable.
    """
    groups = parameter_groups(model, settings)
    if not groups:
        raise TrainingError("the model has no trainable parameters: check its requires_grad flags")
    return over(groups, settings)


def over(groups: list[dict[str, Any]], settings: schema.AnyOptimizer) -> torch.optim.Optimizer:
    """Make the optimizer of ``groups`` as torch takes them, with the options of ``group_options``.

    The step is fused where torch has a fused step for all of the tensors.
    """
    parameters = [parameter for group in groups for parameter in group["params"]]
    optimizer = _make(groups, settings, fuse=_can_fuse(parameters))
    if isinstance(settings, schema.SGD) and settings.momentum > 0:
        # The fused step cannot begin a buffer for a parameter that gets its first gradient late.
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    optimizer.register_load_state_dict_post_hook(_restore_layout)
    return optimizer


def normalises(settings: schema.AnyOptimizer) -> bool:
    """Say whether a step is as long for a gradient half as large: all but SGD divide by its size."""
    return not isinstance(settings, schema.SGD)


def parameter_groups(model: nn.Module, settings: schema.AnyOptimizer) -> list[dict[str, Any]]:
    """Return the groups as torch takes them, parameters in the order the model lists them."""
    weights: dict[nn.Parameter, None] = {}
    others: dict[nn.Parameter, None] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in weights or parameter in others:
                continue
            is_weight = parameter.ndim > 1 and "bias" not in name and not isinstance(module, NORMS)
            (weights if is_weight else others)[parameter] = None
    options = group_options(settings)
    groups = [
        {"name": name, "params": list(members), **options[name]}
        for name, members in (("weights", weights), ("norm and bias", others))
    ]
    return [group for group in groups if group["params"]]


def group_options(settings: schema.AnyOptimizer) -> dict[str, dict[str, Any]]:
    """Return the options in which the two groups differ, by the group's name."""
    decay = settings.weight_decay
    weights: dict[str, Any] = {"weight_decay": decay}
    others: dict[str, Any] = {"weight_decay": decay if settings.decay_norm_and_bias else 0.0}
    if isinstance(settings, schema.LARS):
        others["adapt"] = False
    return {"weights": weights, "norm and bias": others}


def set_for_update(
    optimizer: torch.optim.Optimizer, settings: schema.AnyOptimizer, made_with: Scheduled
) -> None:
    """Set what the schedule says of the next update, in an optimizer that was built of ``settings``."""
    set_rate(optimizer, made_with.rate, made_with.momentum)
    if made_with.weight_decay is not None:
        set_weight_decay(optimizer, settings, made_with.weight_decay)


def set_rate(optimizer: torch.optim.Optimizer, learning_rate: float, momentum: float | None) -> None:
    """Set the learning rate and, where given, the momentum (Adam's first beta) of the next update.

    Adagrad has no momentum to set.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
        if momentum is None:
            continue
        if "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        elif "momentum" in group:
            group["momentum"] = momentum


def set_weight_decay(optimizer: torch.optim.Optimizer, settings: schema.AnyOptimizer, factor: float) -> None:
    """Set the weight decay of the next update to ``factor`` times that of the settings."""
    options = group_options(settings)
    for group in optimizer.param_groups:
        group["weight_decay"] = factor * options[group["name"]]["weight_decay"]


def _make(groups: list[dict[str, Any]], settings: schema.AnyOptimizer, fuse: bool) -> torch.optim.Optimizer:
    chosen = settings.model_dump(exclude={"name", "decay_norm_and_bias", "weight_decay"})
    if isinstance(settings, _WITH_FUSED_STEP):
        # None leaves the choice to torch: whole lists of tensors on a GPU, one by one on the CPU.
        chosen["fused"] = True if fuse else None
    return eager(_KINDS[type(settings)])(groups, **chosen)


def _can_fuse(parameters: list[Tensor]) -> bool:
    return all(
        parameter.device.type in ("cpu", "cuda") and parameter.is_floating_point() for parameter in parameters
    )


def _restore_layout(optimizer: torch.optim.Optimizer) -> None:
    """Give loaded state the memory layout of its parameter: the fused steps pair elements by address."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if _is_laid_out_otherwise(value, parameter):
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _is_laid_out_otherwise(value: Any, parameter: Tensor) -> bool:
    return (
        isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride()
    )
