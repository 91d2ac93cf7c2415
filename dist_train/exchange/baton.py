"""Threads of which exactly one runs: the one that holds the baton. A schedule sets the order.

It turns what happens at once in a real run into moves, one after the other, the same in every run.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from dist_train.errors import TrainingError

# A move that takes longer is stuck.
LIMIT_S = 60.0


@dataclass(frozen=True)
class Move:
    """What a member may do next; ``goes_on``: it was answered."""

    member: int
    goes_on: bool


# Chooses one of the moves there are, which come in the order of members.
Schedule = Callable[[Sequence[Move]], Move]


def in_step() -> Schedule:
    """Let members move round by round: all speak, then all that were answered go on."""
    last = -1

    def choose(moves: Sequence[Move]) -> Move:
        nonlocal last
        chosen = next((move for move in moves if move.member > last), moves[0])
        last = chosen.member
        return chosen

    return choose


def one_by_one() -> Schedule:
    """Let members speak round by round, and whoever was answered go on before anybody speaks.

    With a quorum of one, each gradient's staleness is then the number of the other members, from the second
    round on.
    """
    next_to_speak = in_step()

    def choose(moves: Sequence[Move]) -> Move:
        return next((move for move in moves if move.goes_on), None) or next_to_speak(moves)

    return choose


def seeded(seed: int) -> Schedule:
    """Let chance choose, the same with every run of a seed."""
    return random.Random(seed).choice


def script(members: Iterable[int], then: Schedule | None = None) -> Schedule:
    """Let these members move, one move for each mention, and then go by another schedule.

    Raises ValueError for a member that cannot move when it is its turn.
    """
    left, rest = deque(members), then or in_step()

    def choose(moves: Sequence[Move]) -> Move:
        if not left:
            return rest(moves)
        member = left.popleft()
        for move in moves:
            if move.member == member:
                return move
        raise ValueError(f"the script wants member {member} to move, but only {list(moves)} are possible")

    return choose


class _Ended(BaseException):
    """Ends a thread where it stands."""


class Runner:
    """A thread that does ``body``, but only while it holds the baton; it does not hold it yet."""

    def __init__(self, name: str, body: Callable[[], None]) -> None:
        self.done = False
        self._name = name
        self._body = body
        self._error: Exception | None = None
        self._ends = False
        self._baton = threading.Semaphore(0)
        self._handed_back = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def move(self) -> None:
        """Hand the baton over until it comes back; raises what the body raised."""
        self._baton.release()
        if not self._handed_back.acquire(timeout=LIMIT_S):
            raise TrainingError(f"{self._name} has kept the baton for {LIMIT_S:g} s")
        if self._error is not None:
            raise self._error

    def hand_back(self) -> None:
        """Hand the baton back until it is this thread's turn again; for the body alone."""
        self._handed_back.release()
        self._wait()

    def end(self) -> None:
        """End the thread where it stands: it never gets the baton again."""
        self._ends = True
        self._baton.release()
        self._thread.join(LIMIT_S)

    def _run(self) -> None:
        try:
            self._wait()
            self._body()
        except _Ended:
            pass
        except Exception as error:
            self._error = error
        self.done = True
        self._handed_back.release()

    def _wait(self) -> None:
        self._baton.acquire()
        if self._ends:
            raise _Ended
