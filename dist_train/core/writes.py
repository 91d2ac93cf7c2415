"""Writes to a model's parameters by its own task, which would be seen by all where the memory is shared."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Writes:
    """Watches ``parameters``, by name, from now on.

    Torch counts the writes to a tensor, but not those through its ``data``. With ``values``, a copy of all,
    these are found as well.
    """

    def __init__(self, parameters: Mapping[str, Tensor], values: bool = False) -> None:
        self._parameters = parameters
        self._counts = [parameter._version for parameter in parameters.values()]
        self._values = [parameter.detach().clone() for parameter in parameters.values()] if values else []

    def found(self) -> str | None:
        """Return the name of a parameter that was written to, if there is one."""
        for (name, parameter), count in zip(self._parameters.items(), self._counts, strict=True):
            if parameter._version != count:
                return name
        for (name, parameter), value in zip(self._parameters.items(), self._values, strict=False):
            if not torch.equal(parameter, value):
                return name
        return None
