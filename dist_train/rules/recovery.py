"""What to do after a failure: whose fault it was, and whether and when to start again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# What a worker says when its peer has gone: the peer's failure is the cause, this is the echo.
ECHOES = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "connection was likely closed",
    "broken pipe",
    "timed out waiting",
    "socket has timed out",
    "socket timeout",
    "application timeout caused pair closure",
    "failed to recv, got 0 bytes",
    "remote process exited",
    "communicator was aborted",
    "ncclremoteerror",
)


@dataclass(frozen=True)
class Failure:
    """How one worker failed.

    ``kind`` is what two failures are compared by (``RuntimeError``, ``SIGKILL``, ``hung``), ``error`` is
    what a person reads, ``at`` is in seconds of the monotonic clock. ``killed``: it was ended from outside,
    by a signal or because it hung, and not by an error of its own.
    """

    rank: int
    step: int
    phase: str
    kind: str
    error: str
    at: float
    killed: bool = False

    @property
    def is_echo(self) -> bool:
        """Whether this is what the failure of a peer looks like from here."""
        return any(echo in self.error.lower() for echo in ECHOES)


@dataclass(frozen=True)
class Attempt:
    """One start from step ``started_from``, of all workers or of one, and the failure that ended it.

    ``work``: what it and the attempts before it have got done by themselves, where others go on meanwhile and
    the step is no measure of that.
    """

    started_from: int
    failure: Failure
    work: int | None = None

    @property
    def reached(self) -> int:
        return max(self.started_from, self.failure.step)

    @property
    def progress(self) -> int:
        return self.reached if self.work is None else self.work

    @property
    def place(self) -> str:
        return "the start-up" if self.failure.phase == "starting" else f"step {self.reached}"


@dataclass(frozen=True)
class Limits:
    """``max_restarts`` counts restarts without progress in between."""

    max_restarts: int
    backoff_s: float
    max_backoff_s: float


@dataclass(frozen=True)
class Restart:
    delay_s: float


@dataclass(frozen=True)
class Stop:
    reason: str


def culprit(failures: Sequence[Failure]) -> Failure:
    """Pick the first failure in time that is no mere echo of another; the first of all when each is one."""
    return min(failures, key=lambda failure: (failure.is_echo, failure.at))


def after_failure(attempts: Sequence[Attempt], limits: Limits) -> Restart | Stop:
    """Decide after the last of ``attempts`` has failed. The delay doubles with each restart in vain."""
    last = attempts[-1]
    failure = last.failure
    if limits.max_restarts == 0:
        return Stop("not restarting: recovery.max_restarts is 0")
    if len(attempts) == 1 and failure.phase == "starting" and not failure.killed:
        return Stop("not restarting: the workers failed before their first step")
    if any(_same(earlier, last) for earlier in attempts[:-1]):
        return Stop(f"not restarting: {last.place} failed twice: {failure.error}")
    alike = sum(1 for attempt in attempts if _same_error(attempt.failure, failure))
    if alike > limits.max_restarts:
        return Stop(f"not restarting: the same error {alike} times: {failure.error}")
    in_vain = _restarts_in_vain(attempts)
    if in_vain >= limits.max_restarts:
        return Stop(f"not restarting: {in_vain} restarts (recovery.max_restarts) without progress")
    return Restart(min(limits.max_backoff_s, limits.backoff_s * 2.0 ** min(in_vain, 64)))


def fail_alike(last: Sequence[Failure | None]) -> bool:
    """Say whether several workers, and all there are, failed ``last`` by one error in one step.

    It is then the program that fails, and nobody who takes their place can mend that.
    """
    failures = [failure for failure in last if failure is not None]
    return (
        len(last) > 1
        and len(failures) == len(last)
        and all(
            failure.step == failures[0].step and _same_error(failure, failures[0]) for failure in failures
        )
    )


def _same(one: Attempt, other: Attempt) -> bool:
    first, second = one.failure, other.failure
    # An error that all workers make is reported by whichever comes first; a kill strikes one of them.
    same_worker = first.rank == second.rank or not second.killed
    return (one.place, first.kind) == (other.place, second.kind) and same_worker


def _restarts_in_vain(attempts: Sequence[Attempt]) -> int:
    """Count the restarts since the last one that got further than every attempt before it."""
    furthest, in_vain = attempts[0].progress, 0
    for attempt in attempts[1:]:
        in_vain = 0 if attempt.progress > furthest else in_vain + 1
        furthest = max(furthest, attempt.progress)
    return in_vain


def _same_error(one: Failure, other: Failure) -> bool:
    """Tell an error of the program, which restarts do not mend, from one of the machines."""
    return not one.killed and not other.killed and (one.kind, one.error) == (other.kind, other.error)
