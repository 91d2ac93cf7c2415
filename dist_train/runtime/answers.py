"""Answers that are waited for: each message is judged once, however often it comes."""

from __future__ import annotations

import asyncio

from dist_train.rules.messages import FIRST, Reply

# Who says it (member and incarnation), and the number of what is said.
Key = tuple[int, int, int]


class Answers:
    """Whoever sends a message again waits for the same answer, or gets it again.

    A message older than the newest of its sender has had its answer; should it arrive once more, nobody
    waits for what it is told, which is ``ended``.
    """

    def __init__(self) -> None:
        self._answers: dict[Key, asyncio.Future[Reply]] = {}

    def expect(self, key: Key) -> tuple[asyncio.Future[Reply], bool]:
        """Return the answer to a message, and whether it comes for the first time."""
        if key in self._answers:
            return self._answers[key], False
        for old in [each for each in self._answers if each[0] == key[0] and each < key]:
            # Whoever sends the next message has had the answer to the one before.
            if self._answers[old].done():
                del self._answers[old]
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        if any(each[:2] == key[:2] and each > key for each in self._answers):
            answer.set_result(Reply("ended", FIRST))
            return answer, False
        self._answers[key] = answer
        return answer, True

    def give(self, key: Key, reply: Reply) -> None:
        """Answer a message; nobody need be waiting."""
        answer = self._answers.get(key)
        if answer is not None and not answer.done():
            answer.set_result(reply)

    def forget(self, member: int, incarnation: int) -> None:
        """Let go of a process that is gone, and of those before it."""
        for key in [each for each in self._answers if each[0] == member and each[1] <= incarnation]:
            self.give(key, Reply("ended", FIRST))
            del self._answers[key]

    def decline(self, key: Key, error: Exception) -> None:
        """Let a message fail that cannot be judged; it may be sent again."""
        answer = self._answers.pop(key, None)
        if answer is not None and not answer.done():
            answer.set_exception(error)
            # Retrieved here: everybody who waited may be gone.
            answer.exception()
