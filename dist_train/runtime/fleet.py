"""The shards of a server as one: every command goes to all of them, in one order, and to each copy."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from dist_train.errors import TrainingError
from dist_train.runtime.commands import Command, Done
from dist_train.runtime.letters import Copy
from dist_train.runtime.remote import ActorGone


class ShardLost(TrainingError):
    """No process holds shard ``number`` any more."""

    def __init__(self, number: int) -> None:
        super().__init__(f"shard {number} is lost")
        self.number = number

    def __reduce__(self) -> tuple[type[ShardLost], tuple[int]]:
        return (ShardLost, (self.number,))


class Fleet:
    """``copies[k]`` are the processes that hold shard k; the first of them is the one that is read."""

    def __init__(self, shards: int) -> None:
        self.copies: list[list[Copy]] = [[] for _ in range(shards)]
        self.gone: list[Copy] = []
        self._index = 0
        self._lock = asyncio.Lock()

    async def obey(self, commands: Sequence[Command]) -> list[Done]:
        """Have every copy of every shard obey; return what each shard's first copy has done.

        A copy that is gone is put on the list ``gone``; raises ShardLost when it was a shard's last.
        """
        async with self._lock:
            self._index += 1
            rounds = [self._one(copy, commands) for row in self.copies for copy in row]
            answers = await asyncio.gather(*rounds)
        done = {copy: answer for copy, answer in answers if answer is not None}
        for shard, row in enumerate(self.copies):
            self.gone += [copy for copy in row if copy not in done]
            row[:] = [copy for copy in row if copy in done]
            if not row:
                raise ShardLost(shard)
        return [done[row[0]] for row in self.copies]

    async def admit(self, copy: Copy, begin: Sequence[Command]) -> None:
        """Take in a new copy, once it has obeyed ``begin``; nothing else is obeyed meanwhile."""
        async with self._lock:
            self._index += 1
            _, done = await self._one(copy, begin)
            if done is None:
                self.gone.append(copy)
                raise ShardLost(copy.shard)
            self.copies[copy.shard].append(copy)

    async def _one(self, copy: Copy, commands: Sequence[Command]) -> tuple[Copy, Done | None]:
        try:
            return copy, await copy.actor.insist("obey", self._index, tuple(commands))
        except ActorGone:
            return copy, None
