"""What is due after an update: a log line, a validation, a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from dist_train.rules.sampling import Cursor


@dataclass(frozen=True)
class Due:
    log: bool
    validation: bool
    checkpoint: bool


@dataclass(frozen=True)
class Timetable:
    """Intervals in updates, or, for validation, in epochs when ``validate_steps`` is None."""

    log_steps: int
    validate_epochs: int
    validate_steps: int | None
    checkpoint_steps: int

    def after(self, updates: int, cursor: Cursor, finished: bool) -> Due:
        """Say what is due when ``updates`` have been made and the data stand at ``cursor``.

        The end of training is always logged, validated and saved. No epoch ends while samples dealt before
        it are not trained.
        """
        return Due(
            log=finished or updates % self.log_steps == 0,
            validation=finished or self._validation(updates, cursor),
            checkpoint=finished or updates % self.checkpoint_steps == 0,
        )

    def _validation(self, updates: int, cursor: Cursor) -> bool:
        if self.validate_steps is not None:
            return updates % self.validate_steps == 0
        position = cursor.position
        ends = position.offset == 0 and not cursor.unfinished
        return ends and position.epoch % self.validate_epochs == 0
