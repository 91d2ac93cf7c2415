"""What members with local steps keep for themselves, left in shared memory for checkpoints and successors.

A member leaves its own state with every push, in one of two places by turns; the one that counts is that of
its last gradient that it was, or may be, told of as counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from dist_train.exchange.server import MemberMemory
from dist_train.rules.messages import Push


@dataclass(frozen=True)
class Deposit:
    """A member's own state (core/inner_state.py): its vectors in their order, and its scalars."""

    rows: tuple[Tensor, ...]
    scalars: Mapping[str, float]


class Deposits:
    """Holds on to the memory of a member that is gone until its successor has left something."""

    def __init__(self) -> None:
        self._last: dict[int, Deposit] = {}

    def settled(self, push: Push, memory: MemberMemory) -> None:
        """Take note that a gradient of ``memory`` is in for good: what came with it counts."""
        if push.deposit is not None and memory.deposits:
            self._last[push.member] = Deposit(tuple(memory.deposits[push.deposit]), push.scalars)

    def copies(self) -> dict[int, Deposit]:
        """Return a copy of what counts, by member."""
        return {
            member: Deposit(tuple(row.clone() for row in last.rows), last.scalars)
            for member, last in self._last.items()
        }

    def go_back(self, kept: Mapping[int, Deposit]) -> None:
        """Let what was ``kept`` with the state that all go back to count, not what members left since."""
        self._last = dict(kept)

    def hand_over(
        self, member: int, memory: MemberMemory, saved: Deposit | None
    ) -> Mapping[str, float] | None:
        """Put a member's last deposit, or else what was ``saved`` of it, into its new process's memory.

        It lies in the first of the two places then; returns its scalars, or None if there is nothing.
        """
        found = self._last.get(member, saved)
        if found is None or not memory.deposits:
            return None
        for target, row in zip(memory.deposits[0], found.rows, strict=True):
            target.copy_(row)
        return found.scalars
