"""torch's optimizers without torch's compiler, whose import costs every process seconds of its start.

Several methods of torch's optimizers import it when they are first called, to tell it not to trace them. They
wrap the methods themselves, which do the same where nothing is being traced; here steps never are.
"""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

import torch
from torch.optim import Optimizer

_Kind = TypeVar("_Kind", bound=Optimizer)
_METHODS = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")


def eager(kind: type[_Kind]) -> type[_Kind]:
    """Return a class that is ``kind`` in all but what it tells the compiler."""
    own_step = inspect.unwrap(kind.step)

    def step(self: Optimizer, closure: Any = None) -> Any:
        with torch.no_grad():
            return own_step(self, closure)

    plain = {name: inspect.unwrap(getattr(kind, name)) for name in _METHODS}
    return type(kind.__name__, (kind,), {**plain, "step": step, "__doc__": kind.__doc__})
