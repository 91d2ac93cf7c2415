"""Answers that are waited for: each message is judged once, however often it comes."""

from __future__ import annotations

import asyncio

from dist_train.rules.messages import Reply

# Who says it (member and incarnation), and the number of what is said.
Key = tuple[int, int, int]


class Answers:
    """Whoever sends a message again waits for the same answer, or gets it again."""

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
        self._answers[key] = asyncio.get_running_loop().create_future()
        return self._answers[key], True

    def give(self, key: Key, reply: Reply) -> None:
        """Answer a message; nobody need be waiting."""
        answer = self._answers.get(key)
        if answer is not None and not answer.done():
            answer.set_result(reply)

    def decline(self, key: Key, error: Exception) -> None:
        """Let a message fail that cannot be judged; it may be sent again."""
        answer = self._answers.pop(key)
        if not answer.done():
            answer.set_exception(error)
            # Retrieved here: everybody who waited may be gone.
            answer.exception()
