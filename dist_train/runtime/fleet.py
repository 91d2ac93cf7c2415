"""The shards of a server as one: every command goes to all of them, in one order, and to each copy."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from dist_train.errors import TrainingError
from dist_train.runtime.commands import Command, Done
from dist_train.runtime.letters import Copy
from dist_train.runtime.line import AsyncLine, LineBroken
from dist_train.runtime.remote import ActorGone


class ShardLost(TrainingError):
    """No process holds shard ``number`` any more."""

    def __init__(self, number: int) -> None:
        super().__init__(f"shard {number} is lost")
        self.number = number

    def __reduce__(self) -> tuple[type[ShardLost], tuple[int]]:
        return (ShardLost, (self.number,))


class Fleet:
    """``copies[k]`` are the processes that hold shard k; the first of them is the one that is read.

    One batch of commands at a time: the next verb is for when the one before has returned.
    """

    def __init__(self, shards: int, direct: bool = True) -> None:
        """``direct``: call the copies by line where there can be one, else all through Ray."""
        self.copies: list[list[Copy]] = [[] for _ in range(shards)]
        # Those that were found gone, until somebody takes note.
        self.gone: list[Copy] = []
        self._index = 0
        # By serial; None for a copy that is called through Ray.
        self._lines: dict[int, AsyncLine | None] = {}
        self._direct = direct

    @property
    def all(self) -> list[Copy]:
        return [copy for row in self.copies for copy in row]

    @property
    def is_whole(self) -> bool:
        """Whether every shard has a process."""
        return all(self.copies)

    def lacks(self, shard: int) -> bool:
        return not self.copies[shard]

    def admit(self, copy: Copy) -> None:
        """Count a copy among those that obey; what it holds is the caller's concern."""
        self.copies[copy.shard].append(copy)

    async def obey(self, commands: Sequence[Command]) -> list[Done]:
        """Have every copy of every shard obey; return what each shard's first copy has done.

        A copy that is gone is put on the list ``gone``; raises ShardLost when it was a shard's last.
        """
        self._index += 1
        answers = await asyncio.gather(*(self._one(copy, commands) for copy in self.all))
        done = {copy.serial: answer for copy, answer in answers if answer is not None}
        for row in self.copies:
            self.gone += [copy for copy in row if copy.serial not in done]
            row[:] = [copy for copy in row if copy.serial in done]
        for shard, row in enumerate(self.copies):
            if not row:
                raise ShardLost(shard)
        return [done[row[0].serial] for row in self.copies]

    async def bring_up(self, copy: Copy, begin: Sequence[Command]) -> bool:
        """Admit a copy that has obeyed ``begin``; False if it is gone."""
        self._index += 1
        _, done = await self._one(copy, begin)
        if done is not None:
            self.admit(copy)
        return done is not None

    async def _one(self, copy: Copy, commands: Sequence[Command]) -> tuple[Copy, Done | None]:
        try:
            return copy, await self._obeyed(copy, self._index, tuple(commands))
        except ActorGone:
            self._lines.pop(copy.serial, None)
            return copy, None

    async def _obeyed(self, copy: Copy, index: int, commands: tuple[Command, ...]) -> Done:
        if copy.serial not in self._lines:
            self._lines[copy.serial] = await _line_to(copy) if self._direct else None
        done: Done
        if (line := self._lines[copy.serial]) is not None:
            try:
                done = await line.ask("obey", index, commands)
                return done
            except LineBroken:
                line.close()
                self._lines[copy.serial] = None
        # Ray knows whether the copy is gone, and the copy whether it has obeyed this batch.
        done = await copy.actor.insist("obey", index, commands)
        return done


async def _line_to(copy: Copy) -> AsyncLine | None:
    """Open a line to a copy; None where there can be none."""
    address = await copy.actor.insist("line")
    with suppress(LineBroken):
        return await AsyncLine.open(address)
    return None
