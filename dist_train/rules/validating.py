"""A validation dealt out like training: parts of the set, each measured by whichever member comes first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dist_train.rules.messages import ValidationPart


@dataclass
class ValidationJob:
    """One validation of the held version ``step``, in ``parts`` parts."""

    job: int
    step: int
    parts: int
    _todo: list[int] = field(default_factory=list)
    _out: dict[int, int] = field(default_factory=dict)
    _sums: dict[int, tuple[dict[str, float], float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._todo = list(range(self.parts))

    def deal(self, member: int) -> ValidationPart | None:
        """Give ``member`` the next part; None when all are dealt."""
        if not self._todo:
            return None
        part = self._todo.pop(0)
        self._out[member] = part
        return ValidationPart(self.job, self.step, part, self.parts)

    def lost(self, member: int) -> None:
        """Put back the part of a member that is gone."""
        if member in self._out:
            self._todo.insert(0, self._out.pop(member))

    def measured(self, member: int, part: int, sums: Mapping[str, float], samples: float) -> None:
        """Take a part's sums over its samples; what comes twice counts once."""
        if self._out.get(member) == part:
            del self._out[member]
            self._sums[part] = (dict(sums), samples)

    @property
    def members(self) -> set[int]:
        """The members that are measuring."""
        return set(self._out)

    @property
    def done(self) -> bool:
        return len(self._sums) == self.parts

    def means(self) -> dict[str, float]:
        """Return the means over the whole set, summed in the order of parts whoever measured them."""
        parts = [self._sums[part] for part in sorted(self._sums)]
        samples = sum(count for _, count in parts)
        # A part without samples, of a set smaller than the number of parts, may know no figure.
        names = sorted({name for sums, _ in parts for name in sums})
        return {name: sum(sums.get(name, 0.0) for sums, _ in parts) / samples for name in names}
