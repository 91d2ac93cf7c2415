"""The errors a user sees, and the exit status each ends the program with."""

from __future__ import annotations

from collections.abc import Sequence

DONE = 0
FAILED = 1
REFUSED = 2
INTERRUPTED = 75


class ConfigError(Exception):
    """The configuration or the usage is wrong and nothing was started (exit status 2).

    ``problems`` holds one line for each thing that is wrong: what, where, and what to do.
    """

    def __init__(self, problems: Sequence[str] | str) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[str, ...]]]:
        return (ConfigError, (self.problems,))


class TrainingError(Exception):
    """Training cannot go on (exit status 1); the message says why and what to do, in one line."""


class Mismatch(TrainingError):
    """The workers of a run do not agree on what they are about to train (exit status 2)."""


class BadSample(Exception):
    """A sample cannot be read or decoded; ``name`` says which one, for instance a file's path."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason
        super().__init__(f"{name}: {reason}")

    def __reduce__(self) -> tuple[type[BadSample], tuple[str, str]]:
        return (BadSample, (self.name, self.reason))
